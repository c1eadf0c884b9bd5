"""
Convert entities to other formats: spaCy's `Doc.spans`, brat's standoff files, CoNLL columns with IOB tags.

    from training.inference.interop import flat, to_brat, to_conll, to_spacy

An entity is a dict as the pipeline returns it: `start`, `end` (exclusive), `text`, `label`, `score`. What a format
cannot hold raises a `ValueError` that names the entity: nothing is left out, moved or merged silently. White space
around an entity is trimmed, as in training; a warning counts them. An entity of white space alone is an error.
Characters of a label that brat or CoNLL cannot hold are escaped (`escape_label`); `import_data.py` undoes it.
"""

import re
import reprlib
import warnings
from bisect import bisect_left, bisect_right

from modeling_sener.gold import trim
from training.corpus.labels import escape_label


# No annotated text may hold characters that end a line, or a field of a line, for some reader of brat's files.
_LINE = re.compile("[^\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")


def to_spacy(doc, entities: list[dict], key: str = "sc", expand: bool = False) -> None:
    """
    Store entities, nested and overlapping ones included, as the span group `doc.spans[key]`. Their scores, in the same
    order, are its `attrs["scores"]`. spaCy's own span categoriser and displaCy use the group `sc`.

    Args:
        doc: a `spacy.tokens.Doc` of the entities' text.
        expand: extend an entity that covers a token partly to the whole token; otherwise it is an error.

    Raises:
        ValueError: an entity that is not of this text, or that covers a token partly.
    """
    spans = []
    for start, end, entity in _checked(doc.text, entities):
        span = doc.char_span(start, end, label=entity["label"], alignment_mode="expand" if expand else "strict")
        if span is None:
            tokens = doc.char_span(start, end, alignment_mode="expand")
            raise ValueError(f"{_name(entity)} covers the tokens {[token.text for token in tokens]} partly: "
                             "expand=True takes whole tokens")  # fmt: skip
        spans.append(span)
    doc.spans[key] = spans
    doc.spans[key].attrs["scores"] = [entity["score"] for entity in entities]


def to_brat(text: str, entities: list[dict]) -> str:
    """
    Format entities as brat's `.ann` file, for a `.txt` file (UTF-8) beside it that holds `text` unchanged.

    An entity over several lines becomes an annotation with a fragment for each line. A note holds its score.

    Raises:
        ValueError: an entity that is not of this text, or whose label is blank.
    """
    lines = []
    for number, (start, end, entity) in enumerate(_checked(text, entities), start=1):
        fragments = []
        for line in _LINE.finditer(text, start, end):
            first = line.end() - len(line[0].lstrip())
            last = line.start() + len(line[0].rstrip())
            fragments += [(first, last)] if first < last else []
        places = ";".join(f"{first} {last}" for first, last in fragments)
        quote = " ".join(text[first:last] for first, last in fragments)
        lines.append(f"T{number}\t{_label(entity, 'brat')} {places}\t{quote}\n")
        lines.append(f"#{number}\tAnnotatorNotes T{number}\tscore {entity['score']:.4f}\n")
    return "".join(lines)


def flat(entities: list[dict]) -> list[dict]:
    """Keep the entity with the highest score (then the first) of those that overlap; in text order."""
    kept: list[dict] = []  # sorted
    for entity in sorted(entities, key=lambda entity: (-entity["score"], entity["start"], entity["end"])):
        place = bisect_left(kept, entity["start"], key=lambda other: other["start"])
        before, after = kept[max(place - 1, 0) : place], kept[place : place + 1]
        if all(other["end"] <= entity["start"] for other in before) and all(
            entity["end"] <= other["start"] for other in after
        ):
            kept.insert(place, entity)
    return kept


def to_conll(text: str | list[str], entities: list[dict], words: list[tuple[int, int]] | None = None) -> str:
    """
    Format a text with flat entities as CoNLL columns: a line for each word with its IOB2 tag after a tab, and an empty
    line. The results of several texts can be concatenated.

    Args:
        text: a string, or a list of words (then entities count words).
        words: for a string, (start, end) of each word: `SenerProcessor.split_words(text)`.

    Raises:
        ValueError: an entity that is not of this text, that covers a word partly, that shares a word with another one,
            or whose label is blank; a word that is empty or holds white space.
    """
    if isinstance(text, str):
        if words is None:
            raise ValueError("a string needs its words: processor.split_words(text)")
        # Leave out control characters that Python counts as white space.
        words = [(start, end) for start, end in words if not text[start:end].isspace()]
        tokens = [text[start:end] for start, end in words]
    else:
        words, tokens = [(number, number + 1) for number in range(len(text))], text
    for number, token in enumerate(tokens):
        if token.split() != [token]:
            raise ValueError(f"word {number} is {token!r}: a word of a CoNLL file cannot be empty or hold white space")
    starts, ends = [start for start, _ in words], [end for _, end in words]
    tags, owner = ["O"] * len(words), {}
    for start, end, entity in _checked(text, entities):
        label = _label(entity, "conll")
        covered = range(bisect_right(ends, start), bisect_left(starts, end))
        if not covered or (starts[covered[0]], ends[covered[-1]]) != (start, end):
            parts = [tokens[number] for number in covered]
            raise ValueError(f"{_name(entity)} does not begin and end with the words {reprlib.repr(parts)}")
        for number in covered:
            if number in owner:
                raise ValueError(f"{_name(owner[number])} and {_name(entity)} share the word {tokens[number]!r}: IOB "
                                 "tags hold flat entities; `flat` keeps the best of them")  # fmt: skip
            owner[number] = entity
            tags[number] = f"{'B' if number == covered[0] else 'I'}-{label}"
    return "".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)) + "\n"


def _checked(text: str | list[str], entities: list[dict]) -> list[tuple[int, int, dict]]:
    """Start and end of each entity, without white space around it."""
    places, trimmed = [], 0
    for entity in entities:
        start, end = entity["start"], entity["end"]
        found = text[start:end] if isinstance(text, str) else " ".join(text[start:end])
        if not 0 <= start < end <= len(text) or found != entity["text"]:
            raise ValueError(f"{_name(entity)} is no entity of this text, which has {reprlib.repr(found)} there")
        first, last = trim(text, start, end)
        if first == last:
            raise ValueError(f"{_name(entity)} is white space alone")
        trimmed += (first, last) != (start, end)
        places.append((first, last, entity))
    if trimmed:
        warnings.warn(f"{trimmed:,} entities had white space around them, which was trimmed", stacklevel=3)
    return places


def _label(entity: dict, form: str) -> str:
    if not entity["label"].strip():
        raise ValueError(f"{_name(entity)}: the format has no place for a label that is empty or white space alone")
    return escape_label(entity["label"], form)


def _name(entity: dict) -> str:
    return f"{reprlib.repr(entity['text'])} ({entity['label']}, {entity['start']}-{entity['end']})"
