"""
After the encoder: the biaffine band over pairs of words, and the blocks in which its cells interact (paper, "Biaffine
Model" and "BiSPA Transformer Block").

Everything here maps rows of the band to rows of the band. A step that looks at rows above and below asks for a halo of
them, and `stream` feeds it parts of a text in order, so that a text of any length is computed in bounded memory with
the same result: the whole text is the case of one part.

B batch, N words, n rows of a part, d hidden size, w window, W = 2w + 1 columns, p biaffine size, C channels.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .arrow_attention import to_blocks
from .band import band_mask, diagonals, pad_rows, transpose


ROTARY_BASE = 10000.0
BLOCK = 64
Parts = Iterable[tuple[Tensor, ...]]


def stream(parts: Parts, halo: int, step: Callable, num_rows: int) -> Iterator[tuple[Tensor, ...]]:
    """
    Apply a step to rows that arrive in parts.

    Args:
        parts: tuples of tensors (B, n, ...), rows 0 .. N - 1 in order.
        halo: rows on either side that a row of the step's output depends on.
        step: called with the tensors, halo included (zeros outside the text), and the `range` of rows to make.
        num_rows: N.

    Returns:
        The step's outputs, tuples of tensors (B, n', ...) that cover the rows in order.
    """
    held, first, seen = None, 0, 0
    for part in parts:
        seen += part[0].shape[1]
        last = halo if seen == num_rows else 0
        if held is None:
            held = tuple(pad_rows(rows, halo, last) for rows in part)
        else:
            held = tuple(pad_rows(torch.cat(pair, dim=1), 0, last) for pair in zip(held, part, strict=True))
        made = held[0].shape[1] - 2 * halo
        if made > 0:
            yield step(*held, rows=range(first, first + made))
            first += made
            # Copied, not a slice: a slice would keep the whole part alive.
            held = tuple(rows[:, made:].clone() if halo else rows[:, made:] for rows in held)


class Bilinear(nn.Module):
    """Holds U of the biaffine scores: adapters and savers see modules, not bare parameters."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size, size))


