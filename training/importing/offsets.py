"""
Convert offsets to characters, and check the unit of an export against its quotes.

Python counts characters (Unicode code points). JavaScript and Java count UTF-16 code units; a character outside of the
BMP (an emoji) has two. doccano and some versions of Label Studio count as the browser does. Others count UTF-8 bytes.
"""

import math
import reprlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from modeling_sener.gold import trim
from training.corpus.data import DataError
from training.importing.draft import Draft, Reading, Span


UNITS = {"characters": "characters", "utf-16": "UTF-16 code units", "utf-8": "UTF-8 bytes"}
NEAR = 200  # characters on either side of an offset in which its quote is looked for
TRIMMED = "entities had white space around them, which was trimmed"
EDGES = 2  # of spans inside words: fewer say nothing


def unit_starts(text: str, unit: str) -> np.ndarray:
    """The offset of each character in `unit`; last, the length of the text. *Shape:* (len(text) + 1,)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = np.ones(len(codes), dtype=np.int64)
    if unit == "utf-16":
        sizes += codes > 0xFFFF
    elif unit == "utf-8":
        sizes += (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])


class Ruler:
    """Converts the offsets of one text from any unit to characters."""

    def __init__(self, text: str):
        self.text = text
        self._starts: dict[str, np.ndarray] = {}
        self.has_units = not text.isascii()  # whether units differ in this text

    def place(self, start: int, end: int, unit: str) -> tuple[int, int] | None:
        """(start, end) in characters; `None` for a span outside of the text, or with an end within a character."""
        if unit not in self._starts:
            self._starts[unit] = unit_starts(self.text, unit)
        starts = self._starts[unit]
        if not 0 <= start < end <= int(starts[-1]):
            return None
        first, last = np.searchsorted(starts, (start, end))
        return (int(first), int(last)) if (starts[first], starts[last]) == (start, end) else None

    def size(self, unit: str) -> int:
        return int(unit_starts(self.text, unit)[-1])

    def found(self, span: Span, unit: str) -> str:
        place = self.place(span.start, span.end, unit)
        return self.text[slice(*place)] if place else ""

    def edges_in_words(self, place: tuple[int, int] | None) -> int:
        """The number of a span's ends (0 to 2) that have a letter or digit on both sides."""
        if place is None:
            return 2
        return sum(0 < edge < len(self.text) and self.text[edge - 1].isalnum() and self.text[edge].isalnum()
                   for edge in place)  # fmt: skip


def is_quote(found: str, quote: str) -> bool:
    """Whether both are equal up to white space, which tools trim, double and escape."""
    found = "".join(found.split())
    return found == "".join(quote.split()) or found == "".join(quote.replace("\\r", "").replace("\\n", "").split())


