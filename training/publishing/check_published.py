"""
Check that a folder to be published loads anywhere, with the same results as here.

    python training/publishing/check_published.py FOLDER
    python training/publishing/check_published.py FOLDER --python other/bin/python

Checks the folder's files, then loads it in an isolated interpreter (load_published.py beside this file): it finds only
torch, transformers and their requirements, not the repository; it has no network, an empty cache and a read-only home.
The folder is loaded once by path and once by name, from a cache in the Hub's layout. The expected results (token ids,
entities, the score of every span) are recorded here with the repository's own code. A third run adds Accelerate and
loads with `device_map`. `--python` uses another environment unchanged, with its own versions.
"""

from training.common.start import run, undone_by_signal


# isort: split
import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE
from huggingface_hub.utils.sha import sha_fileobj
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from training.common.progress import progress_bar
from training.fitting.checkpoint import load_checkpoint


CODE = Path(__file__).parents[2] / "modeling_sener"
SCRIPT = Path(__file__).parent / "load_published.py"
REPO, COMMIT = "someone/sener", "0" * 39 + "1"  # names in the cache
SECONDS = 3600  # time limit of one run
FILES = ("README.md", "config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
HEADER = ("license", "language", "library_name", "pipeline_tag", "tags")  # of a model card
# They include full-width letters, ligatures, a no-break space, combining marks and unknown characters.
TEXTS = (
    "We train ResNet-50 on ImageNet for image classification and report top-1 accuracy.",
    "ＡＢ１ ﬁne-tuning of BERT\u00a0on CoNLL-2003, e\u0301tude №5: F1 = 1,000.5 😀 \u200b漢字",
    "",
    "Long short-term memory networks are trained on the Penn Treebank (PTB); perplexity falls from 78.4 to 65.8. "
    "We compare with a convolutional encoder, which needs no recurrence, on machine translation and on question "
    "answering.",
)


@dataclass
class Result:
    """
    The result of `check_published_folder`.

    Attributes:
        versions: of python, torch, transformers, and of accelerate if it is installed.
        packages: names of all packages of the environment.
        passed: names of passed checks, each with the largest difference of a score (0..1) from the recorded one.
        failures: a sentence for each fault. The folder is fit to be published if there are none.
    """

    versions: dict[str, str] = field(default_factory=dict)
    packages: list[str] = field(default_factory=list)
    passed: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def check_published_folder(
    folder: str | Path, python: str | Path | None = None, recorded: dict | None = None
) -> Result:
    """
    Do all checks that are described at the top of this file.

    Args:
        folder: a checkpoint.
        python: the interpreter of an environment; by default this one's, with only its torch and transformers.
        recorded: of `record`; computed here by default.

    Raises:
        CheckpointError: this repository cannot load the folder as a SeNER checkpoint.
    """
    folder = Path(folder)
    recorded = record(folder) if recorded is None else recorded
    result = Result(failures=file_faults(folder))
    if not result.failures:
        result.passed["files"] = 0.0
    with (
        tempfile.TemporaryDirectory(prefix="published-") as temporary,
        undone_by_signal(partial(shutil.rmtree, temporary, ignore_errors=True)),
    ):
        place = Path(temporary).resolve()
        shutil.copytree(folder, place / "copy")
        (place / "recorded.json").write_text(json.dumps(recorded), encoding="ascii")
        shutil.copyfile(SCRIPT, place / SCRIPT.name)
        runs = [("folder", False), ("cache", False), ("folder", True)]
        for number, (source, device_map) in enumerate(progress_bar(runs, desc="loading in isolation", leave=False)):
            found = run_isolated(place, f"run{number}", source, device_map, python)
            result.versions |= found["versions"]
            result.packages = result.packages or found["packages"]
            result.passed |= {f"{name} ({source})": worst for name, worst in found["passed"].items()}
            result.failures += [f"{source}: {failure}" for failure in found["failures"]]
    return result


def record(folder: str | Path) -> dict:
    """
    Record the results of the repository's own code on `TEXTS`: `input_ids`, `word_index`; `every_span`, five columns:
    number of the text, first word, last word + 1, number of the label, score; `entities` by text, as (start, end,
    label, score); and the `labels` and the text of the `code`.
    """
    model, processor = load_checkpoint(folder)
    inputs = processor(list(TEXTS))
    candidates = model.find_candidates(**inputs, thresholds=torch.zeros(model.config.num_labels, dtype=torch.float64))
    with torch.no_grad():
        entities = processor.post_process(model(**inputs), inputs)
    columns = ("start", "end", "label", "score")
    return {
        "texts": TEXTS,
        "labels": model.config.labels,
        "code": {file.name: file.read_text(encoding="utf-8") for file in CODE.glob("[!_]*.py")},
        **{name: inputs[name].tolist() for name in ("input_ids", "word_index")},
        "every_span": [column.tolist() for column in candidates],
        "entities": [[[entity[column] for column in columns] for entity in text] for text in entities],
    }


def file_faults(folder: Path) -> list[str]:
    """
    A sentence for each fault of a folder's files: a file is missing, or not to be published; code differs from the
    repository's; shards have no index; the card's header is incomplete or not valid YAML.
    """
    names = {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    code = {file.name for file in CODE.glob("[!_]*.py")}
    index = folder / SAFETENSORS_INDEX_FILE
    if index.is_file():
        weights = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values(), index.name}
    else:
        weights = {"model.safetensors"}
    wanted = {*FILES, *code, *weights}
    wrong = [f"{name} is missing" for name in sorted(wanted - names)]
    wrong += [
        f"{name} is no file of a published model" for name in sorted(names - wanted - {"__init__.py", "LICENSE"})
    ]
    wrong += [f"{name} is not the repository's" for name in sorted(code & names)
              if (folder / name).read_bytes() != (CODE / name).read_bytes()]  # fmt: skip
    if "README.md" in names:
        try:
            header = ModelCard.load(folder / "README.md").data.to_dict()
        except (yaml.YAMLError, ValueError) as error:
            wrong.append(f"README.md: the header is not valid YAML: {' '.join(str(error).split())}")
        else:
            wrong += [f"README.md: the header has no {name}" for name in HEADER if not header.get(name)]
    return wrong


def run_isolated(place: Path, name: str, source: str, device_map: bool, python: str | Path | None) -> dict:
    """
    Run `load_published.py` once, with a home of its own. Returns the object that it prints.

    Args:
        place: a folder with `copy` (of the folder to be published), `recorded.json` and `load_published.py`.
        name: of the run's folder below `place`.
        source: "folder" or "cache".
    """
    here, hub = place / name, place / name / "hf" / "hub"
    (here / "home").mkdir(parents=True)
    (here / "work").mkdir()
    if source == "cache":
        lay_out_cache(place / "copy", hub)
    (here / "home").chmod(0o555)
    site = None
    if python is None:
        site = link_packages(here / "site", ["torch", "transformers", *(["accelerate"] if device_map else [])])
    request = {
        "source": REPO if source == "cache" else str(place / "copy"), "recorded": str(place / "recorded.json"),
        "site": site and str(site), "read_only": [str(here / "home"), str(place / "copy")], "work": str(here / "work"),
        "device_map": device_map,
    }  # fmt: skip
    (here / "request.json").write_text(json.dumps(request), encoding="ascii")
    ours = ("HF_", "PYTHON", "TRANSFORMERS_", "XDG_", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment |= {"HOME": str(here / "home"), "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "1"}
    # -I: ignore variables, the user's packages and this script's folder; -S: no site-packages, and no .pth files.
    command = [
        Path(python or sys.executable).absolute(),
        "-I",
        *(["-S"] if python is None else []),
        place / SCRIPT.name,
    ]
    failed = {"versions": {}, "packages": [], "passed": {}}
    try:
        done = subprocess.run([*map(str, command), here / "request.json"], cwd=here / "work", env=environment,
                              capture_output=True, encoding="utf-8", errors="replace",
                              timeout=SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {**failed, "failures": [f"the interpreter was not done in {SECONDS} seconds"]}
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {**failed, "failures": [f"the interpreter failed: {last}"]}
    return json.loads(done.stdout.splitlines()[-1])


def lay_out_cache(folder: Path, hub: Path) -> None:
    """Write `folder` below `hub` in the layout of `huggingface_hub`: content once, named by its hash, and links."""
    root = hub / f"models--{REPO.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for needed in (root / "blobs", root / "refs", snapshot):
        needed.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT, encoding="ascii")
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as content:
                blob = root / "blobs" / sha_fileobj(content).hex()
            if not blob.exists():
                os.link(file, blob)
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))


def link_packages(site: Path, names: Iterable[str]) -> Path:
    """Make `site` a folder of links to packages of this environment and to their requirements."""
    site.mkdir()
    waiting, done = [canonicalize_name(name) for name in names], set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
        for line in distribution.requires or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(required.name))
    return site


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="the checkpoint to be published")
    parser.add_argument("--python", metavar="FILE", help="interpreter of an environment to check in, as it is")
    options = parser.parse_args(arguments)
    result = check_published_folder(options.folder, options.python)
    print(", ".join(f"{name} {version}" for name, version in result.versions.items()))
    for name, worst in result.passed.items():
        print(f"passed: {name}" + (f", scores within {worst:.1g}" if worst else ""))
    if result.failures:
        raise ValueError(f"{options.folder}: not fit to be published:\n  " + "\n  ".join(result.failures))


if __name__ == "__main__":
    run(main)
