"""Check the texts that processor and pipeline are given: any sequence of strings; errors name other types."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath


BLANK_LINE = re.compile(r"(?:\r\n|\r(?!\n)|\n)[^\S\r\n]*(?:\r\n?|\n)")
LONGEST_PATH = 1024  # characters; a longer text is not looked for among the files


def is_sequence(value) -> bool:
    """
    Whether a value is a sequence of items in order: a list, a tuple, a column of a data set, an array, a series. A
    string is none, nor is a mapping, nor a table, whose items are its columns' names.
    """
    if isinstance(value, str | bytes | bytearray | memoryview | Mapping) or _is_table(value):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and getattr(value, "ndim", 1) == 1


def holds_blank_line(text: str | list[str], start: int, end: int) -> bool:
    """Whether `text[start:end]` holds a blank line; a list of words has no lines."""
    return isinstance(text, str) and BLANK_LINE.search(text, start, end) is not None


def is_path(text: str) -> bool:
    """Whether a text is the path of a file that is there, or of a folder, written with a separator."""
    if len(text) > LONGEST_PATH or "\n" in text:
        return False
    try:
        return Path(text).is_file() or ("/" in text.strip("/") and Path(text).is_dir())
    except OSError:  # a name that is too long for a file
        return False


def name_type(name: str, value, expected: str) -> str:
    """The message on a value of a wrong type: which it is, and what to pass."""
    kind, hint = type(value).__name__, ""
    if _is_table(value):
        hint = ", a table: pass one of its columns"
    elif isinstance(value, PurePath):
        hint = ": read the file (`path.read_text()`)"
    elif isinstance(value, bytes | bytearray):
        hint = ": decode it"
    return f"{name} is of type {kind}{hint}; expected {expected}"


def is_one_text(texts, is_split_into_words: bool) -> bool:
    """Whether `texts` is a text itself, not a sequence of texts."""
    if not is_split_into_words:
        return isinstance(texts, str)
    return is_sequence(texts) and all(isinstance(word, str) for word in texts)


def check_strings(texts) -> list[str]:
    """A string, or a sequence of them, as a list; `TypeError` names what is neither, `ValueError` no text at all."""
    if isinstance(texts, str):
        return [texts]
    if not is_sequence(texts):
        raise TypeError(name_type("texts", texts, "a string or a list of strings"))
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            hint = " (for lists of words, is_split_into_words=True)" if is_sequence(text) else ""
            raise TypeError(name_type(f"texts[{number}]", text, f"a string{hint}"))
    return _not_empty(texts)


def check_words(texts) -> list[list[str]]:
    """A sequence of words, or a sequence of those, as lists; errors as for `check_strings`."""
    if not is_sequence(texts):
        raise TypeError(name_type("texts", texts, "a list of words, or a list of such lists"))
    texts = [texts] if is_one_text(texts, True) else list(texts)
    for number, text in enumerate(texts):
        if not is_sequence(text):
            raise TypeError(name_type(f"texts[{number}]", text, "a list of words"))
        for place, word in enumerate(text):
            if not isinstance(word, str):
                raise TypeError(name_type(f"texts[{number}][{place}]", word, "a string"))
    return [list(text) for text in _not_empty(texts)]


def _is_table(value) -> bool:
    """Whether a value is a data set or a data frame: by what pandas, polars, pyarrow and datasets call its columns."""
    return hasattr(value, "columns") or hasattr(value, "column_names")


def _not_empty(texts: list) -> list:
    if not texts:
        raise ValueError("there is no text: pass at least one (it may be empty)")
    return texts
