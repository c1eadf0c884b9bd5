"""What is in the data, and what of it the model cannot learn or find: printed before the first step."""

from collections import Counter
from dataclasses import dataclass, field

from modeling_sener.band import fits
from training.data import Document
from training.windows import EncodedDocument


@dataclass
class DataReport:
    """
    Counts over a data file; nothing is left out of training without being counted here.

    Attributes:
        wide: entities (label -> how many) with more words than the span window holds.
        widest: words of the longest entity.
        without_window: entities that fit the span window, but no training window of `max_tokens` pieces.
        cut_rows: words that are cut because they alone have more than `max_tokens` pieces.
    """

    name: str
    span_window: int | None
    texts: int = 0
    empty_texts: int = 0
    repeated_ids: int = 0
    words: int = 0
    pieces: int = 0
    windows: int = 0
    entities: Counter = field(default_factory=Counter)
    duplicates: int = 0
    misquoted: int = 0
    off_boundary: int = 0
    unreachable: int = 0
    wide: Counter = field(default_factory=Counter)
    widest: int = 0
    without_window: int = 0
    cut_rows: int = 0
    unknown_labels: Counter = field(default_factory=Counter)

    def add(self, document: Document, encoded: EncodedDocument, labels: list[str]) -> None:
        self.texts += 1
        self.empty_texts += encoded.rows == 0
        self.words += encoded.rows
        self.pieces += len(encoded.pieces)
        self.duplicates += document.duplicates
        self.misquoted += document.misquoted
        self.off_boundary += encoded.off_boundary
        self.unreachable += encoded.unreachable
        for _, _, label in document.entities:
            self.entities[label] += 1
            self.unknown_labels[label] += label not in labels
        for first, last, label in encoded.entities:
            self.widest = max(self.widest, last - first)
            if not fits(first, last, self.span_window):
                self.wide[label] += 1

    def lines(self) -> list[str]:
        """The report as text; a count that is 0 has no line."""
        per_label = ", ".join(f"{label} {count:,}" for label, count in sorted(self.entities.items())) or "none"
        lines = [
            f"{self.name}: {self.texts:,} texts, {self.words:,} words, {self.pieces:,} pieces"
            + (f", {self.windows:,} windows" if self.windows else ""),
            f"  entities: {self.entities.total():,} ({per_label}); the longest has {self.widest:,} words",
        ]
        notes = [
            (self.wide.total(), f"entities are wider than span_window {self.span_window} and cannot be learnt or "
             f"found (span_window {self.widest - 1} would hold all): {_counted(self.wide)}"),
            (self.duplicates, "entities were there twice; the copies were removed"),
            (self.misquoted, "entities quote other words than stand at their offsets; the offsets are used"),
            (self.off_boundary, "entities do not begin and end with a word; they are trained on the words they touch "
             "and count as missed in scoring"),
            (self.unreachable, "entities touch no word with pieces and cannot be learnt or found"),
            (self.without_window, "entities fit no training window; raise max_tokens"),
            (self.cut_rows, "words alone have more pieces than max_tokens; their first pieces are used"),
            (self.empty_texts, "texts have no words"),
            (self.repeated_ids, "texts have an id that an earlier text has"),
            (self.unknown_labels.total(), f"entities have labels that the model does not know and count as missed: "
             f"{_counted(self.unknown_labels)}"),
        ]  # fmt: skip
        return lines + [f"  note: {count:,} {text}" for count, text in notes if count]


def report_on(
    name: str, documents: list[Document], encoded: list[EncodedDocument], labels: list[str], span_window: int | None
) -> DataReport:
    """The report of documents and their encodings, in the same order."""
    report = DataReport(name, span_window)
    for document, pieces in zip(documents, encoded, strict=True):
        report.add(document, pieces, labels)
    report.repeated_ids = len(documents) - len({document.id for document in documents})
    return report


def _counted(counter: Counter) -> str:
    return ", ".join(f"{label} {count:,}" for label, count in sorted(counter.items()) if count)
