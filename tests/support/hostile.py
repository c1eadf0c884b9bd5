"""Simulate full disks; run commands in the background and send them signals."""

import multiprocessing
import os
import resource
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from threading import Thread

import psutil
import torch
from support.toy import one_core


MINUTE = 60
PATIENCE = 10 * MINUTE  # generous, for busy machines


@contextmanager
def full_disk(size):
    """Limit files of this process to `size` bytes: a write stops there with an error, as on a full disk."""
    limit_files(size)
    try:
        yield
    finally:
        limit_files(resource.RLIM_INFINITY)


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Command:
    """
    training/COMMAND.py in a background process, started as from a command line. It is forked from a server that has
    done the slow imports.

    Args:
        limit: bytes, as for `full_disk`.
    """

    def __init__(self, command, arguments, limit=resource.RLIM_INFINITY, **environment):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["training.predict", "training.train"])
        reader, writer = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_work, args=(writer, command, arguments, limit, environment), daemon=True
        )
        self.process.start()
        writer.close()
        self.pid, self.printed = self.process.pid, b""
        self._reading = Thread(target=self._read, args=(reader,), daemon=True)
        self._reading.start()

    def is_running(self):
        return self.process.exitcode is None

    def send(self, number):
        os.kill(self.pid, number)

    def end(self, timeout=PATIENCE):
        """Wait for the end. Returns the exit code, and the lines of both outputs; of progress bars, the last state."""
        self.process.join(timeout)
        assert not self.is_running(), self.printed
        self._reading.join()
        lines = self.printed.decode().split("\n")
        return self.process.exitcode, [line.rpartition("\r")[2] for line in lines if line.strip()]

    def _read(self, reader):
        while part := os.read(reader.fileno(), 4096):
            self.printed += part


def _work(writer, command, arguments, limit, environment):
    for descriptor in (1, 2):
        os.dup2(writer.fileno(), descriptor)
    writer.close()
    sys.stdout = open(1, "w", closefd=False, encoding="utf-8")
    sys.stderr = open(2, "w", closefd=False, encoding="utf-8", buffering=1)  # by lines, as Python's own
    os.environ.update(environment, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", COLUMNS="80")
    one_core()
    torch.set_num_threads(1)
    limit_files(limit)
    from training.common.start import run

    # Only a process without a parent reports signals; a worker leaves that to its command.
    multiprocessing.process._parent_process = None
    advice = "go on with --resume" if command in ("train", "predict") else ""
    run(lambda: import_module(f"training.{command}").main([*map(str, arguments)]), advice)
    sys.stdout.flush()


def pair(command, arguments, port):
    """Start the two processes of a run without a launcher."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [Command(command, arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]


def wait_for(condition, is_running=lambda: True):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline and is_running()
        time.sleep(0.01)


def workers(launcher):
    """The processes of a launcher by rank, as many as have started."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if "RANK" in environment:
            found[int(environment["RANK"])] = process
    return found
