"""Whole-word masking: whole words, no special tokens, the quota, 80 / 10 / 10."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.corpus.masking import choose_words, mask_words


MASK, ORDINARY = 4, np.arange(5, 1000)


def text_of(tokens_per_word):
    """
    Make input_ids and word_index of [CLS], the words, [SEP] and two pads. The words' tokens differ from those that
    masking draws at random.
    """
    word_index = np.repeat(np.arange(1, len(tokens_per_word) + 1), tokens_per_word)
    word_index = np.concatenate([[0], word_index, [0, 0, 0]])
    return np.where(word_index > 0, 1000 + np.arange(len(word_index)), [1] + [2] * (len(word_index) - 1)), word_index


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=60), st.floats(0.01, 0.9), st.integers(0, 2**32))
def test_words_are_masked_whole_and_within_the_quota(tokens_per_word, share, seed):
    input_ids, word_index = text_of(tokens_per_word)
    before = input_ids.copy()
    out = mask_words(input_ids, word_index, share, np.random.default_rng(seed), MASK, ORDINARY)
    assert (input_ids == before).all()
    changed = out != input_ids
    assert not changed[word_index == 0].any()
    for word in range(1, len(tokens_per_word) + 1):
        tokens = out[word_index == word]
        is_masked, is_random = tokens == MASK, np.isin(tokens, ORDINARY)
        assert is_masked.all() or is_random.all() or not changed[word_index == word].any()
    assert changed.sum() <= max(1, round(share * sum(tokens_per_word)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=60), st.floats(0.01, 0.9), st.integers(0, 2**32))
def test_words_are_chosen_until_the_next_one_would_exceed_the_quota(tokens_per_word, share, seed):
    _, word_index = text_of(tokens_per_word)
    words = choose_words(word_index, share, np.random.default_rng(seed))
    assert len(set(words)) == len(words)
    chosen = sum(tokens_per_word[word - 1] for word in words)
    quota = max(1, round(share * sum(tokens_per_word)))
    assert chosen <= quota
    assert len(words) == len(tokens_per_word) or chosen + max(tokens_per_word) > quota


def test_chosen_words_are_masked_replaced_or_kept_80_10_10():
    input_ids, word_index = text_of([2] * 100_000)
    out = mask_words(input_ids, word_index, 0.15, np.random.default_rng(0), MASK, ORDINARY)
    chosen = 0.15 * 200_000
    assert abs((out == MASK).sum() / chosen - 0.8) < 0.01
    assert abs(np.isin(out, ORDINARY).sum() / chosen - 0.1) < 0.01


@pytest.mark.parametrize("share, tokens", [(0, [1, 2, 3]), (0.5, [])])
def test_a_text_without_words_is_not_masked(share, tokens):
    input_ids, word_index = text_of(tokens)
    assert (mask_words(input_ids, word_index, share, np.random.default_rng(0), MASK, ORDINARY) == input_ids).all()
