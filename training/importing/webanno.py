"""
Read TSV 3 of INCEpTION and WebAnno: one document in a file, a token on a line, a column for each feature of a layer.

The format is described in INCEpTION's user guide ("WebAnno TSV 3.3 File format"). Offsets count UTF-16 code units. An
annotation over several tokens has the same number `[N]` on all of them; stacked annotations have numbers, too.
Sub-tokens have rows of their own. `_` is no annotation, `*` one without a value. A backslash escapes reserved
characters.

Entities are the annotations of the layer NamedEntity and of the project's own layers. Their label is the value of one
feature: `value`, `label`, or the first. A layer without features has its name as the label.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from training.corpus.data import DataError, decode
from training.corpus.recognise import LINE_END
from training.importing.draft import Draft, Reading, Span
from training.importing.offsets import UNITS, unit_starts
from training.importing.records import read_whole


_BUILT_IN = "de.tudarmstadt.ukp.dkpro.core."
_NAMED_ENTITY = f"{_BUILT_IN}api.ner.type.NamedEntity"
_ROW = re.compile(r"\d+-\d+(?:\.\d+)?\t(\d{1,9})-(\d{1,9})\t([^\t]*)\t?(.*)")
_ESCAPE = re.compile(r"\\(->|.)", re.DOTALL)
_STACKED = re.compile(r"(?:\\.|[^\\|])+", re.DOTALL)
_NUMBERED = re.compile(r"((?:\\.|[^\\])*?)(?:\[(\d{1,9})\])?", re.DOTALL)
MAX_GAP = 100_000  # blanks between two sentences
_LETTERS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


@dataclass
class Row:
    """A token or sub-token: offsets in the file's unit, text, the column of each feature."""

    where: str
    start: int
    end: int
    token: str
    cells: list[str]


@dataclass
class Sentence:
    text: str
    rows: list[Row] = field(default_factory=list)


@dataclass
class Layer:
    """A layer of spans: its short name, its first column, the column of its label (`None` without features)."""

    name: str
    first: int
    label: int | None


def read_webanno(path: str, reading: Reading) -> Iterator[Draft]:
    """
    Read the document of a file.

    Raises:
        DataError: the file is not of this format, or a token is not at its offsets.
    """
    lines = LINE_END.split(decode(read_whole(path), path))
    layers = _layers(lines, reading)
    sentences = _sentences(path, lines)
    text, places = _assembled(path, sentences, reading.offsets or "utf-16")
    rows = [row for sentence in sentences for row in sentence.rows]
    spans = []
    for layer in layers:
        spans += _spans_of(layer, rows, places)
    yield Draft(path, text, path, spans)


def _layers(lines: list[str], reading: Reading) -> list[Layer]:
    """The layers whose spans are entities; other layers are noted."""
    layers, column = [], 0
    for line in lines:
        if not line.startswith(("#T_SP=", "#T_CH=", "#T_RL=")):
            continue
        kind, _, rest = line.partition("=")
        name, *features = rest.split("|")
        first, column = column, column + len(features)
        named = [feature for feature in features if feature]
        plain = [feature for feature in named if not feature.startswith("ROLE_")]
        if kind != "#T_SP" or (name.startswith(_BUILT_IN) and name != _NAMED_ENTITY):
            reading.remarks[f"files have a layer that is not read: {name}"] += 1
            continue
        short = name.rpartition(".")[2]
        best = next((feature for feature in ("value", "label") if feature in plain), plain[0] if plain else None)
        others = [feature for feature in plain if feature != best]
        if others:
            reading.remarks[f"files label {short} by its feature {best}, not by {', '.join(others)}"] += 1
        is_slot = bool(named) and named[0].startswith("ROLE_")
        layers.append(Layer(short, first, None if best is None or is_slot else first + features.index(best)))
    return layers


def _sentences(path: str, lines: list[str]) -> list[Sentence]:
    sentences, in_text = [], False
    for number, line in enumerate(lines, start=1):
        if line.startswith("#Text="):
            text = _unescaped(line.removeprefix("#Text="))
            if in_text:
                sentences[-1].text += "\n" + text
            else:
                sentences.append(Sentence(text))
            in_text = True
            continue
        in_text = False
        if not line.strip() or line.startswith("#"):
            continue
        row = _ROW.fullmatch(line)
        if row is None or not sentences:
            expected = "a token after a #Text= (1-1, its offsets, its text, a column for each feature)"
            raise DataError(f"{path}:{number}: expected {expected}, found {line[:60]!r}")
        start, end, token, cells = row.groups()
        row = Row(f"{path}:{number}", int(start), int(end), _unescaped(token), cells.split("\t"))
        sentences[-1].rows.append(row)
    return sentences


def _assembled(path: str, sentences: list[Sentence], unit: str) -> tuple[str, list[tuple[int, int]]]:
    """
    Join the sentences to a text, and convert each row's (start, end) to its characters.

    Raises:
        DataError: for the first token that is not at its offsets; names a unit in which all tokens would be.
    """
    text, places, fault = _placed(sentences, unit)
    if fault is None:
        return text, places
    row, found = fault
    others = [other for other in UNITS if other != unit and _placed(sentences, other)[2] is None]
    cure = ", and no unit of offsets explains it"
    if others:
        cure = f"; all tokens are right if offsets count {UNITS[others[0]]}: import with --offsets {others[0]}"
    raise DataError(f"{row.where}: [{row.start}, {row.end}) holds {found!r}, the token there is {row.token!r}{cure}")


def _placed(sentences: list[Sentence], unit: str) -> tuple[str, list[tuple[int, int]], tuple[Row, str] | None]:
    """The text, (start, end) of each row, and the first (row, text found) that does not match, or `None`."""
    parts, places = [], []
    length, size = 0, 0  # of the text so far, in characters and in the unit
    for sentence in sentences:
        start = sentence.rows[0].start if sentence.rows else size
        gap = max(0, start - size)  # the format does not store the text between sentences
        if gap > MAX_GAP:
            return "", [], (sentence.rows[0], "")
        parts += [" " * gap, sentence.text]
        starts = unit_starts(sentence.text, unit)
        positions = {int(at): number for number, at in enumerate(starts)}
        for row in sentence.rows:
            first, last = positions.get(row.start - size - gap), positions.get(row.end - size - gap)
            found = "" if first is None or last is None else sentence.text[first:last]
            if first is None or last is None or found != row.token:
                return "", [], (row, found)
            places.append((length + gap + first, length + gap + last))
        length, size = length + gap + len(sentence.text), size + gap + int(starts[-1])
    return "".join(parts), places, None


def _spans_of(layer: Layer, rows: list[Row], places: list[tuple[int, int]]) -> list[Span]:
    """The layer's annotations; rows with the same number belong to one annotation."""
    found: dict[object, list] = {}  # number, or (row, position in the stack) -> start, end, label, row
    for count, (row, (start, end)) in enumerate(zip(rows, places, strict=True)):
        column = layer.first if layer.label is None else layer.label
        cell = row.cells[column] if column < len(row.cells) else "_"
        if cell in ("_", ""):
            continue
        for stack, item in enumerate(_STACKED.findall(cell)):
            value, number = _NUMBERED.fullmatch(item).groups()
            key = int(number) if number else (count, stack)
            label = None if value == "*" else _unescaped(value)
            entry = found.setdefault(key, [start, end, label, row])
            entry[0], entry[1] = min(entry[0], start), max(entry[1], end)
    return [Span(start, end, layer.name if layer.label is None else label, layer.name, where=row.where)
            for start, end, label, row in found.values()]  # fmt: skip


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _LETTERS.get(match[1], match[1]), text)
