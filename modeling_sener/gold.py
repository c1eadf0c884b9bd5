"""Gold entities: check them, trim white space, and find the words that they cover."""

import json
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import NamedTuple

from transformers.utils import logging

from .band import fits
from .texts import holds_blank_line, is_sequence, name_type


class Gold(NamedTuple):
    """
    The gold entities of a text. Offsets count words if the text is a list of words, characters if it is a string.

    Attributes:
        entities: (start, end, label), each once, in the given order, without white space around them.
        duplicates: how many entities were left out because they were there already.
        misquoted: entities whose quoted words are not the text's words at their offsets; the offsets are used.
        trimmed: entities that had white space around them.
    """

    entities: tuple[tuple[int, int, str], ...]
    duplicates: int
    misquoted: int
    trimmed: int


class Covering(NamedTuple):
    """
    The words that the gold spans of a text cover.

    Attributes:
        entities: (first word, last word + 1, label) of each span, without duplicates.
        exact: those of `entities` whose gold span begins and ends with a word -> the span (start, end), in the text's
            units. No others can be found.
        off_boundary: the number of gold spans that do not begin and end with a word; they are trained on the words
            that they touch.
        inside_word: those of them (start, end, label), in the text's units, that begin or end inside a word.
        unreachable: the number of gold spans that touch no word with tokens; they cannot be trained on.
    """

    entities: list[tuple[int, int, str]]
    exact: dict[tuple[int, int, str], tuple[int, int]]
    off_boundary: int
    inside_word: list[tuple[int, int, str]]
    unreachable: int


def expect(holds: bool, name: str, expected: str, found) -> None:
    """Raise `ValueError` with the field's name, what is expected there and what was found."""
    if not holds:
        shown = "nothing" if found is None else json.dumps(found, default=repr, skipkeys=True)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise ValueError(f"{name}: expected {expected}, found {shown}")


def entity_fields(item, name: str) -> tuple:
    """Start, end, label and quoted text (or `None`) of a dict."""
    expect(isinstance(item, Mapping), name, 'an object with "start", "end" and "label"', item)
    for key in ("start", "end", "label"):
        expect(key in item, f"{name}.{key}", "a value", None)
    quote = item.get("text")
    return item["start"], item["end"], item["label"], quote if isinstance(quote, str) else None


def check_entities(items: Iterable[tuple], text: str | list[str], labels: list[str] | None, name: str) -> Gold:
    """
    Check the entities of a text, and trim white space around them.

    Args:
        items: (start, end, label, quoted words or `None`) of each entity.
        labels: the allowed labels; `None` allows any.
        name: the field that holds them, for errors.

    Raises:
        ValueError: for the first fault; names the entity and the field.
    """
    entities, count, misquoted, trimmed = {}, 0, 0, 0
    for count, (start, end, label, quote) in enumerate(items, start=1):
        own = f"{name}[{count - 1}]"
        for key, value in (("start", start), ("end", end)):
            expect(isinstance(value, Integral) and not isinstance(value, bool), f"{own} {key}", "an integer", value)
        expect(isinstance(label, str) and label, f"{own} label", "a non-empty string", label)
        unit = "words" if isinstance(text, list) else "characters"
        if not 0 <= start < end <= len(text):
            fault = "reversed or empty" if end <= start else f"outside the text's {len(text)} {unit}"
            raise ValueError(f"{own}: span [{start}, {end}) is {fault}")
        if labels is not None and label not in labels:
            raise ValueError(f"{own}: unknown label {label!r}; known labels: {', '.join(labels)}")
        misquoted += quote is not None and _letters(quote) != _letters(text[start:end])
        first, last = trim(text, int(start), int(end))
        if first == last:
            raise ValueError(f"{own}: span [{start}, {end}) is white space alone: remove it")
        trimmed += (first, last) != (start, end)
        entities[first, last, label] = None
    return Gold(tuple(entities), count - len(entities), misquoted, trimmed)


def _letters(words: str | list[str]) -> str:
    return "".join("".join(words).split())


def trim(text: str | list[str], start: int, end: int) -> tuple[int, int]:
    """
    Trim a span's white space (`str.strip`) on both sides: characters of a string, words of a list. A span of white
    space alone gives `start == end`.
    """
    while start < end and not text[start].strip():
        start += 1
    while start < end and not text[end - 1].strip():
        end -= 1
    return start, end


def covering_words(offsets: list[tuple[int, int]], entities: Iterable[tuple[int, int, str]]) -> Covering:
    """
    Map gold spans to the words that they touch.

    Args:
        offsets: (start, end) of each word in the text's units, increasing.
        entities: (start, end, label) in the same units.
    """
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    covered, exact, off_boundary, inside_word, unreachable = {}, {}, 0, [], 0
    for start, end, label in entities:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        if first >= last:
            unreachable += 1
            continue
        covered[first, last, label] = None
        if (starts[first], ends[last - 1]) == (start, end):
            exact[first, last, label] = start, end
        else:
            off_boundary += 1
            if starts[first] < start or end < ends[last - 1]:
                inside_word.append((start, end, label))
    return Covering(list(covered), exact, off_boundary, inside_word, unreachable)


def read_gold(entities, texts: list, labels: list[str], is_single: bool) -> list[Gold]:
    """
    Check what a user passes as the entities of texts.

    Args:
        entities: of each text, a sequence of dicts with `start`, `end` and `label`.
        is_single: whether `entities` are those of one text, not in a list.

    Raises:
        TypeError: something is not a sequence; says what.
        ValueError: for the first fault; names the text, the entity and the field.
    """
    lists = [entities] if is_single else entities
    if not is_sequence(lists):
        raise TypeError(name_type("entities", entities, "a list of entities for each text"))
    if len(lists) != len(texts):
        raise ValueError(f"entities has {len(lists):,} lists for {len(texts):,} texts")
    found = []
    for number, (own, text) in enumerate(zip(lists, texts, strict=True)):
        name = "entities" if is_single else f"entities[{number}]"
        if not is_sequence(own):
            raise TypeError(name_type(name, own, "a list of entities"))
        items = (entity_fields(item, f"{name}[{i}]") for i, item in enumerate(own))
        found.append(check_entities(items, text, labels, name))
    return found


class Notes(Counter):
    """How many entities, words and texts were changed or cannot be learnt, by the reason."""

    def add(self, gold: Gold, covering, text: str | list[str], config) -> None:
        """Count the entities of a text; `covering` is a `Covering`, or has its fields."""
        window, crossing = config.span_window, 0
        if not config.cross_blank_lines:
            crossing = sum(holds_blank_line(text, start, end) for start, end, _ in gold.entities)
        self["entities were there twice; the copies were left out"] += gold.duplicates
        self["entities quote other words than stand at their offsets; the offsets are used"] += gold.misquoted
        self["entities had white space around them, which was trimmed"] += gold.trimmed
        self["entities do not begin and end with a word; the words they touch are learnt"] += covering.off_boundary
        self["entities touch no word with tokens and cannot be learnt"] += covering.unreachable
        self[f"entities are wider than span_window {window} and cannot be learnt or found"] += sum(
            not fits(first, last, window) for first, last, _ in covering.entities
        )
        self["entities hold a blank line and cannot be found; set the config's cross_blank_lines"] += crossing

    def warn(self) -> None:
        """Log one warning with all counts that are not 0."""
        if lines := [f"{count:,} {reason}" for reason, count in self.items() if count]:
            logging.get_logger(__name__).warning("gold: %s", "; ".join(lines))
