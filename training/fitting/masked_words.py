"""
Predict the masked words beside the spans: masked language modelling (Devlin et al. 2019, BERT) as an auxiliary task on
the training texts (Dery et al. 2022, "Should We Be Pre-training? An Argument for End-task Aware Training as an
Alternative"). The published model has none of its weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_sener import SenerModel
from modeling_sener.modeling_sener import SenerOutput
from training.corpus.masking import NOT_MASKED


class MaskedWords(nn.Module):
    """
    A model in training, and a head that predicts the masked tokens from the encoder's states: dense layer, GELU and
    LayerNorm as in BERT, then a score for each token of the vocabulary, with the encoder's own embeddings as weights.

    Args:
        weight: of the masked tokens' loss, summed over a window, relative to the loss of its spans.
    """

    def __init__(self, model: SenerModel, weight: float):
        super().__init__()
        self.model, self.weight = model, weight
        embeddings = model.backbone.get_input_embeddings()
        self.states = nn.Sequential(
            nn.Linear(model.backbone.config.hidden_size, embeddings.embedding_dim),
            nn.GELU(),
            nn.LayerNorm(embeddings.embedding_dim),
        )
        self.bias = nn.Parameter(torch.zeros(embeddings.num_embeddings))
        nn.init.normal_(self.states[0].weight, std=0.02)
        nn.init.zeros_(self.states[0].bias)
        self.hidden = None  # (B, T, d), from the encoder's pass to the loss
        model.backbone.register_forward_hook(self.keep_hidden)

    def keep_hidden(self, backbone: nn.Module, inputs: tuple, output) -> None:
        self.hidden = output.last_hidden_state

    def forward(self, masked_ids: Tensor, **inputs) -> SenerOutput:
        """
        Args:
            masked_ids: *Shape:* (B, T), the original token at masked positions, `NOT_MASKED` elsewhere.
            inputs: the model's own inputs, with `labels`.

        Returns:
            One loss, a mean over the windows: that of the spans plus `weight` times that of the masked tokens; and the
            logits of the spans.
        """
        output = self.model(**inputs)
        hidden, self.hidden = self.hidden, None
        masked = masked_ids != NOT_MASKED
        scores = F.linear(self.states(hidden[masked]), self.model.backbone.get_input_embeddings().weight, self.bias)
        guessing = F.cross_entropy(scores.float(), masked_ids[masked], reduction="sum")
        return SenerOutput(loss=output.loss + self.weight * guessing / len(masked_ids), logits=output.logits)
