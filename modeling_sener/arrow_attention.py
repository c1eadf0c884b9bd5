"""
Arrow attention: a local window for every token, global attention for [CLS] (eq. 1; paper, "Arrow Attention").

Token 0 ([CLS]) attends to every real token and every token attends to it; any other pair (i, j) attends if
|i - j| <= w. Scores are computed block by block, queries with the keys of their windows: O(w T) time and memory.
Encoders of transformers find `arrow_attention` by its name in their attention interface; DeBERTa, whose scores have
position terms, has an encoder of its own in deberta_arrow.py on the same helpers.

B batch, H heads, T tokens, D head size, w window, Q queries of a block, M = T / Q blocks, K = Q + 2w keys of a block.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

from .band import must_run_whole, overlapping
from .dropout import dropout


NAME = "sener_arrow"
LOG_N_LENGTH = 512  # tokens at which LogN-Scaling is 1
BLOCK = 64  # queries of a block


class OnlineSoftmax:
    """
    softmax(scores) @ values of one query per head, over keys that arrive in chunks; keeps nothing of a chunk. Sums are
    in float32 at least: over thousands of chunks, bfloat16 would round the last ones away.
    """

    def __init__(self):
        self.highest = self.total = self.weighted = None

    def add(self, scores: Tensor, value: Tensor, p: float = 0.0):
        """
        Args:
            scores: *Shape:* (B, H, 1, n), -inf for keys that do not count; of the first chunk at least one does.
            value: *Shape:* (B, H, n, D).
            p: probability that a weight is dropped.
        """
        dtype = _at_least_float(scores)
        scores, self.dtype = scores.to(dtype), value.dtype
        highest = scores.detach().amax(dim=-1, keepdim=True)  # cancels out: it needs no gradient
        if self.highest is not None:
            highest = torch.maximum(highest, self.highest)
        weights = (scores - highest).exp()
        dropped = dropout(weights, p) if p else weights
        total = weights.sum(-1, keepdim=True)
        with torch.autocast(value.device.type, enabled=False):
            weighted = dropped.to(dtype) @ value.to(dtype)
        if self.highest is not None:
            before = (self.highest - highest).exp()
            total, weighted = total + self.total * before, weighted + self.weighted * before
        self.highest, self.total, self.weighted = highest, total, weighted

    def result(self) -> Tensor:
        """*Shape:* (B, H, 1, D)."""
        return (self.weighted / self.total).to(self.dtype)


@dataclass
class ChunkContext:
    """
    The chunk that a layer of `chunked_layers` computes: its tokens with a window on either side, after [CLS].

    Args:
        own: the chunk's tokens, as a slice of the states that the layer gets; `None` for [CLS], which comes last and
            alone.
        cls: [CLS]'s attention over the keys of all chunks of a layer.
    """

    own: slice | None
    cls: OnlineSoftmax


@dataclass
class ArrowAttentionContext:
    """
    Which tokens of one batch attend to which; handed to every attention layer as the keyword argument `arrow`.

    Args:
        attention: `"arrow"`, `"sliding_window"` (no global [CLS]) or `"full"`.
        window: tokens on either side.
        log_n_scaling: whether [CLS]'s scores are multiplied by log(L) / log(512).
        mask: *Shape:* (B, T), true for real tokens.
        chunk_size: tokens of the batch that a layer computes at a time if no gradients are needed.
        lengths: real tokens of each text, *Shape:* (B,); counted from the mask.
        padded: whether a text is padded; read from the mask once a batch, for layers that are computed in chunks.
        chunk: set while a layer computes a chunk of the text; the mask is then the chunk's.
    """

    attention: str
    window: int
    log_n_scaling: bool
    mask: Tensor
    chunk_size: int | None = None
    lengths: Tensor | None = None
    padded: bool = True
    chunk: ChunkContext | None = None
    _block_masks: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.lengths is None:
            # Softmax over no key would be NaN (and its gradient whatever was in memory): if a text has no real token,
            # every token counts, and nobody reads the result.
            self.mask = self.mask.bool() | ~self.mask.bool().any(dim=1, keepdim=True)
            self.lengths = self.mask.sum(dim=1)
            # Waits for the device: done here once, not in each loop over chunks.
            self.padded = must_run_whole() or not bool(self.mask.all())

    def chunks(self, length: int, least: int = 1) -> list[slice]:
        """Cut `length` tokens into chunks of `least` tokens or more; into one if the text is computed whole."""
        if self.chunk_size is None or self.attention == "full" or must_run_whole():
            return [slice(0, length)]
        size = max(least, self.chunk_size // self.mask.shape[0])
        return [slice(first, min(first + size, length)) for first in range(0, length, max(size, 1))]

    def of_chunk(self, index: Tensor, chunk: ChunkContext) -> "ArrowAttentionContext":
        """The context of a chunk: the tokens `index`, *Shape:* (n,), of the text."""
        return replace(self, mask=self.mask[:, index], chunk=chunk)

    def cls_scores(self, scores: Tensor, keys: slice) -> Tensor:
        """
        LogN-Scaling (eq. 2) of [CLS]'s scores, content and position terms alike, and -inf for padding.

        Args:
            scores: *Shape:* (B, H, 1, n).
            keys: the n tokens, as a slice of the mask.

        Returns:
            *Shape:* (B, H, 1, n), float32 or float64.
        """
        scores = scores.to(_at_least_float(scores))
        if self.log_n_scaling:
            factor = self.lengths.clamp(min=1).to(scores.dtype).log() / math.log(LOG_N_LENGTH)
            scores = scores * factor[:, None, None, None]
        return scores.masked_fill(~self.mask[:, None, None, keys], -math.inf)

    def block_mask(self, window: int, with_cls: bool, dtype: torch.dtype) -> Tensor:
        """
        Mask to be added to the scores of each block. Computed once for all layers with the same window, and for texts
        without padding once for all chunks of the same length.

        Returns:
            *Shape:* (B, M, 1, Q, K + 1): 0 for a key that the query attends to, -inf for others. The last key is
            [CLS], which is then masked at its own place in the window. Every token attends to itself, padding too:
            softmax over no key would be NaN, and spread.
        """
        may_be_padded = self.chunk is not None and self.padded
        if may_be_padded or torch.compiler.is_exporting():  # a symbolic length is no key of a dict
            return _block_mask(self.mask, window, with_cls, dtype)
        key = (window, with_cls, dtype, self.mask.shape[1])
        if key not in self._block_masks:
            self._block_masks[key] = _block_mask(self.mask, window, with_cls, dtype)
        return self._block_masks[key]


def _block_mask(mask: Tensor, window: int, with_cls: bool, dtype: torch.dtype) -> Tensor:
    batch, length = mask.shape
    device = mask.device
    size = block_size(length)
    start = torch.arange(0, length, size, device=device)[:, None, None]
    i = start + torch.arange(size, device=device)[:, None]
    j = start + torch.arange(-window, size + window, device=device)
    attends = (i - j).abs() <= window
    real = to_blocks(mask[:, :, None], size, window)[..., 0].bool()  # (B, M, K): false outside the text
    if with_cls:
        real = real & (j[:, 0] != 0)
    attends = attends & real[:, :, None]
    attends = attends | ((i == j) & (i >= with_cls))
    bias = mask.new_full((*attends.shape[:-1], attends.shape[-1] + 1), -math.inf, dtype=dtype)
    bias[..., :-1].masked_fill_(attends, 0.0)
    if with_cls:
        bias[..., -1] = 0.0
    return bias[:, :, None]


def block_size(length: int) -> int:
    """Queries of a block, all of them in a short text; an exported program is for texts of any length."""
    return BLOCK if torch.compiler.is_exporting() else min(BLOCK, length)


def to_blocks(states: Tensor, size: int, window: int) -> Tensor:
    """
    Cut out the keys of each block of queries: its own tokens and a window on either side, zeros outside the text.

    Args:
        states: *Shape:* (B, T, ...).

    Returns:
        *Shape:* (B, M, size + 2 window, ...): a view of the padded states, blocks overlap.
    """
    blocks = -(-states.shape[1] // size)
    after = blocks * size - states.shape[1] + window
    padded = F.pad(states, (0, 0) * (states.dim() - 2) + (window, after))
    return overlapping(padded, size, size + 2 * window)


def arrow_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    arrow: ArrowAttentionContext | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """
    The attention function that transformers' encoders call (`AttentionInterface`).

    Args:
        query, key, value: *Shape:* (B, H, T, D).
        attention_mask: (B, T) or `None`; not read, as `arrow.mask` holds the same.
        sliding_window: as ModernBERT passes it: a layer's own window plus 1. A layer whose window is narrower than
            arrow attention's keeps it, without the global [CLS].

    Returns:
        *Shape:* (B, T, H, D), and no weights.
    """
    if arrow is None:
        raise ValueError(f"{type(module).__name__} was not handed `arrow`: its encoder drops keyword arguments")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    own_window = None if sliding_window is None else sliding_window - 1
    is_local = own_window is not None and (arrow.attention == "full" or own_window < arrow.window)
    global_cls = arrow.attention != "sliding_window" and not is_local
    if arrow.attention == "full" and not is_local:
        out = sdpa(query, key, value, arrow.mask[:, None, None], dropout, scaling).transpose(1, 2)
    else:
        window = own_window if is_local else arrow.window
        bias = arrow.block_mask(window, global_cls, query.dtype)
        out = block_attention(query, key, value, scaling, dropout, bias, window)
    if global_cls:
        cls = cls_attention(query[:, :, :1], key, value, scaling, dropout, arrow)
        out = torch.cat([cls.transpose(1, 2), out[:, 1:]], dim=1)
    return out, None


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, bias: Tensor, window: int
) -> Tensor:
    """
    Let every token attend to its window and [CLS] (eq. 1).

    Args:
        query, key, value: *Shape:* (B, H, T, D).
        bias: *Shape:* (B, M, 1, Q, K + 1), of `ArrowAttentionContext.block_mask`.

    Returns:
        *Shape:* (B, T, H, D).
    """
    batch, heads, length, size = query.shape
    block = bias.shape[-2]
    blocks_BMHQD = to_blocks(query.transpose(1, 2), block, 0).transpose(2, 3)

    def with_cls_last(states: Tensor) -> Tensor:
        states = states.transpose(1, 2)
        blocks = to_blocks(states, block, window)
        cls = states[:, None, :1].expand(-1, blocks.shape[1], -1, -1, -1)
        return torch.cat([blocks, cls], dim=2).transpose(2, 3).flatten(0, 1)

    out = sdpa(
        blocks_BMHQD.flatten(0, 1), with_cls_last(key), with_cls_last(value), bias.flatten(0, 1), dropout, scaling
    )
    return out.transpose(1, 2).reshape(batch, -1, heads, size)[:, :length]


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float = 0.0, scale: float | None = None
) -> Tensor:
    """
    `scaled_dot_product_attention` with dropout `p`, computed here for a backward pass on the CPU.

    There, torch 2.13 takes up to three times as long in half precision, which autocast would choose, as in float32.
    With dropout torch multiplies out the scores as well, and draws random numbers slowly.
    """
    if query.device.type != "cpu" or not query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p, scale=scale)
    with torch.autocast("cpu", enabled=False):
        query, key, value = (states.to(_at_least_float(states)) for states in (query, key, value))
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        if p == 0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
        return dropout(scores.softmax(dim=-1), p) @ value


def _at_least_float(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def cls_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, arrow: ArrowAttentionContext
) -> Tensor:
    """
    [CLS] over every real token (eq. 1 and 2): (B, H, 1, D) and (B, H, T, D) -> (B, H, 1, D).

    Of a chunk the result is of the keys so far. The right one comes last, when [CLS] is computed alone.
    """
    keys, softmax = slice(None), OnlineSoftmax()
    if arrow.chunk is not None:
        keys, softmax = arrow.chunk.own, arrow.chunk.cls
    if keys is not None:
        scores = (query * scaling) @ key[:, :, keys].transpose(-1, -2)
        softmax.add(arrow.cls_scores(scores, keys), value[:, :, keys], dropout)
    return softmax.result()


def plain_padding_mask(attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """The mask function for `arrow_attention`: returns the (B, T) mask as it is, nothing of T x T."""
    return attention_mask


AttentionInterface.register(NAME, arrow_attention)
AttentionMaskInterface.register(NAME, plain_padding_mask)
