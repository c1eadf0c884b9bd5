"""
The file of a prediction: a line per text, in the order of the input.

Until the last line is there the file is `NAME.partial`, JSON Lines whatever its final format; a run that was killed
goes on at its end.
"""

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from training.common.files import WriteError, lock, writing
from training.corpus.data import DataError, Document


OUTPUT_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
FAULT = {"entities": None, "error": "does not fit into memory"}
FAULTY_END = json.dumps(FAULT)[1:]  # of such a line; a quotation mark inside of a text is escaped


class Results:
    """
    Attributes:
        done: the number of texts whose lines are in the file.
        failed: the number of those that have an `error` instead of entities.
    """

    def __init__(self, path: str):
        self.path, self.partial, self.done, self.failed = path, path + ".partial", 0, 0
        self._file: BinaryIO | None = None

    def check(self, inputs: list[str], resume: bool) -> bool:
        """
        Whether there is anything to do: not where a run to be resumed is complete.

        Raises:
            DataError: where the file cannot be written, or what an earlier run has done would be lost.
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
            is_empty = not os.fstat(self.open().fileno()).st_size  # where another run is writing it, this says so
            self.close()
            if not is_empty:
                raise DataError(f"{self.partial}: is of a run that did not end; go on with --resume, or delete it")
        return True

    def resume(self, documents: Iterator[Document]) -> None:
        """
        Take from `documents` those that are done, and cut off what follows the last whole line.

        Raises:
            DataError: where the file's ids are not those of the first documents.
        """
        if not os.path.exists(self.partial):
            return
        size, file = 0, self.open()
        file.seek(0)
        try:
            for line in tqdm(file, desc="reading what is done", unit="text", leave=False):
                if not line.endswith(b"\n"):
                    break
                self._compare(line, next(documents, None))
                size += len(line)
                self.done += 1
                self.failed += is_faulty(line.decode())
        except DataError:
            self.close()
            raise
        os.truncate(self.partial, size)

    def write(self, lines: Iterable[str]) -> None:
        """
        Append lines, which are in the file when this returns: no kill of this process takes them away.

        Raises:
            WriteError: where they are not; of these lines, none counts as done.
        """
        lines, file = list(lines), self.open()
        with self._writing():
            file.write("".join(line + "\n" for line in lines).encode("utf-8"))
            file.flush()
        self.done += len(lines)
        self.failed += sum(map(is_faulty, lines))

    def finish(self) -> None:
        """Give the complete file its name and format; raises `WriteError`."""
        with self._writing():
            self._finish()

    def _finish(self) -> None:
        if self.path.endswith(".jsonl"):
            os.replace(self.partial, self.path)
            self.close()
            return
        aside = self.path + ".writing"
        file = self.open()
        file.seek(0)
        lines = tqdm(file, desc=f"writing {Path(self.path).name}", total=self.done, unit="text", leave=False)
        try:
            if self.path.endswith(".gz"):
                with gzip.open(aside, "wb", compresslevel=6) as zipped:
                    zipped.writelines(lines)
            else:
                # Imported where it is needed: JSON Lines do without pyarrow.
                from training.corpus.parquet import write_parquet

                write_parquet(lines, aside)
            os.replace(aside, self.path)
        finally:
            with suppress(OSError):
                os.remove(aside)  # where it has not become the output
        os.remove(self.partial)
        self.close()

    def close(self) -> None:
        """Let another run go on with what is done, if anything."""
        if self._file is not None:
            if not os.fstat(self._file.fileno()).st_size and is_same(self._file, self.partial):
                os.remove(self.partial)
            with suppress(OSError):  # what a full disk has not taken is tried again
                self._file.close()
            self._file = None

    def open(self) -> BinaryIO:
        """
        The partial file, to read and to append, locked: a killed launcher can leave its processes at work.

        Raises:
            DataError: another run has it.
            WriteError: it cannot be opened.
        """
        if self._file is None:
            with writing(self.partial):
                file = open(self.partial, "a+b")
            # A run that has ended meanwhile has given the file its name, or removed it.
            if not lock(file) or not is_same(file, self.partial):
                file.close()
                raise DataError(f"{self.partial}: another run is writing it; end that one first")
            self._file = file
        return self._file

    @contextmanager
    def _writing(self) -> Iterator[None]:
        advice = f"; {self.done:,} texts are done: make room and start the same command with --resume"
        try:
            with writing(self.partial, advice):
                yield
        except WriteError:
            self.close()
            raise

    def _compare(self, line: bytes, document: Document | None) -> None:
        try:
            written = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            written = None
        if document is None or written != document.id:
            found = "no line of this command" if written is None else f"the text {written!r}"
            expected = "no more text" if document is None else f"the text {document.id!r}"
            raise DataError(f"{self.partial}:{self.done + 1}: {found}, where the input has {expected}; resume with "
                            "the input that the run was started with, or delete this file to start anew")  # fmt: skip


def as_line(document_id: str, entities: list[dict] | None) -> str:
    """
    A line of the output; in JSON's escapes where it has what UTF-8 (a lone surrogate) or a screen cannot hold.

    Args:
        entities: `None` for a text that did not fit into memory: its line has an `error`.
    """
    record = {"id": document_id, **(FAULT if entities is None else {"entities": entities})}
    line = json.dumps(record, ensure_ascii=False)
    return line if line.isprintable() else json.dumps(record)


def is_faulty(line: str) -> bool:
    """Whether a line has an `error`."""
    return line.rstrip("\n").endswith(FAULTY_END)


def is_same(file: BinaryIO, path: str) -> bool:
    """Whether `path` is the name of this very file."""
    return os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
