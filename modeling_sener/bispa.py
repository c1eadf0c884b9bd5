"""
After the encoder: the biaffine band over pairs of words, and the blocks in which its cells interact (paper, "Biaffine
Model" and "BiSPA Transformer Block").

Everything here maps rows of the band to rows of the band, so that the executors of row_executors.py can compute a text
whole or in chunks, with the same result.

B batch, N words, n rows of a chunk, d hidden size, w window, W columns of the band, p biaffine size, C channels.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arrow_attention import block_size, sdpa
from .band import Band, diagonals, overlapping, transpose
from .dropout import Dropout


ROTARY_BASE = 10000.0


class BilinearWeight(nn.Module):
    """U of the biaffine scores, as a module: adapters and savers see modules, not bare parameters."""

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size, size))

    def forward(self, ends: Tensor) -> Tensor:
        """U_c ê_j of each channel: (..., p + 1) -> (..., C, p + 1)."""
        return F.linear(ends, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])


class BiaffineBand(nn.Module):
    """
    S_c(i, j) = â_i^T U_c ê_j + W_c [drop(â_i) ; drop(ê_j)] with a_i = GELU(Linear_s(drop(x_i))), e_j likewise, and a 1
    appended to each (eq. 5; paper, "Biaffine Model").
    """

    def __init__(self, hidden_size: int, size: int, channels: int, dropout: float):
        super().__init__()
        self.start = nn.Linear(hidden_size, size)
        self.end = nn.Linear(hidden_size, size)
        self.bilinear = BilinearWeight(channels, size + 1)
        self.linear = nn.Linear(2 * (size + 1), channels, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end vectors of words: (B, N, d) -> two of (B, N, p + 1)."""
        starts = F.gelu(self.start(self.dropout(words)))
        ends = F.gelu(self.end(self.dropout(words)))
        return F.pad(starts, (0, 1), value=1.0), F.pad(ends, (0, 1), value=1.0)

    def score_rows(self, starts: Tensor, ends: Tensor, rows: slice, band: Band) -> Tensor:
        """
        Score rows of the band (eq. 5), block by block: no pair outside of a block is computed.

        Args:
            starts: *Shape:* (B, n, p + 1), of `rows`.
            ends: *Shape:* (B, n + W - 1, p + 1), with a halo of b and w rows; zeros outside the text.

        Returns:
            *Shape:* (B, n, W, C); cells that are not a pair of words are 0.
        """
        count, halo = starts.shape[1], band.width - 1
        # W_c's term is a sum of a start term and an end term: nothing of size N W 2p is needed. The end term is added
        # to U_c ê_j at the place of â_i's 1, so that the product adds it.
        ends_BKCP = self.bilinear(ends) + F.pad(
            self.linear(F.pad(self.dropout(ends), (starts.shape[-1], 0)))[..., None], (ends.shape[-1] - 1, 0)
        )
        start_term = self.linear(F.pad(self.dropout(starts), (0, ends.shape[-1])))
        size = block_size(count)
        after = -count % size
        blocks = F.pad(starts, (0, 0, 0, after)).unflatten(1, (-1, size))
        ends_of_block = overlapping(F.pad(ends_BKCP, (0, 0, 0, 0, 0, after)), size, size + halo)
        pairs = blocks @ ends_of_block.flatten(2, 3).transpose(-1, -2)  # (B, M, Q, K C)
        cells = diagonals(pairs.unflatten(-1, (size + halo, -1)), band.width)
        return zero_invalid(cells.flatten(1, 2)[:, :count] + start_term[:, :, None], band.edge_mask(rows))


