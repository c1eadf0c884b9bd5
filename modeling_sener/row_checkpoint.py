"""
Gradient checkpointing by rows: training keeps what goes in and what comes out, and computes the rest again.

What is between is larger than either (three projections, scores, hidden maps of N x W x C each) and is used once. A
few hundred rows of it stay in the processor's caches, which pays for computing them twice.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .band import pad_rows


CELLS = 64 * 1024  # cells of the band of a chunk


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function: Callable, halo: int, rows: Tensor, *parameters: Tensor) -> Tensor:
        device = rows.device.type
        ctx.function, ctx.halo = function, halo
        ctx.precision = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.save_for_backward(rows, *parameters)
        out = None
        for chunk, reach, pad in chunks(rows, halo):
            made = function(pad_rows(rows[:, reach], *pad), chunk, *parameters)
            if out is None:
                out = made.new_empty(*rows.shape[:2], *made.shape[2:])
            out[:, chunk.start : chunk.stop] = made
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        rows, *parameters = ctx.saved_tensors
        total = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        for chunk, reach, pad in chunks(rows, ctx.halo):
            own = rows[:, reach].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(rows.device.type, **ctx.precision):
                made = ctx.function(pad_rows(own, *pad), chunk, *leaves)
            made.backward(grad[:, chunk.start : chunk.stop])
            total[:, reach] += own.grad
        return None, None, total, *(leaf.grad for leaf in leaves)


def chunks(rows: Tensor, halo: int) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """The rows of a chunk, those that it reaches, and how many it reaches before the first and after the last."""
    count = rows.shape[1]
    size = max(1, CELLS // (rows.shape[0] * rows.shape[2]))
    for first in range(0, count, size):
        last = min(first + size, count)
        start, stop = max(first - halo, 0), min(last + halo, count)
        yield slice(first, last), slice(start, stop), (start - first + halo, last + halo - stop)


def by_rows(function: Callable, halo: int, rows: Tensor, *parameters: Tensor) -> Tensor:
    """
    `function` of all rows. For gradients only `rows` and the result are kept; `function` is computed twice.

    Args:
        function: called with rows of a chunk and its halo (B, n + 2 halo, W, C), outside the text zeros, the `slice`
            of the chunk's rows, and the parameters; returns (B, n, W, C'). It draws no random numbers.
        halo: rows on either side that a row of the result depends on.
        rows: *Shape:* (B, N, W, C).
        parameters: every tensor that `function` uses and that takes a gradient.

    Returns:
        *Shape:* (B, N, W, C').
    """
    if torch.compiler.is_exporting():
        return function(pad_rows(rows, halo, halo), slice(0, rows.shape[1]), *parameters)
    return _by_rows(function, halo, rows, *parameters)


@torch.compiler.disable
def _by_rows(*arguments) -> Tensor:
    return _ByRows.apply(*arguments)
