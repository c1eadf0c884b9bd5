"""Read the records of a file: JSON Lines and Parquet a few at a time, other JSON as a whole."""

import gzip
import json
import zlib
from collections.abc import Iterator

from training.common.cli import first_line
from training.common.files import unreadable
from training.corpus.data import DataError, decode, parse_json, read_lines
from training.corpus.recognise import read_head, recognise


MAX_WHOLE = 500_000_000  # the largest file in bytes that is read as a whole
ROWS = 64  # of a Parquet file, read at a time
_DECODER = json.JSONDecoder()


def read_records(path: str) -> Iterator[tuple[str, object]]:
    """
    Yield (where, record) for each record: `where` is "FILE:LINE" of JSON Lines, "FILE:LINE item N" of a JSON array,
    "FILE row N" of a Parquet file. Any JSON value can be a record.

    Raises:
        DataError: for a file that cannot be read, is no JSON, or is too large to be read as a whole.
    """
    if head_of(path).startswith(b"PAR1"):
        yield from _read_rows(path)
    elif _is_lines(path):
        for number, line in read_lines(path):
            yield f"{path}:{number}", parse_json(line, f"{path}:{number}")
    else:
        yield from _read_values(path)


def head_of(path: str) -> bytes:
    try:
        return read_head(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(unreadable(path, error)) from error


def read_whole(path: str) -> bytes:
    """Read a file, unpacked if its name ends in .gz; `DataError` if it is larger than `MAX_WHOLE`."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            content = file.read(MAX_WHOLE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(unreadable(path, error)) from error
    if len(content) > MAX_WHOLE:
        raise DataError(f"{path}: larger than {MAX_WHOLE:,} bytes, which is read as a whole: split it, or export JSON "
                        "Lines, which are read one by one")  # fmt: skip
    return content


def _is_lines(path: str) -> bool:
    """Whether a file is JSON Lines, by its first line; otherwise it is an array, or values over several lines."""
    for _, line in read_lines(path):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return False
        return not isinstance(value, list) or recognise(value) is not None
    return True


def _read_values(path: str) -> Iterator[tuple[str, object]]:
    """Decode the items of a JSON array, or consecutive JSON values, one by one."""
    text = decode(read_whole(path), path)
    place = _after_blanks(text, 0)
    in_array = text[place : place + 1] == "["
    place = _after_blanks(text, place + in_array)
    line, counted, number = 1, 0, 0
    while place < len(text) and not (in_array and text[place] == "]"):
        line, counted, number = line + text.count("\n", counted, place), place, number + 1
        where = f"{path}:{line} item {number}"
        try:
            value, place = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not valid JSON: {error}") from error
        yield where, value
        place = _after_blanks(text, place)
        if in_array and text[place : place + 1] == ",":
            place = _after_blanks(text, place + 1)
        elif in_array and text[place : place + 1] != "]":
            raise DataError(f"{where}: not valid JSON: expected , or ] after this item")


def _after_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _read_rows(path: str) -> Iterator[tuple[str, dict]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", {name: value for name, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read after row {number} ({first_line(error)})") from error


def parquet_tag_names(path: str, field: str) -> list[str] | None:
    """
    The names of a column's tag numbers, which `datasets` stores in a Parquet file's schema (`info`, `features`, a
    `ClassLabel` within a list); `None` if the file is not Parquet or has no names.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not head_of(path).startswith(b"PAR1"):
        return None
    try:
        kept = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"null"))
        names = kept["info"]["features"][field]["feature"]["names"]
    except (KeyError, TypeError, ValueError, pa.ArrowException):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def kind_of_records(path: str) -> str | None:
    """The format of the first record that is recognised; `None` if none of the first thousand is."""
    for number, (_, record) in enumerate(read_records(path)):
        kind = recognise(record)
        if kind is not None or number == 1000:
            return kind
    return None
