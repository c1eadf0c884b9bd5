"""
The band: the part of the square of word pairs that SeNER keeps, as pure functions.

B batch, N words, w window, W = 2w + 1 columns, C channels, R labels, n rows of a part, a first row of a part.
Cell (i, k) of the band is the pair (i, j = i + k - w): column w is the diagonal, columns above it the upper triangle
(start i, end j), columns below it the lower one (start j, end i).
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def band_mask(lengths: Tensor, rows: slice, window: int) -> Tensor:
    """Which cells are pairs of words of the text: (B, n, W) bool. `rows` may reach past either end of the text."""
    i = torch.arange(rows.start, rows.stop, device=lengths.device)[:, None]
    j = i + torch.arange(-window, window + 1, device=lengths.device)
    lengths = lengths[:, None, None]
    return (i >= 0) & (i < lengths) & (j >= 0) & (j < lengths)


def in_one_part() -> bool:
    """
    Whether a text is computed in one part: for gradients, as parts overwrite what they were made from; and in an
    exported program (`torch.export`), which cannot have a loop as long as the text.
    """
    return torch.is_grad_enabled() or torch.compiler.is_exporting()


class _StridedView(torch.autograd.Function):
    """`as_strided` for views that read no element twice: its gradient is one copy, without torch's index tensors."""

    @staticmethod
    def forward(ctx, states: Tensor, size, stride, offset: int) -> Tensor:
        ctx.geometry = (size, stride, offset)
        ctx.shape = states.shape
        return states.as_strided(size, stride, states.storage_offset() + offset)

    @staticmethod
    def backward(ctx, grad: Tensor):
        total = grad.new_zeros(ctx.shape)
        total.as_strided(*ctx.geometry).copy_(grad)
        return total, None, None, None


def _strided(states: Tensor, size, stride, offset: int) -> Tensor:
    if torch.compiler.is_exporting():  # there `states` always begins its storage, whose offset cannot be asked for
        return states.as_strided(size, stride, offset)
    return _StridedView.apply(states, size, stride, offset)


class _Overlapping(torch.autograd.Function):
    """`unfold` with a gradient by a few large additions (torch 2.13 compiles that of overlapping windows wrongly)."""

    @staticmethod
    def forward(ctx, states: Tensor, step: int, size: int) -> Tensor:
        ctx.step, ctx.shape = step, states.shape
        return states.unfold(1, size, step).movedim(-1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        batch, count, size, *rest = grad.shape
        step, pieces = ctx.step, -(-size // ctx.step)
        total = grad.new_zeros(batch, count + pieces - 1, step, *rest)
        for piece in range(pieces):
            part = grad[:, :, piece * step : (piece + 1) * step]
            total[:, piece : piece + count, : part.shape[2]] += part
        return total.flatten(1, 2)[:, : ctx.shape[1]], None, None


def overlapping(states: Tensor, step: int, size: int) -> Tensor:
    """
    Windows of rows, one every `step` rows.

    Args:
        states: *Shape:* (B, (M - 1) step + size, ...).

    Returns:
        *Shape:* (B, M, size, ...): a view.
    """
    return _Overlapping.apply(states, step, size)


def transpose(band: Tensor, window: int) -> Tensor:
    """
    T(Z)[i, k] = Z[i + k - w, 2w - k]: row j of T(Z) holds column j of the square.

    Args:
        band: *Shape:* (B, n + 2w, W, C), rows [a - w, a + n + w).

    Returns:
        *Shape:* (B, n, W, C), rows [a, a + n): a view, nothing is copied. Its own inverse.
    """
    batch, rows, width, channels = band.shape
    # From (i, k) to (i, k + 1) the source goes one row down and one column back: W - 1 cells.
    return _strided(
        band.contiguous(),
        (batch, rows - 2 * window, width, channels),
        (rows * width * channels, width * channels, (width - 1) * channels, 1),
        2 * window * channels,
    )


def skewed_view(by_key: Tensor) -> Tensor:
    """
    What keys hold for their queries, by query: out[i, k] = by_key[i + k, k], a view.

    Args:
        by_key: *Shape:* (B, H, T + 2w, W), keys [-w, T + w).

    Returns:
        *Shape:* (B, H, T, W); cell (i, k) belongs to query i and key i + k - w.
    """
    batch, heads, keys, width = by_key.shape
    return _strided(
        by_key.contiguous(),
        (batch, heads, keys - width + 1, width),
        (heads * keys * width, keys * width, width, width + 1),
        0,
    )


def diagonals(blocks: Tensor, width: int) -> Tensor:
    """
    The band within blocks of pairs: out[i, k] = blocks[i, i + k], a view.

    Args:
        blocks: *Shape:* (B, M, Q, K, C) with K = Q + width - 1.

    Returns:
        *Shape:* (B, M, Q, width, C).
    """
    batch, count, rows, keys, channels = blocks.shape
    return _strided(
        blocks.contiguous(),
        (batch, count, rows, width, channels),
        (count * rows * keys * channels, rows * keys * channels, (keys + 1) * channels, channels, 1),
        0,
    )


def pad_rows(band: Tensor, before: int, after: int) -> Tensor:
    """`band` (B, n, ...) with rows of zeros added: (B, before + n + after, ...); itself where none are."""
    if before == after == 0:
        return band  # F.pad would copy it
    return F.pad(band, (0, 0) * (band.dim() - 2) + (before, after))


def square_to_band(square: Tensor, window: int) -> Tensor:
    """(B, N, N, R) -> (B, N, W, R); cells outside the square are 0."""
    rows = square.shape[1]
    i = torch.arange(rows, device=square.device)[:, None]
    j = i + torch.arange(-window, window + 1, device=square.device)
    inside = (j >= 0) & (j < rows)
    return square[:, i, j.clamp(0, max(rows - 1, 0))] * inside[None, :, :, None].to(square.dtype)


def band_to_square(band: Tensor, window: int) -> Tensor:
    """(B, N, W, R) -> (B, N, N, R); pairs further apart than w are 0."""
    batch, rows, width, channels = band.shape
    padded = band.new_zeros(batch, rows, rows + 2 * window, channels)
    skew = padded.as_strided(band.shape, (padded.stride(0), padded.stride(1) + channels, channels, 1))
    skew.copy_(band)
    return padded[:, :, window : window + rows]


def fits(start: int, end: int, window: int | None) -> bool:
    """Whether the band holds the span of words [start, end)."""
    return window is None or end - 1 - start <= window


def band_labels(spans: Iterable[tuple[int, int, int]], num_words: int, window: int | None, num_labels: int) -> Tensor:
    """
    Training targets of one text, in both triangles.

    Args:
        spans: (start, end, label number) with `end` exclusive. One that is wider than the window raises `ValueError`.
        window: w, or `None` for the whole square.

    Returns:
        *Shape:* (N, W, R), or (N, N, R) for the whole square; uint8.
    """
    columns = num_words if window is None else 2 * window + 1
    labels = torch.zeros(num_words, columns, num_labels, dtype=torch.uint8)
    for start, end, label in spans:
        first, last = start, end - 1
        if not 0 <= first <= last < num_words or not fits(start, end, window):
            raise ValueError(f"span [{start}, {end}) does not fit {num_words} words with window {window}")
        for i, j in ((first, last), (last, first)):
            labels[i, j if window is None else j - i + window, label] = 1
    return labels
