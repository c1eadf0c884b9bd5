"""Batches of a step: each window once an epoch for any number of processes; padding, labels, masking, resuming."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from support.toy import toy_window

from training.corpus.batches import Collator, Masking, StepBatches, draw_windows, epoch_order
from training.corpus.masking import NOT_MASKED
from training.corpus.windows import StoredWindows


class Windows(list):
    """Stands in for `StoredWindows`, without a file."""

    @property
    def lengths(self):
        return np.array([len(window.input_ids) for window in self])

    @property
    def is_empty(self):
        return np.array([not window.spans for window in self])


def batches(windows, mask_share=0.0, guessed=False, **settings):
    settings = {"seed": 3, "batch_size": 2, "accumulation": 1, **settings}
    masking = Masking(tiny_tokenizer("wordpiece"), mask_share, guessed)
    return StepBatches(windows, masking, Collator(0, 2, "both", 2), **settings)


@pytest.mark.parametrize(
    "span_window, triangles, columns, cells",
    [
        (2, "both", 5, [(0, 3), (1, 1)]),
        (2, "upper", 3, [(0, 1)]),
        (None, "both", 9, [(0, 5), (1, 3)]),
        (None, "upper", 5, [(0, 1)]),
    ],
)
def test_batches_are_padded_and_labelled_in_every_triangle(span_window, triangles, columns, cells):
    windows = [toy_window(n, spans=[(0, 2, 1)]) for n in (3, 5)]
    batch = Collator(pad_id=7, span_window=span_window, triangles=triangles, num_labels=2)(windows)
    assert batch["input_ids"].tolist()[0] == [1, 10, 11, 12, 2, 7, 7]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert batch["word_index"].tolist()[0] == [0, 1, 2, 3, 0, 0, 0]
    assert batch["labels"].shape == (2, 5, columns, 2)
    assert batch["labels"].nonzero().tolist() == [[b, *cell, 1] for b in (0, 1) for cell in cells]


def test_windows_of_a_tokenizer_without_a_padding_token_are_padded_with_token_0():
    batch = Collator(None, 2, "both", 2)([toy_window(3), toy_window(5)])
    assert batch["input_ids"].tolist()[0] == [1, 10, 11, 12, 2, 0, 0]


def test_the_order_holds_each_window_once_changes_with_the_epoch_and_keeps_padding_low():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    first, again, second = (epoch_order(lengths, seed=0, epoch=epoch) for epoch in (0, 0, 1))
    assert (first == again).all() and (first != second).any()
    assert sorted(first) == sorted(second) == list(range(1003))
    groups = [lengths[first[i : i + 4]] for i in range(0, 1000, 4)]
    assert sum(group.max() * len(group) for group in groups) / lengths.sum() < 1.1


MARKS = st.lists(st.booleans(), min_size=1, max_size=60).map(np.array)
SHARES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@given(MARKS, SHARES, st.integers(0, 9), st.integers(0, 9))
def test_an_epoch_draws_each_window_with_an_entity_and_a_fixed_number_of_the_others(is_empty, share, seed, epoch):
    drawn = draw_windows(is_empty, share, seed, epoch)
    assert (np.diff(drawn) > 0).all() and set(np.flatnonzero(~is_empty)) <= set(drawn)
    assert is_empty[drawn].sum() == round(share * is_empty.sum())
    assert (drawn == draw_windows(is_empty, share, seed, epoch)).all()


def test_every_epoch_and_seed_draws_others_and_each_as_often():
    is_empty = np.arange(300) % 3 > 0
    draws = {(seed, epoch): draw_windows(is_empty, 0.25, seed, epoch) for seed in (0, 1) for epoch in range(200)}
    assert len({tuple(drawn) for drawn in draws.values()}) == 400
    often = sum(np.bincount(drawn, minlength=300) for drawn in draws.values())[is_empty] / 400
    assert abs(often - 0.25).max() < 5 * (0.25 * 0.75 / 400) ** 0.5  # no window is favoured
    both = np.mean([len(np.intersect1d(draws[0, e], draws[0, e + 1])) for e in range(199)]) - 100
    assert abs(both - 50 * 0.25) < 1  # draws do not depend on the epoch before


def test_with_all_windows_the_order_is_that_of_all_windows():
    windows = Windows(toy_window(1 + (7 * i) % 11, spans=[(0, 1, 0)] * (i % 3 == 0)) for i in range(40))
    for epoch in (1, 2):
        plan = batches(windows, batch_size=40).plan(epoch)
        order = epoch_order(windows.lengths, 3, epoch)
        assert plan == [(order[np.argsort(-windows.lengths[order], kind="stable")].tolist(), 1.0)]


@settings(max_examples=60, deadline=None)
@given(MARKS, SHARES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_a_step_is_the_same_however_it_is_shared_out(is_empty, share, batch_size, accumulation, processes, epoch):
    """The windows of each step, and the mean of their losses, are those of one process with a single batch."""
    windows = Windows(
        toy_window(1 + (7 * i) % 11, spans=[] if empty else [(0, 1, 0)]) for i, empty in enumerate(is_empty)
    )
    losses = np.random.default_rng(0).random(len(windows))
    size = batch_size * accumulation * processes
    drawn = draw_windows(is_empty, share, 3, epoch).tolist()
    assume(drawn)
    whole = batches(windows, batch_size=size, empty_window_share=share)
    assert whole.steps == len(whole.plan(epoch)) == -(-len(drawn) // size) and whole.epoch_size == len(drawn)
    whole = whole.plan(epoch)
    assert sorted(i for members, _ in whole for i in members) == drawn
    shared = [batches(windows, batch_size=batch_size, accumulation=accumulation, process=process, processes=processes,
                      empty_window_share=share) for process in range(processes)]  # fmt: skip
    plans = [part.plan(epoch) for part in shared]
    assert {len(plan) for plan in plans} == {len(whole) * accumulation}
    for step, (members, _) in enumerate(whole):
        turns = [batch for plan in plans for batch in plan[step * accumulation : (step + 1) * accumulation]]
        assert all(0 < len(indices) <= batch_size and set(indices) <= set(drawn) for indices, _ in turns)
        assert sorted(i for indices, weight in turns if weight for i in indices) == sorted(members)
        total = sum(weight * losses[indices].mean() for indices, weight in turns) / (processes * accumulation)
        assert total == pytest.approx(losses[members].mean())
        assert shared[0].windows_of_step(step) == len(members)


def test_a_full_step_has_the_weight_one():
    plan = batches(Windows(toy_window(3) for _ in range(11)), batch_size=2, accumulation=2).plan(0)
    assert [weight for _, weight in plan[:4]] == [1.0] * 4
    assert [(len(indices), weight) for indices, weight in plan[4:]] == [(2, 4 / 3), (1, 2 / 3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_entered_in_the_middle_goes_on_with_the_same_batches(workers):
    windows = Windows(toy_window(3 + i % 5, first=i, spans=[(0, 1, 0)] * (i % 3 > 0)) for i in range(31))
    source = batches(windows, 0.3, batch_size=2, accumulation=2, empty_window_share=0.3)  # 20 windows and 3 of 11
    torch.manual_seed(0)
    before = torch.get_rng_state()
    whole = list(source.loader(epoch=4))
    rest = list(source.loader(epoch=4, first_step=2, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)  # the random numbers of dropout are not disturbed
    assert len(whole) == 12 and len(rest) == 8
    for (batch, weight), (again, same_weight) in zip(whole[4:], rest, strict=True):
        assert weight == same_weight and all(torch.equal(batch[name], again[name]) for name in batch)


def test_words_are_masked_anew_in_every_epoch():
    source = batches(Windows([toy_window(30)]), 0.3, batch_size=1)
    seen = [next(iter(source.loader(epoch)))[0]["input_ids"] for epoch in (1, 1, 2)]
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    tokenizer = tiny_tokenizer("wordpiece")
    assert all((ids == tokenizer.mask_token_id).any() for ids in seen)


def test_masked_tokens_are_kept_as_targets_of_masked_language_modelling():
    windows = Windows([toy_window(3), toy_window(30)])
    batch, _ = next(iter(batches(windows, 0.3, guessed=True, batch_size=2).loader(epoch=1)))
    same, _ = next(iter(batches(windows, 0.3, batch_size=2).loader(epoch=1)))
    masked = batch["masked_ids"] != NOT_MASKED
    assert torch.equal(batch["input_ids"], same["input_ids"]) and "masked_ids" not in same
    plain, _ = next(iter(batches(windows, batch_size=2).loader(epoch=1)))
    assert masked.any() and torch.equal(masked, batch["input_ids"] != plain["input_ids"])
    assert torch.equal(batch["masked_ids"][masked], plain["input_ids"][masked])


def test_masking_needs_a_mask_token():
    tokenizer = tiny_tokenizer("wordpiece")
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="mask_share is 0.15: this tokenizer has no mask token"):
        Masking(tokenizer, 0.15)
    assert Masking(tokenizer, 0)(toy_window(3), [0]).input_ids.tolist() == [1, 10, 11, 12, 2]


def test_windows_on_disk_come_back_as_they_were_and_are_not_held_in_memory(tmp_path):
    windows = [toy_window(3, spans=[(0, 2, 1), (1, 2, 0)]), toy_window(1), toy_window(250)]
    StoredWindows.write(tmp_path / "windows.arrow", iter(windows))
    stored = StoredWindows(tmp_path / "windows.arrow")
    assert len(stored) == 3 and stored.lengths.tolist() == [5, 3, 252] and stored.num_words.tolist() == [3, 1, 250]
    assert stored.is_empty.tolist() == [False, True, True] and stored.spans().tolist() == [[0, 2, 1], [1, 2, 0]]
    for back, there in zip(stored, windows, strict=True):
        assert back.input_ids.tolist() == there.input_ids.tolist()
        assert back.word_index.tolist() == there.word_index.tolist() and back.spans == there.spans
    assert type(stored.rows.data).__name__ == "MemoryMappedTable"


@pytest.mark.parametrize("least, passes", [(1, 1), (6, 1), (7, 2), (20, 4)])
def test_a_long_epoch_is_so_many_passes_in_a_row(least, passes):
    """An epoch with `min_epoch_steps` has the batches, masks and weights of as many epochs without it."""
    windows = Windows(toy_window(3 + i % 5, first=i, spans=[(0, 1, 0)] * (i % 3 > 0)) for i in range(31))
    fields = {"batch_size": 2, "accumulation": 2, "empty_window_share": 0.3}  # 20 windows and 3 of 11: 6 steps
    single, long = batches(windows, 0.3, **fields), batches(windows, 0.3, **fields, min_epoch_steps=least)
    assert (long.steps, long.epoch_size) == (6 * passes, 23 * passes)
    for epoch in (1, 2):
        first = (epoch - 1) * passes + 1
        expected = [batch for number in range(first, first + passes) for batch in single.loader(number)]
        found = list(long.loader(epoch))
        assert len(found) == len(expected) == 12 * passes
        for (one, weight), (other, same) in zip(found, expected, strict=True):
            assert weight == same and one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
        sizes = [long.windows_of_step(step) for step in range(long.steps)]
        assert sizes == passes * [single.windows_of_step(step) for step in range(6)]
