"""The output of a reader: texts and annotations as the tool wrote them. Its settings, and its notes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """
    An annotation as the tool wrote it, unchecked.

    Attributes:
        start, end: in the draft's unit, `end` exclusive; of any type that the file has.
        label: of any type that the file has.
        name: identifies the annotation within its document, for messages.
        quote: the annotated text, if the file has it.
        where: "FILE:LINE", if it has a line of its own.
    """

    start: object
    end: object
    label: object
    name: str
    quote: str | None = None
    where: str | None = None


@dataclass
class Draft:
    """
    A document as the tool wrote it.

    Attributes:
        text: a string, or a list of words (then spans count words).
        where: "FILE:LINE", with which messages begin.
        has_unit: whether `--offsets` sets the unit of the spans; otherwise they count characters or words.
    """

    id: str
    text: str | list[str]
    where: str
    spans: list[Span]
    has_unit: bool = False


@dataclass
class Reading:
    """
    Settings of the readers, and their notes.

    Attributes:
        offsets: the unit that the user gave, `None` for each format's own.
        tag_names: the names of numbered tags.
        left_out: (reason, line) of each document and annotation that is not in the output.
        ignored: kind of annotation that is not of a span -> count.
        remarks: rest of a sentence that begins with a count -> the count.
        warnings: possible faults of the whole import.
    """

    offsets: str | None = None
    tag_names: list[str] | None = None
    left_out: list[tuple[str, str]] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)
    remarks: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def leave_out(self, where: str, what: str, reason: str) -> None:
        self.left_out.append((reason, f"{where}: {what}" if what else where))


def name_of(record: dict, where: str, *fields: str) -> str:
    """The id of a record: the first of these fields that it has, else `where`."""
    return next((str(record[field]) for field in fields if record.get(field) is not None), where)
