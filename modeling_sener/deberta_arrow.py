"""
DeBERTa-v2/v3 with banded disentangled attention (DESIGN: paper's arrow attention on DeBERTa).

Weights keep the names of transformers' DeBERTa, so that published checkpoints load by name. The score of query i and
key j is (q_i.k_j + q_i.KR[b(i - j)] + k_j.QR[b(i - j)]) / sqrt(3 D), b the log-bucket of the distance, KR and QR the
key and query projections of the relative embeddings. In a window the distances are the same 2w + 1 for every query,
so a band's column is a row of KR and QR: the position terms are two matrix products, and no T x T tensor exists.

B batch, H heads, T pieces, D head size, d hidden size, w window, W = 2w + 1, P rows of the relative embeddings,
Q queries of a block, M blocks, K = Q + 2w keys of a block.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DebertaV2Config, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .arrow_attention import Arrow, block_size, to_blocks
from .band import skewed_view


class DebertaArrowModel(PreTrainedModel):
    """DeBERTa-v2/v3's encoder. `forward` returns a `BaseModelOutput` with the last hidden state (B, T, d)."""

    config_class = DebertaV2Config
    base_model_prefix = "deberta"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DebertaLayer"]

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.embeddings = DebertaEmbeddings(config)
        self.encoder = DebertaEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, arrow: Arrow, position_ids: Tensor | None = None
    ) -> BaseModelOutput:
        hidden = self.embeddings(input_ids, attention_mask, position_ids)
        return BaseModelOutput(last_hidden_state=self.encoder(hidden, attention_mask, arrow))


class DebertaEmbeddings(nn.Module):
    def __init__(self, config: DebertaV2Config):
        super().__init__()
        size = getattr(config, "embedding_size", config.hidden_size)
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        if config.position_biased_input:
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, size)
        if config.type_vocab_size > 0:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size)
        if size != config.hidden_size:
            self.embed_proj = nn.Linear(size, config.hidden_size, bias=False)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> Tensor:
        """(B, T) -> (B, T, d)."""
        hidden = self.word_embeddings(input_ids)
        if hasattr(self, "position_embeddings"):
            hidden = hidden + self.position_embeddings(position_ids)
        if hasattr(self, "token_type_embeddings"):
            hidden = hidden + self.token_type_embeddings.weight[0]
        if hasattr(self, "embed_proj"):
            hidden = self.embed_proj(hidden)
        hidden = self.LayerNorm(hidden)
        return self.dropout(hidden * attention_mask[..., None].to(hidden.dtype))


class DebertaEncoder(nn.Module):
    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.layer = nn.ModuleList(DebertaLayer(config) for _ in range(config.num_hidden_layers))
        self.distance = RelativeDistance(config) if config.relative_attention else None
        if self.distance is not None:
            self.rel_embeddings = nn.Embedding(2 * self.distance.span, config.hidden_size)
        if "layer_norm" in getattr(config, "norm_rel_ebd", "none"):
            self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.conv = DebertaConvolution(config) if getattr(config, "conv_kernel_size", 0) > 0 else None

    def forward(self, hidden: Tensor, mask: Tensor, arrow: Arrow) -> Tensor:
        embedded = hidden
        positions = self.relative_embeddings()
        for index, layer in enumerate(self.layer):
            hidden = layer(hidden, positions, self.distance, arrow)
            if index == 0 and self.conv is not None:
                hidden = self.conv(embedded, hidden, mask)
        return hidden

    def relative_embeddings(self) -> Tensor | None:
        """*Shape:* (P, d), row b(r) for distance r."""
        if self.distance is None:
            return None
        weight = self.rel_embeddings.weight
        return self.LayerNorm(weight) if hasattr(self, "LayerNorm") else weight


class RelativeDistance:
    """b(r): the row of the relative embeddings for a distance r = i - j; exact near 0, logarithmic further away."""

    def __init__(self, config: DebertaV2Config):
        longest = getattr(config, "max_relative_positions", -1)
        self.longest = longest if longest > 0 else config.max_position_embeddings
        self.buckets = getattr(config, "position_buckets", -1)
        self.span = self.buckets if self.buckets > 0 else self.longest

    def rows(self, distance: Tensor) -> Tensor:
        """Integers of any shape -> rows 0 .. 2 span - 1 of the same shape."""
        if self.buckets > 0:
            # In float32, as the encoders were pretrained: the ceiling falls differently in another precision.
            mid = self.buckets // 2
            far = distance.abs().clamp(min=mid).float() / mid
            steps = torch.ceil(far.log() / math.log((self.longest - 1) / mid) * (mid - 1)) + mid
            distance = torch.where(distance.abs() <= mid, distance, (steps * distance.sign()).long())
        return (distance + self.span).clamp(0, 2 * self.span - 1)


