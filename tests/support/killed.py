"""
Kill commands by SIGKILL: from inside, at a chosen event; or from outside, with all their workers. Stop training in
this process at a chosen step.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from importlib import import_module

import psutil
import pytest
import torch
from support.toy import ROOT, TWO_PROCESSES, one_core


def run_until_killed(command, point, ending, count, delay, arguments):
    """
    Run `main(arguments)` of training/COMMAND.py in a process that kills itself `delay` seconds after the `count`-th
    occurrence of `point`: an audit event of Python (a file is opened, renamed, removed, ...) for a file whose name
    ends with `ending`, or a call of the method "module:class.method".

    Returns:
        The exit code.
    """
    context = multiprocessing.get_context("forkserver")  # does the slow imports once
    context.set_forkserver_preload(["training.predict", "training.train"])
    process = context.Process(target=_run, args=(command, point, ending, count, delay, arguments))
    process.start()
    process.join()
    return process.exitcode


def _run(command, point, ending, count, delay, arguments):
    one_core()
    torch.set_num_threads(1)  # results are compared bit by bit
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main, kill = import_module(f"training.{command}").main, lambda: os.kill(os.getpid(), signal.SIGKILL)

    def reached():
        nonlocal count
        count -= 1
        if count == 0:
            threading.Timer(delay, kill).start() if delay else kill()

    if ":" in point:
        module, _, path = point.partition(":")
        owner, _, name = path.partition(".")
        owner = getattr(import_module(module), owner)
        method = getattr(owner, name)
        setattr(owner, name, lambda *given, **named: reached() or method(*given, **named))
    else:
        sys.addaudithook(lambda event, values: event == point and str(values[0]).endswith(ending) and reached())
    main(arguments)


class Stopped(BaseException):
    """No code of a run catches this exception."""


@contextlib.contextmanager
def stopped_after(steps):
    """Stop a training inside the `with` block after `steps` optimizer steps: the next one raises `Stopped`."""
    step, done = torch.optim.AdamW.step, []

    def stop(*arguments, **named):
        done.append(None)
        if len(done) > steps:
            raise Stopped
        return step(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(torch.optim.AdamW, "step", stop)
        yield


def start_two_processes(script, arguments):
    """Start `accelerate launch training/SCRIPT` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *TWO_PROCESSES, f"training/{script}", *arguments],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}, preexec_fn=one_core,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_with_workers(launcher):
    """Kill a launcher and its descendants (workers have their own sessions), and wait for their end."""
    below = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert len(below) >= 2 and launcher.wait() == -signal.SIGKILL and not psutil.wait_procs(below, timeout=60)[1]
