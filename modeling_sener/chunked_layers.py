"""
The layers of transformers' encoders in parts, so that a text of any length takes bounded memory beside its states.

A layer's rows [a, b) need its input in rows [a - w, b + w), and [CLS]. [CLS]'s own row needs every key of the layer:
each part adds its keys to an online softmax, and when all have passed the layer is computed once more for [CLS] alone.
A layer is anything that maps states to states row by row but for its attention, which is `arrow_attention`.

B batch, T tokens, d hidden size, w window.
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .arrow_attention import ArrowAttentionContext, ChunkContext, OnlineSoftmax


LEAST_WINDOWS = 16  # windows of rows that a part makes at least: one more on either side is computed twice


def compute_layers_in_chunks(encoder: PreTrainedModel):
    """
    Let every layer of an encoder compute long texts in parts where no gradients are asked for.

    The layers keep the name of their class, by which devices are shared out, and the names of their weights.

    Raises:
        ValueError: the encoder's layers were not found.
    """
    count = encoder.config.num_hidden_layers
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if not stacks:
        raise ValueError(f"{type(encoder).__name__}: found no list of its {count} layers")
    for layer in stacks[0]:
        layer.__class__ = _chunked(type(layer))


@cache
def _chunked(own: type) -> type:
    """One class for all layers of a kind: FSDP finds them by the first one of that name."""
    return type(own.__name__, (ChunkedLayer, own), {"__module__": own.__module__, "own_class": own})


def _unpickled(own: type) -> nn.Module:
    """A layer without attributes, which pickle adds."""
    return own.__new__(_chunked(own))


class ChunkedLayer:
    """What goes before a layer's own class."""

    def __reduce_ex__(self, protocol):
        """Pickle, which finds a class by its name, is given the layer's own: ours is made of it again."""
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return _unpickled, (self.own_class,), *state

    def forward(self, hidden: Tensor, *args, arrow: ArrowAttentionContext, **kwargs) -> Tensor:
        """(B, T, d) -> (B, T, d). In several parts the result overwrites `hidden`."""
        length, window = hidden.shape[1], arrow.window
        chunks = arrow.chunks(length, LEAST_WINDOWS * window)
        if len(chunks) == 1:
            return super().forward(hidden, *args, arrow=arrow, **kwargs)
        layer = super().forward
        row = OnlineSoftmax()

        def compute(states: Tensor, index: Tensor, chunk: ChunkContext) -> Tensor:
            cut_args, cut_kwargs = (_tokens_of(given, index, length) for given in (args, kwargs))
            return layer(states, *cut_args, arrow=arrow.of_chunk(index, chunk), **cut_kwargs)

        every = torch.arange(length, device=hidden.device)
        cls, before = hidden[:, :1].clone(), hidden[:, :0]
        for rows in chunks:
            first, last = max(rows.start - window, 0), min(rows.stop + window, length)
            shift = int(first > 0)  # [CLS] stands before a stretch that does not begin with it, in nobody's window
            index = torch.cat([every[:shift], every[first:last]])
            states = torch.cat([cls[:, :shift], before, hidden[:, rows.start : last]], dim=1)
            start = rows.start - first + shift
            own = slice(start, start + rows.stop - rows.start)
            made = compute(states, index, ChunkContext(own, row))
            before = hidden[:, max(rows.stop - window, 0) : rows.stop].clone()
            hidden[:, rows.start : rows.stop] = made[:, own]
        if row.total is not None:  # else [CLS] was a row of the first stretch like any other
            hidden[:, :1] = compute(cls, every[:1], ChunkContext(None, row))
        return hidden


def _tokens_of(given, index: Tensor, length: int):
    """What a layer is given beside the states, for the rows `index`: tensors of T rows are cut, the rest stays."""
    if isinstance(given, Tensor):
        return given[:, index] if given.dim() > 1 and given.shape[1] == length else given
    if isinstance(given, tuple | list):
        return tuple(_tokens_of(each, index, length) for each in given)
    if isinstance(given, dict):
        return {name: _tokens_of(each, index, length) for name, each in given.items()}
    return given
