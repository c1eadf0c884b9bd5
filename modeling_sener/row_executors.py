"""
Two ways to carry out steps that map rows of the band to rows of the band: all rows at once, for training, and chunk
after chunk, for inference. The steps, the equations, are written once, for either.

A step is called with the rows of a chunk and their halo, the rows on either side that it depends on (zeros outside the
text); with the same rows of further inputs, which have no halo; and with the `slice` of rows to make.

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
    Computes all rows of a text and keeps the autograd graph small: of a step only its inputs and its result are kept,
    and backward computes the rest again, chunk by chunk.

    What is between is larger than either (three projections, scores, hidden maps of N x W x C each) and is used once.
    A chunk of it stays in the processor's caches, which pays for computing it twice.

    Args:
        chunk_rows: rows of a chunk.
    """

    def __init__(self, chunk_rows: int):
        self.chunk_rows = chunk_rows

    def tee(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same rows twice, for a step and for a later one that takes them again (a skip connection)."""
        return rows, rows

    def map(self, step: Callable, rows: Tensor, *others: Tensor, owner: nn.Module, halo: Halo = (0, 0)) -> Tensor:
        """
        `step` of all rows.

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
        if torch.is_grad_enabled():  # only with create_graph: what is computed again below leaves no graph
            raise RuntimeError("SeNER computes no gradients of gradients: leave out create_graph=True")
        saved = ctx.saved_tensors  # to be asked for once: checkpointing of whole blocks computes them again
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
    """The rows of each chunk, these with the halo that the text has, and the rows of zeros before and after."""
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
    """Draw the random numbers of an earlier state once more; those that follow are as if nothing had been drawn."""
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
    Computes rows as they are asked for, a chunk at a time, so that a text of any length takes bounded memory: `tee`
    and `map` take and give iterators over chunks (B, n, W, C) that cover the rows of the text in order.

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
        """As `WholeText.map`, of chunks of rows and of further rows that `tee` has put aside."""
        for held, rows in with_halo(chunks, halo, self.num_rows):
            yield step(held, *(buffer.pop(rows.stop - rows.start) for buffer in others), rows=rows)


def with_halo(chunks: Iterable[Tensor], halo: Halo, num_rows: int) -> Iterator[tuple[Tensor, slice]]:
    """
    Chunks of rows that arrive in order, each with the halo of its neighbours' rows.

    Args:
        chunks: *Shape:* (B, n, ...), rows 0 .. N - 1.
        num_rows: N.

    Returns:
        Pairs of rows with halo, zeros outside the text, and the `slice` of the rows without it. They cover the rows in
        order, no chunk is larger than the largest that came.
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
        del chunk  # copied: not to be kept while later steps run
        # When the text ends the halo's rows come on top: still no more at a time than the chunks had.
        while (made := min(held.shape[1] - before - after, size)) > 0:
            haloed, held = held[:, : made + before + after], held[:, made:]
            yield haloed, slice(first, first + made)
            first += made


class SkipBuffer:
    """FIFO for a skip connection: rows wait for the delayed output of the steps beside it."""

    def __init__(self):
        self.held: deque[Tensor] = deque()

    def push(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same chunks, put into the buffer as they pass."""
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
    """Chunks (B, n, ...) as one tensor (B, N, ...), written as they come, so that none is held twice."""
    whole, first = None, 0
    for chunk in chunks:
        if chunk.shape[1] == num_rows:
            return chunk
        if whole is None:
            whole = chunk.new_empty(chunk.shape[0], num_rows, *chunk.shape[2:])
        whole[:, first : first + chunk.shape[1]] = chunk
        first += chunk.shape[1]
    return whole
