"""
DeBERTa-v2/v3 with arrow attention: transformers builds T x T relative positions, this encoder nothing of that size.

Weights keep the names of transformers' DeBERTa, so that published checkpoints load by name.

B batch, T tokens, d hidden size, H heads, D head size, P rows of the relative embeddings, n tokens of a chunk.
"""

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .arrow_attention import ArrowAttentionContext
from .disentangled_attention import ClsAttention, DisentangledArrowAttention, RelativeDistance
from .dropout import Dropout


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
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        arrow: ArrowAttentionContext,
        position_ids: Tensor | None = None,
    ) -> BaseModelOutput:
        hidden = self.embeddings(input_ids, attention_mask, position_ids, arrow)
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
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, mask: Tensor, position_ids: Tensor | None, arrow: ArrowAttentionContext
    ) -> Tensor:
        """(B, T) -> (B, T, d)."""
        hidden = None
        for tokens in arrow.chunks(input_ids.shape[1]):
            positions = None if position_ids is None else position_ids[:, tokens]
            made = self.embed(input_ids[:, tokens], mask[:, tokens], positions)
            if made.shape[1] == input_ids.shape[1]:
                return made
            if hidden is None:
                hidden = made.new_empty(*input_ids.shape, made.shape[-1])
            hidden[:, tokens] = made
        return hidden

    def embed(self, input_ids: Tensor, mask: Tensor, position_ids: Tensor | None) -> Tensor:
        hidden = self.word_embeddings(input_ids)
        if hasattr(self, "position_embeddings"):
            hidden = hidden + self.position_embeddings(position_ids)
        if hasattr(self, "token_type_embeddings"):
            hidden = hidden + self.token_type_embeddings.weight[0]
        if hasattr(self, "embed_proj"):
            hidden = self.embed_proj(hidden)
        hidden = self.LayerNorm(hidden)
        return self.dropout(hidden * mask[..., None].to(hidden.dtype))


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

    def forward(self, hidden: Tensor, mask: Tensor, arrow: ArrowAttentionContext) -> Tensor:
        embedded = None if self.conv is None else hidden.clone()  # layers overwrite their input
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


class DebertaConvolution(nn.Module):
    """The convolution beside the first layer that the large DeBERTa-v2 models have."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        size = config.conv_kernel_size
        groups = getattr(config, "conv_groups", 1)
        self.conv = nn.Conv1d(config.hidden_size, config.hidden_size, size, padding=(size - 1) // 2, groups=groups)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
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
        self, hidden: Tensor, positions: Tensor | None, distance: RelativeDistance | None, arrow: ArrowAttentionContext
    ) -> Tensor:
        """(B, T, d) -> (B, T, d). With several chunks the result overwrites `hidden`: one hidden state, whatever T."""
        attention = self.attention.self
        terms = attention.position_terms(positions, distance)
        residual = hidden[:, :1].clone()
        cls = ClsAttention(attention, residual, terms, arrow)
        for tokens, attended in attention.attend_in_chunks(hidden, terms, cls, arrow):
            made = self.finish(attended, hidden[:, tokens])
            if made.shape[1] == hidden.shape[1]:
                hidden = made
            else:
                hidden[:, tokens] = made
        if arrow.attention == "sliding_window":
            return hidden
        made = self.finish(cls.attended(), residual)
        if torch.is_grad_enabled():
            return torch.cat([made, hidden[:, 1:]], dim=1)
        hidden[:, :1] = made
        return hidden

    def finish(self, attended: Tensor, residual: Tensor) -> Tensor:
        """From attention's (B, n, H D) to the layer's output (B, n, d)."""
        attended = self.attention.output(attended, residual)
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
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
