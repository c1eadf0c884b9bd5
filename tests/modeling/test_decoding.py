"""Decoding against brute force, and its properties: probabilities, candidates, the choice of spans."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import references_decoding as references
from support.decoding import decode

from modeling_sener.decoding import Candidates, find_candidates, select, span_probabilities


# Few values, far apart: ties are common and exact, and rounding cannot reorder scores.
LEVELS = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0])


@st.composite
def problems(draw):
    triangles = draw(st.sampled_from(["both", "upper"]))
    batch, labels, window = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shape = (batch, max(lengths), (2 * window if triangles == "both" else window) + 1, labels)
    logits = LEVELS[torch.randint(len(LEVELS), shape, generator=generator)]
    threshold = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.4, 0.55, 0.6, 0.85, 1.0]))
    return {
        "logits": logits,
        "lengths": lengths,
        "thresholds": draw(st.lists(threshold, min_size=labels, max_size=labels)),
        "window": window,
        "triangles": triangles,
        "triangle_mean": draw(st.sampled_from(["logit", "probability"])),
        "labels_per_span": draw(st.sampled_from(["all", "best"])),
        "allow_nested": draw(st.booleans()),
    }


def as_tensors(problem):
    thresholds = [float("inf") if t is None else t for t in problem["thresholds"]]
    return {
        **{name: value for name, value in problem.items() if name != "window"},
        "lengths": torch.tensor(problem["lengths"]),
        "thresholds": torch.tensor(thresholds, dtype=torch.float64),
    }


def check(results, problem):
    assert len(results) == len(problem["lengths"])
    for row, (found, length) in enumerate(zip(results, problem["lengths"], strict=True)):
        fields = {k: v for k, v in problem.items() if k not in ("logits", "lengths")}
        expected = references.decode(problem["logits"][row].double().tolist(), length, **fields)
        assert list(zip(found.start, found.end, found.label, strict=True)) == [e[:3] for e in expected]
        np.testing.assert_allclose(found.score, [e[3] for e in expected], atol=1e-6)
        assert (found.text == row).all()


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(1, 12))
def test_decoding_equals_brute_force_whole_and_in_chunks(problem, chunk):
    check(decode(**as_tensors(problem)), problem)
    check(decode(**as_tensors(problem), chunk=chunk), problem)


@pytest.mark.parametrize("triangle_mean", ["logit", "probability"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probabilities_are_at_least_single_precision(dtype, triangle_mean):
    logits = torch.randn(2, 9, 7, 3, dtype=torch.float64).to(dtype)
    found = span_probabilities(logits, "both", triangle_mean)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = span_probabilities(logits.double(), "both", triangle_mean)
    assert found.shape == (2, 6, 4, 3)
    torch.testing.assert_close(found.double(), exact, atol=1e-6, rtol=0)
    upper = span_probabilities(logits, "upper", triangle_mean)
    assert upper.dtype == found.dtype and upper.shape == logits.shape
    torch.testing.assert_close(upper.double(), logits.double().sigmoid(), atol=1e-6, rtol=0)


def test_probabilities_of_a_strided_view_are_those_of_its_copy():
    logits = torch.randn(9, 2, 3, 7).permute(1, 0, 3, 2)[:, 1:]
    torch.testing.assert_close(
        span_probabilities(logits, "both", "logit"),
        span_probabilities(logits.contiguous(), "both", "logit"),
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("triangles, triangle_mean", [("both", "logit"), ("both", "probability"), ("upper", "logit")])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_scores_that_are_not_finite_raise(value, triangles, triangle_mean, threshold):
    logits = torch.zeros(1, 4, 5 if triangles == "both" else 3, 2)
    logits[0, 2, 1, 1] = value
    with pytest.raises(FloatingPointError, match="not finite"):
        decode(logits, torch.tensor([4]), torch.full((2,), threshold), triangles, triangle_mean, "all", True)


@pytest.mark.parametrize("threshold", [0.9, 0.1, 0.3, 0.7])
def test_the_threshold_is_not_rounded_before_it_is_compared(threshold):
    nearest = torch.tensor(threshold, dtype=torch.float32)
    ends = torch.tensor([0.0, 1.0])
    below, above = torch.nextafter(nearest, ends)
    scores = torch.stack([below, nearest, above])
    found = find_candidates(
        scores.reshape(1, 3, 1, 1), torch.tensor([threshold], dtype=torch.float64), torch.tensor([3])
    )
    assert found.start.tolist() == [i for i, score in enumerate(scores.tolist()) if score >= threshold]


def test_cells_that_are_no_pair_of_words_are_ignored():
    logits = torch.full((2, 4, 5, 1), float("nan"))
    logits[0] = 3.0
    logits[1, :2, 1:4] = 3.0
    found = decode(logits, torch.tensor([4, 2]), torch.tensor([0.5]), "both", "logit", "all", True)
    assert [len(each.start) for each in found] == [6, 3]


def spans(*fields):
    """Candidates of one text from (start, end, label, score)."""
    start, end, label, score = (np.array(column) for column in zip(*fields, strict=True))
    return Candidates(np.zeros_like(start), start, end, label, score)


def test_a_touching_span_is_no_conflict_and_a_crossing_one_is_dropped():
    found = select(spans((0, 3, 0, 0.9), (3, 5, 0, 0.6), (2, 5, 0, 0.8), (1, 2, 0, 0.7)), "all", True)
    assert list(zip(found.start, found.end, strict=True)) == [(0, 3), (1, 2), (3, 5)]


def test_a_dropped_span_drops_nothing_itself():
    found = select(spans((0, 3, 0, 0.9), (2, 5, 0, 0.8), (4, 7, 0, 0.7)), "all", True)
    assert list(zip(found.start, found.end, strict=True)) == [(0, 3), (4, 7)]


def test_a_span_keeps_its_labels_without_nesting():
    several = spans((0, 3, 1, 0.9), (0, 3, 0, 0.5), (1, 2, 0, 0.8))
    assert select(several, "all", False).label.tolist() == [0, 1]
    assert select(several, "best", False).label.tolist() == [1]
    assert len(select(several, "all", True).start) == 3


def test_of_no_candidates_none_is_chosen():
    none = Candidates(*(np.zeros(0, dtype=int) for _ in range(5)))
    assert len(select(none, "all", True).start) == 0


@pytest.mark.parametrize("allow_nested", [True, False])
def test_a_hundred_thousand_candidates(allow_nested):
    """Quadratic work would take too long. Accepted spans are nested or apart, and the best one is among them."""
    generator = np.random.default_rng(0)
    start = np.repeat(np.arange(25_000), 4)
    end = start + generator.integers(1, 130, len(start))
    label, score = generator.integers(0, 3, len(start)), generator.random(len(start))
    many = Candidates(np.zeros_like(start), start, end, label, score)
    accepted = select(many, "all", allow_nested)
    around: list[int] = []  # ends of the accepted spans that the next one lies in
    for first, last in sorted({*zip(accepted.start.tolist(), accepted.end.tolist(), strict=True)}, key=_outer_first):
        while around and around[-1] <= first:
            around.pop()
        assert not around or (allow_nested and last <= around[-1])
        around.append(last)
    assert score.argmax() in np.flatnonzero(np.isin(start, accepted.start) & np.isin(end, accepted.end))


def _outer_first(span):
    return span[0], -span[1]
