"""
From tokens to words: a word's state is the elementwise maximum over its tokens (eq. 4).

B batch, T tokens, N words, d hidden size.
"""

import torch
from torch import Tensor


def pool_words(hidden: Tensor, word_index: Tensor, num_words: int) -> Tensor:
    """
    Take the elementwise maximum over each word's tokens (eq. 4).

    Args:
        hidden: *Shape:* (B, T, d).
        word_index: *Shape:* (B, T), the 1-based word of each token, 0 for tokens of no word.

    Returns:
        *Shape:* (B, N, d); zeros for a word without tokens.
    """
    batch, _, size = hidden.shape
    words = hidden.new_zeros(batch, num_words + 1, size)
    index = word_index.long()[..., None].expand(-1, -1, size)
    return words.scatter_reduce(1, index, hidden, reduce="amax", include_self=False)[:, 1:]


def pool_in_place(hidden: Tensor, word_index: Tensor, num_words: int, chunk_size: int) -> Tensor:
    """`pool_words` in chunks of words that overwrite `hidden`: no word comes later in it than its own tokens."""
    size = max(1, chunk_size // len(hidden))
    for number, (start, stop) in enumerate(token_ranges(word_index, num_words, size)):
        first = number * size
        count = min(size, num_words - first)
        index = word_index[:, start:stop] - first
        index = index * ((index > 0) & (index <= count))
        hidden[:, first : first + count] = pool_words(hidden[:, start:stop], index, count)
    return hidden[:, :num_words]


def token_ranges(word_index: Tensor, num_words: int, size: int) -> list[list[int]]:
    """
    The tokens [start, stop) that the words of each chunk span in any text. Waits for the device once, for all chunks.

    Args:
        word_index: *Shape:* (B, T).
        size: words of a chunk.

    Returns:
        A pair [start, stop] for each chunk.
    """
    chunks = -(-num_words // size)
    chunk = torch.where(word_index > 0, (word_index.long() - 1) // size, chunks).flatten()
    token = torch.arange(word_index.shape[1], device=word_index.device).expand_as(word_index).flatten()
    start = token.new_full((chunks + 1,), word_index.shape[1]).scatter_reduce(0, chunk, token, "amin")
    stop = token.new_zeros(chunks + 1).scatter_reduce(0, chunk, token + 1, "amax")
    return torch.stack([start, stop], dim=1)[:chunks].tolist()