class DebertaConvolution(nn.Module):
    """The convolution beside the first layer that the large DeBERTa-v2 models have."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        size = config.conv_kernel_size
        groups = getattr(config, "conv_groups", 1)
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, size, padding=(size - 1) // 2, groups=groups)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[getattr(config, "conv_act", "tanh")]

    def forward(self, embedded: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
        mask = mask[..., None].to(hidden.dtype)
        out = self.conv(embedded.transpose(1, 2)).transpose(1, 2) * mask
        return self.LayerNorm(hidden + self.activation(self.dropout(out))) * mask


class DebertaLayer(GradientCheckpointingLayer):
    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.attention = DebertaAttention(config)
        self.intermediate = DebertaIntermediate(config)
        self.output = DebertaOutput(config.intermediate_size, config)

    def forward(
        self, hidden: Tensor, positions: Tensor | None, distance: RelativeDistance | None, arrow: Arrow
    ) -> Tensor:
        attended = self.attention.self(hidden, positions, distance, arrow)
        attended = self.attention.output(attended, hidden)
        return self.output(self.intermediate(attended), attended)


class DebertaAttention(nn.Module):
    """Holds the two halves under the names that checkpoints use."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.self = DisentangledArrowAttention(config)
        self.output = DebertaOutput(config.hidden_size, config)


