"""
The parts of a run and what comes of them.

A job follows from its fields alone, so that one that hangs or kills its worker can be named and repeated.
"""

from collections import Counter
from dataclasses import dataclass, field

from .texts import LONG, batch, long_text


BATCH_LIMIT, LONG_LIMIT = 120.0, 600.0  # seconds after which a job counts as hung
# How much of the longest texts each tokenizer is given, and the model.
SHARE = {"checkpoint": 1.0, "bytelevel": 0.25, "unigram": 0.25, "model": 0.1}


@dataclass(frozen=True)
class Job:
    """`part` is "batches", "hypothesis" or "long"; a long text has a `name`, and `kind`, its tokenizer or "model"."""

    part: str
    seed: int = 0
    number: int = 0
    kind: str = ""
    name: str = ""
    limit: float = BATCH_LIMIT  # seconds

    @property
    def size(self) -> int:
        """Characters of a long text."""
        return int(LONG[self.name][1] * SHARE[self.kind])

    def texts(self) -> list[tuple[str, str]]:
        """Category and text of each, as far as they are known beforehand."""
        if self.part == "batches":
            return batch(self.seed, self.number)
        if self.part == "long":
            return [(self.name, long_text(self.name, self.size))]
        return []


@dataclass
class Finding:
    """A text, or a batch of texts, for which something does not hold."""

    part: str
    error: str
    inputs: list  # texts, or bytes of a guided run
    category: str = ""


@dataclass
class Result:
    """
    What a job did: texts by category, entities, CPU seconds, the most memory that the process ever had, the memory
    that it keeps between jobs, and what failed.
    """

    texts: Counter = field(default_factory=Counter)
    entities: int = 0
    seconds: float = 0.0
    peak: int = 0
    kept: int = 0
    growth: list[str] = field(default_factory=list)  # of each long text, a line for people
    findings: list[Finding] = field(default_factory=list)


def long_jobs() -> list[Job]:
    """The checkpoint's tokenizer first, whose texts are the longest."""
    return [Job("long", kind=kind, name=name, limit=LONG_LIMIT) for kind in SHARE for name in LONG]
