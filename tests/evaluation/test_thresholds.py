"""Fitted thresholds are never worse on their data, and the best if all can be tried; stored thresholds."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.corpora import LABELS, corpora, small_config

from modeling_sener import SenerConfig
from modeling_sener.decoding import Candidates
from training.corpus.data import Document
from training.evaluation.breakdown import score_corpus
from training.evaluation.candidates import FLOOR, ScoredSpans
from training.evaluation.scoring import match, ratios
from training.evaluation.thresholds import OWN_ENTITIES, fit_thresholds, store_thresholds


def f1(documents, scored, thresholds, config):
    found = scored.entities(scored.choose(thresholds, config), LABELS)
    outcomes = match([document.entities for document in documents], found)
    return ratios(np.bincount(outcomes.outcome, minlength=3))[2]


def rare_labels(documents, own_entities):
    counts = Counter(label for document in documents for _, _, label in document.entities)
    return [number for number, label in enumerate(LABELS) if counts[label] < own_entities]


@given(corpora(), st.lists(st.sampled_from([0.0, 0.03, 0.3, 0.5, 0.9, 1.0]), min_size=3, max_size=3),
       st.booleans(), st.sampled_from(["all", "best"]), st.integers(0, 4))  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_fitting_never_lowers_f1(corpus, start, allow_nested, labels_per_span, own_entities):
    documents, scored = corpus
    config, start = small_config(allow_nested=allow_nested, labels_per_span=labels_per_span), np.array(start)
    fitted = fit_thresholds(scored, documents, start, config, own_entities=own_entities)
    assert ((0 <= fitted) & (fitted <= 1)).all()
    assert f1(documents, scored, fitted, config) >= f1(documents, scored, start, config)


def test_spans_below_the_floor_do_not_count():
    """
    A right A that scores 0.02 must not lower the threshold of A. With a lower threshold F1 would be higher: it would
    accept a wrong A, which displaces two wrong Bs that it crosses.
    """
    spans = [(5, 6, 1, 0.9), (0, 3, 1, 0.2), (8, 11, 1, 0.2), (2, 9, 0, 0.3), (12, 13, 0, 0.02)]
    start, end, label, score = (np.array(column) for column in zip(*spans, strict=True))
    scored = ScoredSpans.join([(Candidates(start * 0, start, end, label, score.astype(np.float32)),
                                np.stack([np.arange(13), np.arange(13) + 1], axis=1))])  # fmt: skip
    documents = [Document("a", ["w"] * 13, ((5, 6, "B"), (12, 13, "A")))]
    fitted = fit_thresholds(scored, documents, np.array([0.5, 0.05, 0.5]), small_config(), own_entities=0)
    assert fitted[0] == 0.5


@given(corpora(least=1), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_no_cut_of_a_group_gives_a_higher_f1_if_no_spans_compete(corpus, own_entities):
    """Tries every threshold that leaves a group a right span. The next test covers groups without one."""
    documents, scored = corpus
    scored = scored.above(np.full(3, FLOOR))
    config, found = small_config(), scored.entities(scored.candidates, LABELS)
    assume(not any(a < c < b < d for part in found for a, b, _ in part for c, d, _ in part))
    gold = [document.entities for document in documents]
    is_right = np.isin(scored.keys(scored.candidates), scored.gold_keys(gold, LABELS))
    fitted = fit_thresholds(scored, documents, np.full(3, 0.5), config, own_entities=own_entities)
    rare = rare_labels(documents, own_entities)
    best = f1(documents, scored, fitted, config)
    for label, score in zip(scored.candidates.label[is_right], scored.candidates.score[is_right], strict=True):
        trial = fitted.copy()
        trial[rare if label in rare else label] = score
        assert f1(documents, scored, trial, config) <= best + 1e-12


@given(corpora(), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_rare_labels_share_a_threshold_and_a_group_without_a_right_span_keeps_its_own(corpus, own_entities):
    documents, scored = corpus
    start, rare = np.array([0.5, 0.6, 0.7]), rare_labels(documents, own_entities)
    found = scored.entities(scored.candidates, LABELS)
    right = {entity[2] for document, part in zip(documents, found, strict=True) for entity in part
             if entity in document.entities}  # fmt: skip
    fitted = fit_thresholds(scored, documents, start, small_config(), own_entities=own_entities)
    for group in (rare, *([number] for number in range(3) if number not in rare)):
        kept = (fitted[group] == start[group]).all()
        assert kept or len(set(fitted[group])) == 1 and right & {LABELS[number] for number in group}


def test_a_rare_label_has_the_threshold_that_suits_all_rare_labels():
    """B has one right span at 0.35, and C four at 0.25, below a wrong one of B at 0.3. A has enough for its own."""
    labels = np.array([0] * OWN_ENTITIES + [1, 1, 2, 2, 2, 2])
    score = np.array([0.9] * OWN_ENTITIES + [0.35, 0.3, 0.25, 0.25, 0.25, 0.25], dtype=np.float32)
    numbers = np.arange(len(labels))
    scored = ScoredSpans.join([(Candidates(numbers * 0, numbers, numbers + 1, labels, score),
                                np.stack([numbers, numbers + 1], axis=1))])  # fmt: skip
    entities = [(i, i + 1, LABELS[label]) for i, label in enumerate(labels.tolist()) if i != OWN_ENTITIES + 1]
    documents = [Document("a", ["w"] * len(labels), tuple(entities))]
    fitted = fit_thresholds(scored, documents, np.full(3, 0.5), small_config())
    assert fitted[0] == 0.5 and 0.05 < fitted[1] == fitted[2] < 0.25
    own = fit_thresholds(scored, documents, np.full(3, 0.5), small_config(), own_entities=1)
    assert 0.3 < own[1] < 0.35 and own[2] < 0.25


def test_a_threshold_finds_the_gap_between_right_and_wrong():
    """Right spans score 0.4, wrong ones 0.2: the default accepts none, a threshold half-way accepts the right ones."""
    numbers = np.arange(8)
    score = np.where(numbers % 2, 0.4, 0.2).astype(np.float32)
    candidates = Candidates(numbers * 0, numbers, numbers + 1, numbers * 0, score)
    scored = ScoredSpans.join([(candidates, np.stack([numbers, numbers + 1], axis=1))])
    documents = [Document("a", ["w"] * 8, tuple((i, i + 1, "A") for i in range(1, 8, 2)))]
    fitted = fit_thresholds(scored, documents, np.full(3, 0.5), small_config(), own_entities=1)
    assert fitted.tolist() == [0.3, 0.5, 0.5]
    result = score_corpus(documents, scored, fitted, small_config())
    assert result["f1"] == 1.0 and result["thresholds"] == {"A": 0.3, "B": 0.5, "C": 0.5}


def test_a_label_that_is_mostly_wrong_is_not_switched_off():
    """One right B scores less than twenty wrong ones. Without any B, F1 would be higher, but no B would be found."""
    numbers = np.arange(22)
    labels = np.array([0, *[1] * 21])
    score = np.linspace(0.99, 0.6, 22).astype(np.float32)
    scored = ScoredSpans.join([(Candidates(numbers * 0, numbers, numbers + 1, labels, score),
                                np.stack([numbers, numbers + 1], axis=1))])  # fmt: skip
    documents = [Document("a", ["w"] * 22, ((0, 1, "A"), (21, 22, "B")))]
    fitted = fit_thresholds(scored, documents, np.full(3, 0.5), small_config(), own_entities=1)
    assert (21, 22, "B") in scored.entities(scored.choose(fitted, small_config()), LABELS)[0]


def test_storing_changes_nothing_but_the_thresholds(tmp_path):
    small_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    before = path.read_text()
    store_thresholds(tmp_path, {"A": 0.25, "B": 0.5, "C": 0.75})
    fields = json.loads(path.read_text())
    assert fields.pop("threshold") == {"A": 0.25, "B": 0.5, "C": 0.75}
    old = json.loads(before)
    assert old.pop("threshold") == 0.5 and fields == old
    assert SenerConfig.from_pretrained(tmp_path).threshold == {"A": 0.25, "B": 0.5, "C": 0.75}
    assert [file.name for file in tmp_path.glob("config*.json*")] == ["config.json"]
    with pytest.raises(OSError):
        store_thresholds(tmp_path / "nowhere", {})
