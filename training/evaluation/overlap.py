"""
Score partial matches by overlap, and draw the precision-recall curve by this rule.

A predicted and a gold entity of one document and label match if the Jaccard index of their words (words that both
touch, divided by words that either touches) is at least 1/2. Pairs are a maximum matching: each entity is in one pair
at most, and no other choice has more pairs. A predicted entity is right if it is paired. There are as many gold and
predicted entities as in exact scores. An entity that touches no word matches none; any other matches its equal.

Hendrycks et al. (2021) score CUAD with the same index. Their script differs in three points: it compares sets of
lower-case strings, not words by position; one gold entity makes any number of predictions right; one of the
categories accepts any string that contains the gold text.

nervaluate 1.2.1 (SemEval 2013, task 9.1) defines four scores. "type" is nearest to this rule: an overlap with an equal
label, each entity in one pair at most. But 1 % of the gold span is enough, and pairs are chosen in the order of the
predictions, so that there may be fewer. "strict" is the exact score of `scoring.match` if predictions do not overlap;
if they nest, one may take the gold entity that a later one equals. "exact" and "partial" ignore labels; "partial"
counts an inexact match as 1/2, here a match counts as 1.

K entities, P predicted ones of them, in the order and with the meaning of `scoring.Outcomes`.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from training.evaluation.scoring import FN, FP, TP, Entity, Outcomes, match, touched


RECALL = 0.8  # CUAD reports the precision at this recall


def touched_words(outcomes: Outcomes, words: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Find the words that each entity touches: *Shape:* (K,) twice, number of the first word and of the last + 1, in the
    entity's document. If an entity touches no word, the first is not less than the second.

    Args:
        words: for each document the (start, end) of its words, in order. `None` counts in the units of the entities:
            words if the text is a list of words, characters if it is a string.

    Raises:
        ValueError: there are more or fewer documents in `words`.
    """
    if words is None:
        return outcomes.start, outcomes.end
    if len(words) != outcomes.documents:
        raise ValueError(
            f"words has {len(words)} documents, the entities have {outcomes.documents}: give each its own"
        )
    first, last = np.zeros_like(outcomes.start), np.zeros_like(outcomes.end)
    edges = np.searchsorted(outcomes.document, np.arange(outcomes.documents + 1))
    for own, (a, b) in zip(words, pairwise(edges), strict=True):
        first[a:b], last[a:b] = touched(np.asarray(own).reshape(-1, 2), outcomes.start[a:b], outcomes.end[a:b])
    return first, last


def match_overlap(outcomes: Outcomes, first: np.ndarray, last: np.ndarray) -> Outcomes:
    """
    Match by overlap, given the outcomes by exact match.

    Args:
        first, last: *Shape:* (K,), of `touched_words`.

    Returns:
        Each predicted entity, TP or FP, and each gold entity without a partner, FN.
    """
    predicted = np.flatnonzero(outcomes.outcome != FN)
    partner = pair(outcomes, first, last, predicted)
    missed = np.setdiff1d(np.flatnonzero(outcomes.outcome != FP), partner)
    entity = np.concatenate([predicted, missed])
    outcome = np.concatenate([np.where(partner >= 0, TP, FP), np.full(len(missed), FN)])
    order = np.argsort(entity, kind="stable")
    columns = (outcomes.document, outcomes.start, outcomes.end, outcomes.label)
    return Outcomes(
        outcomes.documents, outcomes.labels, *(column[entity[order]] for column in columns), outcome[order]
    )


