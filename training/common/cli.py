"""Shared by the commands: what a user is told of an error, CPU threads, memory settings."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from datetime import timedelta

import psutil
import torch
from accelerate.utils import broadcast_object_list

from modeling_sener.memory import TextTooLargeError, is_out_of_memory
from training.common.start import is_launched


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)


def reason(error: Exception) -> str | None:
    """The message for the user; `None` for a bug, which keeps its traceback."""
    try:
        sys.stdout.flush()
    except OSError as fault:
        # Or else the interpreter flushes again at exit, and prints a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"standard output: cannot be written ({fault.strerror})"
    if is_out_of_memory(error):
        is_named = isinstance(error, TextTooLargeError)
        return str(error) if is_named else f"out of memory ({first_line(error)})"
    if not isinstance(error, RuntimeError):
        return str(error)
    if str(error).startswith("DataLoader worker"):
        return f"a process that makes batches has ended ({first_line(error)})"
    if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
        return None
    if "imed out" in str(error):
        return f"another process of this run hangs, or needs more than the minutes of `timeout` ({first_line(error)})"
    return f"another process of this run has ended ({first_line(error)})"


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def set_timeout(minutes: float) -> None:
    """After so many minutes in which another process of the run does not do its part, this one ends with an error."""
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(minutes=minutes))  # no public name does this


def on_main_process(accelerator, function: Callable[[], object]):
    """
    Call `function` on the main process and return its result on every process. If it fails, every process exits, and
    only the main one prints the reason.
    """
    error, outcome = None, [True, None]
    if accelerator.is_main_process:
        try:
            outcome[1] = function()
        except (ValueError, OSError) as failure:
            error, outcome = failure, [False, None]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if error is not None:
        raise error
    if not outcome[0]:
        sys.exit(1)
    return outcome[1]


def use_all_cores(device: torch.device) -> None:
    """
    On the CPU, divide the cores among this machine's processes.

    `accelerate launch` and `torchrun` set `OMP_NUM_THREADS=1` unless the variable is set; training would then use a
    single core. A process that was started without them is left alone, and so is one whose launcher was told the
    number of threads: a small step has some 400 parallel regions, and on a core that another program uses, too, each
    waits for a slice of the scheduler.
    """
    is_one = os.environ.get("OMP_NUM_THREADS") == "1"
    if device.type == "cpu" and is_launched() and is_one and not threads_are_chosen():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def threads_are_chosen() -> bool:
    """Whether the environment or the command line of the launcher says how many threads a process has."""
    try:
        launcher = psutil.Process(os.getppid())
        is_told = any("num_cpu_threads_per_process" in argument for argument in launcher.cmdline())
        return is_told or "OMP_NUM_THREADS" in launcher.environ()
    except psutil.Error:
        return False


def keep_few_kernels() -> None:
    """
    On the CPU, limit the kernel caches of oneDNN and torch to 64 shapes, unless the environment sets another number.

    Call it before the first convolution. The default is 1,024 shapes each, at about 20 kB a shape, scattered between
    the tensors in memory: over texts of many lengths a process would grow for tens of thousands of texts.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


def keep_freed_memory(device: torch.device) -> None:
    """
    On the CPU, keep the memory of freed tensors for later ones instead of returning it to the system.

    Training allocates and frees large tensors all the time. Each new page costs a page fault and is filled with zeros.
    Only glibc has these settings.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
