"""Scores by overlap and the precision-recall curve, against brute-force references."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.corpora import LABELS, corpora, small_config

from training.evaluation.breakdown import overlap_curve, score_corpus
from training.evaluation.candidates import CURVE_FLOOR, FLOOR
from training.evaluation.overlap import curve, match_overlap, pair, touched_words
from training.evaluation.scoring import FN, FP, TP, Grouping, match, score, summarise, tally


ENTITY = st.tuples(st.integers(0, 8), st.integers(1, 8), st.sampled_from("AB")).map(
    lambda e: (e[0], e[0] + e[1], e[2])
)
ENTITIES = st.lists(ENTITY, max_size=7)
CORPUS = st.lists(st.tuples(ENTITIES, ENTITIES), max_size=4)
# A greedy choice pairs the equal entities first, and leaves the second predicted one without a partner.
GREEDY_LOSES = [(0, 4, "A"), (0, 7, "A")], [(0, 4, "A"), (0, 3, "A")]


def jaccard(a, b):
    a, b = set(a), set(b)
    return len(a & b) / len(a | b) if a & b else 0.0


def most_pairs(gold, predicted, words=range):
    """The size of a maximum matching of two sets of entities, by trying all. `words` returns the words of a span."""
    if not gold:
        return 0
    (start, end, label), rest = gold[0], gold[1:]
    partners = [k for k, (a, b, other) in enumerate(predicted)
                if other == label and jaccard(words(start, end), words(a, b)) >= 0.5]  # fmt: skip
    return max(most_pairs(rest, predicted, words),
               *(1 + most_pairs(rest, predicted[:k] + predicted[k + 1 :], words) for k in partners), 0)  # fmt: skip


def pairs(gold, predicted, label=None, words=range):
    gold, predicted = (sorted({e for e in part if label in (None, e[2])}) for part in (gold, predicted))
    return most_pairs(gold, predicted, words)


def by_overlap(gold, predicted, words=None):
    outcomes = match(gold, predicted)
    return match_overlap(outcomes, *touched_words(outcomes, words))


@given(CORPUS)
@example([GREEDY_LOSES])
@settings(deadline=None)
def test_the_number_of_pairs_is_that_of_a_maximum_matching(documents):
    """For each document and label: all scores are sums over these."""
    gold, predicted = [part for part, _ in documents], [part for _, part in documents]
    outcomes = by_overlap(gold, predicted)
    counts = tally(outcomes, Grouping(outcomes.label, outcomes.labels))
    assert outcomes.labels == sorted({e[2] for part in gold + predicted for e in part})
    for document, (expected, found) in enumerate(documents):
        for number, label in enumerate(outcomes.labels):
            right = pairs(expected, found, label)
            own = [len({e for e in part if e[2] == label}) for part in (expected, found)]
            assert counts[document, number].tolist() == [right, own[1] - right, own[0] - right]
    result, exact = summarise(outcomes, {}), score(gold, predicted)
    assert result.keys() == exact.keys() and result["per_label"].keys() == exact["per_label"].keys()
    assert result["tp"] >= exact["tp"]
    assert result["tp"] + result["fn"] == exact["tp"] + exact["fn"]
    assert result["tp"] + result["fp"] == exact["tp"] + exact["fp"]


@given(CORPUS)
@settings(deadline=None)
def test_gold_as_prediction_has_perfect_scores_by_overlap_too(documents):
    gold = [part for part, _ in documents]
    assert summarise(by_overlap(gold, gold), {}) == score(gold, gold)


@given(ENTITIES, st.lists(ENTITY, max_size=8, unique=True), st.randoms())
@settings(deadline=None)
def test_the_first_n_predictions_have_as_many_pairs_as_if_there_were_no_others(gold, predicted, random):
    """For any n and order. A partner is a matching gold entity, and has no other partner."""
    outcomes = match([gold], [predicted])
    order = np.flatnonzero(outcomes.outcome != FN).tolist()
    random.shuffle(order)
    partner = pair(outcomes, outcomes.start, outcomes.end, np.array(order, dtype=np.int64))
    rows = list(zip(outcomes.start.tolist(), outcomes.end.tolist(), outcomes.label.tolist(), strict=True))
    for n in range(len(order) + 1):
        found = [(*rows[k][:2], outcomes.labels[rows[k][2]]) for k in order[:n]]
        assert (partner[:n] >= 0).sum() == pairs(gold, found)
    chosen = [(rows[a], rows[b], b) for a, b in zip(order, partner.tolist(), strict=True) if b >= 0]
    assert len({b for _, _, b in chosen}) == len(chosen)
    for (start, end, label), (a, b, other), _ in chosen:
        assert label == other and jaccard(range(start, end), range(a, b)) >= 0.5


@st.composite
def raw_texts(draw):
    """Draw words of 1 to 9 characters with 0 to 2 spaces after each, and spans of characters, anywhere in words."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=5))
    edges = np.cumsum([0, *(length for size in sizes for length in size)])
    words = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    entity = st.tuples(st.integers(0, edges[-1] - 1), st.integers(1, 20), st.just("A"))
    entities = st.lists(entity.map(lambda e: (e[0], min(e[0] + e[1], int(edges[-1])), e[2])), max_size=5)
    return words, draw(entities), draw(entities)