class BiaffineBand(nn.Module):
    """
    S_c(i, j) = â_i^T U_c ê_j + W_c [drop(â_i); drop(ê_j)] with a_i = GELU(Linear_s(drop(x_i))), e_j likewise, and a 1
    appended to each.
    """

    def __init__(self, hidden_size: int, size: int, channels: int, dropout: float):
        super().__init__()
        self.start = nn.Linear(hidden_size, size)
        self.end = nn.Linear(hidden_size, size)
        self.bilinear = Bilinear(channels, size + 1)
        self.linear = nn.Linear(2 * (size + 1), channels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end vectors of words: (B, N, d) -> two of (B, N, p + 1)."""
        starts = F.gelu(self.start(self.dropout(words)))
        ends = F.gelu(self.end(self.dropout(words)))
        return F.pad(starts, (0, 1), value=1.0), F.pad(ends, (0, 1), value=1.0)

    def rows(self, starts: Tensor, ends: Tensor, lengths: Tensor, rows: range, window: int) -> Tensor:
        """
        Rows of the band by products of blocks: only pairs of a block are scored.

        Args:
            starts: *Shape:* (B, n, p + 1), of `rows`.
            ends: *Shape:* (B, n + 2w, p + 1), with a halo of w; zeros outside the text.

        Returns:
            *Shape:* (B, n, W, C); cells that are no pair of words are 0.
        """
        ends_BKCP, start_term = self.targets(ends), self.start_term(starts)
        size = min(BLOCK, len(rows))
        after = -len(rows) % size
        blocks = F.pad(starts, (0, 0, 0, after)).unflatten(1, (-1, size))
        reached = F.pad(ends_BKCP, (0, 0, 0, 0, 0, after)).unfold(1, size + 2 * window, size).movedim(-1, 2)
        pairs = blocks @ reached.flatten(2, 3).transpose(-1, -2)  # (B, M, Q, K C)
        band = diagonals(pairs.unflatten(-1, (size + 2 * window, -1)), 2 * window + 1)
        band = band.flatten(1, 2)[:, : len(rows)] + start_term[:, :, None]
        return band * band_mask(lengths, rows, window)[..., None]

    def square(self, starts: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
        """The whole square: two of (B, N, p + 1) -> (B, N, N, C)."""
        pairs = starts @ self.targets(ends).flatten(1, 2).transpose(-1, -2)
        square = pairs.unflatten(-1, (starts.shape[1], -1)) + self.start_term(starts)[:, :, None]
        return square * square_mask(lengths, starts.shape[1])[..., None]

    def targets(self, ends: Tensor) -> Tensor:
        """U_c ê_j, and ê_j's linear term where â_i's 1 meets it: (B, K, p + 1) -> (B, K, C, p + 1)."""
        weight = self.bilinear.weight
        targets = F.linear(ends, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2])
        end_term = F.linear(self.dropout(ends), self.linear.weight[:, ends.shape[-1] :])
        return targets + F.pad(end_term[..., None], (ends.shape[-1] - 1, 0))

    def start_term(self, starts: Tensor) -> Tensor:
        return F.linear(self.dropout(starts), self.linear.weight[:, : starts.shape[-1]])


def square_mask(lengths: Tensor, num_words: int) -> Tensor:
    """Which cells of the square are pairs of words: (B, N, N) bool."""
    word = torch.arange(num_words, device=lengths.device) < lengths[:, None]
    return word[:, :, None] & word[:, None, :]


class SpanBlock(GradientCheckpointingLayer):
    """
    One block of interaction between cells: plus-shaped attention (`bispa` only), then two 3 x 3 convolutions.

    Z <- Z + m[k >= w]; Z1 = LN(Z + drop(Dense([Zh ; Zv]))); Z2 = LN2(Z1 + drop(Conv(GELU(Conv(Z1))))), Zh attending
    along the rows and Zv along the columns of the square.
    """

    def __init__(self, channels: int, window: int | None, dropout: float, plus_shaped: bool, mirrored: bool):
        super().__init__()
        self.window = window
        self.plus_shaped = plus_shaped
        self.mirrored = mirrored
        if plus_shaped:
            self.triangle = nn.Embedding(2, channels)
            self.horizontal = nn.Linear(channels, 3 * channels)
            self.vertical = nn.Linear(channels, 3 * channels)
            self.dense = nn.Linear(2 * channels, channels)
            self.norm = nn.LayerNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, bias=False)
        self.conv_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, cells: Tensor, lengths: Tensor) -> Tensor:
        """The whole text: (B, N, W, C) -> (B, N, W, C); with no window (B, N, N, C)."""
        if self.window is None:
            return self.square(cells, lengths)
        ((cells,),) = self.stream([(cells,)], lengths, cells.shape[1])
        return cells

    def stream(self, parts: Parts, lengths: Tensor, num_rows: int) -> Iterator[tuple[Tensor]]:
        """The same in parts: tuples of one tensor (B, n, W, C) in and out."""

        def bind(step):
            return lambda *held, rows: step(*held, lengths, rows)

        if self.plus_shaped and self.mirrored:
            parts = stream(parts, self.window, bind(self.cross_mirrored), num_rows)
        elif self.plus_shaped:
            parts = stream(parts, self.window, bind(self.columns), num_rows)
            parts = stream(parts, self.window, bind(self.cross_transposed), num_rows)
        return stream(parts, 2, bind(self.convolve), num_rows)

    def cross_mirrored(self, cells: Tensor, lengths: Tensor, rows: range) -> tuple[Tensor]:
        """Steps 1 to 4, cell (i, j) joining row i and column i. `cells` has a halo of w."""
        own, column = self.columns(cells, lengths, rows)
        return (self.join(own, column, lengths, rows),)

    def cross_transposed(self, cells: Tensor, columns: Tensor, lengths: Tensor, rows: range) -> tuple[Tensor]:
        """Steps 2 and 4, cell (i, j) joining row i and column j. Both have a halo of w."""
        own = cells[:, self.window : -self.window]
        return (self.join(own, transpose(columns, self.window), lengths, rows),)

    def columns(self, cells: Tensor, lengths: Tensor, rows: range) -> tuple[Tensor, Tensor]:
        """
        Steps 1 and 3: the cells with their triangle's vector, and what each column's attention adds to them.

        Args:
            cells: *Shape:* (B, n + 2w, W, C), rows with a halo of w.

        Returns:
            Two of (B, n, W, C): the cells of `rows`, and Dense's half for Zv in T's layout: row j is column j.
        """
        w = self.window
        k = torch.arange(2 * w + 1, device=cells.device)
        cells = cells + self.triangle((k >= w).long())
        # Linear and rotation go cell by cell, so they come before T, which then needs no copy.
        query, key, value = (transpose(part, w) for part in self.rotated(self.vertical, cells, 2 * w - k))
        column = attend(query, key, value, band_mask(lengths, rows, w), w)
        return cells[:, w:-w], F.linear(column, self.dense.weight[:, cells.shape[-1] :])

    def join(self, cells: Tensor, column_term: Tensor, lengths: Tensor, rows: range) -> Tensor:
        """Steps 2 and 4: LN(Z + drop(Dense([Zh ; Zv]))), Zv's half given."""
        w = self.window
        k = torch.arange(2 * w + 1, device=cells.device)
        row = attend(*self.rotated(self.horizontal, cells, k), band_mask(lengths, rows, w), w)
        dense = F.linear(row, self.dense.weight[:, : cells.shape[-1]], self.dense.bias) + column_term
        return self.norm(cells + self.dropout(dense))

    def convolve(self, cells: Tensor, lengths: Tensor, rows: range) -> tuple[Tensor]:
        """Step 5. `cells` has a halo of 2."""
        inner = range(rows.start - 1, rows.stop + 1)
        outer = range(rows.start - 2, rows.stop + 2)
        hidden = convolution(self.conv1, cells * band_mask(lengths, outer, self.window)[..., None])
        hidden = F.gelu(hidden) * band_mask(lengths, inner, self.window)[..., None]
        hidden = convolution(self.conv2, hidden)
        return (self.conv_norm(cells[:, 2:-2] + self.dropout(hidden)),)

    def rotated(self, linear: nn.Linear, cells: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of cells, the first two turned by their position: three of (B, n, W, C)."""
        query, key, value = linear(cells).chunk(3, dim=-1)
        return rotate(query, positions), rotate(key, positions), value

    def square(self, cells: Tensor, lengths: Tensor) -> Tensor:
        """The same block over the whole square of pairs: (B, N, N, C) -> (B, N, N, C)."""
        mask = square_mask(lengths, cells.shape[1])
        if self.plus_shaped:
            word = torch.arange(cells.shape[1], device=cells.device)
            cells = cells + self.triangle((word >= word[:, None]).long())
            row = attend(*self.rotated(self.horizontal, cells, word), mask, None)
            column = attend(*self.rotated(self.vertical, cells.transpose(1, 2), word), mask, None)
            if not self.mirrored:
                column = column.transpose(1, 2)
            cells = self.norm(cells + self.dropout(self.dense(torch.cat([row, column], dim=-1))))
        hidden = convolution(self.conv1, pad_rows(cells * mask[..., None], 1, 1))
        hidden = convolution(self.conv2, pad_rows(F.gelu(hidden) * mask[..., None], 1, 1))
        return self.conv_norm(cells + self.dropout(hidden))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, window: int | None) -> Tensor:
    """
    Each row's cells attend to each other, scale 1 / sqrt(C).

    Args:
        query, key, value: *Shape:* (B, n, W, C).
        mask: *Shape:* (B, n, W): the cells that are keys. A row with none attends to all: its cells are not read.

    Returns:
        *Shape:* (B, n, W, C).
    """
    def rows(cells: Tensor) -> Tensor:
        return cells.flatten(0, 1)[:, None]

    keys = None
    if not mask.all():
        keys = rows(mask | ~mask.any(dim=-1, keepdim=True))[..., None, :]
    out = F.scaled_dot_product_attention(rows(query), rows(key), rows(value), attn_mask=keys)
    return out[:, 0].unflatten(0, query.shape[:2])


def rotate(states: Tensor, positions: Tensor) -> Tensor:
    """
    Rotary positions: channels (2m, 2m + 1) of the cell at position k turn by k / 10000^(2m / C).

    Args:
        states: *Shape:* (B, n, W, C).
        positions: *Shape:* (W,).
    """
    channels = states.shape[-1]
    pairs = torch.arange(0, channels, 2, device=states.device, dtype=torch.float32)
    angles = positions[:, None].float() * torch.exp(pairs * (-math.log(ROTARY_BASE) / channels))
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def convolution(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """A 3 x 3 convolution over rows and columns; columns are padded, rows are not: (B, n + 2, W, C) -> (B, n, W, C)."""
    # (B, W, C) last in memory is the channels-last layout that convolutions are fastest in.
    return F.conv2d(cells.permute(0, 3, 1, 2), conv.weight, padding=(0, 1)).permute(0, 2, 3, 1)
