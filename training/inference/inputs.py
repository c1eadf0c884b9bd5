"""Count the texts of files, and read them one by one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from training.common.files import nearest, unreadable
from training.common.progress import progress_bar
from training.corpus.data import FILE_ENDINGS, DataError, Document, read_lines, read_text, stream_documents


def count_texts(path: str) -> int:
    """
    The number of texts in a file.

    Raises:
        DataError: the file cannot be read, is of no known kind, or has a line that is not UTF-8.
    """
    if path.endswith(FILE_ENDINGS):
        return sum(1 for _ in progress_bar(read_lines(path), desc=f"counting {path}", unit="text", leave=False))
    if path.endswith(".parquet"):
        from training.corpus.parquet import count_rows

        return count_rows(path)
    if path.endswith(".txt"):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise DataError(unreadable(path, error)) from error
        return 1
    if not Path(path).exists():
        raise DataError(f"{path}: no such file{nearest(path)}")
    raise DataError(f"{path}: expected a .txt, .jsonl, .jsonl.gz or .parquet file")


def stream_inputs(paths: Iterable[str]) -> Iterator[Document]:
    """Yield the texts of all files, in order; `DataError` for the first fault, with file and line."""
    for path in paths:
        if path.endswith(".parquet"):
            # A late import: the other formats work without pyarrow.
            from training.corpus.parquet import read_parquet

            yield from read_parquet(path)
        elif path.endswith(".txt"):
            yield Document(path, read_text(path))
        else:
            yield from stream_documents(path, with_gold=False)
