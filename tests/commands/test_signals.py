"""SIGINT and SIGTERM end a command with one line and 130 or 143, at any moment; a whole group of processes, too."""

import ast
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.predictions import toy_checkpoint, toy_corpus
from support.toy import ROOT, one_core, toy_folder, training_arguments


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows is sent no such signals")
ENDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}
TRACES = ("Traceback", "Exception ignored", "Error")


def start(*command, **options):
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                            "CUDA_VISIBLE_DEVICES": ""}, preexec_fn=one_core, **options)  # fmt: skip


def ended(process, number, advice=""):
    """The process ends as the signal's number says, and its last line says how."""
    printed, errors = process.communicate(timeout=60)
    word, code = ENDS[number]
    assert process.returncode == code, errors
    assert errors.splitlines()[-1].rpartition("\r")[2] == word + advice, errors
    assert errors.count(word) == 1 and not any(trace in errors + printed for trace in TRACES), errors
    return printed


# What a signal may meet, as the body of `main`.
MOMENTS = {
    "at work": "signal.raise_signal({})",
    "in the end of an object": """
class A:
    def __del__(self):
        signal.raise_signal({})
A()
time.sleep(60)""",
    "where all errors are caught": """
try:
    signal.raise_signal({})
except BaseException:
    raise RuntimeError("gloo") from None""",
    "where a bar is shown": """
from tqdm.auto import tqdm
for _ in tqdm(range(9)):
    signal.raise_signal({})""",
    "when all is done": "import atexit; atexit.register(lambda: signal.raise_signal({}))",
    "while an error is told": """
class Fault(ValueError):
    def __str__(self):
        signal.raise_signal({})
        return "fault"
raise Fault""",
    "twice": """
class Stream:
    def flush(self):
        print("nothing of this is lost", end="", file=sys.__stdout__, flush=True)
        signal.raise_signal({})
        time.sleep(60)
sys.stdout = Stream()
signal.raise_signal({})""",
    "where the end hangs": """
try:
    signal.raise_signal({})
finally:
    lock = threading.Lock()
    lock.acquire() and lock.acquire()""",
    "after another process of the run has ended": """
threading.Timer(0.2, lambda: os.kill(os.getpid(), {})).start()
raise RuntimeError("gloo: connection closed by peer")""",
    "in a process that was forked": """
if not os.fork():
    signal.raise_signal({})
os.wait()
signal.raise_signal({})""",
}
RUN = """
import os, signal, sys, threading, time
from training.common.start import run
def main():
{}
print("nothing of this is lost", end="")
run(main, "go on")
"""


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_a_signal_comes_the_last_line_says_so(moment, number):
    body = "\n".join(f"    {line}" for line in MOMENTS[moment].replace("{}", str(int(number))).strip().splitlines())
    printed = ended(start("-c", RUN.format(body)), number, "; go on")
    assert "nothing of this is lost" in printed


def test_what_would_outlive_the_process_is_undone(tmp_path):
    body = "with undone_by_signal(lambda: os.remove(sys.argv[1])):\n        signal.raise_signal(15)"
    (tmp_path / "aside").touch()
    code = RUN.format("    " + body).replace("import run", "import run, undone_by_signal")
    ended(start("-c", code, tmp_path / "aside"), signal.SIGTERM, "; go on")
    assert not (tmp_path / "aside").exists()


IMPORT = """
import os, signal, sys
sys.argv[0], own = {!r}, signal.getsignal(2)
import training.common.start
print(own is signal.getsignal(2), signal.getsignal(15) is signal.SIG_DFL, "torch" in sys.modules)
"""


def test_a_program_that_uses_a_command_is_left_as_it_is():
    for script, printed in (("-c", "True True False"), ("training", "True True False"),
                            (str(ROOT / "training" / "x.py"), "False False False")):  # fmt: skip
        assert start("-c", IMPORT.format(script)).communicate(timeout=60)[0].strip() == printed, script


COMMANDS = [path for path in sorted((ROOT / "training").rglob("*.py")) if "\n    run(main" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_imports_first_what_tells_of_signals(path):
    imports = [
        node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert getattr(imports[0], "module", "") == "training.common.start"


def wait_for_library(process, name):
    """Until a process has a library whose file's name begins so."""
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None:
        try:
            if f"/{name}" in maps.read_text():
                return
        except OSError:
            return
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("script", ["training/train.py", "training/predict.py", "training/score.py", "space/app.py"])
def test_a_signal_while_libraries_are_imported(script, number):
    process = start(script, "--help")
    wait_for_library(process, "libtorch_cpu")
    process.send_signal(number)
    ended(process, number)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("script", ["train", "predict"])
def test_signals_at_random(tmp_path, script):
    """Twelve runs, from the import of libraries to the interpreter's end."""
    toy_folder(tmp_path)
    toy_checkpoint(tmp_path)
    toy_corpus(tmp_path / "corpus.jsonl", 300)

    def given(run):
        if script == "train":
            return training_arguments(tmp_path, tmp_path / run, "--num_epochs", "2", "--save_steps", "3")
        return ["--model", tmp_path / "model", "--input", tmp_path / "corpus.jsonl",
                "--output", tmp_path / f"{run}.jsonl"]  # fmt: skip

    process = start(f"training/{script}.py", *given("whole"))
    wait_for_library(process, "_ctypes")
    begin = time.monotonic()
    process.communicate()
    seconds = time.monotonic() - begin
    for case in range(12):
        chance = random.Random(case)
        process, number = start(f"training/{script}.py", *given(str(case))), chance.choice([*ENDS])
        wait_for_library(process, "_ctypes")
        time.sleep(0.1 + chance.random() * seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert not any(trace in errors for trace in TRACES), errors
        last = errors.splitlines()[-1].rpartition("\r")[2]
        if process.returncode in (0, -number):  # all was done: at its very end, Python takes its handlers back
            assert (tmp_path / str(case) / "checkpoints" / "history.json" if script == "train" else
                    tmp_path / f"{case}.jsonl").exists()  # fmt: skip
        else:
            assert last.startswith(ENDS[number][0]) and process.returncode == ENDS[number][1], errors


WITH_WORKERS = """
import sys
from training.common.start import run
def main():
    from training import train
    from training.corpus.batches import StepBatches
    loader = StepBatches.loader
    StepBatches.loader = lambda self, epoch, first_step=0, workers=0: loader(self, epoch, first_step, 2)
    train.main(sys.argv[1:])
run(main, "go on with --resume")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("case", range(4))
def test_a_group_with_workers_of_a_data_loader(tmp_path, number, case):
    """As a scheduler ends a job: each process of it is sent the signal. On the CPU no loader has workers otherwise."""
    given = training_arguments(toy_folder(tmp_path), tmp_path / "out", "--num_epochs", "500", "--save_steps", "2",
                               "--patience", "500", "--report_to", "none")  # fmt: skip
    process = start("-c", WITH_WORKERS, *given, start_new_session=True)
    while not list((tmp_path / "out").glob("checkpoints/state_*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(random.Random(case).random())
    os.killpg(process.pid, number)
    ended(process, number, "; go on with --resume")