@given(st.lists(raw_texts(), max_size=3))
@settings(deadline=None)
def test_overlap_counts_words_and_not_characters(texts):
    words, gold, predicted = ([text[i] for text in texts] for i in range(3))
    outcomes = by_overlap(gold, predicted, words)
    counts = tally(outcomes, Grouping(np.zeros_like(outcomes.label), ["all"]))[:, 0]
    for own, expected, found, (tp, fp, fn) in zip(words, gold, predicted, counts, strict=True):
        right = pairs(expected, found, None, lambda start, end, own=own: [
            i for i, (a, b) in enumerate(own) if a < end and start < b])  # fmt: skip
        assert (tp, fp, fn) == (right, len(set(found)) - right, len(set(expected)) - right)


def test_half_of_the_words_is_enough_and_the_label_must_be_right():
    gold = [[(0, 4, "A")]]
    for start, end in [(0, 2), (2, 4), (0, 8), (1, 6)]:
        assert by_overlap(gold, [[(start, end, "A")]]).outcome.tolist() == [TP]
    for wrong in [(0, 1, "A"), (3, 8, "A"), (0, 9, "A"), (0, 4, "B")]:
        assert sorted(by_overlap(gold, [[wrong]]).outcome.tolist()) == [FP, FN]
    twice = summarise(by_overlap(gold, [[(0, 2, "A"), (2, 4, "A")]]), {})
    assert (twice["tp"], twice["fp"], twice["fn"]) == (1, 1, 0)  # two halves of one entity are not two entities


def test_words_must_be_given_for_every_document():
    with pytest.raises(ValueError, match="words has 1 documents, the entities have 2"):
        curve([[], []], [{}, {}], [[(0, 1)]])


def test_an_augmenting_path_through_tens_of_thousands_of_entities():
    """Each predicted entity matches two gold ones and takes the first. The last one makes all take the second."""
    gold = [(2 * i, 2 * i + 3, "A") for i in range(20_001)]
    predicted = [(2 * i + 1, 2 * i + 4, "A") for i in range(20_000)] + [(0, 2, "A")]
    assert (by_overlap([gold], [predicted]).outcome == TP).sum() == 20_001


def test_of_many_matching_predictions_each_gold_entity_has_one():
    many = [(0, 1000 + i, "A") for i in range(900)]
    assert np.bincount(by_overlap([many[:3]], [many]).outcome).tolist() == [3, 897]


def check_curve(result, gold, thresholds, accepted, words=range):
    """
    Compare a curve with the points at all `thresholds` at which the accepted entities change. `accepted(threshold)`
    returns the accepted entities of each document.
    """
    total, rows = sum(len(set(part)) for part in gold), []
    for found in map(accepted, thresholds):
        right = sum(pairs(*part, None, words) for part in zip(gold, found, strict=True))
        rows.append((right / max(sum(map(len, found)), 1), right / max(total, 1)))

    def best(recall):
        return max((p for p, r in rows if r >= recall), default=0.0)

    steps = sorted({0.0, *(recall for _, recall in rows)})
    area = sum((high - low) * best(high) for low, high in zip(steps, steps[1:], strict=False))
    assert result["area"] == pytest.approx(area)
    assert result["highest_recall"] == steps[-1]
    assert result["precision_at_80_recall"] == (best(0.8) if steps[-1] >= 0.8 else None)
    points = {(point["precision"], point["recall"]): point["threshold"] for point in result["points"]}
    assert len(points) == len(result["points"]) <= 100
    for (precision, recall), threshold in points.items():
        assert rows[thresholds.index(threshold)] == (precision, recall)
    for target in range(1, 101):
        if target / 100 <= steps[-1]:
            assert max(p for p, r in points if r >= target / 100) == best(target / 100)
    assert [point["recall"] for point in result["points"]] == sorted(recall for _, recall in points)


