"""
Executors of steps that map rows of the band to rows of the band: `WholeText` for training, `ChunkByChunk` for
inference. The steps, which hold the equations, are the same for both.

A step gets the rows of a chunk with their halo, the rows on either side that its result depends on (zeros outside of
the text); the same rows of further inputs, without halo; and the `slice` of rows to compute.

B batch, N words, n rows of a chunk, W columns, C channels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .band import pad_rows


Halo = tuple[int, int]  # rows before and rows after


class WholeText:
    """
    Computes all rows of a text with little memory for backward: a step keeps its inputs and its result only, and
    backward computes the rest again, chunk by chunk.

    Intermediate results are larger (three projections, scores, hidden maps of N x W x C each) and used once. A chunk
    of them stays in the processor's caches, which pays for computing it twice.

    Args:
        chunk_rows: rows of a chunk.
    """

    def __init__(self, chunk_rows: int):
        self.chunk_rows = chunk_rows

    def tee(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows twice: for the next step, and for a later one (a skip connection)."""
        return rows, rows

    def map(self, step: Callable, rows: Tensor, *others: Tensor, owner: nn.Module, halo: Halo = (0, 0)) -> Tensor:
        """
        Apply `step` to all rows.

        Args:
            step: as the module says; returns (B, n, W, C').
            rows, others: *Shape:* (B, N, W, C); only `rows` come with a halo.
            owner: the module whose weights and dropout the step uses.
            halo: rows before and after a row that its result depends on.

        Returns:
            *Shape:* (B, N, W, C').

        Raises:
            RuntimeError: a gradient of the gradient is asked for.
        """
        if torch.compiler.is_exporting():
            return step(pad_rows(rows, *halo), *others, rows=slice(0, rows.shape[1]))
        return self._map(step, owner, halo, rows, *others)

    @torch.compiler.disable
    def _map(self, step: Callable, owner: nn.Module, halo: Halo, *inputs: Tensor) -> Tensor:
        names, weights = [], []
        for name, weight in owner.named_parameters():
            if weight.requires_grad:
                names.append(name)
                weights.append(weight)
        return _Checkpointed.apply(_Call(owner, step), names, halo, self.chunk_rows, len(inputs), *inputs, *weights)


class _Call(nn.Module):
    """A step as a module of its owner's weights, so that `functional_call` can give it others."""

    def __init__(self, owner: nn.Module, step: Callable):
        super().__init__()
        self.owner = owner
        self.step = step

    def forward(self, *inputs: Tensor, rows: slice) -> Tensor:
        return self.step(*inputs, rows=rows)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call: _Call, names: list[str], halo: Halo, chunk_rows: int, num_inputs: int, *tensors: Tensor):
        first, *others = tensors[:num_inputs]
        device = first.device.type
        ctx.call, ctx.names, ctx.halo, ctx.chunk_rows, ctx.num_inputs = call, names, halo, chunk_rows, num_inputs
        ctx.precision = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.random = _random_state(first.device) if call.owner.training else None
        ctx.save_for_backward(*tensors)
        out = None
        for rows, haloed, pad in _chunks(first.shape[1], chunk_rows, halo):
            made = call(pad_rows(first[:, haloed], *pad), *(other[:, rows] for other in others), rows=rows)
            if out is None:
                out = made.new_empty(*first.shape[:2], *made.shape[2:])
            out[:, rows] = made
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        if torch.is_grad_enabled():  # only with create_graph: the recomputation below leaves no graph
            raise RuntimeError("SeNER computes no gradients of gradients: leave out create_graph=True")
        saved = ctx.saved_tensors  # read once: under checkpointing of whole blocks, reading computes them again
        inputs, weights = saved[: ctx.num_inputs], saved[ctx.num_inputs :]
        first, *others = inputs
        leaves = [weight.detach().requires_grad_() for weight in weights]
        named = {f"owner.{name}": leaf for name, leaf in zip(ctx.names, leaves, strict=True)}
        grads = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        with _replayed(ctx.random), torch.enable_grad(), torch.autocast(first.device.type, **ctx.precision):
            for rows, haloed, pad in _chunks(first.shape[1], ctx.chunk_rows, ctx.halo):
                places = [haloed, *[rows] * len(others)]
                own = [
                    tensor[:, place].detach().requires_grad_() for tensor, place in zip(inputs, places, strict=True)
                ]
                made = functional_call(ctx.call, named, (pad_rows(own[0], *pad), *own[1:]), {"rows": rows})
                torch.autograd.backward(made, grad[:, rows])
                for total, tensor, place in zip(grads, own, places, strict=True):
                    total[:, place] += tensor.grad
        return None, None, None, None, None, *grads, *(leaf.grad for leaf in leaves)


