"""
The jobs of a run, and their results.

A job is determined by its fields: one that hangs or kills its worker can be named and repeated.
"""

from collections import Counter
from dataclasses import dataclass, field

from .texts import LONG, batch, long_text


BATCH_LIMIT, LONG_LIMIT = 120.0, 600.0  # seconds after which a job counts as hung
# The share of a long text that each tokenizer gets, and the model.
SHARE = {"checkpoint": 1.0, "bytelevel": 0.25, "unigram": 0.25, "model": 0.1}


@dataclass(frozen=True)
class Job:
    """
    Args:
        part: "batches", "hypothesis" or "long".
        kind: of "long": the tokenizer, or "model".
        name: of "long": the text, by its name in `LONG`.
    """

    part: str
    seed: int = 0
    number: int = 0
    kind: str = ""
    name: str = ""
    limit: float = BATCH_LIMIT  # seconds

    @property
    def size(self) -> int:
        """The number of characters of a long text."""
        return int(LONG[self.name][1] * SHARE[self.kind])

    def texts(self) -> list[tuple[str, str]]:
        """(category, text) of each text that is known in advance."""
        if self.part == "batches":
            return batch(self.seed, self.number)
        if self.part == "long":
            return [(self.name, long_text(self.name, self.size))]
        return []


@dataclass
class Finding:
    """A text, or a batch of texts, that violates a property."""

    part: str
    error: str
    inputs: list  # texts; of a guided run, bytes
    category: str = ""


@dataclass
class Result:
    """
    The result of a job: texts by category, entities, CPU seconds, the peak memory of the process, the memory that it
    keeps between jobs, and findings.
    """

    texts: Counter = field(default_factory=Counter)
    entities: int = 0
    seconds: float = 0.0
    peak: int = 0
    kept: int = 0
    growth: list[str] = field(default_factory=list)  # a line of text on each long text
    findings: list[Finding] = field(default_factory=list)


def long_jobs() -> list[Job]:
    """The jobs of all long texts; the checkpoint's tokenizer, whose texts are the longest, comes first."""
    return [Job("long", kind=kind, name=name, limit=LONG_LIMIT) for kind in SHARE for name in LONG]
