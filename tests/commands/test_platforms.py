"""Run the commands, and the demo's reading of files, as on Windows and macOS; find uses of features that they lack."""

import ast
import json
import pickle

import pytest
from support.elsewhere import WITHOUT
from support.predictions import toy_checkpoint, toy_corpus
from support.toy import CODE, ROOT, python, toy_folder, training_arguments

from training.fitting.fields import parse_fields


# Members of `os` and `signal` that Windows lacks.
UNIX = {"fork", "forkpty", "getuid", "geteuid", "getgid", "killpg", "getpgid", "setsid", "sched_getaffinity",
        "sched_setaffinity", "register_at_fork", "sysconf", "uname", "mkfifo", "statvfs", "nice", "SIGKILL", "SIGALRM",
        "SIGHUP", "SIGUSR1", "SIGCHLD", "setitimer", "pthread_sigmask", "sigwait"}  # fmt: skip


def unguarded(source):
    """Find uses of features that some systems lack, unless a `try`, or an `if` that tests for them, is around them."""
    found = []

    def look(node, guarded):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found.extend(f"{node.lineno}: import {name}" for name in names if name in WITHOUT and not guarded)
        if isinstance(node, ast.Attribute) and node.attr in UNIX and isinstance(node.value, ast.Name):
            if node.value.id in ("os", "signal") and not guarded:
                found.append(f"{node.lineno}: {node.value.id}.{node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "preexec_fn" and not isinstance(node.value, ast.IfExp):
            found.append(f"{node.value.lineno}: preexec_fn")
        words = ("sys.platform", "hasattr(os", "hasattr(signal")
        asks = isinstance(node, ast.If | ast.IfExp) and any(word in ast.unparse(node.test) for word in words)
        inner = guarded or isinstance(node, ast.Try) or asks
        for child in ast.iter_child_nodes(node):
            look(child, inner)

    look(ast.parse(source), False)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_guards_features_that_some_systems_lack(path):
    assert unguarded(path.read_text(encoding="utf-8")) == []


def test_an_unguarded_feature_is_found():
    for source in ("import fcntl", "from resource import setrlimit", "os.sched_getaffinity(0)", "os.fork()",
                   "subprocess.Popen(a, preexec_fn=f)", "if x:\n    import resource"):  # fmt: skip
        assert len(unguarded(source)) == 1, source
    for source in ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None",
                   "if sys.platform == 'linux':\n    import resource",
                   "x = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1"):  # fmt: skip
        assert not unguarded(source), source


@pytest.mark.slow
@pytest.mark.parametrize("system", ["windows", "macos"])
def test_commands_run_on_other_systems(system, tmp_path):
    toy_folder(tmp_path)
    toy_checkpoint(tmp_path)
    toy_corpus(tmp_path / "corpus.jsonl", 70)
    (tmp_path / "a.txt").write_text("Ada Lovelace wrote it .")
    out, model = tmp_path / "out", str(tmp_path / "model")
    training = training_arguments(tmp_path, out, "--num_epochs", "2", "--save_steps", "3", "--average_epochs", "2")
    predicting = ["--model", model, "--input", str(tmp_path / "corpus.jsonl"), "--output"]
    commands = [
        ("train", training),
        ("train", [*training, "--resume"]),
        ("train", training),
        ("score", ["--model", str(out), "--data", str(tmp_path / "both.jsonl"), "--output", str(tmp_path / "r.json")]),
        *(
            ("predict", [*predicting, str(tmp_path / f"out{ending}")])
            for ending in (".jsonl", ".jsonl.gz", ".parquet")
        ),
        ("predict", [*predicting, str(tmp_path / "out.jsonl"), "--resume"]),
        ("extract", [str(tmp_path / "a.txt"), "--model", model]),
        ("soup", ["--models", model, model, "--output_dir", str(tmp_path / "soup")]),
        ("reading", [str(tmp_path / "a.txt"), "2000000000"]),
    ]
    done = python(ROOT / "tests" / "support" / "elsewhere.py", system, json.dumps(commands), OMP_NUM_THREADS="1")
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"texts": [["a.txt", "Ada Lovelace wrote it ."]]}
    assert done.stdout.count("resumed from") == 1 and "is complete" in done.stdout
    assert {path.name for path in tmp_path.glob("out*")} == {"out", "out.jsonl", "out.jsonl.gz", "out.parquet"}


def test_the_data_set_of_batches_can_be_pickled(tmp_path):
    """Data loaders pickle it for workers that are spawned: on Windows and macOS, and anywhere from Python 3.14 on."""
    from accelerate import Accelerator

    from modeling_sener import SenerConfig, SenerProcessor
    from training.corpus.batches import Collator, Masking
    from training.corpus.windows import StoredWindows
    from training.fitting.run import build_batches
    from training.fitting.run_data import store_windows

    toy_folder(tmp_path)
    fields = parse_fields(training_arguments(tmp_path, tmp_path / "out"))
    config = SenerConfig(id2label=dict(enumerate(["Material", "Method", "Person", "Task"])), **fields.model)
    processor = SenerProcessor.from_backbone(str(tmp_path / "bert"), config)
    store_windows(tmp_path / "windows.arrow", fields, processor, config)
    masking = Masking(processor.tokenizer, fields.mask_share)
    collator = Collator(processor.tokenizer.pad_token_id, config.span_window, config.triangles, config.num_labels)
    windows = StoredWindows(tmp_path / "windows.arrow")
    batches = build_batches(Accelerator(cpu=True), fields, windows, masking, collator)
    own = batches.loader(1).dataset
    other = pickle.loads(pickle.dumps(own))
    assert len(own) == len(other) == 8
    for (batch, weight), (same, same_weight) in zip(own, other, strict=True):
        assert weight == same_weight and all(tensor.equal(same[name]) for name, tensor in batch.items())
