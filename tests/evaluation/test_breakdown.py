"""Scores by length, depth and position, confused labels, calibration, each against a simple reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import LABELS, corpora, small_config

from modeling_sener.decoding import Candidates
from training.corpus.data import Document
from training.evaluation.breakdown import (
    BEYOND,
    WORST,
    by_depth,
    by_length,
    calibration,
    confusion,
    score_corpus,
    worst_documents,
)
from training.evaluation.candidates import ScoredSpans
from training.evaluation.scoring import FP, match


HALF = np.full(3, 0.5)
ENTITY = st.tuples(st.integers(0, 4), st.integers(5, 9), st.sampled_from("ABC"))
PAIRS = st.lists(st.tuples(st.lists(ENTITY, max_size=8), st.lists(ENTITY, max_size=8)), max_size=3)


def match_pairs(pairs):
    return match([gold for gold, _ in pairs], [predicted for _, predicted in pairs])


def scored_words(*texts):
    """Scored spans of texts with these words, without candidates."""
    none = Candidates.join([])
    return ScoredSpans.join([(none, np.array([(i, i + 1) for i in range(size)]).reshape(-1, 2)) for size in texts])


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_the_groups_of_every_breakdown_add_up_to_the_total(corpus):
    documents, scored = corpus
    result = score_corpus(documents, scored, HALF, small_config())
    for name in ("per_label", "by_length", "by_depth", "by_position"):
        for count in ("tp", "fp", "fn"):
            assert sum(entry[count] for entry in result[name].values()) == result[count], name
    assert result["tp"] + result["fn"] == sum(len(document.entities) for document in documents)


def test_the_names_of_length_groups_give_their_bounds():
    lengths = np.array([1, 4, 5, 16, 17, 64, 65, 129, 130, 999])
    names = ["1-4", "1-4", "5-16", "5-16", "17-64", "17-64", "65-129", "65-129", "130+", "130+"]
    group, known = by_length(lengths, None)
    assert [known[i] for i in group] == names
    group, known = by_length(lengths, 128)
    assert [known[i] for i in group] == [*names[:8], BEYOND, BEYOND]
    group, known = by_length(lengths, 3)
    assert [known[i] for i in group] == ["1-4", "1-4"] + [BEYOND] * 8


@given(PAIRS)
@settings(deadline=None)
def test_depth_is_the_number_of_gold_spans_around(pairs):
    outcomes = match_pairs(pairs)
    group, names = by_depth(outcomes)
    rows = list(zip(outcomes.document, outcomes.start, outcomes.end, outcomes.outcome, strict=True))
    for row, depth in zip(rows, group, strict=True):
        document, start, end, _ = row
        around = {(a, b) for d, a, b, outcome in rows
                  if outcome != FP and d == document and a <= start and end <= b and b - a != end - start}  # fmt: skip
        assert names[depth] == str(len(around))


def test_position_and_length_count_words_not_characters():
    """Of ten words, the sixth is very long. The entity touches words 6 and 7."""
    edges = np.cumsum([0, 2, 2, 2, 2, 2, 90, 2, 2, 2, 2])
    offsets = np.stack([edges[:-1], edges[1:] - 1], axis=1)
    scored = ScoredSpans.join([(Candidates.join([]), offsets)])
    entity = (int(offsets[5, 0]), int(offsets[6, 1]), "A")
    result = score_corpus([Document("a", "", (entity,))], scored, HALF, small_config())
    assert result["by_position"]["50-60 %"]["fn"] == result["by_length"]["1-4"]["fn"] == 1


def test_entities_off_word_boundaries_are_counted_at_their_position():
    """Entities: half a word, a space between words, a space after the last word."""
    offsets = np.array([(0, 3), (4, 7)])
    scored = ScoredSpans.join([(Candidates(*np.zeros((4, 1), dtype=np.int64), np.ones(1, np.float32))._replace(
        end=np.ones(1, dtype=np.int64)), offsets)])  # fmt: skip
    gold = ((0, 2, "A"), (3, 4, "A"), (7, 8, "B"))
    result = score_corpus([Document("a", "abc def ", gold)], scored, HALF, small_config())
    assert (result["tp"], result["fp"], result["fn"]) == (0, 1, 3)
    assert [(part["count"], part["right"]) for part in result["calibration"]] == [(1, 0.0)]
    assert [entry["fn"] for entry in result["by_position"].values()] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_positions_hold_at_both_ends_of_a_document_and_without_words():
    gold = [[(i, i + 1, "A") for i in range(100)], []]
    documents = [Document(str(i), "", tuple(entities)) for i, entities in enumerate(gold)]
    result = score_corpus(documents, scored_words(100, 0), HALF, small_config())
    assert [entry["fn"] for entry in result["by_position"].values()] == [10] * 10


@given(PAIRS)
@settings(deadline=None)
def test_the_confusion_table_counts_each_entity_once(pairs):
    outcomes = match_pairs(pairs)
    table = confusion(outcomes)
    counts = np.array(table["counts"])
    assert table["labels"] == [*outcomes.labels, None] and counts.shape == (len(table["labels"]),) * 2
    assert counts[-1, -1] == 0
    for number, label in enumerate(outcomes.labels):
        gold = sum(len({entity for entity in part if entity[2] == label}) for part, _ in pairs)
        predicted = sum(len({entity for entity in part if entity[2] == label}) for _, part in pairs)
        right = sum(len({entity for entity in a if entity[2] == label} & set(b)) for a, b in pairs)
        assert (counts[number].sum(), counts[:, number].sum(), counts[number, number]) == (gold, predicted, right)
    spans = sum(len({e[:2] for e in gold}) if {e[:2] for e in gold} == {e[:2] for e in predicted} else 0
                for gold, predicted in pairs)  # fmt: skip
    assert counts[:-1, :-1].sum() >= spans  # if gold and predictions have the same spans, each has a pair


def test_labels_of_one_span_are_paired_and_equal_ones_first():
    table = confusion(match([[(0, 1, "A"), (0, 1, "B"), (5, 6, "C")]], [[(0, 1, "B"), (0, 1, "C"), (2, 3, "A")]]))
    assert table == {"labels": ["A", "B", "C", None],
                     "counts": [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]}  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans())))
@settings(deadline=None)
def test_calibration_bins_hold_every_span(pairs):
    score, right = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else (np.zeros(0),) * 2
    bins = calibration(score.astype(np.float32), right)
    assert sum(part["count"] for part in bins) == len(pairs)
    assert sum(part["count"] * part["right"] for part in bins) == pytest.approx(sum(right))
    for part in bins:
        own = [s for s, _ in pairs if part["low"] <= s < part["high"] or s == part["high"] == 1]
        assert len(own) == pytest.approx(part["count"]) and part["score"] == pytest.approx(np.mean(own))


@given(corpora())
@settings(max_examples=40, deadline=None)
def test_calibration_knows_which_spans_are_gold(corpus):
    documents, scored = corpus
    bins = calibration(scored.candidates.score, np.isin(scored.keys(scored.candidates), scored.gold_keys(
        [document.entities for document in documents], LABELS)))  # fmt: skip
    found = scored.entities(scored.candidates, LABELS)
    right = sum(
        entity in document.entities for document, part in zip(documents, found, strict=True) for entity in part
    )
    assert sum(part["count"] * part["right"] for part in bins) == pytest.approx(right)


def test_the_worst_documents_come_first_and_empty_ones_are_left_out():
    a, b, c = (0, 1, "A"), (1, 2, "A"), (2, 3, "A")
    outcomes = match([[a], [a, b], [], [a, b], [b]], [[a], [a, c], [], [], [c]])
    listed = worst_documents(outcomes, list("vwxyz"), np.arange(5))
    assert [document["id"] for document in listed] == ["y", "z", "w", "v"]
    assert listed[2] == {"id": "w", "words": 1, "tp": 1, "fp": 1, "fn": 1, "f1": 0.5}
    assert len(worst_documents(match([[a]] * 50, [[]] * 50), ["x"] * 50, np.zeros(50))) == WORST
