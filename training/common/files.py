"""Atomic writes, locks, checksums, and errors that name the file that could not be written."""

import difflib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError


BUNDLED = Path(__file__).parents[2] / "modeling_sener"  # the checkpoint that comes with the code
NAMES = 10_000  # of a folder in which the nearest one is looked for
CLOSE = 0.75  # similarity of a name that is proposed: `user` is no `sener`
# Of torch.save, which says nothing about the reason.
TORCH_FAULTS = ("inline_container", "iostream error")
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # of file systems without locks


class WriteError(OSError):
    """A file or folder that cannot be written; the message names it and gives the reason."""


@contextmanager
def writing(path: str | Path, advice: str = "") -> Iterator[None]:
    """
    Turn any failure to write `path`, a file or folder, into a `WriteError`.

    Args:
        advice: appended to the message.

    Raises:
        WriteError: for an `OSError`, or the errors that safetensors and torch raise instead of one.
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


def unreadable(path: str | Path, error: Exception) -> str:
    """The message on a file that cannot be read; where there is no such file, with the nearest name that there is."""
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file{nearest(path)}"
    number = getattr(error, "errno", None)  # pyarrow's errors have this alone
    return f"{path}: cannot be read ({getattr(error, 'strerror', None) or (number and os.strerror(number)) or error})"


def nearest(path: str | Path) -> str:
    """Of a path that does not exist "; did you mean PATH?", by the first part of it that is missing; "" for none."""
    path = Path(path)
    missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), None)
    if missing is None:
        return ""
    with suppress(OSError):
        names = sorted(islice((entry.name for entry in os.scandir(missing.parent)), NAMES))
        by_stem = {name.partition(".")[0]: name for name in names}
        close = difflib.get_close_matches(missing.name, names, n=1, cutoff=CLOSE)
        close = close or [
            by_stem[stem] for stem in difflib.get_close_matches(missing.name, by_stem, n=1, cutoff=CLOSE)
        ]
        if close:
            found = missing.parent / close[0]
            rest = path.relative_to(missing)
            return f"; did you mean {found / rest if (found / rest).exists() else found}?"
    return ""


def free_space(path: str | Path) -> int:
    """Free bytes on the disk of `path`, which need not exist."""
    return shutil.disk_usage(next(folder for folder in Path(path).absolute().parents if folder.is_dir())).free


def checksum_of_file(path: str | Path) -> int:
    """CRC-32 of a file's bytes."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            total = zlib.crc32(block, total)
    return total


def write_text(path: str | Path, text: str, encoding: str = "utf-8", errors: str = "strict") -> None:
    """
    Write to a temporary file and rename it. If this fails or is killed, the old file stays.

    Raises:
        WriteError: see `writing`.
    """
    aside = Path(f"{path}.{os.getpid()}.partial")  # one name for each process
    with writing(path):
        try:
            aside.write_text(text, encoding=encoding, errors=errors)
            os.replace(aside, path)
        finally:
            with suppress(OSError):
                aside.unlink()


def checksum_of_json(content: dict) -> int:
    """CRC-32 of `content` as JSON, with sorted keys: the same before it is written and after it is read back."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())


def try_lock(path: str | Path) -> BaseFileLock | None:
    """
    Lock a file, which is created if it is missing. The lock is held until `unlock`, or until the process ends.

    Returns:
        `None` if another process, or another lock of this process, holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise
    return lock


def unlock(lock: BaseFileLock) -> None:
    """Remove a lock's file and let others in."""
    with suppress(OSError):  # Windows cannot remove an open file: `release` does
        os.remove(lock.lock_file)
    lock.release()
