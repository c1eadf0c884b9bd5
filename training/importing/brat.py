"""
Read brat's standoff files: a .txt and a .ann of the same name.

An entity of several fragments with only white space between them (over a line end) is one span. An entity with text
between its fragments is discontinuous; no span can hold it, so it is left out. Offsets count characters. Escaped
labels (`escape_label`) are unescaped.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from training.corpus.data import DataError, decode, read_lines
from training.corpus.labels import unescape_label
from training.importing.draft import Draft, Reading, Span
from training.importing.records import head_of, read_whole


_ENTITY = re.compile(r"(T\S*)\t(\S+) (\d{1,18} \d{1,18}(?:;\d{1,18} \d{1,18})*)\t?(.*)")
_OTHERS = {"R": "relations", "*": "equivalences", "E": "events", "A": "attributes", "M": "attributes",
           "N": "normalisations", "#": "notes"}  # fmt: skip


def read_brat(path: str, reading: Reading) -> Iterator[Draft]:
    """Read all pairs in a folder, at any depth, or one pair, given by either file."""
    given = Path(path)
    if given.is_dir():
        files = sorted({file.with_suffix("") for ending in ("*.ann", "*.txt") for file in given.rglob(ending)
                        if not file.name.startswith(".")})  # fmt: skip
        if not any(file.with_suffix(".ann").is_file() for file in files):
            raise DataError(f"{path}: no .ann file in this folder")
        pairs = [(str(file.relative_to(given)), file) for file in files]
    else:
        pairs = [(given.stem, given.with_suffix(""))]
    for name, file in pairs:
        text, annotations = Path(f"{file}.txt"), Path(f"{file}.ann")
        if not (text.is_file() and annotations.is_file()):
            known, missing = (text, ".ann") if text.is_file() else (annotations, ".txt")
            reading.leave_out(str(known), "document", f"no {missing} file beside it")
            continue
        content = decode(read_whole(str(text)), str(text))
        if head_of(str(text)).startswith(codecs.BOM_UTF8):
            content = "\ufeff" + content  # which brat's offsets count
        spans = list(_spans_of_lines(str(annotations), content, reading))
        yield Draft(name, content, str(annotations), spans, has_unit=True)


def _spans_of_lines(path: str, text: str, reading: Reading) -> Iterator[Span]:
    for number, line in read_lines(path):
        line = line.rstrip("\n")
        if not line.startswith("T"):
            reading.ignored[_OTHERS.get(line[0], "lines of unknown kind")] += 1
            continue
        entity = _ENTITY.fullmatch(line)
        where = f"{path}:{number}"
        if entity is None:
            reading.leave_out(where, repr(line[:60]), "expected T1, label, start and end, text")
            continue
        name, label, places, quote = entity.groups()
        fragments = [tuple(map(int, place.split(" "))) for place in places.split(";")]
        gaps = [(end, start) for (_, end), (start, _) in zip(fragments, fragments[1:], strict=False)]
        if any(end > start or text[end:start].strip() for end, start in gaps):
            reading.leave_out(where, f"{name} ({label}) {places}: {quote!r}", "discontinuous")
            continue
        yield Span(fragments[0][0], fragments[-1][1], unescape_label(label), name, quote or None, where)
