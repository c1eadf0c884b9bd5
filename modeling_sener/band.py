"""
The band: the cells that SeNER keeps of the square of word pairs, as pure functions.

B batch, N words, w window, W columns, C channels, R labels, n rows of a chunk, a first row of a chunk.

Cell (i, k) of the band is the pair (i, j = i + k - b). With `triangles="both"`, b = w and W = 2w + 1: column w is the
diagonal, columns above it are the upper triangle (start i, end j), columns below it the lower one (start j, end i).
With `triangles="upper"`, b = 0 and W = w + 1: the lower triangle, a copy of the upper one, is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Band:
    """
    The band of a batch of texts.

    Args:
        window: w, the words that a pair may be apart.
        triangles: `"both"` or `"upper"`.
        lengths: words of each text, *Shape:* (B,).
        shortest: words of the shortest text, or 0 if unknown. `Band.of` reads it from `lengths` once: that waits for
            the device, which no loop over chunks should do.
    """

    window: int
    triangles: str
    lengths: Tensor
    shortest: int = 0

    @classmethod
    def of(cls, lengths: Tensor, window: int, triangles: str) -> "Band":
        """The band of texts of `lengths` words, *Shape:* (B,)."""
        shortest = 0 if torch.compiler.is_exporting() or not len(lengths) else int(lengths.min())
        return cls(window, triangles, lengths, shortest)

    @property
    def before(self) -> int:
        """b, the columns before the diagonal."""
        return columns_before(self.window, self.triangles)

    @property
    def width(self) -> int:
        """W, the columns."""
        return self.before + self.window + 1

    def mask(self, rows: slice, of_columns: bool = False) -> Tensor:
        """
        Mark the cells that are pairs of words of the text: (B, n, W) bool. `rows` may lie outside of the text.

        Args:
            of_columns: for `transpose`'s rows, each a column of the square: cell (j, m) is the pair (j + m - w, j).
        """
        before, after = (self.window, self.before) if of_columns else (self.before, self.window)
        word = torch.arange(rows.start, rows.stop, device=self.lengths.device)[:, None]
        other = word + torch.arange(-before, after + 1, device=self.lengths.device)
        lengths = self.lengths[:, None, None]
        return (word >= 0) & (word < lengths) & (other >= 0) & (other < lengths)

    def edge_mask(self, rows: slice, of_columns: bool = False) -> Tensor | None:
        """`mask`, or `None` if all of its cells are valid: rows deep inside every text."""
        before, after = (self.window, self.before) if of_columns else (self.before, self.window)
        if rows.start >= before and rows.stop + after <= self.shortest:
            return None
        return self.mask(rows, of_columns)


def columns_before(window: int, triangles: str) -> int:
    """b, the columns of the band before the diagonal."""
    return window if triangles == "both" else 0


def must_run_whole() -> bool:
    """
    Whether a text must be computed whole, not in chunks: for gradients, as chunks overwrite their input, and in an
    exported program (`torch.export`), which has no loop that depends on the text's length.
    """
    return torch.is_grad_enabled() or torch.compiler.is_exporting()


class _StridedView(torch.autograd.Function):
    """`as_strided` for views that read no element twice: its gradient is one copy; torch's needs index tensors."""

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
    if torch.compiler.is_exporting():  # the storage offset is unknown there, and always 0
        return states.as_strided(size, stride, offset)
    return _StridedView.apply(states, size, stride, offset)