@dataclass
class OffsetCheck:
    """
    Convert the spans of one format to characters, and collect evidence for another unit.

    Attributes:
        unit: of the offsets.
        quoted, wrong: the number of spans with a quote; of those whose text differs from it.
        mends, breaks: unit -> the number of wrong spans that it would correct, of right ones that it would make wrong.
        shifts: (start, end) too high by so much -> the number of wrong spans.
        telling: the number of unquoted spans whose position depends on the unit (characters or UTF-16 code units).
        edges: unit -> the number of ends of these spans that would lie inside a word.
        examples: cause -> the first span that it explains.
    """

    unit: str = "characters"
    quoted: int = 0
    wrong: int = 0
    mends: Counter = field(default_factory=Counter)
    breaks: Counter = field(default_factory=Counter)
    shifts: Counter = field(default_factory=Counter)
    telling: int = 0
    edges: Counter = field(default_factory=Counter)
    examples: dict = field(default_factory=dict)

    @property
    def other(self) -> str:
        """The alternative unit: UTF-16 code units, or characters if that is the unit already."""
        return "characters" if self.unit == "utf-16" else "utf-16"

    def convert(self, draft: Draft, reading: Reading) -> list[tuple[int, int, str]]:
        """Convert a draft's spans to characters or words; those that cannot be kept are noted in `reading`."""
        kept = []
        ruler = Ruler(draft.text) if isinstance(draft.text, str) else None
        unit = self.unit if draft.has_unit else "characters"
        size = f"{ruler.size(unit)} {UNITS[unit]}" if ruler else f"{len(draft.text)} words"
        for span in draft.spans:
            place, fault, where = None, _fault(span), span.where or draft.where
            if fault is None and ruler is None:
                place = (span.start, span.end) if span.end <= len(draft.text) else None
            elif fault is None:
                place = ruler.place(span.start, span.end, unit)
                fault = self._compare(ruler, span, place, where) if draft.has_unit else None
            if fault is None and place is None:
                fault = ("outside the text, or within a character", f"[{span.start}, {span.end}) of {size}")
            if fault is None:
                start, end = trim(draft.text, *place)
                fault = ("white space alone", f"[{span.start}, {span.end})") if start == end else None
            if fault is None:
                reading.remarks[TRIMMED] += (start, end) != place
                kept.append((start, end, span.label))
            else:
                reading.leave_out(where, f"{span.name}: {fault[1]}", fault[0])
        return kept

    def _compare(self, ruler: Ruler, span: Span, place: tuple[int, int] | None, where: str) -> tuple[str, str] | None:
        """(reason, detail) if a span's text differs from its quote, else `None`; notes possible causes."""
        if span.quote is None:
            self._note_edges(ruler, span, place, where)
            return None
        self.quoted += 1
        others = [unit for unit in UNITS if unit != self.unit] if ruler.has_units else []
        mending = [unit for unit in others if is_quote(ruler.found(span, unit), span.quote)]
        found = ruler.text[slice(*place)] if place else ""
        if is_quote(found, span.quote):
            self.breaks.update(set(others) - set(mending))
            return None
        self.wrong += 1
        self.mends.update(mending)
        shift = _shift(ruler.text, place, span.quote) if place else None
        self.shifts.update([shift] if shift else [])
        fault = f"[{span.start}, {span.end}) holds {_short(found)}, the export quotes {_short(span.quote)}"
        for cause in (*mending, shift, "wrong"):
            self.examples.setdefault(cause, f"{where}: {span.name} ({span.label}): {fault}")
        return "its quote is another text", fault

    def _note_edges(self, ruler: Ruler, span: Span, place: tuple[int, int] | None, where: str) -> None:
        elsewhere = ruler.place(span.start, span.end, self.other) if ruler.has_units else place
        if elsewhere == place:
            return
        self.telling += 1
        self.edges[self.unit] += ruler.edges_in_words(place)
        self.edges[self.other] += ruler.edges_in_words(elsewhere)
        if place and elsewhere:
            found, also = (_short(ruler.text[slice(*at)]) for at in (place, elsewhere))
            self.examples.setdefault("edges", f"{where}: {span.name}: {found}, in {UNITS[self.other]} {also}")

    def verdict(self, max_misquoted: float) -> str | None:
        """
        Judge the evidence for another unit.

        Returns:
            A warning if word edges indicate another unit, else `None`.

        Raises:
            DataError: quotes indicate another unit, or more than the share `max_misquoted` of them is wrong.
        """
        better = {unit: count - self.breaks[unit] for unit, count in self.mends.items()}
        best = max(better, key=better.get, default=None)
        counts = f"{self.wrong:,} of {self.quoted:,} entities with a quote hold another text"
        if best and better[best] > 0 and 2 * self.mends[best] >= self.wrong:
            raise DataError(f"{self.examples[best]}; {counts}, {self.mends[best]:,} are right if offsets count "
                            f"{UNITS[best]}: import with --offsets {best}")  # fmt: skip
        if self.wrong > max_misquoted * self.quoted:
            shift, count = max(self.shifts.items(), key=lambda item: item[1], default=(None, 0))
            is_shift = 2 * count >= self.wrong
            cause = f"{count:,} because {_shifted(*shift)}" if is_shift else "and no unit of offsets explains it"
            share = math.ceil(100 * self.wrong / self.quoted) / 100
            cure = f"export again with the text that was annotated, or leave them out with --max_misquoted {share:g}"
            raise DataError(f"{self.examples[shift if is_shift else 'wrong']}; {counts}, {cause}: {cure}")
        inside, otherwise = self.edges[self.unit], self.edges[self.other]
        if inside < EDGES or inside <= 3 * otherwise:
            return None
        example = f" ({self.examples['edges']})" if "edges" in self.examples else ""
        return (f"warning: {inside:,} of the {2 * self.telling:,} ends of entities behind an emoji or the like lie "
                f"inside a word, {otherwise:,} if offsets count {UNITS[self.other]}{example}: if that is what was "
                f"annotated, import with --offsets {self.other}")  # fmt: skip


def _fault(span: Span) -> tuple[str, str] | None:
    """(reason, detail) of an annotation that is invalid for any text; `None` for a valid one."""
    for name, value in (("start", span.start), ("end", span.end)):
        if not isinstance(value, int) or isinstance(value, bool):
            return "no offsets", f"{name}: expected an integer, found {_short(value)}"
    if not isinstance(span.label, str) or not span.label.strip():
        return "no label", f"label: expected a name, found {_short(span.label)}"
    if not 0 <= span.start < span.end:
        return "empty, reversed or before the text", f"[{span.start}, {span.end})"
    return None


def _shift(text: str, place: tuple[int, int], quote: str) -> tuple[int, int] | None:
    """How much start and end are too high, by the nearest occurrence of the quote; `None` if there is none near."""
    start, end = place
    low = max(0, start - NEAR)
    context, found, at = text[low : end + NEAR], [], -1
    while (at := context.find(quote, at + 1)) >= 0:
        found.append(low + at)
    if not quote or not found:
        return None
    nearest = min(found, key=lambda place: (abs(place - start), place))
    return start - nearest, end - nearest - len(quote)


def _shifted(start: int, end: int) -> str:
    def sized(number: int) -> str:
        return f"{abs(number)} too {'high' if number > 0 else 'low'}"

    if start == end:
        return f"all offsets are {sized(start)}"
    if start == 0:
        return f"ends are {sized(end)}" + (" (the last character's own offset)" if end == -1 else "")
    return f"starts are {sized(start)}" + (f", ends {sized(end)}" if end else "")


def _short(value) -> str:
    return reprlib.repr(value)
