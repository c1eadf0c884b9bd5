"""Precision, recall and F1 by set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.scoring import as_spans, score


ENTITY = st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from("ABC"))


def test_counts_are_added_up_and_ratios_derived_once():
    gold = [{(0, 1, "A"), (2, 3, "B")}, {(0, 1, "A")}]
    predicted = [{(0, 1, "A"), (2, 3, "A")}, set()]
    result = score(gold, predicted)
    assert (result["tp"], result["fp"], result["fn"]) == (1, 1, 2)
    assert result["precision"] == 1 / 2 and result["recall"] == 1 / 3 and result["f1"] == pytest.approx(0.4)
    assert result["per_label"]["B"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "tp": 0, "fp": 0, "fn": 1}


def test_the_same_span_in_two_documents_is_two_entities():
    assert score([[(0, 1, "A")], [(0, 1, "A")]], [[(0, 1, "A")], []])["recall"] == 0.5


def test_repeated_entities_count_once():
    assert score([[(0, 1, "A")] * 2], [[(0, 1, "A")] * 3])["f1"] == 1.0


def test_nothing_at_all():
    assert score([], []) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "tp": 0, "fp": 0, "fn": 0, "per_label": {}}


def test_documents_must_be_paired():
    with pytest.raises(ValueError):
        score([[]], [])


@given(st.lists(st.tuples(st.sets(ENTITY), st.sets(ENTITY)), max_size=6))
def test_micro_is_the_sum_of_the_labels(documents):
    result = score([gold for gold, _ in documents], [predicted for _, predicted in documents])
    for name in ("tp", "fp", "fn"):
        assert result[name] == sum(counts[name] for counts in result["per_label"].values())
    assert result["tp"] + result["fn"] == sum(len(gold) for gold, _ in documents)
    if all(gold == predicted for gold, predicted in documents) and any(gold for gold, _ in documents):
        assert result["f1"] == 1.0


def test_as_spans():
    assert as_spans([{"start": 1, "end": 2, "text": "x", "label": "A", "score": 0.5}]) == [(1, 2, "A")]
