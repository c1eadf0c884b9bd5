"""
Arrow attention: a local window for every token, global attention for [CLS] (paper, "Arrow Attention").

Token 0 ([CLS]) attends to every real token and every token attends to it; any other pair (i, j) attends where
|i - j| <= w. Scores are computed in blocks of queries beside the keys that they can reach: O(w T) time and memory.
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
LOG_N_LENGTH = 512  # LogN-Scaling is 1 at this many tokens, the length that encoders were pretrained at
BLOCK = 64


class OnlineSoftmax:
    """
    softmax(scores) @ values of one row per head over keys that arrive in parts; nothing of a part is kept. Sums are in
    float32 at least: over thousands of parts, bfloat16 would round the last ones away.
    """

    def __init__(self):
        self.highest = self.total = self.weighted = None

    def add(self, scores: Tensor, value: Tensor, dropout: nn.Module | None = None):
        """
        Args:
            scores: *Shape:* (B, H, 1, n), -inf for keys that do not count; of the first part at least one does.
            value: *Shape:* (B, H, n, D).
        """
        dtype = _at_least_float(scores)
        scores, self.dtype = scores.to(dtype), value.dtype
        highest = scores.amax(dim=-1, keepdim=True)
        if self.highest is not None:
            highest = torch.maximum(highest, self.highest)
        weights = (scores - highest).exp()
        dropped = weights if dropout is None else dropout(weights)
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
    The part of a text that a layer of `chunked_layers` is computed on: rows with a window on either side, after [CLS].

    Args:
        own: the rows to be made, as a slice of the states that the layer gets; `None` for [CLS]'s row, which comes
            last and alone.
        cls: gathers [CLS]'s row over the stretches of a layer.
    """

    own: slice | None
    cls: OnlineSoftmax


@dataclass
class ArrowAttentionContext:
    """
    What the tokens of one batch attend to; handed to every attention layer as the keyword argument `arrow`.

    Args:
        attention: `"arrow"`, `"sliding_window"` (no global [CLS]) or `"full"`.
        window: tokens on either side.
        log_n_scaling: whether [CLS]'s scores are multiplied by log(L) / log(512).
        mask: *Shape:* (B, T), true for real tokens.
        chunk_size: tokens of the batch that a layer computes at a time where no gradients are asked for.
        lengths: real tokens of each text, *Shape:* (B,); counted from the mask.
        padded: whether a text is padded; asked of the mask, once a batch, where layers are computed in parts.
        stretch: set where the states are a part of the text only.
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
            # A row without keys would be NaN (and its gradient whatever was in memory): where a text has no real token
            # at all, every token counts, and nobody reads the result.
            self.mask = self.mask.bool() | ~self.mask.bool().any(dim=1, keepdim=True)
            self.lengths = self.mask.sum(dim=1)
            # A question to the device, which no loop over stretches should ask.
            self.padded = must_run_whole() or not bool(self.mask.all())

    def chunks(self, length: int, least: int = 1) -> list[slice]:
        """The rows in parts of `least` rows or more."""
        if self.chunk_size is None or must_run_whole():
            return [slice(0, length)]
        size = max(least, self.chunk_size // self.mask.shape[0])
        return [slice(first, min(first + size, length)) for first in range(0, length, max(size, 1))]

    def of_chunk(self, index: Tensor, chunk: ChunkContext) -> "ArrowAttentionContext":
        """The same for a part of the text: its rows are `index`, *Shape:* (n,)."""
        return replace(self, mask=self.mask[:, index], chunk=chunk)

    def cls_scale(self) -> Tensor | None:
        """LogN-Scaling's factor, *Shape:* (B, 1, 1, 1); `None` where it does not apply: [CLS] needs a global row."""
        if not self.log_n_scaling or self.attention == "sliding_window":
            return None
        return (self.lengths.clamp(min=1).float().log() / math.log(LOG_N_LENGTH))[:, None, None, None]

    def block_mask(self, window: int, with_cls: bool, dtype: torch.dtype) -> Tensor:
        """
        What is added to the scores of each block, computed once for all layers with the same window, and once for all
        stretches of texts without padding.

        Returns:
            *Shape:* (B, M, 1, Q, K + 1): 0 where query and key attend, -inf elsewhere. The last key is [CLS], which
            its own place in the window then leaves out. A token always attends to itself, padding too: a row without
            keys would be NaN, and spread.
        """
        may_be_padded = self.chunk is not None and self.padded
        if may_be_padded or torch.compiler.is_exporting():  # there a length is a symbol, which is no key
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
    The rows that each block of queries can reach, outside the text zeros.

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
        attention_mask: (B, T) or `None`; `arrow.mask` holds the same and is what counts.
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
    if arrow.attention == "full" and not is_local:
        return full_attention(query, key, value, scaling, dropout, arrow).transpose(1, 2), None
    window = own_window if is_local else arrow.window
    with_cls = arrow.attention == "arrow" and not is_local
    out = block_attention(query, key, value, scaling, dropout, arrow.block_mask(window, with_cls, query.dtype), window)
    if with_cls:
        cls = cls_attention(query[:, :, :1], key, value, scaling, dropout, arrow)
        out = torch.cat([cls.transpose(1, 2), out[:, 1:]], dim=1)
    return out, None


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, bias: Tensor, window: int
) -> Tensor:
    """
    Every token over its window and [CLS].

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
    `scaled_dot_product_attention` with dropout `p`, where for a backward pass on the CPU it is not left to torch:
    there half precision takes up to three times as long as float32 (torch 2.13), and autocast would choose it; and
    with dropout it multiplies out the scores too, but draws random numbers slowly.
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
    """[CLS]'s row over every real token, with LogN-Scaling. (B, H, 1, D) and (B, H, T, D) -> (B, H, 1, D)."""
    scale = arrow.cls_scale()
    query = query if scale is None else query * scale.to(query.dtype)
    mask = arrow.mask.bool()[:, None, None]
    if arrow.chunk is None:
        return sdpa(query, key, value, mask, dropout, scaling)
    own = arrow.chunk.own
    if own is None:
        return arrow.chunk.cls.result()
    scores = query @ key[:, :, own].transpose(-1, -2) * scaling
    arrow.chunk.cls.add(scores.masked_fill(~mask[..., own], -math.inf), value[:, :, own])
    return torch.zeros_like(query)  # nobody reads it: [CLS]'s row comes last


def full_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float, arrow: ArrowAttentionContext
) -> Tensor:
    """The `full` ablation: every token over every real token. (B, H, T, D) -> (B, H, T, D)."""
    scale = arrow.cls_scale()
    if scale is not None:
        query = torch.cat([query[:, :, :1] * scale.to(query.dtype), query[:, :, 1:]], dim=2)
    mask = arrow.mask.bool()[:, None, None]
    return sdpa(query, key, value, mask, dropout, scaling)


def plain_padding_mask(attention_mask: Tensor | None = None, **kwargs) -> Tensor | None:
    """The mask function that goes with `arrow_attention`: the (B, T) mask as it is, nothing T x T."""
    return attention_mask


AttentionInterface.register(NAME, arrow_attention)
AttentionMaskInterface.register(NAME, plain_padding_mask)
