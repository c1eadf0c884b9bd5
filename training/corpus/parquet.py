"""Read texts from Parquet files and write entities to them, with a few rows in memory at a time."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from training.common.cli import first_line
from training.common.files import unreadable
from training.corpus.data import DataError, Document, parse_record


ROWS = 64  # read at a time
ROWS_WRITTEN = 1000  # in a row group
BUFFER = 1 << 20  # bytes; without a buffer, a whole row group is read at once
COLUMNS = ("id", "doc_id", "text")
ENTITY = {"start": pa.int64(), "end": pa.int64(), "text": pa.string(), "label": pa.string(), "score": pa.float64()}
ENTITIES = pa.list_(pa.struct(list(ENTITY.items())))
SCHEMA = pa.schema({"id": pa.string(), "entities": ENTITIES, "error": pa.string()})


def count_rows(path: str) -> int:
    """
    The number of rows, from the file's metadata; checks the columns.

    Raises:
        DataError: for a file that is not Parquet or cannot be read, and columns that are missing or of a wrong type.
    """
    with _open(path) as file:
        schema = file.schema_arrow
        if "text" not in schema.names:
            raise DataError(f"{path}: column text: expected strings or lists of words, found no such column")
        for name in set(COLUMNS) & set(schema.names):
            kind = _plain(schema.field(name).type)
            if name == "text" and _is_list(kind):
                kind = _plain(kind.value_type)
            if not (_is_string(kind) or (name != "text" and pa.types.is_integer(kind))):
                expected = "strings or lists of words" if name == "text" else "strings or integers"
                raise DataError(f"{path}: column {name}: expected {expected}, found {schema.field(name).type}")
        return file.metadata.num_rows


def read_parquet(path: str) -> Iterator[Document]:
    """Yield the texts (columns `text`, and `id` or `doc_id`) without gold entities; `DataError` names file and row."""
    number = 0
    with _open(path) as file:
        columns = [name for name in COLUMNS if name in file.schema_arrow.names]
        rows = file.iter_batches(batch_size=ROWS, columns=columns)
        while True:
            try:
                batch = next(rows, None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: cannot be read after row {number} ({first_line(error)})") from error
            if batch is None:
                break
            for row in batch.to_pylist():
                number += 1
                record = {name: value for name, value in row.items() if value is not None}
                yield parse_record(record, f"{path} row {number}", with_gold=False)
    if not number:
        raise DataError(f"{path}: no document in this file")


def write_parquet(lines: Iterable[bytes], path: str) -> None:
    """Write the lines of `prediction_line` as rows. A lone surrogate, which UTF-8 cannot encode, becomes U+FFFD."""
    lines = iter(lines)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while rows := [_encodable(json.loads(line)) for line in islice(lines, ROWS_WRITTEN)]:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _open(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(unreadable(path, error)) from error


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _encodable(value):
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    return {key: _encodable(item) for key, item in value.items()} if isinstance(value, dict) else value
