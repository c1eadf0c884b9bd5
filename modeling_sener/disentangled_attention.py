"""
Disentangled attention of DeBERTa-v2/v3, banded: arrow attention whose scores have position terms.

The score of query i and key j is (q_i.k_j + q_i.KR[b(i - j)] + k_j.QR[b(i - j)]) / sqrt(3 D), b the log-bucket of the
distance, KR and QR the key and query projections of the relative embeddings. In a window the distances are the same
2w + 1 for every query, so a band's column is a row of KR and QR: the position terms are two matrix products, and no
T x T tensor exists.

B batch, H heads, T tokens, D head size, d hidden size, w window, W = 2w + 1, P rows of the relative embeddings,
Q queries of a block, M blocks, K = Q + 2w keys of a block.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DebertaV2Config

from .arrow_attention import ArrowAttentionContext, OnlineSoftmax, block_size, sdpa
from .band import overlapping, skewed_view
from .dropout import Dropout


class RelativeDistance:
    """b(r): the row of the relative embeddings for a distance r = i - j; exact near 0, logarithmic further away."""

    def __init__(self, config: DebertaV2Config):
        longest = getattr(config, "max_relative_positions", -1)
        self.longest = longest if longest > 0 else config.max_position_embeddings
        self.buckets = getattr(config, "position_buckets", -1)
        self.span = self.buckets if self.buckets > 0 else self.longest

    def log_bucket(self, distance: Tensor) -> Tensor:
        """Integers of any shape -> rows 0 .. 2 span - 1 of the same shape."""
        if self.buckets > 0:
            # In float32, as the encoders were pretrained: the ceiling falls differently in another precision.
            mid = self.buckets // 2
            far = distance.abs().clamp(min=mid).float() / mid
            steps = torch.ceil(far.log() / math.log((self.longest - 1) / mid) * (mid - 1)) + mid
            distance = torch.where(distance.abs() <= mid, distance, (steps * distance.sign()).long())
        return (distance + self.span).clamp(0, 2 * self.span - 1)


class DisentangledArrowAttention(nn.Module):
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

    def stream(
        self,
        hidden: Tensor,
        positions: Tensor | None,
        distance: RelativeDistance | None,
        arrow: ArrowAttentionContext,
        cls: "ClsAttention",
    ) -> Iterator[tuple[slice, Tensor]]:
        """
        Every token over its window and, with arrow attention, [CLS], in parts of rows: (rows, (B, n, H D)).

        Keys are projected once, a window ahead of their part, so that a part's rows may be overwritten once it is
        made. [CLS]'s own row is not among them: `cls` gathers it from the parts.
        """
        length, w = hidden.shape[1], arrow.window
        tables = self.position_tables(positions)
        held = None
        for rows in arrow.chunks(length):
            count = rows.stop - rows.start
            # Keys [rows.start - w, rows.start + w) are held from the part before.
            first = 0 if held is None else min(rows.start + w, length)
            ahead = hidden[:, first : rows.stop + w]
            before = w if held is None else 0
            after = count + before - ahead.shape[1]
            key, value = (
                F.pad(self.split(linear(ahead)), (0, 0, before, after)) for linear in (self.key_proj, self.value_proj)
            )
            if held is not None:
                key, value = torch.cat([held[0], key], dim=2), torch.cat([held[1], value], dim=2)
            query = self.split(self.query_proj(hidden[:, rows.start : rows.stop])) * self.scale
            cls.add(key[:, :, w : w + count], value[:, :, w : w + count], rows)
            yield rows, self.window(query, key, value, tables, distance, arrow, cls, rows)
            held = (key[:, :, count:], value[:, :, count:])

    def split(self, states: Tensor) -> Tensor:
        """(B, T, H D) -> (B, H, T, D)."""
        return states.unflatten(-1, (self.heads, self.size)).transpose(1, 2)

    def position_tables(self, positions: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """KR and QR of all distances, QR with the score's scale: (H, P, D) each, `None` for a term not used."""
        if positions is None:
            return None, None
        positions = self.pos_dropout(positions)
        key_proj = self.key_proj if self.shares_keys else getattr(self, "pos_key_proj", None)
        query_proj = self.query_proj if self.shares_keys else getattr(self, "pos_query_proj", None)
        keys = self.split(key_proj(positions)[None])[0] if self.has_c2p else None
        queries = self.split(query_proj(positions)[None])[0] * self.scale if self.has_p2c else None
        return keys, queries

    def window(
        self, query, key, value, tables, distance, arrow: ArrowAttentionContext, cls: "ClsAttention", rows: slice
    ) -> Tensor:
        """
        Attention of the part's rows to their windows, and to [CLS] as the last key of each block.

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

        bias = self.window_bias(query, key, tables, distance, arrow, cls, rows, block)
        out = sdpa(
            F.pad(query, (0, 0, 0, after)).flatten(0, 1).unflatten(1, (-1, block)),
            blocks(key, cls.key),
            blocks(value, cls.value),
            bias.flatten(0, 1),
            self.dropout.p if self.training else 0.0,
            scale=1.0,
        )
        out = out.flatten(1, 2)[:, :count].unflatten(0, (batch, -1))
        return out.transpose(1, 2).flatten(2)

    def window_bias(
        self, query, key, tables, distance, arrow: ArrowAttentionContext, cls: "ClsAttention", rows: slice, block: int
    ):
        """Position terms and masks of each block's scores: (B, H, M, Q, K + 1), -inf where a pair does not attend."""
        w, after = arrow.window, -query.shape[2] % block
        keys_HPD, queries_HPD = tables
        bias_BHTW = self.key_bias(key, queries_HPD, distance, arrow, rows)
        if keys_HPD is not None:
            near = distance.log_bucket(torch.arange(w, -w - 1, -1, device=query.device))
            bias_BHTW = (query @ keys_HPD[:, near].transpose(-1, -2)).add_(bias_BHTW)
        # Row q of a block reaches the keys q .. q + 2w of its K: padding rows to K + 2 and reading rows of K + 1 moves
        # row q by q. What the padding leaves is -inf; the last key is [CLS]. Rows added at the end see their window.
        width = block + 2 * w + 1
        bias = F.pad(bias_BHTW, (0, 0, 0, after)).unflatten(2, (-1, block))
        bias = F.pad(bias, (0, block + 1), value=-math.inf).flatten(3)[..., : block * width]
        bias = bias.unflatten(3, (block, width))
        if arrow.attention == "arrow":
            column = cls.column(query, keys_HPD, rows)
            bias[..., -1] = F.pad(column, (0, after)).unflatten(2, (-1, block))
        return bias

    @staticmethod
    def key_bias(key, queries_HPD, distance, arrow: ArrowAttentionContext, rows: slice) -> Tensor:
        """k_j.QR[b(i - j)] where j is a key that i may see, else -inf, by query: (B, H, n, W)."""
        w = arrow.window
        column = torch.arange(2 * w + 1, device=key.device)
        if queries_HPD is None:
            bias = key.new_zeros(*key.shape[:3], 2 * w + 1)
        else:
            bias = key @ queries_HPD[:, distance.log_bucket(w - column)].transpose(-1, -2)
        j = torch.arange(rows.start - w, rows.stop + w, device=key.device)
        real = ((j >= 0) & (j < arrow.mask.shape[1])) & arrow.mask[:, j.clamp(0, arrow.mask.shape[1] - 1)].bool()
        if arrow.attention == "arrow":
            real = real & (j != 0)  # [CLS] has a column of its own
        # Padding still sees itself: a row without keys would be NaN, and spread.
        hidden = ~real[:, None, :, None] & (column != w)
        return skewed_view(bias.masked_fill_(hidden, -math.inf))

    def full(self, hidden, positions, distance, arrow: ArrowAttentionContext) -> Tensor:
        """The `full` ablation, T x T: what transformers' own DeBERTa computes, and LogN-Scaling. -> (B, T, H D)."""
        query = self.split(self.query_proj(hidden)) * self.scale
        key, value = self.split(self.key_proj(hidden)), self.split(self.value_proj(hidden))
        keys_HPD, queries_HPD = self.position_tables(positions)
        scores = query @ key.transpose(-1, -2)
        i = torch.arange(hidden.shape[1], device=hidden.device)
        rows = None if distance is None else distance.log_bucket(i[:, None] - i).expand(*scores.shape)
        if keys_HPD is not None:
            scores = scores + (query @ keys_HPD.transpose(-1, -2)).gather(-1, rows)
        if queries_HPD is not None:
            by_key = key @ queries_HPD.transpose(-1, -2)  # (B, H, T keys, P)
            scores = scores + by_key.gather(-1, rows.transpose(-1, -2)).transpose(-1, -2)
        scale = arrow.cls_scale()
        if scale is not None:
            scores = torch.cat([scores[:, :, :1] * scale.to(scores.dtype), scores[:, :, 1:]], dim=2)
        scores = scores.masked_fill(~arrow.mask.bool()[:, None, None], -math.inf)
        out = self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ value
        return out.transpose(1, 2).flatten(2)


