"""SECURITY.md's promises for the commands: no code from data is run, no file outside of its folder is touched."""

import ast
import contextlib
import os
import pickle
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator
from support.toy import ROOT, write_jsonl

from training.corpus.data import read_documents
from training.corpus.parquet import read_parquet
from training.publish import check_arguments, parse_arguments


CODE = sorted(path for name in ("training", "space", "modeling_sener") for path in (ROOT / name).rglob("*.py"))
# Ways to run code from data, or through a shell.
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "jsonpickle",
           "tarfile", "zipfile"}  # fmt: skip
FUNCTIONS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.save",
             "shutil.unpack_archive"}  # fmt: skip
# Members of yaml that are allowed. `compose` makes nodes, no objects.
YAML = {"safe_load", "safe_load_all", "safe_dump", "safe_dump_all", "compose", "SafeLoader", "YAMLError"}
# Methods that unpickle or write outside of a folder. Accelerate unpickles any object that is registered.
METHODS = {"register_for_checkpointing", "extractall", "read_pickle", "to_pickle"}


def dangers(source: str) -> list[str]:
    """The line and name of each forbidden use in `source`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            names = []
        for name in names:
            first, _, rest = name.partition(".")
            if first in MODULES or name in FUNCTIONS or (first == "yaml" and rest and rest not in YAML):
                found.append(f"{line}: {name}")
            if isinstance(node, ast.ImportFrom) and name == "torch.load":
                found.append(f"{line}: {name}")  # the check of calls below would miss it
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            found.append(f"{line}: {node.attr}")
        if isinstance(node, ast.Name) and node.id in CALLS:
            found.append(f"{line}: {node.id}")
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
                found.append(f"{line}: {ast.unparse(node)}")
            if ast.unparse(node.func) == "torch.load" and given.get("weights_only") != "True":
                found.append(f"{line}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_data(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)", "exec(x)", "f = compile", "__import__(x)", "import pickle", "from pickle import loads",
        "import marshal as m", "from shelve import open", "torch.load(x)", "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=flag)", "from torch import load", "torch.save(x, y)", "from torch import save",
        "yaml.load(x)", "yaml.load(x, Loader=yaml.SafeLoader)", "from yaml import full_load", "yaml.unsafe_load(x)",
        "subprocess.run(x, shell=True)", "subprocess.run(x, shell=flag)", "os.system(x)", "from os import system",
        "np.load(x, allow_pickle=True)", "accelerator.register_for_checkpointing(x)", "tarfile.open(x).extractall()",
        "import zipfile", "pd.read_pickle(x)",
    ],
)  # fmt: skip
def test_every_forbidden_use_is_found(code):
    assert dangers(code) != []


class Code:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_to_resume_from_runs_no_code(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, optimizer, schedule)
    accelerator.save_state(tmp_path / "state")
    files = [path for path in (tmp_path / "state").iterdir() if path.suffix in (".bin", ".pkl")]
    assert len(files) == 3 and (tmp_path / "state" / "model.safetensors").is_file()
    for file in files:
        kept = file.read_bytes()
        torch.save({"step": Code(tmp_path / "made")}, file)
        # Accelerate goes on without random states that it cannot read.
        refused = pytest.raises(pickle.UnpicklingError, match="Weights only")
        with refused if file.suffix == ".bin" else contextlib.nullcontext():
            accelerator.load_state(tmp_path / "state")
        assert not (tmp_path / "made").exists()
        file.write_bytes(kept)


def test_paths_in_data_are_not_opened(tmp_path):
    watching, opened, content = [], [], "/etc/passwd"
    record = {"id": "../../x", "text": content, "file": content, "image": {"path": content, "bytes": None}}
    write_jsonl(tmp_path / "a.jsonl", [{**record, "entities": []}])
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if watching and event == "open" else None)
    watching.append(True)
    (document,) = read_documents(tmp_path / "a.jsonl")
    (other,) = read_parquet(str(tmp_path / "a.parquet"))
    watching.clear()  # an audit hook cannot be removed
    assert document.text == other.text == content and document.id == other.id == "../../x"
    assert {path for path in opened if not path.endswith((".py", ".pyc"))} <= {str(tmp_path / "a.jsonl")}


@pytest.mark.parametrize(
    "name", ["../x", "x/..", "../../x/y", "/etc/x", "x/../../y", "~/x", "x\\..\\y/z", ".", "x/.y/../z"]
)
def test_names_of_repositories_cannot_leave_the_output_folder(name, tmp_path):
    for option in ("--repo", "--space"):
        arguments = {"--repo": "someone/model", option: name}
        words = ["--model", str(tmp_path), "--dry-run", *(word for pair in arguments.items() for word in pair)]
        with pytest.raises(ValueError, match=option):
            check_arguments(parse_arguments(words))
