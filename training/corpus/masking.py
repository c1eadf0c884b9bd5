"""Whole-word masking of the input tokens, which keeps the model from memorising names."""

import numpy as np


MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen words; the rest is kept as it is
NOT_MASKED = -100  # the target of tokens that are not masked: the `ignore_index` of `cross_entropy`


def choose_words(word_index: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """
    Draw words at random, without repetition, until the next one would exceed `share` of the text's tokens.

    Args:
        word_index: *Shape:* (T,), the 1-based word of each token, 0 for special tokens and padding.

    Returns:
        The numbers of the chosen words (from 1). The quota of a text with words is at least one token.
    """
    tokens_of = np.bincount(word_index)
    words = np.flatnonzero(tokens_of)
    words = generator.permutation(words[words > 0])
    if share <= 0 or len(words) == 0:
        return words[:0]
    quota = max(1, round(share * int(tokens_of[words].sum())))
    return words[np.cumsum(tokens_of[words]) <= quota]


def mask_words(
    input_ids: np.ndarray,
    word_index: np.ndarray,
    share: float,
    generator: np.random.Generator,
    mask_id: int,
    ordinary_ids: np.ndarray,
) -> np.ndarray:
    """
    Mask `share` of the tokens, word by word (whole-word masking): 80 % of the chosen words become [MASK] in all their
    tokens, 10 % random tokens, 10 % stay. Special tokens and padding are never changed.

    Args:
        input_ids: *Shape:* (T,). Not changed.
        ordinary_ids: the vocabulary without special tokens, from which random tokens are drawn.

    Returns:
        *Shape:* (T,), new input ids.
    """
    words = choose_words(word_index, share, generator)
    fate = generator.random(len(words))
    masked = np.isin(word_index, words[fate < MASKED_SHARE])
    replaced = np.isin(word_index, words[(fate >= MASKED_SHARE) & (fate < MASKED_SHARE + RANDOM_SHARE)])
    out = input_ids.copy()
    out[masked] = mask_id
    out[replaced] = generator.choice(ordinary_ids, int(replaced.sum()))
    return out
