"""Shared by the commands: error messages and exit codes in place of tracebacks, CPU threads, memory settings."""

import ctypes
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from modeling_sener.memory import TextTooLargeError, is_out_of_memory


PR_SET_PDEATHSIG = 1  # prctl(2)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)


def run(main: Callable[[], None]) -> None:
    """
    Call `main` and turn expected failures into one line on standard error.

    Exit code 1: a `ValueError` (bad data, field, config or checkpoint; the message names it), an `OSError` (a file
    that cannot be read or written), a `FloatingPointError` (scores that are not finite), out of memory, or the end of
    another process of the run. Exit code 130: SIGINT. Exit code 143: SIGTERM. When a launcher ends, this process ends,
    too.
    """
    take_any_text()
    signal.signal(signal.SIGTERM, raise_terminated)
    threading.excepthook = tell_of_thread
    if is_launched():
        end_with_parent()
    try:
        main()
        sys.stdout.flush()
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        fault = reason(error)
        if fault is None:
            raise
        leave(f"error: {fault}", 1)
    except KeyboardInterrupt:
        leave("interrupted", 130)
    except Terminated:
        leave("terminated", 143)


def take_any_text() -> None:
    """
    Let standard output and error take any string. Characters that their encoding lacks (labels in a terminal of code
    page 1252, half of a surrogate pair in a file name) are written as escapes. A missing stream discards its output.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")


def end_with_parent() -> None:
    """Get SIGTERM when the parent process ends, for whatever reason. Only Linux supports this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(message: str, code: int) -> None:
    """Exit with a message as the last line, below all progress bars."""
    for bar in list(tqdm._instances):
        bar.close()
    print(message, file=sys.stderr)
    sys.exit(code)


def tell_of_thread(failure) -> None:
    """Print a thread's traceback, unless it is an `OSError`: TensorBoard raises that in the main thread, too."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class Terminated(BaseException):
    """Raised on SIGTERM. Only `run` catches it, as it does `KeyboardInterrupt`."""


def raise_terminated(number: int, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process at once
    raise Terminated


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
    is_of_group = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    return f"another process of this run has ended ({first_line(error)})" if is_of_group else None


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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


def is_launched() -> bool:
    """Whether `accelerate launch` or `torchrun` has started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def use_all_cores(device: torch.device) -> None:
    """
    On the CPU, divide the cores among this machine's processes.

    `accelerate launch` and `torchrun` set `OMP_NUM_THREADS=1` unless the variable is set; training would then use a
    single core. A process that was started without them is left alone.
    """
    if device.type == "cpu" and is_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


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
