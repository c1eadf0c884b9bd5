"""Files that are complete or not there, that have one writer at a time, and that are named where writing fails."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError


# Of torch.save, which says nothing about the reason.
TORCH_FAULTS = ("inline_container", "iostream error")


class WriteError(OSError):
    """Something that cannot be written; the message names it and gives the reason."""


@contextmanager
def writing(path: str | Path, advice: str = "") -> Iterator[None]:
    """
    Turn the failures of what writes `path`, a file or folder, into one kind.

    Args:
        advice: what the message ends with.

    Raises:
        WriteError: from an `OSError`, or from what safetensors and torch raise instead of one.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(fault in str(error) for fault in TORCH_FAULTS):
            raise
        reason = getattr(error, "strerror", None) or (
            str(error) if isinstance(error, SafetensorError) else f"{free_space(path):,} bytes are free"
        )
        raise WriteError(f"{path}: cannot be written ({reason}){advice}") from error


def free_space(path: str | Path) -> int:
    """Bytes that are free where `path` lies, or is to lie."""
    return shutil.disk_usage(next(folder for folder in Path(path).absolute().parents if folder.is_dir())).free


def write_text(path: str | Path, text: str, encoding: str = "utf-8", errors: str = "strict") -> None:
    """
    Write a file aside and rename it: where this fails, or is killed, what was there stays.

    Raises:
        WriteError: see `writing`.
    """
    aside = Path(f"{path}.{os.getpid()}.partial")  # two processes that write one file do not share it
    with writing(path):
        try:
            aside.write_text(text, encoding=encoding, errors=errors)
            os.replace(aside, path)
        finally:
            with suppress(OSError):
                aside.unlink()


def lock(file: BinaryIO) -> bool:
    """
    Whether this process is the one that may write; it is until `file` is closed or the process ends, however it ends.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True