def curve(
    gold: Sequence[Iterable[Entity]], predicted: Sequence[dict[Entity, float]], words: Sequence | None = None
) -> dict:
    """
    Compute micro precision and recall by overlap for every threshold, the same for all labels.

    The precision at a recall is the highest of all thresholds with this recall or more, as in CUAD (Hendrycks et al.,
    2021). The area lies under this step function of all thresholds; CUAD's script joins 101 thresholds and the point
    (0, 1) by straight lines. Beyond the highest recall of the predictions the curve is unknown and adds nothing: the
    area is a lower bound.

    Args:
        predicted: the score of each predicted entity. The entities that reach a threshold must be those that a model
            accepts with it. This holds for the entities that `decoding.select` accepts with the lowest threshold, as
            it chooses by falling score.
        words: as for `touched_words`.

    Returns:
        `area`; `precision_at_80_recall`, `None` if this recall is not reached, as it is unknown then (CUAD's script
        counts 0); `highest_recall` of the predictions; `points`: `threshold`, `precision` and `recall` of the best
        threshold for each per cent of recall up to the highest, each threshold once. All fractions; without gold, area
        and recall are 0.
    """
    outcomes = match(gold, predicted)
    place = np.flatnonzero(outcomes.outcome != FN)
    columns = (outcomes.document, outcomes.start, outcomes.end, outcomes.label)
    rows = zip(*(column[place].tolist() for column in columns), strict=True)
    score = np.array([predicted[document][start, end, outcomes.labels[i]] for document, start, end, i in rows])
    order = np.argsort(-score, kind="stable")
    score = score[order]
    hits = np.cumsum(pair(outcomes, *touched_words(outcomes, words), place[order]) >= 0)
    # A threshold accepts entities with equal scores together.
    accepted = np.flatnonzero(np.append(score[1:] < score[:-1], True)[: len(score)]) + 1
    hits, score = hits[accepted - 1], score[accepted - 1]
    precision, recall = hits / accepted, hits / max((outcomes.outcome != FP).sum(), 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    peaks = np.flatnonzero(precision == best)
    reached = np.searchsorted(recall, np.arange(1, 101) / 100)
    chosen = np.unique(peaks[np.searchsorted(peaks, reached[reached < len(recall)])])
    goal = np.searchsorted(recall, RECALL)
    return {
        "area": float((np.diff(recall, prepend=0) * best).sum()),
        "precision_at_80_recall": float(best[goal]) if goal < len(best) else None,
        "highest_recall": float(recall.max(initial=0)),
        "points": [
            {"threshold": score[i].item(), "precision": precision[i].item(), "recall": recall[i].item()}
            for i in chosen
        ],
    }


def pair(outcomes: Outcomes, first: np.ndarray, last: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """
    Pair predicted entities with gold ones: a maximum matching, by augmenting paths (Kuhn, 1955).

    A predicted entity may match several gold entities, and a gold one several predicted ones (half of it each, or
    nested), so that taking the best pairs first would lose some. Each predicted entity in turn gets a partner if all
    earlier ones can keep one, possibly another. An entity that is paired stays so, and for every n the first n have as
    many partners as possible. So one pass over entities sorted by score is the matching for every threshold.

    Args:
        predicted: *Shape:* (P,), indices of predicted entities among the K, in the order in which they are paired.

    Returns:
        *Shape:* (P,), the index of each one's gold partner among the K, -1 for none.
    """
    partner, owner, closed = [-1] * len(predicted), {}, set()
    choices = matches(outcomes, first, last, predicted)
    for one in range(len(predicted)):
        give_partner(one, choices, partner, owner, closed)
    return np.array(partner, dtype=np.int64)


def matches(outcomes: Outcomes, first: np.ndarray, last: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    """For each of `predicted` the gold entities that match it, as indices among the K."""
    length, size = last - first, max(first.max(initial=0), last.max(initial=0)) + 1
    group = (outcomes.document * len(outcomes.labels) + outcomes.label) * size
    gold = np.flatnonzero(outcomes.outcome != FP)
    gold = gold[np.argsort((group + first)[gold], kind="stable")]
    # Fewer than half of the words are shared if gold starts more than the predicted span's length before it, or more
    # than half of that length after its start.
    low, high = group + np.maximum(first - length, 0), group + first + length // 2
    start = np.searchsorted((group + first)[gold], low[predicted], side="left")
    count = np.maximum(np.searchsorted((group + first)[gold], high[predicted], side="right") - start, 0)
    end = np.cumsum(count)
    number = np.repeat(np.arange(len(predicted)), count)
    a, b = predicted[number], gold[np.arange(len(number)) + np.repeat(start + count - end, count)]
    shared = np.minimum(last[a], last[b]) - np.maximum(first[a], first[b])
    is_match = (shared > 0) & (2 * shared >= length[a] + length[b] - shared)
    edges = np.searchsorted(number[is_match], np.arange(len(predicted) + 1)).tolist()
    matching = b[is_match].tolist()
    return [matching[i:j] for i, j in pairwise(edges)]


def give_partner(
    one: int, choices: list[list[int]], partner: list[int], owner: dict[int, int], closed: set[int]
) -> None:
    """
    Give a predicted entity a gold partner if there is an augmenting path: a free partner, or one whose owner can take
    another.

    Args:
        partner: the gold partner of each predicted entity, -1 for none; changed in place.
        owner: the predicted entity of each gold one that is paired; changed in place.
        closed: gold entities from which no path leads to a free one; a search that fails adds all that it has seen.
    """
    seen_from, queue = {}, [one]
    for asking in queue:
        for gold in choices[asking]:
            if gold in closed or gold in seen_from:
                continue
            seen_from[gold] = asking
            if gold in owner:
                queue.append(owner[gold])
                continue
            while gold >= 0:
                asking = seen_from[gold]
                owner[gold], partner[asking], gold = asking, gold, partner[asking]
            return
    closed.update(seen_from)
