"""Precision, recall and F1 over sets, and their bootstrap intervals, against a naive reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.scoring import RATIOS, RESAMPLES, SEED, Grouping, as_spans, match, resample, score, summarise


ENTITY = st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from("ABC"))
CORPUS = st.lists(st.tuples(st.lists(ENTITY, max_size=6), st.lists(ENTITY, max_size=6)), max_size=5)
ZERO = dict.fromkeys(RATIOS, 0.0)


def split(documents):
    return [gold for gold, _ in documents], [predicted for _, predicted in documents]


def naive(gold, predicted, label=None):
    """Compute ratios and counts by their definitions, one entity after the other."""
    tp = fp = fn = 0
    for expected, found in zip(gold, predicted, strict=True):
        expected = {entity for entity in expected if label in (None, entity[2])}
        found = {entity for entity in found if label in (None, entity[2])}
        for entity in found:
            tp, fp = (tp + 1, fp) if entity in expected else (tp, fp + 1)
        fn += sum(entity not in found for entity in expected)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "tp": tp, "fp": fp, "fn": fn}


def naive_macro(gold, predicted, labels):
    each = [naive(gold, predicted, label) for label in labels]
    return {name: sum(entry[name] for entry in each) / len(labels) if labels else 0.0 for name in RATIOS}


def without_interval(entry):
    return {name: value for name, value in entry.items() if name in ("tp", "fp", "fn", *RATIOS)}


@given(CORPUS)
@settings(deadline=None)
def test_scores_follow_their_definitions(documents):
    gold, predicted = split(documents)
    result = score(gold, predicted)
    labels = sorted({label for part in gold + predicted for _, _, label in part})
    assert without_interval(result) == pytest.approx(naive(gold, predicted))
    assert without_interval(result["macro"]) == pytest.approx(naive_macro(gold, predicted, labels))
    assert list(result["per_label"]) == labels
    for label in labels:
        assert without_interval(result["per_label"][label]) == pytest.approx(naive(gold, predicted, label))


@given(CORPUS.filter(bool))
@settings(max_examples=10, deadline=None)
def test_intervals_are_percentiles_over_resampled_documents(documents):
    gold, predicted = split(documents)
    result = score(gold, predicted)
    labels = list(result["per_label"])
    generator = np.random.default_rng(SEED)
    samples = {"micro": [], "macro": [], **{label: [] for label in labels}}
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(documents), len(documents))
        part = [gold[i] for i in drawn], [predicted[i] for i in drawn]
        occurring = sorted({label for side in part for entities in side for _, _, label in entities})
        if occurring:
            samples["micro"].append(naive(*part))
            samples["macro"].append(naive_macro(*part, occurring))
        for label in occurring:
            samples[label].append(naive(*part, label))
    entries = {"micro": result, "macro": result["macro"], **result["per_label"]}
    for name, entry in entries.items():
        for ratio in RATIOS:
            expected = np.percentile([sample[ratio] for sample in samples[name]] or [0], [2.5, 97.5])
            assert entry["interval"][ratio] == pytest.approx(expected.tolist())


def test_the_interval_of_a_rare_label_has_no_zeros_if_everything_is_right():
    """A resampled corpus without the label has no score for it. It does not count as 0."""
    gold = [[(0, 1, "A"), (2, 3, "B")]] * 5 + [[(0, 1, "rare")]]
    result = score(gold, gold)
    for entry in (result, result["macro"], *result["per_label"].values()):
        assert entry["interval"] == {ratio: [1.0, 1.0] for ratio in RATIOS}


@given(CORPUS)
@settings(max_examples=30, deadline=None)
def test_intervals_are_ordered_and_repeatable(documents):
    result = score(*split(documents))
    assert result == score(*split(documents))
    for entry in (result, result["macro"], *result["per_label"].values()):
        for low, high in entry["interval"].values():
            assert 0 <= low <= high <= 1


@given(st.lists(ENTITY, max_size=6), st.lists(ENTITY, max_size=6), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_equal_documents_have_intervals_of_width_zero(gold, predicted, copies):
    result = score([gold] * copies, [predicted] * copies)
    for ratio in RATIOS:
        assert result["interval"][ratio] == pytest.approx([result[ratio]] * 2)


def test_an_interval_narrows_with_more_documents():
    documents = [([(0, 1, "A")], [(0, 1, "A")]), ([(0, 1, "A")], [])]
    few, many = (score(*split(documents * copies))["interval"]["recall"] for copies in (5, 500))
    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_a_bootstrap_draws_whole_documents():
    totals = resample(np.array([[[1, 0, 0]], [[0, 10, 0]]]))
    assert totals.shape == (RESAMPLES, 1, 3)
    assert {tuple(row) for row in totals[:, 0].tolist()} == {(2, 0, 0), (1, 10, 0), (0, 20, 0)}


def test_a_group_without_entities_is_listed():
    outcomes = match([[(0, 1, "A")]], [[]])
    result = summarise(outcomes, {"by_size": Grouping(np.array([1]), ["small", "large"])})
    counts = {name: entry["fn"] for name, entry in result["by_size"].items()}
    assert counts == {"small": 0, "large": 1}


@pytest.mark.parametrize("documents", [0, 1, 3])
def test_scores_are_0_without_any_entity(documents):
    interval = dict.fromkeys(RATIOS, [0.0, 0.0])
    assert score([[]] * documents, [[]] * documents) == {
        **ZERO, "tp": 0, "fp": 0, "fn": 0, "interval": interval, "macro": {**ZERO, "interval": interval},
        "per_label": {},
    }  # fmt: skip


def test_scores_are_0_if_nothing_is_found_or_nothing_is_to_be_found():
    gold = [[(0, 1, "A"), (2, 3, "B")]]
    assert without_interval(score(gold, [[]])) == {**ZERO, "tp": 0, "fp": 0, "fn": 2}
    assert without_interval(score([[]], gold)) == {**ZERO, "tp": 0, "fp": 2, "fn": 0}
    assert score(gold, gold)["interval"]["f1"] == [1.0, 1.0]


def test_the_same_span_in_two_documents_is_two_entities():
    assert score([[(0, 1, "A")], [(0, 1, "A")]], [[(0, 1, "A")], []])["recall"] == 0.5


def test_documents_must_be_paired():
    with pytest.raises(ValueError):
        score([[]], [])


def test_a_hundred_thousand_entities_are_scored():
    gold = [[(i, i + 1, "AB"[i % 2]) for i in range(1000)] for _ in range(100)]
    predicted = [entities[: 10 * n] for n, entities in enumerate(gold)]
    result = score(gold, predicted)
    assert (result["tp"], result["fp"], result["fn"]) == (49_500, 0, 50_500)


def test_as_spans_takes_start_end_and_label_of_entities():
    assert as_spans([{"start": 1, "end": 2, "text": "x", "label": "A", "score": 0.5}]) == [(1, 2, "A")]
