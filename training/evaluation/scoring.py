"""
Compute precision, recall and F1 over sets of (document, start, end, label), for all entities and by group, with
bootstrap intervals.

D documents, K entities (gold and predicted together, an entity that is both once), G groups.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


Entity = tuple[int, int, str]  # start, end (exclusive), label

TP, FP, FN = range(3)  # predicted and gold; predicted only; gold only
COUNTS = ("tp", "fp", "fn")
RATIOS = ("precision", "recall", "f1")
RESAMPLES, SEED, LEVEL = 1000, 0, 0.95


@dataclass(frozen=True)
class Outcomes:
    """
    Every gold and every predicted entity; an entity that is both occurs once. Arrays of length K, in document order.

    Attributes:
        documents: the number of documents, those without an entity included.
        labels: the labels that occur, sorted; `label` has indices into it.
        outcome: TP, FP or FN.
    """

    documents: int
    labels: list[str]
    document: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    outcome: np.ndarray


class Grouping(NamedTuple):
    """A group for each of K entities: *Shape:* (K,), indices of `names`."""

    group: np.ndarray
    names: list[str]


def match(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> Outcomes:
    """
    Match the predicted entities of documents with their gold entities; both sequences have the same order.

    Repeated entities count once. A right span with a wrong label is a false positive and a false negative. Documents
    with equal ids are still different documents.
    """
    rows = []
    for document, (expected, found) in enumerate(zip(gold, predicted, strict=True)):
        expected, found = dict.fromkeys(expected), dict.fromkeys(found)
        rows += [(document, *entity, TP if entity in found else FN) for entity in expected]
        rows += [(document, *entity, FP) for entity in found if entity not in expected]
    document, start, end, label, outcome = zip(*rows, strict=True) if rows else ((),) * 5
    labels = sorted(set(label))
    number = {name: i for i, name in enumerate(labels)}
    columns = (document, start, end, [number[name] for name in label], outcome)
    return Outcomes(len(gold), labels, *(np.array(column, dtype=np.int64) for column in columns))


def touched(words: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The index of the first word that each span touches, and of the last one + 1; the first is not less than the second
    if the span touches no word.

    Args:
        words: *Shape:* (N, 2), start and end of each word of a text, increasing; spans are in the same units.
    """
    return np.searchsorted(words[:, 1], start, side="right"), np.searchsorted(words[:, 0], end, side="left")


def ratios(counts: np.ndarray) -> np.ndarray:
    """Precision, recall and F1, *Shape:* (..., 3), of TP, FP and FN (..., 3); 0 if the denominator is 0."""
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    parts = [(tp, tp + fp), (tp, tp + fn), (2 * tp, 2 * tp + fp + fn)]
    return np.stack([np.divide(a, b, out=np.zeros_like(a), where=b > 0) for a, b in parts], axis=-1)


def tally(outcomes: Outcomes, grouping: Grouping) -> np.ndarray:
    """TP, FP and FN of each document and group: *Shape:* (D, G, 3)."""
    shape = outcomes.documents, len(grouping.names), len(COUNTS)
    cell = (outcomes.document * shape[1] + grouping.group) * shape[2] + outcomes.outcome
    return np.bincount(cell, minlength=int(np.prod(shape))).reshape(shape)


def resample(counts: np.ndarray) -> np.ndarray:
    """
    Bootstrap whole documents, as the entities of one document are not independent: the totals of `RESAMPLES` corpora
    of D documents each, drawn with replacement.

    Args:
        counts: *Shape:* (D, G, 3).

    Returns:
        *Shape:* (`RESAMPLES`, G, 3); the same draws for all groups, and the same in every run.
    """
    documents = len(counts)
    if not documents:
        return np.zeros((RESAMPLES, *counts.shape[1:]))
    generator, flat = np.random.default_rng(SEED), counts.reshape(documents, -1).astype(np.float64)
    totals = np.empty((RESAMPLES, flat.shape[1]))
    for i in range(RESAMPLES):
        totals[i] = np.bincount(generator.integers(0, documents, documents), minlength=documents) @ flat
    return totals.reshape(RESAMPLES, *counts.shape[1:])


def summarise(outcomes: Outcomes, groupings: dict[str, Grouping]) -> dict:
    """
    Compute the scores over all entities and by group, as objects for JSON.

    Returns:
        `precision`, `recall` and `f1` over all entities (micro), as fractions, 0 if the denominator is 0; `tp`, `fp`,
        `fn`; `interval`: (low, high) for each of the three ratios, bootstrap percentiles; `macro`: the ratios' means
        over the labels that occur, with `interval`; `per_label` and each of `groupings`: the same keys as micro for
        each name, with intervals over the resampled corpora in which it occurs.
    """
    tables = {"micro": Grouping(np.zeros_like(outcomes.label), ["all"]),
              "per_label": Grouping(outcomes.label, outcomes.labels), **groupings}  # fmt: skip
    counts = np.concatenate([tally(outcomes, grouping) for grouping in tables.values()], axis=1)
    resampled = resample(counts)
    samples, occurs = ratios(resampled), resampled.any(axis=-1)
    totals = counts.sum(axis=0)
    values = ratios(totals)
    result, first = {}, 0
    for table, grouping in tables.items():
        places = range(first, first := first + len(grouping.names))
        result[table] = {
            name: _entry(values[i], samples[occurs[:, i], i], totals[i])
            for name, i in zip(grouping.names, places, strict=True)
        }
        if table == "per_label":
            mean = values[places].mean(axis=0) if places else np.zeros(len(RATIOS))
            macro = _entry(mean, mean_over_labels(samples[:, places], occurs[:, places]))
    return {**result.pop("micro")["all"], "macro": macro, **result}


def mean_over_labels(samples: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """
    The macro average of each resampled corpus: the mean over the labels that occur in it.

    Args:
        samples: *Shape:* (S, L, 3), ratios of each label.
        occurs: *Shape:* (S, L), whether a label occurs; if not, its ratios are 0.

    Returns:
        *Shape:* (S or fewer, 3): a corpus in which no label occurs has no average.
    """
    labels = occurs.sum(axis=1)
    return samples.sum(axis=1)[labels > 0] / labels[labels > 0, None]


def score(gold: Sequence[Iterable[Entity]], predicted: Sequence[Iterable[Entity]]) -> dict:
    """`summarise` predicted entities against gold ones, documents in the same order: micro, macro and per label."""
    return summarise(match(gold, predicted), {})


def as_spans(entities: Iterable[dict]) -> list[Entity]:
    """(start, end, label) of entities that `post_process` returned."""
    return [(entity["start"], entity["end"], entity["label"]) for entity in entities]


def _entry(value: np.ndarray, samples: np.ndarray, total: np.ndarray | None = None) -> dict:
    edges = np.zeros((2, len(RATIOS)))
    if len(samples):
        edges = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    entry = dict(zip(RATIOS, value.tolist(), strict=True))
    if total is not None:
        entry |= dict(zip(COUNTS, total.tolist(), strict=True))
    return entry | {"interval": dict(zip(RATIOS, edges.T.tolist(), strict=True))}
