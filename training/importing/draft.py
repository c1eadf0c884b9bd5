"""What a reader gives: texts with their annotations, as the tool has them. What it is told, and what it notes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """
    An annotation as its tool has it.

    Attributes:
        start, end: in the draft's unit, `end` exclusive; as they stand in the file, so perhaps no numbers at all.
        label: as it stands in the file.
        name: which annotation of the document it is, for a message.
        quote: the annotated text, where the file has it.
        where: "FILE:LINE", where it has a line of its own.
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
    A document as its tool has it.

    Attributes:
        text: a string, or a list of words (then spans count words).
        where: "FILE:LINE", which a message begins with.
        has_unit: whether the spans count in the unit of `--offsets`, not in characters or words for certain.
    """

    id: str
    text: str | list[str]
    where: str
    spans: list[Span]
    has_unit: bool = False


@dataclass
class Reading:
    """
    What the readers are told, and what they note.

    Attributes:
        offsets: the unit of offsets that was given, `None` for each format's own.
        tag_names: the names of numbered tags.
        left_out: (reason, line) of each document and annotation that is not in the output.
        ignored: what is no annotation of a span -> how many.
        remarks: what is to be known of it, a sentence that begins with a number -> the number.
        warnings: what may be wrong with all of it.
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
    """The id of a record: the first of these fields that it has, else `where` it stands."""
    return next((str(record[field]) for field in fields if record.get(field) is not None), where)
