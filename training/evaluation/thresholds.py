"""
Fit thresholds on gold data, and store them in a checkpoint.

K candidates, R labels.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modeling_sener import SenerConfig
from training.common.files import write_text
from training.common.progress import progress_bar
from training.corpus.data import Document
from training.evaluation.candidates import FLOOR, ScoredSpans
from training.evaluation.scoring import Entity


# The fewest gold entities for a threshold of a label's own. Fitted on one half of 40 contracts with 41 labels, a
# threshold for each label gave an F1 of 34.4 on the other half, a shared one 35.8, and 0.5 gave 33.2 (RECIPES).
OWN_ENTITIES = 100


def fit_thresholds(
    scored: ScoredSpans,
    documents: Sequence[Document],
    start: np.ndarray,
    config: SenerConfig,
    progress: bool = False,
    own_entities: int = OWN_ENTITIES,
) -> np.ndarray:
    """
    Fit thresholds to the highest micro F1 on these documents: one for each label with at least `own_entities` gold
    entities, and one that all other labels share.

    Coordinate ascent over decoded spans: spans that cross compete, so that the threshold of one label changes which
    spans of others are accepted, and searching all labels at once costs too much. Group by group (a label, or those
    that share), the corpus is decoded with this group's threshold at `FLOOR`. Each of its accepted spans, sorted by
    score, is a possible cut; the F1 of all labels after each cut follows from cumulated counts. The best cut, half-way
    to the next lower score, is tried by decoding again, and kept if F1 rises. Rounds over the groups end when no
    threshold changes.

    F1 on these documents is never below that of `start`. On others it may be: thresholds fitted on the reported data
    flatter the report. A group without a right span on this data keeps its thresholds.

    Args:
        scored: the documents' spans, found by `score_spans` for the thresholds `start`.
        start: *Shape:* (R,), initial thresholds.

    Returns:
        *Shape:* (R,), within 0..1.
    """
    scored = scored.above(np.minimum(start, FLOOR))
    gold = [document.entities for document in documents]
    total = sum(map(len, gold))
    gold_keys = scored.gold_keys(gold, config.labels)
    right_labels = scored.candidates.label[np.isin(scored.keys(scored.candidates), gold_keys)]
    groups = [group for group in label_groups(gold, config.labels, own_entities) if np.isin(right_labels, group).any()]

    def decode(thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = scored.choose(thresholds, config)
        return chosen.label, chosen.score.astype(np.float64), np.isin(scored.keys(chosen), gold_keys)

    def f1(thresholds: np.ndarray) -> float:
        _, _, right = decode(thresholds)
        return 2 * right.sum() / max(len(right) + total, 1)

    thresholds, best, improved = start.copy(), f1(start), True
    while improved:
        improved = False
        for group in progress_bar(groups, desc="thresholds", unit="threshold", disable=not progress, leave=False):
            trial = thresholds.copy()
            trial[group] = min(FLOOR, start[group].min())
            trial[group] = best_cut(group, trial[group[0]], *decode(trial), total)
            value = f1(trial)
            if value > best:
                thresholds, best, improved = trial, value, True
    return thresholds


def label_groups(gold: Sequence[Sequence[Entity]], labels: list[str], own_entities: int) -> list[np.ndarray]:
    """The numbers of the labels that have a threshold in common: each frequent label alone, the rare ones together."""
    counts = Counter(label for entities in gold for _, _, label in entities)
    is_rare = np.array([counts[label] < own_entities for label in labels])
    groups = [*np.flatnonzero(~is_rare)[:, None], np.flatnonzero(is_rare)]
    return [group for group in groups if len(group)]


def best_cut(
    group: np.ndarray, floor: float, labels: np.ndarray, score: np.ndarray, right: np.ndarray, total: int
) -> float:
    """
    The threshold of a group of labels with the highest F1, if raising it drops only accepted spans of these labels.

    Args:
        group: the labels' numbers.
        labels, score, right: *Shape:* (K,), of the spans accepted with this group's threshold at `floor`.
        total: the number of gold entities.
    """
    own = np.isin(labels, group)
    order = np.argsort(-score[own], kind="stable")
    own_score, own_hits = score[own][order], np.cumsum(right[own][order])
    below = np.append(own_score[1:], floor)[: len(order)]
    # No cut separates equal scores; a cut above the first right span would only switch the labels off.
    is_place = (np.append(own_score[1:] < own_score[:-1], True)[: len(order)]) & (own_hits > 0)
    if not is_place.any():
        return floor
    accepted, hits = np.arange(len(order)) + 1 + (~own).sum(), own_hits + right[~own].sum()
    cut = np.argmax(np.where(is_place, 2 * hits / (accepted + total), -1.0))
    middle = float(own_score[cut] + below[cut]) / 2
    return round(middle, 4) if below[cut] < round(middle, 4) <= own_score[cut] else middle


def store_thresholds(folder: str | Path, thresholds: dict[str, float]) -> None:
    """Write thresholds into the `config.json` of a checkpoint, where its pipeline reads them; raises `WriteError`."""
    path = Path(folder) / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"threshold": thresholds}
    write_text(path, json.dumps(fields, indent=2, sort_keys=True) + "\n")
