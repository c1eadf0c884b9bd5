"""
After the encoder: the biaffine band over pairs of words, and the blocks in which its cells interact (paper, "Biaffine
Model" and "BiSPA Transformer Block").

Everything here maps rows of the band to rows of the band. A step that looks at rows above and below asks for a halo of
them, and `stream` feeds it parts of a text in order, so that a text of any length is computed in bounded memory with
the same result: the whole text is the case of one part.

B batch, N words, n rows of a part, d hidden size, w window, W = 2w + 1 columns, p biaffine size, C channels.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arrow_attention import block_size, sdpa
from .band import band_mask, diagonals, overlapping, pad_rows, transpose
from .dropout import Dropout
from .row_checkpoint import by_rows


ROTARY_BASE = 10000.0
Parts = Iterable[tuple[Tensor, ...]]


def stream(parts: Parts, halo: int, step: Callable, num_rows: int) -> Iterator[tuple[Tensor, ...]]:
    """
    Apply a step to rows that arrive in parts.

    Args:
        parts: tuples of tensors (B, n, ...), rows 0 .. N - 1 in order.
        halo: rows on either side that a row of the step's output depends on.
        step: called with the tensors, halo included (zeros outside the text), and the `slice` of rows to make.
        num_rows: N.

    Returns:
        The step's outputs, tuples of tensors (B, n', ...) that cover the rows in order.
    """
    held, first, seen, size = None, 0, 0, 0
    for part in parts:
        seen += part[0].shape[1]
        size = max(size, part[0].shape[1])
        last = halo if seen == num_rows else 0
        if held is None:
            held = tuple(pad_rows(rows, halo, last) for rows in part)
        else:
            held = tuple(pad_rows(torch.cat(pair, dim=1), 0, last) for pair in zip(held, part, strict=True))
        del part  # copied: not to be kept while later steps run
        # When the text ends the halo's rows come on top: still no more at a time than the parts had.
        while (made := min(held[0].shape[1] - 2 * halo, size)) > 0:
            reached = tuple(rows[:, : made + 2 * halo] for rows in held)
            held = tuple(rows[:, made:] for rows in held)
            yield step(*reached, rows=slice(first, first + made))
            first += made


def join_rows(parts: Iterable[Tensor], num_rows: int) -> Tensor:
    """Parts (B, n, ...) as one tensor (B, N, ...), written as they come, so that none is held twice."""
    whole, first = None, 0
    for part in parts:
        if part.shape[1] == num_rows:
            return part
        if whole is None:
            whole = part.new_empty(part.shape[0], num_rows, *part.shape[2:])
        whole[:, first : first + part.shape[1]] = part
        first += part.shape[1]
    return whole


class Rows:
    """Rows put aside as they pass, to be taken up again further down the stream, which runs behind."""

    def __init__(self):
        self.held: deque[Tensor] = deque()

    def note(self, parts: Parts) -> Parts:
        """The same parts, of one tensor (B, n, ...) each, noted."""
        for (rows,) in parts:
            self.held.append(rows)
            yield (rows,)

    def take(self, count: int) -> Tensor:
        """The next `count` rows."""
        taken = []
        while count > 0:
            rows = self.held.popleft()
            if rows.shape[1] > count:
                self.held.appendleft(rows[:, count:])
            taken.append(rows[:, :count])
            count -= taken[-1].shape[1]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


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
        self.dropout = Dropout(dropout)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end vectors of words: (B, N, d) -> two of (B, N, p + 1)."""
        starts = F.gelu(self.start(self.dropout(words)))
        ends = F.gelu(self.end(self.dropout(words)))
        return F.pad(starts, (0, 1), value=1.0), F.pad(ends, (0, 1), value=1.0)

    def rows(self, starts: Tensor, ends: Tensor, lengths: Tensor, rows: slice, window: int) -> Tensor:
        """
        Rows of the band by products of blocks: only pairs of a block are scored.

        Args:
            starts: *Shape:* (B, n, p + 1), of `rows`.
            ends: *Shape:* (B, n + 2w, p + 1), with a halo of w; zeros outside the text.

        Returns:
            *Shape:* (B, n, W, C); cells that are no pair of words are 0.
        """
        ends_BKCP, start_term = self.targets(ends), self.start_term(starts)
        count = starts.shape[1]
        size = block_size(count)
        after = -count % size
        blocks = F.pad(starts, (0, 0, 0, after)).unflatten(1, (-1, size))
        reached = overlapping(F.pad(ends_BKCP, (0, 0, 0, 0, 0, after)), size, size + 2 * window)
        pairs = blocks @ reached.flatten(2, 3).transpose(-1, -2)  # (B, M, Q, K C)
        band = diagonals(pairs.unflatten(-1, (size + 2 * window, -1)), 2 * window + 1)
        band = band.flatten(1, 2)[:, :count] + start_term[:, :, None]
        return keep(band, valid_cells(lengths, rows, window))

    def square(self, starts: Tensor, ends: Tensor, lengths: Tensor) -> Tensor:
        """The whole square: two of (B, N, p + 1) -> (B, N, N, C)."""
        pairs = starts @ self.targets(ends).flatten(1, 2).transpose(-1, -2)
        square = pairs.unflatten(-1, (starts.shape[1], -1)) + self.start_term(starts)[:, :, None]
        return keep(square, square_mask(lengths, starts.shape[1]))

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


