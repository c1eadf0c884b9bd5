"""What is to be reached, beside what the published implementation needs on the same kind of machine."""

from collections.abc import Callable
from dataclasses import dataclass

from .points import Point


GB, KB = 1e9, 1e3
Results = dict[Point, dict]

# The published implementation on two cores: seconds of a forward pass at 4,096 pieces, of a training step at 2,048.
PUBLISHED_FORWARD, PUBLISHED_TRAINING = 57.0, 75.0


@dataclass(frozen=True)
class Target:
    """
    Args:
        what: in words.
        published: of the published implementation, in words.
        value: from the results; raises `KeyError` where a point was not measured.
        bound: the least that is to be reached, or the most where `at_most`.
        unit: of value and bound.
    """

    what: str
    published: str
    value: Callable[[Results], float]
    bound: float
    unit: str
    at_most: bool = False

    def row(self, results: Results) -> dict:
        """What is printed and written; `measured` and `met` are `None` where a point is missing."""
        try:
            measured = self.value(results)
        except KeyError:
            measured = met = None
        else:
            met = measured <= self.bound if self.at_most else measured >= self.bound
        return {
            "what": self.what,
            "published implementation": self.published,
            "bound": self.bound,
            "at_most": self.at_most,
            "unit": self.unit,
            "measured": measured,
            "met": met,
        }


def find(results: Results, what: str, length: int, model: str = "SeNER", **fields) -> dict:
    """
    The result of a point.

    Raises:
        KeyError: it was not measured.
    """
    fields = {"precision": "float32", "checkpointing": False, **fields}
    for point, result in results.items():
        same = (point.what, point.length, point.model) == (what, length, model)
        if same and "seconds" in result and all(getattr(point, name) == value for name, value in fields.items()):
            return result
    raise KeyError(f"{what} at {length}")


def speedup(published: float, what: str, length: int, **fields) -> Callable[[Results], float]:
    return lambda results: published / find(results, what, length, **fields)["seconds"]


def added(what: str, length: int, **fields) -> Callable[[Results], float]:
    return lambda results: find(results, what, length, **fields)["added_bytes"] / GB


def ratio(what: str, length: int, precision: str) -> Callable[[Results], float]:
    """How many times faster than float32."""
    return lambda results: (
        find(results, what, length)["seconds"] / find(results, what, length, precision=precision)["seconds"]
    )


def share(length: int) -> Callable[[Results], float]:
    def value(results: Results) -> float:
        result = find(results, "forward", length)
        return 100 * result["flops"] / result["seconds"] / result["product_flops_per_second"]

    return value


def slowdown(results: Results) -> float:
    short, long = find(results, "entities", 4096), find(results, "entities", 65536)
    return (long["seconds"] / 65536) / (short["seconds"] / 4096)


def bytes_a_word(results: Results) -> float:
    short, long = find(results, "entities", 16384), find(results, "entities", 65536)
    return (long["added_bytes"] - short["added_bytes"]) / (65536 - 16384) / KB


def against_gliner(model: str, length: int) -> Callable[[Results], float]:
    """Words a second, over those of GLiNER with its fastest batch size."""

    def value(results: Results) -> float:
        peer = [r["seconds"] for point, r in results.items() if (point.what, point.length) == ("gliner", length)]
        if not peer:
            raise KeyError("gliner")
        return min(peer) / find(results, "entities", length, model)["seconds"]

    return value


TARGETS = [
    Target("forward, 4,096 pieces, float32", "57 s", speedup(PUBLISHED_FORWARD, "forward", 4096), 6, "x faster"),
    Target("the same, added memory", "9.1 GB", added("forward", 4096), 0.5, "GB", at_most=True),
    Target("the same, bfloat16 autocast", "", ratio("forward", 4096, "bfloat16"), 1.4, "x our float32"),
    Target("the same, share of the float32 matrix-product rate", "under 10 %", share(4096), 35, "%"),
    Target("training step, 2,048 pieces", "75 s", speedup(PUBLISHED_TRAINING, "training", 2048), 5, "x faster"),
    Target("the same, added memory", "16.4 GB", added("training", 2048), 5, "GB", at_most=True),
    Target(
        "training step with checkpointing, 2,048 pieces",
        "75 s",
        speedup(PUBLISHED_TRAINING, "training", 2048, checkpointing=True),
        4,
        "x faster",
    ),
    Target(
        "the same, added memory", "16.4 GB", added("training", 2048, checkpointing=True), 1.6, "GB", at_most=True
    ),
    Target("text to entities, time a word, 65,536 against 4,096 words", "grows", slowdown, 1.15, "x", at_most=True),
    Target("the same, memory from 16,384 to 65,536 words", "2.2 MB", bytes_a_word, 12, "KB a word", at_most=True),
    *(
        Target(f"text to entities, {length:,} words, w = {w}", published, against_gliner(model, length), bound,
               "x GLiNER")
        for model, w, published, bound in (("SeNER", 128, "0.14 x", 0.8), ("SeNER w=16", 16, "", 1.8))
        for length in (4096, 16384)
    ),
]  # fmt: skip
