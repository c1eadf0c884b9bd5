"""
Compute the layers of transformers' encoders in chunks: beside its states, a text of any length takes bounded memory.

The output of tokens [a, b) depends on the input of tokens [a - w, b + w), a halo of w, and of [CLS]. The output of
[CLS] depends on every key of the layer: each chunk adds its keys to an online softmax, and at last the layer is
computed once more for [CLS] alone. This holds for any layer that mixes tokens by `arrow_attention` only.

B batch, T tokens, n tokens of a chunk with [CLS] and halo, d hidden size, w window.
"""

from functools import cache

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .arrow_attention import ArrowAttentionContext, ChunkContext, OnlineSoftmax


LEAST_WINDOWS = 16  # smallest chunk, in windows: its halo, one window on either side, is computed twice


def compute_layers_in_chunks(encoder: PreTrainedModel):
    """
    Let every layer of an encoder compute long texts in chunks if no gradients are needed.

    Layers keep the name of their class, by which accelerate places them on devices, and the names of their weights.

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
    """Make a layer without attributes; pickle restores those."""
    return own.__new__(_chunked(own))


class ChunkedLayer:
    """Mixed in before a layer's own class: cuts its input into chunks."""

    def __reduce_ex__(self, protocol):
        """Pickle by the layer's own class: pickle finds classes by name, and ours is made at run time."""
        _, _, *state = super().__reduce_ex__(max(protocol, 2))
        return _unpickled, (self.own_class,), *state

    def forward(self, hidden: Tensor, *args, arrow: ArrowAttentionContext, **kwargs) -> Tensor:
        """(B, T, d) -> (B, T, d). With several chunks the result overwrites `hidden`."""
        length, window = hidden.shape[1], arrow.window
        chunks = arrow.chunks(length, LEAST_WINDOWS * window)
        if len(chunks) == 1:
            return super().forward(hidden, *args, arrow=arrow, **kwargs)
        layer = super().forward
        cls_attention = OnlineSoftmax()

        def compute(states: Tensor, index: Tensor, chunk: ChunkContext) -> Tensor:
            cut_args, cut_kwargs = (_tokens_of(given, index, length) for given in (args, kwargs))
            return layer(states, *cut_args, arrow=arrow.of_chunk(index, chunk), **cut_kwargs)

        every = torch.arange(length, device=hidden.device)
        cls, before = hidden[:, :1].clone(), hidden[:, :0]
        for tokens in chunks:
            first, last = max(tokens.start - window, 0), min(tokens.stop + window, length)
            shift = int(first > 0)  # [CLS] is put before a chunk that does not begin with it, in nobody's window
            index = torch.cat([every[:shift], every[first:last]])
            states = torch.cat([cls[:, :shift], before, hidden[:, tokens.start : last]], dim=1)
            start = tokens.start - first + shift
            own = slice(start, start + tokens.stop - tokens.start)
            made = compute(states, index, ChunkContext(own, cls_attention))
            before = hidden[:, max(tokens.stop - window, 0) : tokens.stop].clone()
            hidden[:, tokens] = made[:, own]
        if cls_attention.total is not None:  # else [CLS] was computed in the first chunk, like any other token
            hidden[:, :1] = compute(cls, every[:1], ChunkContext(None, cls_attention))
        return hidden


def _tokens_of(given, index: Tensor, length: int):
    """Pick the tokens `index` from a layer's further inputs: from each tensor (B, T, ...); others stay as they are."""
    if isinstance(given, Tensor):
        return given[:, index] if given.dim() > 1 and given.shape[1] == length else given
    if isinstance(given, tuple | list):
        return tuple(_tokens_of(each, index, length) for each in given)
    if isinstance(given, dict):
        return {name: _tokens_of(each, index, length) for name, each in given.items()}
    return given