def _chunks(num_rows: int, chunk_rows: int, halo: Halo) -> Iterator[tuple[slice, slice, Halo]]:
    """For each chunk: its rows, the rows with the halo that lies in the text, and the rows of zeros on either side."""
    before, after = halo
    for first in range(0, num_rows, chunk_rows):
        last = min(first + chunk_rows, num_rows)
        start, stop = max(first - before, 0), min(last + after, num_rows)
        yield slice(first, last), slice(start, stop), (start - first + before, last + after - stop)


def _random_state(device: torch.device) -> tuple[torch.device, Tensor, Tensor | None]:
    """The state of the random numbers that dropout draws on a device."""
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    return device, torch.get_rng_state(), own


def _set_random_state(device: torch.device, cpu: Tensor, own: Tensor | None) -> None:
    torch.set_rng_state(cpu)
    if own is not None:
        torch.get_device_module(device).set_rng_state(own, device)


@contextmanager
def _replayed(state) -> Iterator[None]:
    """Draw random numbers from an earlier state, and restore the present state at the end."""
    if state is None:
        yield
        return
    now = _random_state(state[0])
    _set_random_state(*state)
    try:
        yield
    finally:
        _set_random_state(*now)


class ChunkByChunk:
    """
    Computes rows lazily, a chunk at a time, so that a text of any length takes bounded memory. `tee` and `map` take
    and return iterators over chunks (B, n, W, C), which cover the rows of the text in order.

    Args:
        num_rows: N.
    """

    def __init__(self, num_rows: int):
        self.num_rows = num_rows

    def tee(self, chunks: Iterable[Tensor]) -> tuple[Iterator[Tensor], "SkipBuffer"]:
        """The chunks, and a buffer of the same rows for a later step."""
        buffer = SkipBuffer()
        return buffer.push(chunks), buffer

    def map(
        self, step: Callable, chunks: Iterable[Tensor], *others: "SkipBuffer", owner: nn.Module, halo: Halo = (0, 0)
    ) -> Iterator[Tensor]:
        """As `WholeText.map`, on chunks; `others` are the buffers of `tee`."""
        for held, rows in with_halo(chunks, halo, self.num_rows):
            yield step(held, *(buffer.pop(rows.stop - rows.start) for buffer in others), rows=rows)


def with_halo(chunks: Iterable[Tensor], halo: Halo, num_rows: int) -> Iterator[tuple[Tensor, slice]]:
    """
    Give each of the chunks, which arrive in order, its halo: rows of its neighbours.

    Args:
        chunks: *Shape:* (B, n, ...), rows 0 .. N - 1.
        num_rows: N.

    Returns:
        Pairs of rows with their halo, zeros outside of the text, and the `slice` of the rows without it. The slices
        cover all rows in order; none is longer than the longest input.
    """
    before, after = halo
    held, first, seen, size = None, 0, 0, 0
    for chunk in chunks:
        seen += chunk.shape[1]
        size = max(size, chunk.shape[1])
        if before == after == 0:
            yield chunk, slice(seen - chunk.shape[1], seen)
            continue
        last = after if seen == num_rows else 0
        held = pad_rows(chunk, before, last) if held is None else pad_rows(torch.cat([held, chunk], dim=1), 0, last)
        del chunk  # copied; must not stay in memory while later steps run
        # At the text's end the halo's rows are left as well: still no more at a time than a chunk.
        while (made := min(held.shape[1] - before - after, size)) > 0:
            haloed, held = held[:, : made + before + after], held[:, made:]
            yield haloed, slice(first, first + made)
            first += made


class SkipBuffer:
    """FIFO for a skip connection: rows wait for the delayed output of the steps beside it."""

    def __init__(self):
        self.held: deque[Tensor] = deque()

    def push(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the chunks, and keep each in the buffer as it passes."""
        for chunk in chunks:
            self.held.append(chunk)
            yield chunk

    def pop(self, count: int) -> Tensor:
        """The next `count` rows."""
        taken = []
        while count > 0:
            rows = self.held.popleft()
            if rows.shape[1] > count:
                self.held.appendleft(rows[:, count:])
            taken.append(rows[:, :count])
            count -= taken[-1].shape[1]
        return taken[0] if len(taken) == 1 else torch.cat(taken, dim=1)


def join_rows(chunks: Iterable[Tensor], num_rows: int) -> Tensor:
    """Join chunks (B, n, ...) to one tensor (B, N, ...), written as they come, so that none is held twice."""
    whole, first = None, 0
    for chunk in chunks:
        if chunk.shape[1] == num_rows:
            return chunk
        if whole is None:
            whole = chunk.new_empty(chunk.shape[0], num_rows, *chunk.shape[2:])
        whole[:, first : first + chunk.shape[1]] = chunk
        first += chunk.shape[1]
    return whole