class DebertaIntermediate(nn.Module):
    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class DebertaOutput(nn.Module):
    """LayerNorm(residual + dropout(Linear(x)))."""

    def __init__(self, in_features: int, config: DebertaV2Config):
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


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
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.pos_dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden: Tensor, positions: Tensor | None, distance: RelativeDistance | None, arrow: Arrow
    ) -> Tensor:
        """(B, T, d) -> (B, T, d): every piece over its window and [CLS], [CLS] over everything."""
        query = self.split(self.query_proj(hidden)) * self.scale
        key, value = self.split(self.key_proj(hidden)), self.split(self.value_proj(hidden))
        keys_HPD, queries_HPD = self.position_tables(positions)
        if arrow.attention == "full":
            out = self.full(query, key, value, keys_HPD, queries_HPD, distance, arrow)
        else:
            out = self.window(query, key, value, keys_HPD, queries_HPD, distance, arrow)
            if arrow.attention == "arrow":
                row = self.cls_scores(query, key, keys_HPD, queries_HPD, distance)
                cls = self.attend(self.scale_cls(row, arrow), value, arrow.mask)
                out = torch.cat([cls, out[:, :, 1:]], dim=2)
        return out.transpose(1, 2).flatten(2)

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

    def window(self, query, key, value, keys_HPD, queries_HPD, distance, arrow: Arrow) -> Tensor:
        """Every piece over its window and, with arrow attention, [CLS] as the last key. -> (B, H, T, D)."""
        length, w = query.shape[2], arrow.window
        block = block_size(length)

        def blocks(states: Tensor, window: int) -> Tensor:  # (B, H, T, D) -> (B, H, M, K, D)
            return to_blocks(states.flatten(0, 1), block, window).unflatten(0, states.shape[:2])

        def key_blocks(states: Tensor) -> Tensor:
            found = blocks(states, w)
            return torch.cat([found, states[:, :, None, :1].expand(-1, -1, found.shape[2], -1, -1)], dim=3)

        scores = blocks(query, 0) @ key_blocks(key).transpose(-1, -2)
        scores = scores + self.window_bias(query, key, keys_HPD, queries_HPD, distance, arrow, block)
        out = self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ key_blocks(value)
        return out.flatten(2, 3)[:, :, :length]

    def window_bias(self, query, key, keys_HPD, queries_HPD, distance, arrow: Arrow, block: int) -> Tensor:
        """Position terms and masks of each block's scores: (B, H, M, Q, K + 1), -inf where a pair does not attend."""
        length, w = query.shape[2], arrow.window
        after = -length % block
        bias_BHTW = self.key_bias(key, queries_HPD, distance, arrow, after)
        if keys_HPD is not None:
            rows = distance.rows(torch.arange(w, -w - 1, -1, device=query.device))
            bias_BHTW = bias_BHTW + F.pad(query, (0, 0, 0, after)) @ keys_HPD[:, rows].transpose(-1, -2)
        bias = bias_BHTW.unflatten(2, (-1, block))
        # A block's row q reaches the keys q .. q + 2w of its K: padding each row to K + 2 and reading rows of K + 1
        # moves row q by q. What the padding leaves is -inf; the last key is [CLS].
        width = block + 2 * w + 1
        bias = F.pad(bias, (0, block + 1), value=-math.inf).flatten(3)[..., : block * width]
        bias = bias.unflatten(3, (block, width))
        if arrow.attention == "arrow":
            column = self.cls_column(query, key, keys_HPD, queries_HPD, distance)
            column = F.pad(column, (0, after)).unflatten(2, (-1, block))
            bias = torch.cat([bias[..., :-1], column[..., None]], dim=-1)
        return bias

    def key_bias(self, key, queries_HPD, distance, arrow: Arrow, after: int) -> Tensor:
        """k_j.QR[b(i - j)] where j is a key that i may see, else -inf, by query: (B, H, T + after, W)."""
        w = arrow.window
        column = torch.arange(2 * w + 1, device=key.device)
        key = F.pad(key, (0, 0, w, w + after))
        if queries_HPD is None:
            bias = key.new_zeros(*key.shape[:3], 2 * w + 1)
        else:
            bias = key @ queries_HPD[:, distance.rows(w - column)].transpose(-1, -2)
        real = F.pad(arrow.mask.bool(), (w, w + after))
        if arrow.attention == "arrow":
            real = real & (torch.arange(real.shape[1], device=key.device) != w)  # [CLS] has a column of its own
        # Padding still sees itself: a row without keys would be NaN, and spread.
        hidden = ~real[:, None, :, None] & (column != w)
        return skewed_view(bias.masked_fill(hidden, -math.inf))

    @staticmethod
    def cls_column(query, key, keys_HPD, queries_HPD, distance) -> Tensor:
        """The position terms of every piece's score for [CLS]: (B, H, T)."""
        length = query.shape[2]
        column = query.new_zeros(query.shape[:3])
        if distance is None:
            return column
        rows = distance.rows(torch.arange(length, device=query.device))
        if keys_HPD is not None:
            column = column + (query * keys_HPD[:, rows]).sum(-1)
        if queries_HPD is not None:
            column = column + (key[:, :, :1] @ queries_HPD.transpose(-1, -2))[:, :, 0, rows]
        return column

    @staticmethod
    def cls_scores(query, key, keys_HPD, queries_HPD, distance) -> Tensor:
        """[CLS]'s scores for every piece: (B, H, 1, T)."""
        length = key.shape[2]
        cls = query[:, :, :1]
        scores = cls @ key.transpose(-1, -2)
        if distance is None:
            return scores
        rows = distance.rows(-torch.arange(length, device=key.device))
        if keys_HPD is not None:
            scores = scores + (cls @ keys_HPD.transpose(-1, -2))[..., rows]
        if queries_HPD is not None:
            scores = scores + (key * queries_HPD[:, rows]).sum(-1)[:, :, None]
        return scores

    @staticmethod
    def scale_cls(scores: Tensor, arrow: Arrow) -> Tensor:
        """LogN-Scaling of the whole of [CLS]'s scores, the first row: (B, H, n, T) -> (B, H, n, T)."""
        scale = arrow.cls_scale()
        if scale is None:
            return scores
        return torch.cat([scores[:, :, :1] * scale.to(scores.dtype), scores[:, :, 1:]], dim=2)

    def attend(self, scores: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """(B, H, n, T) scores over the real ones of T values -> (B, H, n, D)."""
        scores = scores.masked_fill(~mask.bool()[:, None, None], -math.inf)
        return self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ value

    def full(self, query, key, value, keys_HPD, queries_HPD, distance, arrow: Arrow) -> Tensor:
        """The `full` ablation, T x T: what transformers' own DeBERTa computes, and LogN-Scaling."""
        scores = query @ key.transpose(-1, -2)
        if distance is not None:
            i = torch.arange(query.shape[2], device=query.device)
            rows = distance.rows(i[:, None] - i).expand(*scores.shape)
            if keys_HPD is not None:
                scores = scores + (query @ keys_HPD.transpose(-1, -2)).gather(-1, rows)
            if queries_HPD is not None:
                by_key = key @ queries_HPD.transpose(-1, -2)  # (B, H, T keys, P)
                scores = scores + by_key.gather(-1, rows.transpose(-1, -2)).transpose(-1, -2)
        return self.attend(self.scale_cls(scores, arrow), value, arrow.mask)
