"""
Read and check data: JSON Lines of words (`doc_id`, `text`, `entity`) or of raw text (`id`, `text`, `entities`),
plain or gzipped, or a data set of the Hub with the same columns.

Data is checked before anything is computed: the first fault raises `DataError` with file, line and field.
"""

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modeling_sener.gold import check_entities, entity_fields, expect
from training.common.cli import first_line
from training.common.files import nearest, unreadable
from training.common.progress import progress_bar
from training.corpus.recognise import advice, encoding_of


FILE_ENDINGS = (".jsonl", ".jsonl.gz")


class DataError(ValueError):
    """Data that cannot be used; the message names file, line and field."""


@dataclass(frozen=True)
class Document:
    """
    One text with its gold entities. Offsets count words if the text is a list of words, characters if it is a string;
    `end` is exclusive.

    Attributes:
        id: `id` or `doc_id` of the line, `FILE:LINE` where it has none.
        entities: (start, end, label), each once, in the file's order, without white space around them.
        duplicates: how many entities were left out because they were there already.
        misquoted: entities whose quoted words are not the text's words at their offsets; the offsets are used.
        trimmed: entities that had white space around them.
    """

    id: str
    text: str | list[str]
    entities: tuple[tuple[int, int, str], ...] = ()
    duplicates: int = 0
    misquoted: int = 0
    trimmed: int = 0

    @property
    def is_split(self) -> bool:
        return isinstance(self.text, list)


def read_documents(
    source: str | Path, labels: list[str] | None = None, with_gold: bool = True, split: str = "train"
) -> list[Document]:
    """Read all documents of a file or data set; arguments and errors as for `stream_documents`."""
    return list(stream_documents(source, labels, with_gold, split))


def stream_documents(
    source: str | Path, labels: list[str] | None = None, with_gold: bool = True, split: str = "train"
) -> Iterator[Document]:
    """
    Yield the documents one by one; one is in memory at a time.

    Args:
        source: a file, plain or gzipped; or `NAME` or `NAME:SPLIT` of a data set, on the Hub or in a folder.
        labels: the allowed labels; `None` allows any.
        with_gold: whether each line must have gold entities; if not, they are not read.
        split: the split of a data set whose name has none.

    Raises:
        DataError: for the first fault found, or a source without a document. For another tool's file the message names
            the tool, and the command that imports it.
    """
    source, found, record = str(source), False, None
    if is_file(source):
        records = ((f"{source}:{number}", parse_json(line, f"{source}:{number}"))
                   for number, line in read_lines(source))  # fmt: skip
    else:
        records = read_dataset(source, split)
    try:
        for where, record in records:
            found = True
            yield parse_record(record, where, labels, with_gold)
            record = None
    except DataError as error:
        foreign = advice(source, record)
        if foreign is None:
            raise
        raise DataError(f"{source if record is None else where}: {foreign}") from error
    if not found:
        raise DataError(f"{source}: no document in this file")


def stream_files(files: list[str], labels: list[str] | None, split: str, doing: str) -> Iterator[Document]:
    """Yield the documents of several files or data sets, with a progress bar; errors as for `stream_documents`."""
    with progress_bar(desc=doing, unit="text", leave=False) as bar:
        for file in files:
            for document in stream_documents(file, labels, split=split):
                yield document
                bar.update()


def is_file(source: str) -> bool:
    """Whether a source is a file (which may be missing), not a data set."""
    return Path(source).is_file() or source.endswith(FILE_ENDINGS)


def decode(content: bytes, path: str) -> str:
    """Decode a file (`encoding_of`) and keep its line ends: offsets are offsets into the file's own text."""
    try:
        return content.decode(encoding_of(content))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, nor UTF-16 with its byte-order mark (byte {error.start}: "
                        f"{error.reason}); save it as UTF-8") from error  # fmt: skip


def read_text(path: str) -> str:
    """Read a text file, or standard input for "-"; see `decode`."""
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise DataError(unreadable(path, error)) from error
    return decode(content, "standard input" if path == "-" else path)


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    r"""
    Yield (line number from 1, line) for the lines of a file (`encoding_of`) that are not blank; a `.gz` file is
    unpacked. Lines end with \n, \r or \r\n in the file, with \n as they are yielded.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            encoding = encoding_of(file.read(2))
            file.seek(0)
            # Bytes that are not UTF-8 become surrogates; `encode` then refuses their line by number.
            lines = io.TextIOWrapper(file, encoding, "strict" if encoding == "utf-16" else "surrogateescape")
            for number, line in enumerate(lines, start=1):  # noqa: B007
                if line.strip():
                    line.encode()
                    yield number, line
    except UnicodeEncodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 text, nor UTF-16 with its byte-order mark; save it as "
                        "UTF-8") from error  # fmt: skip
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-16 text after line {number} ({error.reason})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(unreadable(path, error)) from error


def read_dataset(source: str, split: str) -> Iterator[tuple[str, dict]]:
    """Yield (`NAME:SPLIT row N`, row) for a data set, which `datasets` maps into memory from disk."""
    # A late import: extraction and prediction from files work without this library.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, own_split = source.partition(":")
    split = own_split or split
    try:
        rows = load_dataset(name, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = first_line(error)
        what = "not a file" if Path(name).exists() else "no such file"
        raise DataError(f"{source}: {what}, and cannot be read as a data set ({reason}){nearest(name)}") from error
    for number, row in enumerate(rows, start=1):
        # `datasets` sets the missing columns of a row to None.
        yield f"{name}:{split} row {number}", {key: value for key, value in row.items() if value is not None}


def parse_json(line: str, where: str):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits raises a plain ValueError
        raise DataError(f"{where}: not valid JSON: {error}") from error


def parse_record(record, where: str, labels: list[str] | None = None, with_gold: bool = True) -> Document:
    """Turn one line or row into a document; error messages start with `where` ("FILE:LINE")."""
    _expect(isinstance(record, dict), where, "the line", "a JSON object", record)
    _expect("text" in record, where, "text", "a string or a list of words", None)
    text = record["text"]
    if isinstance(text, list):
        for i, word in enumerate(text):
            _expect(isinstance(word, str), where, f"text[{i}]", "a word", word)
    else:
        _expect(isinstance(text, str), where, "text", "a string or a list of words", text)
    name = next((key for key in ("id", "doc_id") if key in record), None)
    if name is not None:
        _expect(isinstance(record[name], (str, int)), where, name, "a string or a number", record[name])
    document_id = where if name is None else str(record[name])
    if not with_gold:
        return Document(document_id, text)
    return _with_gold(document_id, record, where, labels)


def _with_gold(document_id: str, record: dict, where: str, labels: list[str] | None) -> Document:
    text = record["text"]
    field, fields_of = ("entity", _word_entity) if isinstance(text, list) else ("entities", entity_fields)
    try:
        expect(isinstance(record.get(field), list), field, "a list of entities", record.get(field))
        items = (fields_of(item, f"{field}[{i}]") for i, item in enumerate(record[field]))
        return Document(document_id, text, *check_entities(items, text, labels, field))
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def _word_entity(item, name: str) -> tuple:
    expect(isinstance(item, list) and len(item) == 4, name, "[start, end, words, label]", item)
    start, end, words, label = item
    is_quote = isinstance(words, str) or (isinstance(words, list) and all(isinstance(word, str) for word in words))
    expect(is_quote, f"{name} words", "a string or a list of words", words)
    return start, end, label, words


def _expect(holds: bool, where: str, field: str, expected: str, found):
    try:
        expect(holds, field, expected, found)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