class BiSPABlock(nn.Module):
    """
    One block of interaction between cells: plus-shaped attention (`bispa` only), then two 3 x 3 convolutions (eq. 6 to
    9; paper, "BiSPA Transformer Block").

    Z <- Z + m[k >= w]; Z1 = LN(Z + drop(Dense([Zh ; Zv]))); Z2 = LN2(Z1 + drop(Conv(GELU(Conv(Z1))))). Zh attends
    along the rows and Zv along the columns of the square. A band of the upper triangle has no m.
    """

    def __init__(self, channels: int, dropout: float, plus_shaped: bool, mirrored: bool, both_triangles: bool):
        super().__init__()
        self.plus_shaped = plus_shaped
        self.mirrored = mirrored
        self.both_triangles = both_triangles
        if plus_shaped:
            if both_triangles:
                self.triangle = nn.Embedding(2, channels)
            self.horizontal = nn.Linear(channels, 3 * channels)
            self.vertical = nn.Linear(channels, 3 * channels)
            self.dense = nn.Linear(2 * channels, channels)
            self.norm = nn.LayerNorm(channels)
        # Columns are padded, rows come with their halo.
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=(0, 1), bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=(0, 1), bias=False)
        self.conv_norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)

    def forward(self, cells, band: Band, run):
        """
        Args:
            cells: *Shape:* (B, N, W, C), or an iterator over chunks of it, as `run` takes them.
            run: a `WholeText` or a `ChunkByChunk`.

        Returns:
            As `cells`.
        """

        def apply(step, first, *others, halo=(0, 0)):
            return run.map(lambda *inputs, rows: step(*inputs, band, rows), first, *others, owner=self, halo=halo)

        if self.plus_shaped:
            if self.both_triangles:
                cells = apply(self.mark_triangles, cells)
            cells, skip = run.tee(cells)
            columns = apply(self.attend_columns, cells, halo=(band.window, band.before))
            # Mirrored, cell (i, j) is joined with the output of column i; transposed back, with that of column j.
            halo = (0, 0) if self.mirrored else (band.before, band.window)
            cells = apply(self.join, columns, skip, halo=halo)
        return apply(self.convolve, cells, halo=(2, 2))

    def mark_triangles(self, cells: Tensor, band: Band, rows: slice) -> Tensor:
        """Tell the triangles apart: Z + m[k >= w] (eq. 6)."""
        column = torch.arange(band.width, device=cells.device)
        return cells + self.triangle((column >= band.window).long())

    def attend_columns(self, cells: Tensor, band: Band, rows: slice) -> Tensor:
        """Attend along columns, Zv (eq. 7): column j is row j of the result. A halo of w rows before and b after."""
        return attend(self.vertical(transpose(cells)), band.edge_mask(rows, of_columns=True)).to(cells.dtype)

    def join(self, columns: Tensor, cells: Tensor, band: Band, rows: slice) -> Tensor:
        """
        Attend along rows, Zh (eq. 7), and join: Z1 = LN(Z + drop(Dense([Zh ; Zv]))) (eq. 8).

        Transposed back, `columns` has a halo of b rows before and w after; mirrored, none.
        """
        row = attend(self.horizontal(cells), band.edge_mask(rows)).to(cells.dtype)
        column = columns if self.mirrored else transpose(columns)
        return self.norm(self.dropout(self.dense(torch.cat([row, column], dim=-1))).add_(cells))

    def convolve(self, cells: Tensor, band: Band, rows: slice) -> Tensor:
        """Z2 = LN2(Z1 + drop(Conv(GELU(Conv(Z1))))) (eq. 9). `cells` has a halo of 2 rows on either side."""
        outer, inner = (slice(rows.start - halo, rows.stop + halo) for halo in (2, 1))
        hidden = by_channels(self.conv1, zero_invalid(cells, band.edge_mask(outer)))
        hidden = by_channels(self.conv2, zero_invalid(F.gelu(hidden), band.edge_mask(inner)))
        return self.conv_norm(self.dropout(hidden).add_(cells[:, 2:-2]))


def zero_invalid(cells: Tensor, mask: Tensor | None) -> Tensor:
    """Set the cells (B, n, W, C) outside of the mask (B, n, W) to 0."""
    return cells if mask is None else cells * mask[..., None]


def attend(qkv: Tensor, mask: Tensor | None) -> Tensor:
    """
    Let each row's cells attend to each other (eq. 7): one head, scale 1 / sqrt(C), rotary positions by column.

    Args:
        qkv: queries, keys and values, *Shape:* (B, n, W, 3C). Overwritten if no gradients are needed.
        mask: valid keys, *Shape:* (B, n, W). A row without a valid key attends to all
            keys, as softmax over none is NaN; its cells are masked later.

    Returns:
        *Shape:* (B, n, W, C).
    """
    qkv = apply_rotary(qkv, torch.arange(qkv.shape[2], device=qkv.device))
    keys = None if mask is None else (mask | ~mask.any(dim=-1, keepdim=True))[:, :, None]
    return sdpa(*qkv.chunk(3, dim=-1), keys)


def apply_rotary(qkv: Tensor, positions: Tensor) -> Tensor:
    """
    Apply rotary positions: channels (2m, 2m + 1) of query and key turn by k / 10000^(2m / C) at position k.

    Args:
        qkv: *Shape:* (B, n, W, 3C); the values stay as they are. Overwritten if no gradients are needed.
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


def by_channels(convolution: nn.Conv2d, cells: Tensor) -> Tensor:
    """A convolution of the grid of cells: (B, n + 2, W, C) -> (B, n, W, C)."""
    # (B, W, C) last in memory is the channels-last layout that convolutions are fastest in.
    return convolution(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