class SpanBlock(nn.Module):
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
        self.dropout = Dropout(dropout)

    def forward(self, cells: Tensor, lengths: Tensor) -> Tensor:
        """The whole text, for training: (B, N, W, C) -> (B, N, W, C); with no window (B, N, N, C)."""
        if self.window is None:
            return self.square(cells, lengths)
        if self.plus_shaped:
            cells = self.mark_triangles(cells)
            column = torch.arange(cells.shape[2], device=cells.device)
            row = self.attend_rows(cells, self.horizontal, column, lengths)
            columns = transpose(pad_rows(cells, self.window, self.window), self.window)
            columns = self.attend_rows(columns, self.vertical, column, lengths).to(cells.dtype)
            columns = F.linear(columns, self.dense.weight[:, cells.shape[-1] :])
            if not self.mirrored:
                columns = transpose(pad_rows(columns, self.window, self.window), self.window)
            cells = self.combine(cells, row.to(cells.dtype), columns)
        hidden = by_rows(
            lambda rows, chunk, *weights: self.convolutions(rows, lengths, chunk, *weights),
            2,
            cells,
            self.conv1.weight,
            self.conv2.weight,
        )
        return self.conv_norm(self.dropout(hidden).add_(cells))

    def attend_rows(self, cells: Tensor, projection: nn.Linear, positions: Tensor, lengths: Tensor) -> Tensor:
        """Steps 2 and 3: each row (or row of T) of the whole text attends. (B, N, W, C) -> (B, N, W, C)."""

        def attend_chunk(rows: Tensor, chunk: slice, weight: Tensor, bias: Tensor) -> Tensor:
            return attend(rotate(F.linear(rows, weight, bias), positions), valid_cells(lengths, chunk, self.window))

        return by_rows(attend_chunk, 0, cells, projection.weight, projection.bias)

    def stream(self, parts: Parts, lengths: Tensor, num_rows: int) -> Iterator[tuple[Tensor]]:
        """The same in parts: tuples of one tensor (B, n, W, C) in and out."""

        def bind(step):
            return lambda *held, rows: step(*held, lengths, rows)

        if self.plus_shaped:
            parts = map(self.project, (cells for (cells,) in parts))
            parts = stream(parts, self.window, bind(self.attend_columns), num_rows)
            if not self.mirrored:
                parts = stream(parts, self.window, lambda *held, rows: self.transpose_back(*held), num_rows)
            parts = stream(parts, 0, bind(self.join), num_rows)
        return stream(parts, 2, bind(self.convolve), num_rows)

    def project(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """
        Step 1, and step 3's projection: (B, n, W, C) -> the cells with their triangle's vector, and (B, n, W, 3C).

        Linear and rotation go cell by cell, so they come before T: each cell once, and T needs no copy.
        """
        cells = self.mark_triangles(cells)
        column = torch.arange(cells.shape[2], device=cells.device)
        return cells, rotate(self.vertical(cells), 2 * self.window - column)

    def mark_triangles(self, cells: Tensor) -> Tensor:
        """Step 1."""
        column = torch.arange(cells.shape[2], device=cells.device)
        return cells + self.triangle((column >= self.window).long())

    def attend_columns(self, cells: Tensor, qkv: Tensor, lengths: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Step 3 with Dense's half for Zv, in T's layout: row j of the second output is column j. A halo of w."""
        column = attend(transpose(qkv, self.window), valid_cells(lengths, rows, self.window)).to(cells.dtype)
        return cells[:, self.window : -self.window], F.linear(column, self.dense.weight[:, cells.shape[-1] :])

    def transpose_back(self, cells: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Cell (i, j) takes what column j's attention gave it. A halo of w."""
        return cells[:, self.window : -self.window], transpose(columns, self.window)

    def join(self, cells: Tensor, columns: Tensor, lengths: Tensor, rows: slice) -> tuple[Tensor]:
        """Steps 2 and 4: LN(Z + drop(Dense([Zh ; Zv]))), Zv's half of Dense given."""
        column = torch.arange(cells.shape[2], device=cells.device)
        row = attend(rotate(self.horizontal(cells), column), valid_cells(lengths, rows, self.window)).to(cells.dtype)
        return (self.combine(cells, row, columns),)

    def combine(self, cells: Tensor, row: Tensor, columns: Tensor) -> Tensor:
        """Step 4, Zv's half of Dense given."""
        dense = F.linear(row, self.dense.weight[:, : cells.shape[-1]], self.dense.bias).add_(columns)
        return self.norm(self.dropout(dense).add_(cells))

    def convolve(self, cells: Tensor, lengths: Tensor, rows: slice) -> tuple[Tensor]:
        """Step 5. A halo of 2."""
        hidden = self.convolutions(cells, lengths, rows, self.conv1.weight, self.conv2.weight)
        return (self.conv_norm(cells[:, 2:-2] + self.dropout(hidden)),)

    def convolutions(self, cells: Tensor, lengths: Tensor, rows: slice, weight1: Tensor, weight2: Tensor) -> Tensor:
        """Conv(GELU(Conv(Z1))): (B, n + 4, W, C) -> (B, n, W, C)."""
        inner = slice(rows.start - 1, rows.stop + 1)
        outer = slice(rows.start - 2, rows.stop + 2)
        hidden = convolution(weight1, keep(cells, valid_cells(lengths, outer, self.window)))
        return convolution(weight2, keep(F.gelu(hidden), valid_cells(lengths, inner, self.window)))

    def square(self, cells: Tensor, lengths: Tensor) -> Tensor:
        """The same block over the whole square of pairs: (B, N, N, C) -> (B, N, N, C)."""
        mask = square_mask(lengths, cells.shape[1])
        if self.plus_shaped:
            word = torch.arange(cells.shape[1], device=cells.device)
            cells = cells + self.triangle((word >= word[:, None]).long())
            row = attend(rotate(self.horizontal(cells), word), mask)
            column = attend(rotate(self.vertical(cells.transpose(1, 2)), word), mask)
            column = column if self.mirrored else column.transpose(1, 2)
            cells = self.norm(cells + self.dropout(self.dense(torch.cat([row, column], dim=-1))))
        hidden = convolution(self.conv1.weight, pad_rows(keep(cells, mask), 1, 1))
        hidden = convolution(self.conv2.weight, pad_rows(keep(F.gelu(hidden), mask), 1, 1))
        return self.conv_norm(cells + self.dropout(hidden))


def valid_cells(lengths: Tensor, rows: slice, window: int) -> Tensor | None:
    """Which cells of `rows` are pairs of words, (B, n, W); `None` where all are: deep inside every text."""
    if rows.start >= window and rows.stop + window <= int(lengths.min()):
        return None
    return band_mask(lengths, rows, window)


def keep(cells: Tensor, mask: Tensor | None) -> Tensor:
    """The cells (B, n, W, C) of the mask (B, n, W), others 0."""
    return cells if mask is None else cells * mask[..., None]


def attend(qkv: Tensor, mask: Tensor | None) -> Tensor:
    """
    Each row's cells attend to each other, one head, scale 1 / sqrt(C).

    Args:
        qkv: queries, keys and values, *Shape:* (B, n, W, 3C).
        mask: the cells that are keys, *Shape:* (B, n, W). A row with none attends to all: its cells are not read.

    Returns:
        *Shape:* (B, n, W, C).
    """
    keys = None if mask is None else (mask | ~mask.any(dim=-1, keepdim=True))[:, :, None]
    return sdpa(*qkv.chunk(3, dim=-1), keys)


def rotate(qkv: Tensor, positions: Tensor) -> Tensor:
    """
    Rotary positions: channels (2m, 2m + 1) of query and key turn by k / 10000^(2m / C) at position k.

    Args:
        qkv: *Shape:* (B, n, W, 3C); the values stay as they are. Overwritten where no gradients are asked for.
        positions: *Shape:* (W,).

    Returns:
        *Shape:* (B, n, W, 3C), in the precision of `qkv`.
    """
    channels = qkv.shape[-1] // 3
    pair = torch.arange(0, channels, 2, device=qkv.device)
    angle = positions[:, None] * torch.exp(pair * (-math.log(ROTARY_BASE) / channels))
    angle = torch.cat([angle, angle, torch.zeros_like(angle)], dim=-1)
    # A complex product turns all pairs in one pass; it exists in float32 and float64.
    exact = qkv.to(torch.promote_types(qkv.dtype, torch.float32))
    angle = angle.to(exact.dtype)
    turn = torch.polar(torch.ones_like(angle), angle)
    pairs = torch.view_as_complex(exact.unflatten(-1, (-1, 2)))
    turned = pairs * turn if exact.requires_grad else pairs.mul_(turn)
    return torch.view_as_real(turned).flatten(-2).to(qkv.dtype)


def convolution(weight: Tensor, cells: Tensor) -> Tensor:
    """A 3 x 3 convolution; columns are padded, rows are not: (B, n + 2, W, C) -> (B, n, W, C)."""
    # (B, W, C) last in memory is the channels-last layout that convolutions are fastest in.
    return F.conv2d(cells.permute(0, 3, 1, 2), weight, padding=(0, 1)).permute(0, 2, 3, 1)
