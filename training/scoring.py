"""Precision, recall and F1 by set of (document, start, end, label)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


Entity = tuple[int, int, str]  # start, end (exclusive), label


@dataclass
class Counts:
    """True positives, false positives and false negatives. They are added up; ratios are derived once, at the end."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: "Counts") -> "Counts":
        self.tp, self.fp, self.fn = self.tp + other.tp, self.fp + other.fp, self.fn + other.fn
        return self

    def as_dict(self) -> dict:
        """`precision`, `recall` and `f1` as fractions (0 where there is nothing to divide by), and the counts."""
        precision = self.tp / (self.tp + self.fp) if self.tp + self.fp else 0.0
        recall = self.tp / (self.tp + self.fn) if self.tp + self.fn else 0.0
        f1 = 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0
        return {"precision": precision, "recall": recall, "f1": f1, "tp": self.tp, "fp": self.fp, "fn": self.fn}


@dataclass
class Score:
    """Counts per label, and over all labels (micro)."""

    per_label: dict[str, Counts] = field(default_factory=dict)

    def add(self, gold: Iterable[Entity], predicted: Iterable[Entity]) -> None:
        """Add one document. Repeated entities count once; a right span with a wrong label is a miss and an error."""
        gold, predicted = set(gold), set(predicted)
        for entities, outcome in ((gold & predicted, "tp"), (predicted - gold, "fp"), (gold - predicted, "fn")):
            for _, _, label in entities:
                counts = self.per_label.setdefault(label, Counts())
                setattr(counts, outcome, getattr(counts, outcome) + 1)

    def as_dict(self) -> dict:
        """Micro averages, counts and `per_label` with the same keys."""
        total = Counts()
        for counts in self.per_label.values():
            total += counts
        per_label = {label: counts.as_dict() for label, counts in sorted(self.per_label.items())}
        return {**total.as_dict(), "per_label": per_label}


def score(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> dict:
    """
    Score documents against their gold entities; both sequences are in the same order.

    Returns:
        `Score.as_dict()`; a document with an id that another one has as well is still a document of its own.
    """
    total = Score()
    for gold_entities, predicted_entities in zip(gold, predicted, strict=True):
        total.add(gold_entities, predicted_entities)
    return total.as_dict()


def as_spans(entities: Iterable[dict]) -> list[Entity]:
    """(start, end, label) of entities as `post_process` gives them."""
    return [(entity["start"], entity["end"], entity["label"]) for entity in entities]
