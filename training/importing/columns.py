"""
Read CoNLL columns: a word and its tag on a line, an empty line after a sentence or text. Tags are IOB1, IOB2, BILOU or
BIOES. Escaped labels (`escape_label`) are unescaped.

Documents begin with a line `-DOCSTART-`, `# newdoc` or `# doc_id`; in a file without such lines, empty lines separate
documents. The words are in the first column (in the second, if the first numbers them), the tags in the last one.
"""

import re
from collections.abc import Iterator

from training.corpus.data import DataError, read_lines
from training.corpus.labels import unescape_label
from training.corpus.recognise import TAG, columns_of, is_comment
from training.importing.draft import Draft, Reading, Span


BLOCKS = "files mark no documents: what stands between two empty lines is a text"
INSIDE = "entities begin with I-, as in IOB1, or where a B- is missing"
LOOK = 100  # words that are inspected to tell whether the first column numbers them
_DOCUMENT = re.compile(r"#\s*(newdoc|doc_?id|begin document)\b\s*(?:id)?\s*=?\s*(.*)", re.IGNORECASE)


def spans_of_tags(tags: list, reading: Reading, where: str) -> list[Span]:
    """Decode IOB1, IOB2, BILOU or BIOES tags into entities; any other tag is left out, and noted."""
    spans: list[Span] = []
    label = None  # of the open entity
    for number, tag in enumerate(tags):
        if not (isinstance(tag, str) and TAG.fullmatch(tag)):
            reading.leave_out(
                where, f"word {number + 1}: {tag!r}", "a tag that is none (O, B-..., I-..., L-, U-, E-, S-)"
            )
            label = None
            continue
        prefix, _, name = tag.partition("-")
        if prefix == "O":
            label = None
            continue
        if prefix in "BUS" or name != label:
            reading.remarks[INSIDE] += prefix not in "BUS"
            spans.append(Span(number, number + 1, name, f"word {number + 1}"))
        else:
            spans[-1] = spans[-1]._replace(end=number + 1)
        label = None if prefix in "ULES" else name
    return spans


def read_conll(path: str, reading: Reading) -> Iterator[Draft]:
    """Read the documents of a file; `DataError` if a line has another number of columns than the first."""
    id_, words, tags, where, marked = None, [], [], None, False
    for where_, name, block in _blocks(path, reading):
        starts = name is not None
        if words and (starts or not marked):
            yield _draft(id_, words, tags, where, reading)
            words, tags = [], []
        if starts or not words:
            where, id_ = where_, name or None
        marked = marked or starts
        words += [word for word, _ in block]
        tags += [tag for _, tag in block]
    if words:
        yield _draft(id_, words, tags, where, reading)
    reading.remarks[BLOCKS] += not marked


def _draft(id_: str | None, words: list, tags: list, where: str, reading: Reading) -> Draft:
    spans = spans_of_tags(tags, reading, where)
    return Draft(id_ or where, words, where, [span._replace(label=unescape_label(span.label)) for span in spans])


def _blocks(path: str, reading: Reading) -> Iterator[tuple[str, str | None, list[tuple[str, str]]]]:
    """
    Yield ("FILE:LINE", name, [(word, tag), ...]) for each block between empty lines; `name` is the id of the document
    that begins with the block, "" if it has no id, and `None` if no document begins there.
    """
    name, rows, start, last, width = None, [], 1, 0, None
    has_head, word_column = _layout(path)
    for number, line in _lines(path):
        columns = columns_of(line)
        document = _DOCUMENT.match(line) if is_comment(line) else None
        begins = document is not None or (_is_mark(columns) and not has_head)
        if rows and (begins or number > last + 1):  # `_lines` skips blank lines
            yield f"{path}:{start}", *_block(name, rows)
            name, rows = None, []
        last = number
        if begins:
            name = document[2].strip() if document else name or ""
        if is_comment(line) or _is_mark(columns):
            continue
        width = len(columns) if width is None else width
        if len(columns) != width or width < 2:
            expected = f"{max(width, 2)} columns (a word first, its tag last)"
            raise DataError(f"{path}:{number}: expected {expected}, found {len(columns)}")
        start = start if rows else number
        rows.append((columns[word_column], columns[-1]))
    if rows:
        yield f"{path}:{start}", *_block(name, rows)


def _lines(path: str) -> Iterator[tuple[int, str]]:
    return ((number, line.rstrip("\n")) for number, line in read_lines(path))


def _is_mark(columns: list[str]) -> bool:
    """Whether a line marks a document. With two columns `-DOCSTART-` may be a word; see `_block`."""
    return columns[0] == "-DOCSTART-" and len(columns) != 2


def _layout(path: str) -> tuple[bool, int]:
    """
    Look ahead into a file.

    Returns:
        Whether it has a single `-DOCSTART-` with a text right below it, as Label Studio writes it for all texts; the
        column of the words: 1 if the first column numbers them, from 1 in each block, else 0.
    """
    marks, has_head, numbers, last = [], False, [], 0
    for number, line in _lines(path):
        columns = columns_of(line)
        if _is_mark(columns):
            marks.append(number)
        elif not is_comment(line):
            has_head = has_head or marks == [number - 1]
            if len(numbers) < LOOK:
                first = numbers and number == last + 1
                numbers.append(len(columns) > 2 and re.fullmatch(r"\d+([-.]\d+)?" if first else "1", columns[0]))
            last = number
        if len(marks) > 1 and len(numbers) == LOOK:
            break
    return has_head and len(marks) == 1, int(len(numbers) > 1 and all(numbers))


def _block(name: str | None, rows: list[tuple[str, str]]) -> tuple[str | None, list[tuple[str, str]]]:
    is_mark = rows == [("-DOCSTART-", "O")]
    return ("", []) if is_mark else (name, rows)
