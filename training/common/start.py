"""
How a command begins and ends: one line in place of a traceback, exit codes, signals, text that any terminal takes.

A command imports this module first, and this module imports nothing large: from then on a signal is one line, and no
progress bar of a library fills a log.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


PR_SET_PDEATHSIG = 1  # prctl(2)
GRACE = 1.0  # seconds that a signal may reach this process later than another of the run, whose end is seen first
ENDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


class Ending:
    """What a signal does in `process`: it calls `undo` and says the last line. Processes forked of it end quietly."""

    process = 0
    advice = ""
    undo: list[Callable[[], None]] = []


def run(main: Callable[[], None], advice: str = "") -> None:
    """
    Call `main`. A `ValueError` (data, fields, config, checkpoint: all of them name what is wrong), an `OSError` (a
    file that cannot be read or written), a `FloatingPointError` (scores that are not finite), memory that is not
    there, or the end of another process of the run becomes one line on standard error and exit code 1; SIGINT and
    SIGTERM do with 130 and 143. A launcher that ends takes this process with it.

    Args:
        advice: how to go on after a signal.
    """
    take_any_text()
    take_signals(advice)
    threading.excepthook = tell_of_thread
    if is_launched():
        end_with_parent()
    try:
        main()
        sys.stdout.flush()
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            time.sleep(GRACE)  # if a signal reaches this process, too, report the signal, not this error
        # Imported where it is needed: this module is there before torch is.
        from training.common.cli import reason

        fault = reason(error)
        if fault is None:
            raise
        close_bars()
        print(f"error: {fault}", file=sys.stderr)
        sys.exit(1)


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


def take_signals(advice: str = "") -> None:
    """
    Let a signal end this process. No exception is raised, which could be caught, turned into another or met where
    none can be: all that is written is complete or aside at any moment, as it has to be for a process that is killed.
    """
    is_spawned = multiprocessing.parent_process() is not None  # as workers of a data loader on Windows and macOS
    Ending.process, Ending.advice = 0 if is_spawned else os.getpid(), advice
    for number in ENDS:
        signal.signal(number, end)


def end(number: int, frame) -> None:
    for each in ENDS:
        signal.signal(each, end_now)  # the second one does not wait
    if os.getpid() == Ending.process:
        with suppress(OSError, RuntimeError, ValueError):  # of a stream that is closed, or at work
            close_bars()
            sys.stdout.flush()
            sys.stderr.flush()
        for undo in Ending.undo:
            with suppress(OSError):
                undo()
    end_now(number)


def end_now(number: int, frame=None) -> None:
    word, code = ENDS[number]
    if os.getpid() == Ending.process:
        with suppress(OSError):
            os.write(2, f"{word}{Ending.advice and '; '}{Ending.advice}\n".encode())
    os._exit(code)


@contextmanager
def undone_by_signal(undo: Callable[[], None]) -> Iterator[None]:
    """Within it, a signal calls `undo`, as `finally` does for errors: for what would else outlive the process."""
    Ending.undo.append(undo)
    try:
        yield
    finally:
        Ending.undo.remove(undo)


def close_bars() -> None:
    """Close all progress bars, so that the next line stands below them."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def silence_library_bars() -> None:
    """
    If standard error is no terminal, hide the progress bars of the Hub, transformers and datasets, unless the
    environment says otherwise: each prints many states. Call it before these libraries are imported.
    """
    if not (sys.stderr and sys.stderr.isatty()):
        for library in ("HUB", "DATASETS"):  # transformers follows the first
            os.environ.setdefault(f"HF_{library}_DISABLE_PROGRESS_BARS", "1")


def tell_of_thread(failure) -> None:
    """Print a thread's exception, but no `OSError`: TensorBoard raises its write errors again in the main thread."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def is_launched() -> bool:
    """Whether `accelerate launch` or `torchrun` has started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


def end_with_parent() -> None:
    """Let this process get SIGTERM when its parent ends, however that ends; Linux alone has this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# A command, or a process that it has spawned, and no program that uses its functions.
if Path(sys.argv[0]).suffix == ".py" and Path(sys.argv[0]).absolute().is_relative_to(Path(__file__).parents[1]):
    take_signals()
    silence_library_bars()
