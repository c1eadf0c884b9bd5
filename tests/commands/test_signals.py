"""SIGINT and SIGTERM end a command at any moment, with one line and exit code 130 or 143; groups of processes, too."""

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
    """Wait for a process; assert that it ends with the signal's exit code and line. Returns its standard output."""
    printed, errors = process.communicate(timeout=60)
    word, code = ENDS[number]
    assert process.returncode == code, errors
    assert errors.splitlines()[-1].rpartition("\r")[2] == word + advice, errors
    assert errors.count(word) == 1 and not any(trace in errors + printed for trace in TRACES), errors
    return printed


# Moments at which a signal may come: bodies of `main`, with {} for the signal's number.
MOMENTS = {
    "at work": "signal.raise_signal({})",
    "in the destructor of an object": """
class A:
    def __del__(self):
        signal.raise_signal({})
A()
time.sleep(60)""",
    "inside a handler of all errors": """
try:
    signal.raise_signal({})
except BaseException:
    raise RuntimeError("gloo") from None""",
    "while a progress bar is shown": """
from tqdm.auto import tqdm
for _ in tqdm(range(9)):
    signal.raise_signal({})""",
    "when all is done": "import atexit; atexit.register(lambda: signal.raise_signal({}))",
    "while an error is printed": """
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
    "and then the process hangs": """
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
def test_the_last_line_names_the_signal_at_any_moment(moment, number):
    body = "\n".join(f"    {line}" for line in MOMENTS[moment].replace("{}", str(int(number))).strip().splitlines())
    printed = ended(start("-c", RUN.format(body)), number, "; go on")
    assert "nothing of this is lost" in printed


def test_a_temporary_file_is_removed_on_a_signal(tmp_path):
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


def test_importing_a_command_leaves_a_programs_signal_handlers():
    for script, printed in (("-c", "True True False"), ("training", "True True False"),
                            (str(ROOT / "training" / "x.py"), "False False False")):  # fmt: skip
        assert start("-c", IMPORT.format(script)).communicate(timeout=60)[0].strip() == printed, script


COMMANDS = [path for path in sorted((ROOT / "training").rglob("*.py")) if "\n    run(main" in path.read_text("utf-8")]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_a_command_first_imports_the_module_that_handles_signals(path):
    imports = [
        node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert getattr(imports[0], "module", "") == "training.common.start"


def wait_for_library(process, name):
    """Wait until a process has loaded a library whose file name begins with `name`, or has ended."""
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
def test_a_signal_during_the_imports_ends_the_command(script, number):
    process = start(script, "--help")
    wait_for_library(process, "libtorch_cpu")
    process.send_signal(number)
    ended(process, number)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("script", ["train", "predict"])
def test_a_signal_at_a_random_time_ends_the_command(tmp_path, script):
    """Twelve runs. The signal comes at any time from the import of libraries to the interpreter's end."""
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
        if process.returncode in (0, -number):  # the work was done: at its very end, Python restores its own handlers
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
def test_a_signal_to_a_group_with_data_loader_workers_ends_the_command(tmp_path, number, case):
    """
    A scheduler ends a job by sending the signal to each of its processes. `WITH_WORKERS` adds the workers: on the CPU,
    data loaders have none.
    """
    given = training_arguments(toy_folder(tmp_path), tmp_path / "out", "--num_epochs", "500", "--save_steps", "2",
                               "--patience", "500", "--report_to", "none")  # fmt: skip
    process = start("-c", WITH_WORKERS, *given, start_new_session=True)
    while not list((tmp_path / "out").glob("checkpoints/state_*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(random.Random(case).random())
    os.killpg(process.pid, number)
    ended(process, number, "; go on with --resume")