class ClsAttention:
    """
    [CLS] of one layer: its key and value, which every token sees, and its own row over every token, gathered part by
    part by an online softmax with LogN-Scaling of the whole score.
    """

    def __init__(
        self, attention: DisentangledArrowAttention, cls: Tensor, positions, distance, arrow: ArrowAttentionContext
    ):
        self.distance, self.arrow, self.dropout = distance, arrow, attention.dropout
        self.query = attention.split(attention.query_proj(cls)) * attention.scale  # (B, H, 1, D), like key and value
        self.key = attention.split(attention.key_proj(cls))
        self.value = attention.split(attention.value_proj(cls))
        keys_HPD, self.queries_HPD = attention.position_tables(positions)
        self.c2p = None if keys_HPD is None else self.query @ keys_HPD.transpose(-1, -2)  # (B, H, 1, P)
        self.row = OnlineSoftmax()

    def add(self, key: Tensor, value: Tensor, rows: slice):
        """Take in the keys and values of a part, (B, H, n, D)."""
        if self.arrow.attention == "sliding_window":
            return
        scores = self.query @ key.transpose(-1, -2)
        if self.distance is not None:
            near = self.distance.log_bucket(-torch.arange(rows.start, rows.stop, device=key.device))
            if self.c2p is not None:
                scores = scores + self.c2p[..., near]
            if self.queries_HPD is not None:
                scores = scores + (key * self.queries_HPD[:, near]).sum(-1)[:, :, None]
        scale = self.arrow.cls_scale()
        if scale is not None:
            scores = scores * scale.to(scores.dtype)
        real = self.arrow.mask[:, rows.start : rows.stop].bool()
        scores = scores.masked_fill(~real[:, None, None], -math.inf)
        self.row.add(scores, value, self.dropout)

    def attended(self) -> Tensor:
        """[CLS]'s row of the attention's output: (B, 1, H D)."""
        return self.row.result().transpose(1, 2).flatten(2)

    def column(self, query: Tensor, keys_HPD: Tensor | None, rows: slice) -> Tensor:
        """The position terms of a part's scores for [CLS]: (B, H, n, D) -> (B, H, n)."""
        column = query.new_zeros(query.shape[:3])
        if self.distance is None:
            return column
        near = self.distance.log_bucket(torch.arange(rows.start, rows.stop, device=query.device))
        if keys_HPD is not None:
            column = column + (query * keys_HPD[:, near]).sum(-1)
        if self.queries_HPD is not None:
            column = column + (self.key @ self.queries_HPD.transpose(-1, -2))[:, :, 0, near]
        return column