class _Overlapping(torch.autograd.Function):
    """`unfold` with a gradient of a few large additions (torch 2.13 compiles its own wrongly if windows overlap)."""

    @staticmethod
    def forward(ctx, states: Tensor, step: int, size: int) -> Tensor:
        ctx.step, ctx.shape = step, states.shape
        return states.unfold(1, size, step).movedim(-1, 2)

    @staticmethod
    def backward(ctx, grad: Tensor):
        batch, count, size, *rest = grad.shape
        step, slices = ctx.step, -(-size // ctx.step)
        total = grad.new_zeros(batch, count + slices - 1, step, *rest)
        for number in range(slices):
            rows = grad[:, :, number * step : (number + 1) * step]
            total[:, number : number + count, : rows.shape[2]] += rows
        return total.flatten(1, 2)[:, : ctx.shape[1]], None, None


def overlapping(states: Tensor, step: int, size: int) -> Tensor:
    """
    Cut out windows of `size` rows, one every `step` rows.

    Args:
        states: *Shape:* (B, (M - 1) step + size, ...).

    Returns:
        *Shape:* (B, M, size, ...): a view.
    """
    return _Overlapping.apply(states, step, size)


def transpose(band: Tensor) -> Tensor:
    """
    Rearrange the band by columns of the square, T(Z)[j, m] = Z[j + m - w, W - 1 - m], or back to rows.

    Row j of T(Z) holds column j of the square, from the pair (j - w, j) on. T needs w rows before a chunk and b after
    it; its inverse, which is the same view, b before and w after. With both triangles T is its own inverse.

    Args:
        band: *Shape:* (B, n + W - 1, W, C), the rows with their halo.

    Returns:
        *Shape:* (B, n, W, C): a view, nothing is copied.
    """
    batch, rows, width, channels = band.shape
    # From (j, m) to (j, m + 1) the source goes one row down and one column back: W - 1 cells.
    return _strided(
        band.contiguous(),
        (batch, rows - width + 1, width, channels),
        (rows * width * channels, width * channels, (width - 1) * channels, 1),
        (width - 1) * channels,
    )


def skewed_view(by_key: Tensor) -> Tensor:
    """
    Rearrange scores that stand by key so that they stand by query: out[i, k] = by_key[i + k, k], a view.

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
    Cut the band out of blocks of pairs: out[i, k] = blocks[i, i + k], a view.

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
    """Add rows of zeros: (B, n, ...) -> (B, before + n + after, ...). Returns `band` itself if none are added."""
    if before == after == 0:
        return band  # F.pad would copy it
    return F.pad(band, (0, 0) * (band.dim() - 2) + (before, after))


def fits(start: int, end: int, window: int | None) -> bool:
    """Whether the band holds the span of words [start, end)."""
    return window is None or end - 1 - start <= window


def band_labels(
    spans: Iterable[tuple[int, int, int]], num_words: int, window: int, triangles: str, num_labels: int
) -> Tensor:
    """
    Make the training targets of one text, in every triangle of the band.

    Args:
        spans: (start, end, label number) with `end` exclusive. One that is wider than the window raises `ValueError`.

    Returns:
        *Shape:* (N, W, R), uint8.
    """
    before = columns_before(window, triangles)
    labels = torch.zeros(num_words, before + window + 1, num_labels, dtype=torch.uint8)
    for start, end, label in spans:
        first, last = start, end - 1
        if not 0 <= first <= last < num_words or not fits(start, end, window):
            raise ValueError(f"span [{start}, {end}) does not fit {num_words} words with window {window}")
        labels[first, last - first + before, label] = 1
        if triangles == "both":
            labels[last, first - last + before, label] = 1
    return labels


def batch_labels(
    spans: list[list[tuple[int, int, int]]], lengths: list[int], window: int | None, triangles: str, num_labels: int
) -> Tensor:
    """
    Make the training targets of a batch, padded: `band_labels` of each text. Without a window every text has the band
    of the longest.

    Args:
        lengths: words of each text.

    Returns:
        *Shape:* (B, N, W, R), uint8.
    """
    num_words = max(lengths)
    window = max(num_words - 1, 0) if window is None else window
    width = columns_before(window, triangles) + window + 1
    labels = torch.zeros(len(lengths), num_words, width, num_labels, dtype=torch.uint8)
    for own, text, length in zip(labels, spans, lengths, strict=True):
        own[:length] = band_labels(text, length, window, triangles, num_labels)
    return labels
