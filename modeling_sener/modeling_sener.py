r"""
SeNER: an encoder with arrow attention, a biaffine band of word pairs, and BiSPA blocks over it.

The model's equations, each cited by its number where it is computed (`grep -n "eq. 5\b" *.py`). The numbers are this
code's own; the paper is Chen, Zhang, Tang, "Small Language Model Makes an Effective Long Text Extractor".

- eq. 1, arrow attention: token i attends to token j if |i - j| <= w, i = 0 or j = 0 (arrow_attention.py)
- eq. 2, LogN-Scaling: [CLS]'s scores are multiplied by log(L) / log(512), L tokens (arrow_attention.py)
- eq. 3, DeBERTa's score: (q_i.k_j + q_i.KR[b(i - j)] + k_j.QR[b(i - j)]) / sqrt(3 D) (disentangled_attention.py)
- eq. 4, word states: x_n = max over the word's tokens, elementwise (pooling.py)
- eq. 5, biaffine: S_c(i, j) = â_i^T U_c ê_j + W_c [â_i ; ê_j], a_i = GELU(Linear_s(x_i)), e_j likewise (bispa.py)
- eq. 6, triangles: Z <- Z + m[k >= w] (bispa.py)
- eq. 7, plus-shaped attention: Zh along the rows, Zv along the columns of the square (bispa.py)
- eq. 8, its residual: Z1 = LN(Z + Dense([Zh ; Zv])) (bispa.py)
- eq. 9, convolutions: Z2 = LN(Z1 + Conv(GELU(Conv(Z1)))) (bispa.py)
- eq. 10, logits: Y = Linear(Z + S), Z after the last block (modeling_sener.py)
- eq. 11, loss: binary cross-entropy, summed over valid cells and labels of a text (modeling_sener.py)
- eq. 12, probability of a span: P(i, j), the mean of the cells (i, j) and (j, i) (decoding.py)

B batch, T tokens, N words, d hidden size, w window, W band columns, b before the diagonal, C channels, R labels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

# Every file of the folder is imported here, used or not: loading a model fetches the files that this one imports
# (older releases of transformers do not follow their imports), and saving a model writes the fetched files.
from .arrow_attention import NAME, ArrowAttentionContext
from .band import Band, must_run_whole
from .bispa import BiaffineBand, BilinearWeight, BiSPABlock
from .checks import check_one_device, check_weights, explain, is_finite
from .chunked_layers import compute_layers_in_chunks
from .configuration_sener import SenerConfig
from .deberta_arrow import DebertaArrowModel
from .decoding import Candidates, find_candidates, span_probabilities
from .disentangled_attention import DisentangledArrowAttention  # noqa: F401
from .dropout import Dropout  # noqa: F401
from .gold import Gold  # noqa: F401
from .memory import split_where_memory_ends
from .pipeline_sener import SenerPipeline  # noqa: F401
from .pooling import pool_in_place, pool_words
from .processing_sener import SenerProcessor  # noqa: F401
from .row_executors import ChunkByChunk, WholeText, join_rows, with_halo
from .starts import LabelOutputs
from .texts import check_strings  # noqa: F401
from .tokenization import only_hub_options
from .training_inputs import TrainingInputs  # noqa: F401
from .windows import Window  # noqa: F401


CHUNK_SIZE_ON_CPU = 1024  # small: a chunk's tensors stay in the processor's caches
CHUNK_SIZE = 16384  # large: enough work for an accelerator
CELLS_PER_TOKEN = 48  # cells of the band in a chunk of the head, for each token in a chunk of the encoder
PRIOR = 1e-4  # a new model's probability that a cell is an entity: shares counted on data are 1e-6 to 2e-3 for a label


@dataclass
class SenerOutput(ModelOutput):
    """
    Args:
        loss: binary cross-entropy summed over a text's valid cells and labels, averaged over the batch; scalar.
        logits: *Shape:* (B, N, W, R): cell (i, k) is the pair of words (i, j = i + k - b). With both triangles b = w
            and W = 2w + 1, with the upper one b = 0 and W = w + 1. Cells that are not a pair of words of the text
            hold anything. With `span_window=None`, w is N - 1. In an exported program N is T.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class SenerModel(LabelOutputs, PreTrainedModel):
    """Scores of every pair of words, up to the window apart, for every label."""

    config_class = SenerConfig
    base_model_prefix = "sener"
    supports_gradient_checkpointing = True

    def __init__(self, config: SenerConfig):
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("SenerConfig.backbone_config is None: expected the configuration of an encoder")
        try:
            self.backbone = build_backbone(config.backbone_config)
        except Exception as error:  # each class of encoder has errors of its own
            kind = config.backbone_config.model_type
            raise ValueError(f"SenerConfig.backbone_config: no {kind} encoder can be made of it: {error}") from error
        size = config.backbone_config.hidden_size
        self.biaffine = BiaffineBand(size, config.biaffine_size, config.span_channels, config.biaffine_dropout)
        self.blocks = nn.ModuleList(
            BiSPABlock(
                config.span_channels,
                config.span_dropout,
                plus_shaped=config.span_interaction == "bispa",
                mirrored=config.vertical_readout == "mirrored",
                both_triangles=config.triangles == "both",
            )
            for _ in range(0 if config.span_interaction == "none" else config.span_layers)
        )
        self.classifier = nn.Linear(config.span_channels, config.num_labels)
        self.gradient_checkpointing = False  # `activation_checkpointing_enable` sets it
        self._no_split_modules = [*(self.backbone._no_split_modules or []), *(["BiSPABlock"] if self.blocks else [])]
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        As in transformers, but the weights are exactly the config's: none is left random, left out or not finite.

        Raises:
            ValueError: the files cannot be read, or lack weights, or hold others than the config says
                (`ignore_mismatched_sizes` makes those of other sizes anew), or NaN or infinity; or `triangles` is
                another one than the checkpoint's, whose weights would fit and mean something else.
        """
        name, remake = pretrained_model_name_or_path, kwargs.pop("ignore_mismatched_sizes", False)
        check_triangles(name, kwargs)
        try:
            model, info = super().from_pretrained(
                name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            reason = f"model.safetensors is damaged or incomplete ({error}): fetch it again"
            raise ValueError(f"{name}: {reason}") from error
        check_weights(model, {**info, "mismatched_keys": () if remake else info["mismatched_keys"]}, name)
        return (model, info) if output_loading_info else model

    @classmethod
    def from_backbone(
        cls, backbone: str, labels: list[str], triangles: str = "upper", **config_fields
    ) -> "SenerModel":
        """
        A new model, in float32: a pretrained encoder and a head to be trained.

        Args:
            backbone: an encoder's name on the Hub, or its folder.
            labels: label names, in the order of the outputs.
            triangles: "upper", or "both" for the paper's band, which holds each pair twice.
            config_fields: any other field of `SenerConfig`.
        """
        encoder_config = AutoConfig.from_pretrained(backbone)
        encoder_class = DebertaArrowModel if encoder_config.model_type == "deberta-v2" else AutoModel
        # Files of large encoders are often half precision; training needs float32.
        encoder, info = encoder_class.from_pretrained(
            backbone, config=encoder_config, dtype=torch.float32, output_loading_info=True
        )
        drop_pooler(encoder)
        # The files may hold more than an encoder, but no less.
        check_weights(encoder, {"missing_keys": set(info["missing_keys"]) & set(encoder.state_dict())}, backbone)
        config = SenerConfig(
            backbone_config=encoder_config.to_dict(), id2label=dict(enumerate(labels)), triangles=triangles,
            **config_fields,
        )  # fmt: skip
        model = cls(config)
        model.backbone.load_state_dict(encoder.state_dict())
        return model

    def _init_weights(self, module: nn.Module):
        """Initialise the head; the encoder, a `PreTrainedModel` itself, initialises its own weights."""
        if module is self.classifier:
            init.constant_(module.bias, math.log(PRIOR / (1 - PRIOR)))
            init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, BilinearWeight):
            init.normal_(module.weight, std=1 / module.weight.shape[-1])
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        word_index: Tensor,
        labels: Tensor | None = None,
    ) -> SenerOutput:
        """
        Args:
            input_ids: *Shape:* (B, T), the first token [CLS], padded on the right.
            attention_mask: *Shape:* (B, T), 1 for real tokens.
            word_index: *Shape:* (B, T), the 1-based word of each token, 0 for special tokens and padding.
            labels: *Shape:* (B, N, W, R), 0 or 1, of `band_labels`.

        Raises:
            FloatingPointError: the loss, or without labels a logit, is NaN or infinite; names the weight or module
                that it comes from.
        """
        words, lengths = self.encode(input_ids, attention_mask, word_index)
        band, num_words = self.band(words, lengths), words.shape[1]
        chunks = self.logit_chunks(words, band)
        del words  # the generator drops them as well, once it has their projections
        logits = join_rows(chunks, num_words)
        loss = None if labels is None else self.loss(logits, labels, band)
        # A compiled program has no branch on a value.
        if not torch.compiler.is_compiling() and not is_finite(logits if loss is None else loss):
            if loss is not None or not logits[band.mask(slice(0, num_words))].isfinite().all():
                raise self.not_finite("logits" if loss is None else "loss", input_ids, attention_mask, word_index)
        return SenerOutput(loss=loss, logits=logits)

    def not_finite(self, what: str, *inputs: Tensor) -> FloatingPointError:
        """Make the error for a result that is not finite; it names the weight or module that is the cause."""

        def compute():
            words, lengths = self.encode(*inputs)
            for _ in self.logit_chunks(words, self.band(words, lengths)):
                pass

        return FloatingPointError(f"the {what} is not finite (NaN or infinity): {explain(self, compute)}")

    def encode(self, input_ids: Tensor, attention_mask: Tensor, word_index: Tensor) -> tuple[Tensor, Tensor]:
        """Word states (B, N, d), zeros past the end of a text, and the number of words of each text (B,)."""
        check_one_device(self)
        config = self.config
        arrow = ArrowAttentionContext(
            config.attention,
            config.attention_window,
            config.log_n_scaling,
            attention_mask.bool(),
            self.chunk_size,
        )
        positions = wrapped_positions(self.backbone, input_ids.shape[1], input_ids.device)
        fields = {} if positions is None else {"position_ids": positions}
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, arrow=arrow, **fields)
        lengths = word_index.amax(dim=1)
        # A program's shapes follow from its inputs' shapes: an exported one has a word for every token.
        num_words = word_index.shape[1] if torch.compiler.is_exporting() else int(lengths.max())
        if must_run_whole():
            return pool_words(output.last_hidden_state, word_index, num_words), lengths
        return pool_in_place(output.last_hidden_state, word_index, num_words, self.chunk_size), lengths

    @property
    def chunk_size(self) -> int:
        """Tokens that inference computes at a time: the config's, or what suits the device."""
        return self.config.chunk_size or (CHUNK_SIZE_ON_CPU if self.device.type == "cpu" else CHUNK_SIZE)

    def band(self, words: Tensor, lengths: Tensor) -> Band:
        """The band of texts with the word states (B, N, d); without a span window it holds every pair of words."""
        window = self.config.span_window
        return Band.of(lengths, max(words.shape[1] - 1, 0) if window is None else window, self.config.triangles)

    def logit_chunks(self, words: Tensor, band: Band) -> Iterator[Tensor]:
        """Yield the logits of all rows in order, in chunks (B, n, W, R); in one chunk for gradients and exports."""
        num_words = words.shape[1]
        if num_words == 0:
            yield words.new_zeros(words.shape[0], 0, band.width, self.config.num_labels)
            return
        starts, ends = self.biaffine(words)
        del words  # the chunks need their projections only
        size = max(1, self.chunk_size * CELLS_PER_TOKEN // (starts.shape[0] * band.width))
        if must_run_whole():
            # Written without the loop, which an exported program cannot have.
            haloed = F.pad(ends, (0, 0, band.before, band.window))
            scores = self.biaffine.score_rows(starts, haloed, slice(0, num_words), band)
            yield self.classify(scores, band, WholeText(size))
        else:
            yield from self.classify(self.score_chunks(starts, ends, band, size), band, ChunkByChunk(num_words))

    def score_chunks(self, starts: Tensor, ends: Tensor, band: Band, size: int) -> Iterator[Tensor]:
        """Yield the biaffine scores (eq. 5) in chunks of `size` rows: (B, n, W, C)."""
        num_words = starts.shape[1]
        padded = F.pad(ends, (0, 0, band.before, band.window))
        for first in range(0, num_words, size):
            rows = slice(first, min(first + size, num_words))
            haloed = padded[:, rows.start : rows.stop + band.width - 1]
            yield self.biaffine.score_rows(starts[:, rows], haloed, rows, band)

    def classify(self, scores, band: Band, run: WholeText | ChunkByChunk):
        """Y = Linear(Z + S), Z the scores S after all blocks (eq. 10): (B, N, W, C) -> (B, N, W, R)."""
        cells, skip = run.tee(scores)
        for block in self.blocks:
            # Not the last block: backward begins with it, so that checkpointing it would save no memory.
            if self.gradient_checkpointing and self.training and block is not self.blocks[-1]:
                cells = self._gradient_checkpointing_func(block, cells, band, run)
            else:
                cells = block(cells, band, run)
        return run.map(lambda cells, scores, rows: self.classifier(cells + scores), cells, skip, owner=self.classifier)

    @torch.no_grad()
    def find_candidates(
        self, input_ids: Tensor, attention_mask: Tensor, word_index: Tensor, thresholds: Tensor
    ) -> Candidates:
        """
        Find the spans whose score is at least their label's threshold, chunk by chunk. No logits are kept: memory
        grows with the text by little more than a hidden state. A batch that does not fit into memory is split.

        Args:
            thresholds: *Shape:* (R,), of `SenerProcessor.thresholds`.

        Returns:
            The candidates of all texts; `SenerProcessor.entities` chooses among them.

        Raises:
            TextTooLargeError: a text does not fit into memory, even alone; names it.
            FloatingPointError: a score is NaN or infinite; names the weight or module that it comes from.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "word_index": word_index}
        return split_where_memory_ends(partial(self._find_candidates, thresholds=thresholds), inputs)

    def _find_candidates(
        self, input_ids: Tensor, attention_mask: Tensor, word_index: Tensor, thresholds: Tensor
    ) -> Candidates:
        words, lengths = self.encode(input_ids, attention_mask, word_index)
        band, num_words = self.band(words, lengths), words.shape[1]
        chunks = self.logit_chunks(words, band)
        del words  # the generator drops them as well, once it has their projections
        found = Candidates.join([])
        # Joined after each chunk: small arrays kept between large ones that come and go would fragment the heap, until
        # it grows by more than the text.
        try:
            for logits, rows in with_halo(chunks, (0, band.before), num_words):  # cell (j, i) lies in row j
                if logits.device.type in ("mps", "xpu"):
                    logits = logits.cpu()  # scores are rounded from double precision, which these devices may lack
                probabilities = span_probabilities(logits, self.config.triangles, self.config.triangle_mean)
                found = Candidates.join([found, find_candidates(probabilities, thresholds, lengths, rows.start)])
        except FloatingPointError as error:
            raise self.not_finite("score", input_ids, attention_mask, word_index) from error
        return found

    def loss(self, logits: Tensor, labels: Tensor, band: Band) -> Tensor:
        """Binary cross-entropy over valid cells and labels, summed per text, averaged over the batch (eq. 11)."""
        if labels.shape != logits.shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}")
        weight = band.mask(slice(0, logits.shape[1]))[..., None].to(torch.float32)
        total = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), weight, reduction="sum")
        return total / logits.shape[0]


def check_triangles(name, options: dict) -> None:
    """Raise `ValueError` if `from_pretrained` is asked for other triangles than the checkpoint was trained with."""
    asked = getattr(options.get("config"), "triangles", options.get("triangles"))
    if name is None or asked is None:
        return
    fields, _ = SenerConfig.get_config_dict(name, **only_hub_options(options))
    trained = fields.get("triangles", "both")  # older files do not have the field
    if asked != trained:
        raise ValueError(
            f"{name}: SenerConfig.triangles is {asked!r}, this checkpoint was trained with {trained!r}: the weights "
            "would mean something else; leave the field out"
        )


def build_backbone(config) -> PreTrainedModel:
    """
    The encoder of a configuration, with random weights and arrow attention.

    Raises:
        ValueError: transformers computes this encoder's attention in the encoder's own code.
    """
    if config.model_type == "deberta-v2":
        return DebertaArrowModel(config)
    backbone = AutoModel.from_config(config, attn_implementation=NAME)
    if not backbone._supports_attention_backend:
        raise ValueError(
            f"{config.model_type}: transformers computes the attention of this encoder in its own code, not through "
            "AttentionInterface, so that it cannot read long texts here: take another encoder (bert, roberta, "
            "xlm-roberta, electra, distilbert, modernbert, deberta-v2, ...)"
        )
    drop_pooler(backbone)
    compute_layers_in_chunks(backbone)
    return backbone


def drop_pooler(backbone: nn.Module):
    """Remove a pooler, whose weights would be saved but never trained nor read."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None


def wrapped_positions(backbone: nn.Module, length: int, device: torch.device) -> Tensor | None:
    """
    Make the positions for an encoder with a learned position table, *Shape:* (1, T): past the table's end they start
    again. RoBERTa's begin after its padding entry.

    Returns `None` for encoders without a table (relative, rotary positions).
    """
    for name, table in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            first = 0 if table.padding_idx is None else table.padding_idx + 1
            positions = torch.arange(length, device=device) % (table.num_embeddings - first)
            return (positions + first)[None]
    return None
