"""
Break scores down: by length, nesting and position, by overlap, by confused labels, by calibration, by document.

Every entity, gold or predicted, is in one group of each breakdown, so that the groups add up to the total.
K entities.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from modeling_sener import SenerConfig
from training.corpus.data import Document
from training.evaluation.candidates import CURVE_FLOOR, FLOOR, ScoredSpans
from training.evaluation.errors import find_errors
from training.evaluation.overlap import curve, match_overlap, touched_words
from training.evaluation.scoring import (
    FN,
    FP,
    LEVEL,
    RESAMPLES,
    SEED,
    TP,
    Entity,
    Grouping,
    Outcomes,
    match,
    ratios,
    summarise,
    tally,
)


LENGTHS = {"1-4": 4, "5-16": 16, "17-64": 64, "65-129": 129}  # the most words of each group
LONGEST, BEYOND = "130+", "beyond window"
DECILES = [f"{10 * i}-{10 * i + 10} %" for i in range(10)]
BINS = 10  # of the calibration curve
WORST = 20  # the most documents that are listed


def score_corpus(
    documents: Sequence[Document], scored: ScoredSpans, thresholds: np.ndarray, config: SenerConfig
) -> dict:
    """
    Score a model on gold documents in all ways of this package.

    Args:
        scored: the documents' spans, in the order of the documents.
        thresholds: *Shape:* (R,), the lowest accepted score of each label.

    Returns:
        `scoring.summarise` with the groups `by_length` (words), `by_depth` (number of gold spans that hold the entity)
        and `by_position` (of its start in the document); `overlap`: `summarise` by the rule of `evaluation.overlap`;
        `thresholds`; `bootstrap`: the settings of the intervals; `overlap_curve`, `confusion`, `calibration` and
        `worst_documents`: the results of these functions; `errors`: of `errors.find_errors`.
    """
    gold = [document.entities for document in documents]
    predicted = scored.with_scores(scored.choose(thresholds, config), config.labels)
    outcomes = match(gold, predicted)
    first, last = touched_words(outcomes, scored.words())
    length, total = np.maximum(last - first, 1), np.diff(scored.first_word)[outcomes.document]
    lengths = by_length(length, config.span_window)
    groupings = {
        "by_length": lengths,
        "by_depth": by_depth(outcomes),
        "by_position": Grouping(np.minimum(10 * first // np.maximum(total, 1), 9), DECILES),
    }
    candidates = scored.above(np.minimum(thresholds, FLOOR)).candidates
    right = np.isin(scored.keys(candidates), scored.gold_keys(gold, config.labels))
    return {
        **summarise(outcomes, groupings),
        "overlap": summarise(match_overlap(outcomes, first, last), {}),
        "overlap_curve": overlap_curve(gold, scored, config),
        "thresholds": dict(zip(config.labels, thresholds.tolist(), strict=True)),
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "unit": "document"},
        "confusion": confusion(outcomes),
        "calibration": calibration(candidates.score, right),
        "worst_documents": worst_documents(outcomes, [document.id for document in documents],
                                           np.diff(scored.first_word)),
        "errors": find_errors(documents, outcomes, predicted, lengths.group == lengths.names.index(BEYOND)),
    }  # fmt: skip


def overlap_curve(gold: Sequence[Sequence[Entity]], scored: ScoredSpans, config: SenerConfig) -> dict:
    """
    `overlap.curve` with one threshold for all labels instead of the model's own; and `floor`, the lowest threshold:
    spans that score less are not in the curve.
    """
    chosen = scored.choose(np.full(len(config.labels), CURVE_FLOOR), config)
    return {**curve(gold, scored.with_scores(chosen, config.labels), scored.words()), "floor": CURVE_FLOOR}


def by_length(length: np.ndarray, window: int | None) -> Grouping:
    """Group by length in words. Entities too wide for the span window have a group of their own."""
    names = [*LENGTHS, LONGEST, BEYOND]
    group = np.searchsorted(list(LENGTHS.values()), length)
    if window is not None:
        group[length > window + 1] = names.index(BEYOND)
    return Grouping(group, names)


def by_depth(outcomes: Outcomes) -> Grouping:
    """Group by the number of gold spans, of any label, that properly hold the entity: 0 is the outermost."""
    keys = np.stack([outcomes.document, outcomes.start, -outcomes.end], axis=1)
    # In this order, a span comes after all spans that hold it.
    spans, span_of = np.unique(keys, axis=0, return_inverse=True)
    span_of = span_of.reshape(-1)
    is_gold = np.zeros(len(spans), dtype=bool)
    is_gold[span_of[outcomes.outcome != FP]] = True
    depth = np.zeros(len(spans), dtype=np.int64)
    document, ends = -1, []  # sorted ends of the document's gold spans so far
    for i, (own, _, negative_end) in enumerate(spans.tolist()):
        if own != document:
            document, ends = own, []
        depth[i] = len(ends) - bisect_left(ends, -negative_end)
        if is_gold[i]:
            insort(ends, -negative_end)
    return Grouping(depth[span_of], [str(i) for i in range(depth.max(initial=-1) + 1)])


def confusion(outcomes: Outcomes) -> dict:
    """
    Count which label was predicted for which gold label: a confusion matrix.

    Returns:
        `labels`; the last one is `None`, no entity. `counts`: a row for each gold label, a column for each predicted
        one. Labels of the same span are paired: equal labels first, then the others in sorted order. A gold label
        without a partner is missed (last column), a predicted one spurious (last row). So each entity is counted once:
        a row adds up to the label's gold entities, a column to its predicted ones.
    """
    size = len(outcomes.labels)
    counts = np.zeros((size + 1, size + 1), dtype=np.int64)
    right = outcomes.outcome == TP
    np.add.at(counts, (outcomes.label[right], outcomes.label[right]), 1)
    left: dict[tuple, tuple[list, list]] = {}
    columns = (outcomes.document, outcomes.start, outcomes.end, outcomes.label, outcomes.outcome)
    for document, start, end, label, outcome in zip(*(column[~right].tolist() for column in columns), strict=True):
        gold, predicted = left.setdefault((document, start, end), ([], []))
        (gold if outcome == FN else predicted).append(label)
    for gold, predicted in left.values():
        gold, predicted = sorted(gold), sorted(predicted)
        pairs = max(len(gold), len(predicted))
        for a, b in zip(
            gold + [size] * (pairs - len(gold)), predicted + [size] * (pairs - len(predicted)), strict=True
        ):
            counts[a, b] += 1
    return {"labels": [*outcomes.labels, None], "counts": counts.tolist()}


def calibration(score: np.ndarray, right: np.ndarray) -> list[dict]:
    """
    Compare the scores of candidates with the share of them that is right, before thresholds and conflicts.

    Args:
        score, right: *Shape:* (K,), of candidates.

    Returns:
        For each tenth of 0..1 that has a score: `low`, `high`, `count`, the mean `score`, and the share that is
        `right`. A model is calibrated if the last two are equal.
    """
    bins = np.minimum((score.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    count, scores, hits = (np.bincount(bins, weights, minlength=BINS) for weights in (None, score, right))
    return [
        {"low": i / BINS, "high": (i + 1) / BINS, "count": int(count[i]), "score": scores[i] / count[i],
         "right": hits[i] / count[i]}
        for i in np.flatnonzero(count)
    ]  # fmt: skip


def worst_documents(outcomes: Outcomes, ids: Sequence[str], words: np.ndarray) -> list[dict]:
    """
    List `id`, `words`, `tp`, `fp`, `fn` and `f1` of the `WORST` documents with the lowest F1. Of equal F1, those with
    more errors come first. Documents without gold and predicted entities have no F1 and are left out.
    """
    counts = tally(outcomes, Grouping(np.zeros_like(outcomes.label), ["all"]))[:, 0]
    f1 = ratios(counts)[:, 2]
    order = np.lexsort((-(counts[:, FP] + counts[:, FN]), f1))
    order = [i for i in order if counts[i].any()][:WORST]
    return [
        {"id": ids[i], "words": int(words[i]), **dict(zip(("tp", "fp", "fn"), counts[i].tolist(), strict=True)),
         "f1": float(f1[i])}
        for i in order
    ]  # fmt: skip
