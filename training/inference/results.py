"""
The output file of a prediction: a line per text, in the order of the input.

Until it is complete the file is `NAME.partial`, JSON Lines for any final format; a run that was killed resumes at its
end. Its first line is the signature of the run: everything that the output depends on. Every other line begins with
the checksums of its text and of the line itself.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from training.common.files import WriteError, checksum_of_json, try_lock, unlock, writing
from training.common.progress import progress_bar
from training.corpus.data import DataError, Document


OUTPUT_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
FAULT = {"entities": None, "error": "does not fit into memory"}
FAULTY_END = json.dumps(FAULT)[1:]  # of a line with an error; texts cannot end so: their quotation marks are escaped
SEALED = re.compile(rb'\{"check": "([0-9a-f]{8})[0-9a-f]{8}", (.*\n)')  # a line of the partial file
TO_START_ANEW = "or delete this file to start anew"


class Results:
    """
    The partial file of a run, and its final form.

    Attributes:
        done: the number of texts whose lines are in the file.
        failed: the number of those with an `error` instead of entities.
    """

    def __init__(self, path: str):
        self.path, self.partial, self.done, self.failed = path, path + ".partial", 0, 0
        self._signature: dict | None = None
        self._seed = self._header_size = 0
        self._file: BinaryIO | None = None
        self._lock = None

    def check(self, inputs: list[str], resume: bool) -> bool:
        """
        Check the output path. Returns whether there is anything to do: `False` if the run to resume is complete.

        Raises:
            DataError: the file cannot be written, or the work of an earlier run would be lost.
        """
        if not self.path.endswith(OUTPUT_ENDINGS):
            raise DataError(f"{self.path}: expected a .jsonl, .jsonl.gz or .parquet file to write")
        if Path(self.path).is_dir() or not Path(self.path).absolute().parent.is_dir():
            raise DataError(f"{self.path}: expected a file in a folder that exists")
        if Path(self.path).resolve() in [Path(path).resolve() for path in inputs]:
            raise DataError(f"{self.path}: is an input, too")
        if resume and not os.path.exists(self.partial):
            return not os.path.exists(self.path)
        if not resume and os.path.exists(self.partial):
            is_empty = not os.fstat(self.open().fileno()).st_size  # raises if another run is writing it
            self.close()
            if not is_empty:
                raise DataError(f"{self.partial}: is of a run that did not end; go on with --resume, or delete it")
        return True

    def resume(self, documents: Iterator[Document]) -> None:
        """
        Skip the `documents` that are done, and cut off an incomplete last line.

        Raises:
            DataError: a line was changed after it was written, or does not belong to the next document.
        """
        if not os.path.exists(self.partial):
            return
        self.open()
        try:
            size = 0
            for raw, text, line in self._read("reading what is done"):
                self._compare(text, line, next(documents, None))
                self.done += 1
                self.failed += is_faulty(line.decode())
                size += len(raw)
        except DataError:
            self.close()
            raise
        os.truncate(self.partial, self._header_size + size)

    def begin(self, signature: dict) -> None:
        """
        Open the file, before any work.

        Args:
            signature: name -> value of everything that the output depends on.

        Raises:
            DataError: the run to be resumed has another signature (names the field), or another run has the file.
        """
        now = json.loads(json.dumps(signature))
        then = now if self._signature is None else self._signature
        for name in {**then, **now}:
            if then.get(name) != now.get(name):
                self.close()
                raise DataError(f"{self.partial}: {name} was {then.get(name)!r} in this run and is {now.get(name)!r} "
                                f"now: give the same value to go on, {TO_START_ANEW}")  # fmt: skip
        self._signature, self._seed = now, checksum_of_json(now)
        self.open()

    def write(self, lines: Iterable[str], texts: Iterable[int]) -> None:
        """
        Append lines. Once this returns, no kill of the process loses them.

        Args:
            texts: `checksum_of_text` of the text of each line.

        Raises:
            WriteError: the lines could not be written; none of them counts as done.
        """
        lines, file = list(lines), self.open()
        sealed = b"".join(self._seal(line.encode() + b"\n", text) for line, text in zip(lines, texts, strict=True))
        with self._writing():
            if not os.fstat(file.fileno()).st_size:
                header = {"checksum": self._seed, "signature": self._signature}
                sealed = json.dumps(header).encode() + b"\n" + sealed
            file.write(sealed)
            file.flush()
        self.done += len(lines)
        self.failed += sum(map(is_faulty, lines))

    def finish(self) -> None:
        """Give the complete file its name and format; raises `WriteError`, or `DataError` if a line was damaged."""
        aside = self.path + ".writing"
        with self._writing():
            self.open()
            lines = (line for _, _, line in self._read(f"writing {Path(self.path).name}", self.done))
            try:
                if self.path.endswith(".parquet"):
                    # A late import: JSON Lines work without pyarrow.
                    from training.corpus.parquet import write_parquet

                    write_parquet(lines, aside)
                else:
                    zipped = self.path.endswith(".gz")
                    with gzip.open(aside, "wb", compresslevel=6) if zipped else open(aside, "wb") as output:
                        output.writelines(lines)
                os.replace(aside, self.path)
            finally:
                with suppress(OSError):
                    os.remove(aside)  # if it has not become the output
            self._file.close()
            os.remove(self.partial)
            self.close()

    def close(self) -> None:
        """Close and unlock the file, so that another run can resume it; an empty file is removed."""
        if self._file is not None:
            with suppress(OSError):  # it flushes again what did not fit on a full disk
                self._file.close()
            with suppress(OSError):
                if not os.path.getsize(self.partial):
                    os.remove(self.partial)
            self._file = None
            unlock(self._lock)

    def open(self) -> BinaryIO:
        """
        Open and lock the partial file, to read and to append. The lock matters as a killed launcher can leave its
        processes running.

        Raises:
            DataError: another run has locked it.
            WriteError: it cannot be opened.
        """
        if self._file is None:
            with writing(self.partial):
                self._lock = try_lock(self.path + ".lock")
                if self._lock is None:
                    raise DataError(f"{self.partial}: another run is writing it; end that one first")
                try:
                    self._file = open(self.partial, "a+b")
                except OSError:
                    unlock(self._lock)
                    raise
        return self._file

    @contextmanager
    def _writing(self) -> Iterator[None]:
        advice = f"; {self.done:,} texts are done: make room and start the same command with --resume"
        try:
            with writing(self.partial, advice):
                yield
        except (WriteError, DataError):
            self.close()
            raise

    def _read(self, doing: str, total: int | None = None) -> Iterator[tuple[bytes, int, bytes]]:
        """
        Yield (raw line, checksum of its text, line of the output) for every complete line of the partial file but the
        first, which is checked.

        Raises:
            DataError: a line was changed after it was written.
        """
        self._file.seek(0)
        bar = progress_bar(self._file, desc=doing, total=total, unit="text", leave=False)
        for number, raw in enumerate(bar, start=1):
            if not raw.endswith(b"\n"):
                return
            if number == 1:
                self._read_signature(raw)
                continue
            sealed = SEALED.fullmatch(raw)
            text = int(sealed[1], 16) if sealed else 0
            line = b"{" + sealed[2] if sealed else b""
            if raw != self._seal(line, text):
                raise DataError(f"{self.partial}:{number}: was damaged after it was written; delete this line and all "
                                f"that follow, and start the same command with --resume, {TO_START_ANEW}")  # fmt: skip
            yield raw, text, line

    def _read_signature(self, raw: bytes) -> None:
        try:
            header = json.loads(raw)
            signature, seed = header["signature"], header["checksum"]
        except (ValueError, KeyError, TypeError, RecursionError):
            signature, seed = None, 0
        if signature is None or checksum_of_json(signature) != seed:
            raise DataError(f"{self.partial}:1: is damaged, or no line of this command; delete this file to start "
                            "anew")  # fmt: skip
        self._signature, self._seed, self._header_size = signature, seed, len(raw)

    def _seal(self, line: bytes, text: int) -> bytes:
        """Put the checksums before a line of the output, which ends with a line feed."""
        content = b"%08x" % text, line[1:]
        check = zlib.crc32(content[1], zlib.crc32(content[0], self._seed))
        return b'{"check": "%b%08x", %b' % (content[0], check, content[1])

    def _compare(self, text: int, line: bytes, document: Document | None) -> None:
        found = json.loads(line)["id"]
        if document is None or found != document.id:
            fault = f"the text {found!r}, where the input has " + (
                "no more text" if document is None else f"the text {document.id!r}"
            )
        elif text != checksum_of_text(document.text):
            fault = f"the text {found!r} was another one when this line was made"
        else:
            return
        raise DataError(f"{self.partial}:{self.done + 2}: {fault}; resume with the input that the run was started "
                        f"with, {TO_START_ANEW}")  # fmt: skip


def checksum_of_text(text: str | list[str]) -> int:
    """CRC-32 of a string or a list of words."""
    return zlib.crc32(json.dumps(text).encode())


def prediction_line(document_id: str, entities: list[dict] | None) -> str:
    """
    A line of the output; escaped if it has characters that UTF-8 cannot encode (a lone surrogate) or that are not
    printable.

    Args:
        entities: `None` for a text that did not fit into memory: its line has an `error`.
    """
    record = {"id": document_id, **(FAULT if entities is None else {"entities": entities})}
    line = json.dumps(record, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(record)


def is_faulty(line: str) -> bool:
    """Whether a line has an `error`."""
    return line.rstrip("\n").endswith(FAULTY_END)
