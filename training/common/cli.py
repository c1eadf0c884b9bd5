"""What the commands share: all cores, memory that is kept, one message instead of a traceback where input is wrong."""

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
    Call `main`. A `ValueError` (data, fields, config, checkpoint: all of them name what is wrong), an `OSError` (a
    file that cannot be read or written), a `FloatingPointError` (scores that are not finite), memory that is not
    there, or the end of another process of the run becomes one line on standard error and exit code 1; SIGINT and
    SIGTERM do with 130 and 143. A launcher that ends takes this process with it.
    """
    take_any_text()
    signal.signal(signal.SIGTERM, end)
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
    Let standard output and error take any string: what their encoding lacks (labels in a terminal of code page 1252,
    half of a surrogate pair in a file name) is written in escapes. Where there is no such stream, nothing is written.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends, however that ends; Linux alone has this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave(message: str, code: int) -> None:
    """End with a message as the last line, below all bars."""
    for bar in list(tqdm._instances):
        bar.close()
    print(message, file=sys.stderr)
    sys.exit(code)


def tell_of_thread(failure) -> None:
    """What a thread ends with; not what it could not write: TensorBoard's raises that in ours, where it is told."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class Terminated(BaseException):
    """SIGTERM; like `KeyboardInterrupt`, nothing but `run` catches it."""


def end(number: int, frame) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second one ends the process wherever it is
    raise Terminated


def reason(error: Exception) -> str | None:
    """What a user is told; `None` for a fault of the program."""
    try:
        sys.stdout.flush()
    except OSError as fault:
        # What cannot be written is not tried again, with a message of its own, when the interpreter ends.
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
    What `function` returns on the main process, on every process. Where it fails, every process ends, and the main
    one alone says why.
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
    On the CPU, share out the cores over this machine's processes.

    `accelerate launch` and `torchrun` give a process one thread (`OMP_NUM_THREADS=1`) unless that variable is set to
    something else; training then takes as many times longer as there are cores. A process that was started otherwise
    is left alone.
    """
    if device.type == "cpu" and is_launched() and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def keep_few_kernels() -> None:
    """
    On the CPU, let oneDNN and torch keep the convolutions of the last 64 shapes, where the environment does not say
    otherwise; to be called before the first one.

    They keep those of 1,024 shapes each, some 20 kB a shape, which lie between the tensors in memory: over texts of
    ever other lengths a process would grow for tens of thousands of texts.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


def keep_freed_memory(device: torch.device) -> None:
    """
    On the CPU, keep the memory of freed tensors for the next ones instead of giving it back to the system.

    Training frees and takes large tensors all the time, and each page that is new costs a fault and is filled with
    zeros. Only glibc has these settings.
    """
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
