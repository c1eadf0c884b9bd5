"""
Guessing the masked words while the spans are learnt: masked language modelling (Devlin et al. 2019, BERT) as an
auxiliary task on the training texts themselves (Dery et al. 2022, "Should We Be Pre-training? An Argument for End-task
Aware Training as an Alternative"). Nothing of it is published with the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_sener import SenerModel
from modeling_sener.modeling_sener import SenerOutput
from training.corpus.masking import NOT_MASKED


class MaskedWords(nn.Module):
    """
    A model in training beside a head that guesses the masked tokens from the encoder's states: a layer, GELU and a
    norm as BERT has them, then a score for each token of the vocabulary by the encoder's own embeddings.

    Args:
        weight: of the loss of a window's masked tokens, summed, against the loss of its spans.
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
            masked_ids: *Shape:* (B, T), the text's own token where another is in its place, `NOT_MASKED` elsewhere.
            inputs: what the model takes, `labels` among it.

        Returns:
            With one loss, a mean over the windows: that of the spans and `weight` times that of the masked tokens.
        """
        output = self.model(**inputs)
        hidden, self.hidden = self.hidden, None
        masked = masked_ids != NOT_MASKED
        scores = F.linear(self.states(hidden[masked]), self.model.backbone.get_input_embeddings().weight, self.bias)
        guessing = F.cross_entropy(scores.float(), masked_ids[masked], reduction="sum")
        return SenerOutput(loss=output.loss + self.weight * guessing / len(masked_ids), logits=output.logits)
