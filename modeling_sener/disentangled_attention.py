"""
DeBERTa's disentangled attention in a band: arrow attention whose scores have position terms.

Inside a window the distances are the same 2w + 1 for every token. The position terms of all scores are therefore two
matrix products with 2w + 1 entries of the relative embeddings, and no tensor of T x T is built.

B batch, H heads, T tokens, n tokens of a chunk, D head size, d hidden size, w attention window, W = 2w + 1, P relative
embeddings, Q queries of a block, M blocks, K = Q + 2w keys of a block, m distances.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DebertaV2Config

from .arrow_attention import ArrowAttentionContext, OnlineSoftmax, block_size, sdpa
from .band import overlapping, skewed_view
from .dropout import Dropout


class RelativeDistance:
    """b(r): the relative embedding of a distance r = i - j; exact near 0, logarithmic further away."""

    def __init__(self, config: DebertaV2Config):
        longest = getattr(config, "max_relative_positions", -1)
        self.longest = longest if longest > 0 else config.max_position_embeddings
        self.buckets = getattr(config, "position_buckets", -1)
        self.span = self.buckets if self.buckets > 0 else self.longest

    def log_bucket(self, distance: Tensor) -> Tensor:
        """Map integers of any shape to numbers of relative embeddings, 0 .. 2 span - 1, of the same shape."""
        if self.buckets > 0:
            # In float32, as the encoders were pretrained: the ceiling falls differently in another precision.
            mid = self.buckets // 2
            far = distance.abs().clamp(min=mid).float() / mid
            steps = torch.ceil(far.log() / math.log((self.longest - 1) / mid) * (mid - 1)) + mid
            distance = torch.where(distance.abs() <= mid, distance, (steps * distance.sign()).long())
        return (distance + self.span).clamp(0, 2 * self.span - 1)


class PositionTerms(NamedTuple):
    """
    The position terms of one layer's scores (eq. 3), on scaled queries.

    Args:
        KR, QR: key and query projections of the relative embeddings, QR with the scores' scale, *Shape:* (H, P, D)
            each; `None` if the model lacks the term.
        distance: b, the relative embedding of a distance; `None` if the model lacks both terms.
    """

    KR: Tensor | None
    QR: Tensor | None
    distance: RelativeDistance | None

    def of_queries(self, query: Tensor, distances: Tensor) -> Tensor:
        """
        Content to position, q_i.KR[b(r)] (eq. 3).

        Args:
            query: *Shape:* (B, H, n, D), scaled.
            distances: r = i - j, *Shape:* (m,), the same for all queries, or (n, m), a row for each.

        Returns:
            *Shape:* (B, H, n, m).
        """
        return self._products(query, self.KR, distances)

    def of_keys(self, key: Tensor, distances: Tensor) -> Tensor:
        """Position to content, k_j.QR[b(r)] (eq. 3): as `of_queries`, of keys, with r = i - j as there."""
        return self._products(key, self.QR, distances)

    def _products(self, states: Tensor, table: Tensor | None, distances: Tensor) -> Tensor:
        if table is None:
            return states.new_zeros(*states.shape[:3], distances.shape[-1])
        entries = self.distance.log_bucket(distances)
        # Three ways to the same numbers, each the cheapest for its shape: one distance for each state; the same few
        # distances for many states; many distances, which share the P products of a state.
        if entries.dim() == 2 and entries.shape[1] == 1:
            return (states * table[:, entries[:, 0]]).sum(-1, keepdim=True)
        if entries.dim() == 1 and states.shape[2] != 1:
            return states @ table[:, entries].transpose(-1, -2)
        products = states @ table.transpose(-1, -2)
        return products.gather(-1, entries.expand(*products.shape[:3], -1))


class DisentangledArrowAttention(nn.Module):
    """
    Score of query i and key j: (q_i.k_j + q_i.KR[b(i - j)] + k_j.QR[b(i - j)]) / sqrt(3 D), the divisor's 3 being the
    number of terms that the model has (eq. 3; He et al., "DeBERTa").
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.size = getattr(config, "attention_head_size", config.hidden_size // config.num_attention_heads)
        width = self.heads * self.size
        self.query_proj = nn.Linear(config.hidden_size, width)
        self.key_proj = nn.Linear(config.hidden_size, width)
        self.value_proj = nn.Linear(config.hidden_size, width)
        terms = config.pos_att_type or []
        self.scale = 1 / math.sqrt(self.size * (1 + ("c2p" in terms) + ("p2c" in terms)))
        self.has_c2p = config.relative_attention and "c2p" in terms
        self.has_p2c = config.relative_attention and "p2c" in terms
        self.shares_keys = getattr(config, "share_att_key", False)
        if self.has_c2p and not self.shares_keys:
            self.pos_key_proj = nn.Linear(config.hidden_size, width)
        if self.has_p2c and not self.shares_keys:
            self.pos_query_proj = nn.Linear(config.hidden_size, width)
        self.dropout = Dropout(config.attention_probs_dropout_prob)
        self.pos_dropout = Dropout(config.hidden_dropout_prob)

    @property
    def dropout_p(self) -> float:
        """Probability that an attention weight is dropped."""
        return self.dropout.p if self.training else 0.0

    def split(self, states: Tensor) -> Tensor:
        """(B, T, H D) -> (B, H, T, D)."""
        return states.unflatten(-1, (self.heads, self.size)).transpose(1, 2)

    def position_terms(self, positions: Tensor | None, distance: RelativeDistance | None) -> PositionTerms:
        """Project the relative embeddings (P, d): once for all scores of a layer."""
        if positions is None:
            return PositionTerms(None, None, None)
        positions = self.pos_dropout(positions)
        key_proj = self.key_proj if self.shares_keys else getattr(self, "pos_key_proj", None)
        query_proj = self.query_proj if self.shares_keys else getattr(self, "pos_query_proj", None)
        keys = self.split(key_proj(positions)[None])[0] if self.has_c2p else None
        queries = self.split(query_proj(positions)[None])[0] * self.scale if self.has_p2c else None
        return PositionTerms(keys, queries, distance)

    def attend_in_chunks(
        self, hidden: Tensor, terms: PositionTerms, cls: "ClsAttention", arrow: ArrowAttentionContext
    ) -> Iterator[tuple[slice, Tensor]]:
        """
        Compute attention's output of each token, a chunk at a time, and hand each chunk's keys and values to `cls`.

        Keys are projected once, a window ahead of their chunk. The caller may overwrite the states of a chunk as soon
        as it has its output. [CLS]'s own output is that of a token without a global view: `cls` holds the right one.

        Args:
            hidden: *Shape:* (B, T, d).

        Returns:
            Pairs of the chunk's tokens and their output, *Shape:* (B, n, H D).
        """
        length, w = hidden.shape[1], arrow.window
        held = None
        for tokens in arrow.chunks(length):
            count = tokens.stop - tokens.start
            # Keys [tokens.start - w, tokens.start + w) are held from the chunk before.
            first = 0 if held is None else min(tokens.start + w, length)
            ahead = hidden[:, first : tokens.stop + w]
            before = w if held is None else 0
            after = count + before - ahead.shape[1]
            key, value = (
                F.pad(self.split(linear(ahead)), (0, 0, before, after)) for linear in (self.key_proj, self.value_proj)
            )
            if held is not None:
                key, value = torch.cat([held[0], key], dim=2), torch.cat([held[1], value], dim=2)
            query = self.split(self.query_proj(hidden[:, tokens])) * self.scale
            own_key, own_value = key[:, :, w : w + count], value[:, :, w : w + count]
            cls.add(own_key, own_value, tokens)
            if arrow.attention == "full":
                yield tokens, self.attend_to_all(query, own_key, own_value, terms, arrow)
            else:
                yield tokens, self.attend_to_windows(query, key, value, terms, cls, arrow, tokens)
            held = (key[:, :, count:], value[:, :, count:])

    def attend_to_windows(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        terms: PositionTerms,
        cls: "ClsAttention",
        arrow: ArrowAttentionContext,
        tokens: slice,
    ) -> Tensor:
        """
        Attend from the tokens of a chunk to their windows, and to [CLS] as the last key of each block (eq. 1).

        Args:
            query: *Shape:* (B, H, n, D), scaled.
            key, value: *Shape:* (B, H, n + 2w, D), zeros outside the text.

        Returns:
            *Shape:* (B, n, H D).
        """
        batch, count, w = query.shape[0], query.shape[2], arrow.window
        block = block_size(count)
        after = -count % block

        def blocks(states: Tensor, cls_state: Tensor) -> Tensor:  # (B, H, n + 2w, D) -> (B H, M, K + 1, D)
            states = F.pad(states, (0, 0, 0, after)).flatten(0, 1)
            states = overlapping(states, block, block + 2 * w)
            last = cls_state.flatten(0, 1)[:, None].expand(-1, states.shape[1], -1, -1)
            return torch.cat([states, last], dim=2)

        bias = window_bias(query, key, terms, arrow, tokens)
        out = sdpa(
            F.pad(query, (0, 0, 0, after)).flatten(0, 1).unflatten(1, (-1, block)),
            blocks(key, cls.key),
            blocks(value, cls.value),
            block_bias(bias, cls.terms_as_key(query, tokens), block).flatten(0, 1),
            self.dropout_p,
            scale=1.0,
        )
        out = out.flatten(1, 2)[:, :count].unflatten(0, (batch, -1))
        return out.transpose(1, 2).flatten(2)

    def attend_to_all(
        self, query: Tensor, key: Tensor, value: Tensor, terms: PositionTerms, arrow: ArrowAttentionContext
    ) -> Tensor:
        """The `full` ablation, T x T, as transformers' own DeBERTa: (B, H, T, D) each -> (B, T, H D)."""
        i = torch.arange(query.shape[2], device=query.device)
        distances = i[:, None] - i
        scores = query @ key.transpose(-1, -2) + terms.of_queries(query, distances)
        scores = scores + terms.of_keys(key, distances.T).transpose(-1, -2)
        scores = scores.masked_fill(~arrow.mask[:, None, None], -math.inf)
        out = self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ value
        return out.transpose(1, 2).flatten(2)


def window_bias(
    query: Tensor, key: Tensor, terms: PositionTerms, arrow: ArrowAttentionContext, tokens: slice
) -> Tensor:
    """
    Position terms of each query's window, -inf for a key that it does not attend to.

    Args:
        query: *Shape:* (B, H, n, D), scaled.
        key: *Shape:* (B, H, n + 2w, D).

    Returns:
        *Shape:* (B, H, n, W): cell (i, k) belongs to query i and key i + k - w.
    """
    w, length = arrow.window, arrow.mask.shape[1]
    distances = torch.arange(w, -w - 1, -1, device=key.device)  # i - j, cell by cell
    j = torch.arange(tokens.start - w, tokens.stop + w, device=key.device)
    real = ((j >= 0) & (j < length)) & arrow.mask[:, j.clamp(0, length - 1)]
    if arrow.attention == "arrow":
        real = real & (j != 0)  # [CLS] is the last key of each block
    # Padding attends to itself: softmax over no key would be NaN, and spread.
    hidden = ~real[:, None, :, None] & (distances != 0)
    by_key = terms.of_keys(key, distances).masked_fill_(hidden, -math.inf)
    return terms.of_queries(query, distances).add_(skewed_view(by_key))


def block_bias(bias: Tensor, cls_bias: Tensor | None, block: int) -> Tensor:
    """
    Bring the bias of windows into blocks of queries, with [CLS] as the last key.

    Args:
        bias: *Shape:* (B, H, n, W), of `window_bias`.
        cls_bias: *Shape:* (B, H, n), position terms of the scores for [CLS]; `None` if it is not seen.

    Returns:
        *Shape:* (B, H, M, Q, K + 1), -inf for a key that the query does not attend to.
    """
    after, keys = -bias.shape[2] % block, block + bias.shape[3]  # K + 1
    # Query q of a block attends to the keys q .. q + 2w of the block's K. Padding its W cells to K + 2 and cutting the
    # result into rows of K + 1 moves them by q. The padding is -inf, the last key's, too.
    blocks = F.pad(bias, (0, 0, 0, after)).unflatten(2, (-1, block))
    blocks = F.pad(blocks, (0, block + 1), value=-math.inf).flatten(3)[..., : block * keys]
    blocks = blocks.unflatten(3, (block, keys))
    if cls_bias is not None:
        blocks[..., -1] = F.pad(cls_bias, (0, after)).unflatten(2, (-1, block))
    return blocks


class ClsAttention:
    """[CLS] in one layer: its key and value, which every token sees, and its own output over all tokens (eq. 1)."""

    def __init__(
        self, attention: DisentangledArrowAttention, cls: Tensor, terms: PositionTerms, arrow: ArrowAttentionContext
    ):
        """
        Args:
            cls: [CLS]'s state before the layer, *Shape:* (B, 1, d).
        """
        self.query = attention.split(attention.query_proj(cls)) * attention.scale  # (B, H, 1, D), like key and value
        self.key = attention.split(attention.key_proj(cls))
        self.value = attention.split(attention.value_proj(cls))
        self.terms, self.arrow, self.dropout_p = terms, arrow, attention.dropout_p
        self.softmax = OnlineSoftmax()

    def add(self, key: Tensor, value: Tensor, tokens: slice):
        """Let [CLS] attend to the tokens of a chunk; keys and values of *Shape:* (B, H, n, D)."""
        if self.arrow.attention == "sliding_window":
            return
        distances = -torch.arange(tokens.start, tokens.stop, device=key.device)  # of query 0
        scores = self.query @ key.transpose(-1, -2) + self.terms.of_queries(self.query, distances)
        scores = scores + self.terms.of_keys(key, distances[:, None]).transpose(-1, -2)
        self.softmax.add(self.arrow.cls_scores(scores, tokens), value, self.dropout_p)

    def attended(self) -> Tensor:
        """[CLS]'s output, after all chunks: (B, 1, H D)."""
        return self.softmax.result().transpose(1, 2).flatten(2)

    def terms_as_key(self, query: Tensor, tokens: slice) -> Tensor | None:
        """Position terms of a chunk's scores for [CLS]: (B, H, n, D) -> (B, H, n); `None` if it is not seen."""
        if self.arrow.attention != "arrow":
            return None
        distances = torch.arange(tokens.start, tokens.stop, device=query.device)  # to key 0
        to_position = self.terms.of_queries(query, distances[:, None])[..., 0]
        return to_position + self.terms.of_keys(self.key, distances)[:, :, 0]