@given(corpora(), st.booleans(), st.sampled_from(["all", "best"]))
@settings(max_examples=60, deadline=None)
def test_the_curve_has_the_scores_of_every_threshold(corpus, allow_nested, labels_per_span):
    """The reference chooses spans anew, with their conflicts, at each threshold from `CURVE_FLOOR` on."""
    documents, scored = corpus
    config = small_config(allow_nested=allow_nested, labels_per_span=labels_per_span)
    gold = [document.entities for document in documents]

    thresholds = [value for value in sorted(set(scored.candidates.score.tolist())) if value >= CURVE_FLOOR]
    result = overlap_curve(gold, scored, config)
    assert result["floor"] == CURVE_FLOOR
    check_curve(result, gold, thresholds,
                lambda threshold: scored.entities(scored.choose(np.full(3, threshold), config), LABELS),
                lambda start, end: range(start // 4, (end + 1) // 4))  # fmt: skip


@given(st.lists(st.tuples(ENTITIES, st.dictionaries(ENTITY, st.integers(0, 4).map(lambda i: i / 4), max_size=6)),
                max_size=3))  # fmt: skip
@settings(deadline=None)
def test_the_curve_of_any_scores_has_a_point_for_each_of_them(documents):
    gold, predicted = [part for part, _ in documents], [part for _, part in documents]
    thresholds = sorted({value for part in predicted for value in part.values()})
    check_curve(curve(gold, predicted), gold, thresholds, lambda threshold: [
        [entity for entity, score in part.items() if score >= threshold] for part in predicted])  # fmt: skip


def test_a_curve_is_the_one_computed_by_hand():
    """Predictions: one right, one wrong, two with equal scores of which one is right. A gold entity is missed."""
    gold = [[(0, 1, "A"), (2, 3, "B")], [(0, 1, "A")]]
    predicted = [{(0, 1, "A"): 0.9, (5, 6, "A"): 0.8, (2, 3, "B"): 0.7}, {(5, 6, "B"): 0.7}]
    result = curve(gold, predicted)
    assert result == {
        "area": pytest.approx(1 / 3 * 1 + 1 / 3 * 1 / 2), "precision_at_80_recall": None, "highest_recall": 2 / 3,
        "points": [{"threshold": 0.9, "precision": 1.0, "recall": 1 / 3},
                   {"threshold": 0.7, "precision": 0.5, "recall": 2 / 3}],
    }  # fmt: skip
    # At recall 0.8 precision is 4/7, but a lower threshold has 5/8.
    found = {(i, i + 1, "A"): 1 / n for n, i in enumerate((0, 1, 2, 10, 11, 12, 3, 4), start=1)}
    assert curve([[(i, i + 1, "A") for i in range(5)]], [found])["precision_at_80_recall"] == 5 / 8
    three_of_four = curve([[(i, i + 1, "A") for i in range(4)]], [{(i, i + 1, "A"): 0.5 for i in range(3)}])
    assert (three_of_four["precision_at_80_recall"], three_of_four["highest_recall"]) == (None, 0.75)
    four_of_five = curve([[(i, i + 1, "A") for i in range(5)]], [{(i, i + 1, "A"): 0.5 for i in range(4)}])
    assert (four_of_five["precision_at_80_recall"], four_of_five["area"]) == (1.0, pytest.approx(0.8))


def test_a_curve_has_a_point_for_each_per_cent_of_recall():
    """300 gold entities with falling scores, and a wrong one after each."""
    gold = {(i, i + 1, "A"): 1 - i / 300 for i in range(300)}
    wrong = {(i, i + 1, "B"): score - 0.001 for (i, _, _), score in gold.items()}
    points = curve([list(gold)], [gold | wrong])["points"]
    assert [point["recall"] for point in points] == [i / 100 for i in range(1, 101)]
    assert [point["threshold"] for point in points] == [gold[i, i + 1, "A"] for i in range(2, 300, 3)]


@pytest.mark.parametrize("gold, predicted", [
    ([], []), ([[], []], [{}, {}]), ([[(0, 1, "A")]], [{}]), ([[]], [{(0, 1, "A"): 0.5}]),
])  # fmt: skip
def test_without_gold_or_predictions_there_is_no_curve(gold, predicted):
    nothing = {"area": 0.0, "precision_at_80_recall": None, "highest_recall": 0.0, "points": []}
    assert curve(gold, predicted) == nothing
    assert summarise(by_overlap(gold, predicted), {}) == score(gold, predicted)


@given(corpora())
@settings(max_examples=30, deadline=None)
def test_spans_kept_only_for_the_curve_change_no_other_score(corpus):
    documents, scored = corpus
    thresholds, config = np.full(3, 0.5), small_config()
    result, bare = (score_corpus(documents, spans, thresholds, config)
                    for spans in (scored, scored.above(np.full(3, FLOOR))))  # fmt: skip
    assert {**result, "overlap_curve": None} == {**bare, "overlap_curve": None}
