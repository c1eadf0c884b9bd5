"""Configuration of SeNER: every number of the model, validated."""

import copy
import math
import shutil
from numbers import Real
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig
from transformers.activations import ACT2FN
from transformers.utils.versions import require_version


require_version("torch>=2.7.0", "pip install -U torch")
require_version("transformers>=5.0.0", "SeNER needs the attention interface of version 5: pip install -U transformers")

CHOICES = {
    "attention": ("arrow", "sliding_window", "full"),
    "span_interaction": ("bispa", "cnn", "none"),
    "triangles": ("both", "upper"),
    "vertical_readout": ("mirrored", "transposed"),
    "triangle_mean": ("logit", "probability"),
    "labels_per_span": ("all", "best"),
}
# The least and the most of each integer field. More is a mistake, which would take hours or all the memory.
RANGES = {
    "attention_window": (1, 65_536),
    "span_window": (1, 4_096),  # attention in a row of the band costs its square
    "biaffine_size": (1, 2_048),
    "span_channels": (1, 1_024),
    "span_layers": (0, 64),
    "chunk_size": (1, 2**40),
}
RANGES_OF_BACKBONE = {
    "vocab_size": (1, 2**20),
    "hidden_size": (1, 2**14),
    "intermediate_size": (1, 2**17),
    "num_hidden_layers": (1, 256),
    "num_attention_heads": (1, 1_024),
    "max_position_embeddings": (1, 2**20),
    "type_vocab_size": (0, 2**16),
}
LARGEST_OF_BACKBONE = 2**22  # limit of any other integer
OR_NONE = {"span_window": "None for the whole square", "chunk_size": "None for what suits the device"}
# Fields of an encoder's configuration without any effect here; wrong values would still make transformers fail.
UNREAD_OF_BACKBONE = ("add_cross_attention", "chunk_size_feed_forward", "dtype", "id2label", "is_decoder", "label2id",
                      "num_labels", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
                      "torch_dtype", "use_cache")  # fmt: skip
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation", "conv_act")
DTYPES = ("float32", "float64", "float16", "bfloat16")
# Written to config.json: makes a folder of code and weights a Hub repository that loads by itself.
AUTO_MAP = {
    "AutoConfig": "configuration_sener.SenerConfig",
    "AutoModel": "modeling_sener.SenerModel",
    "AutoProcessor": "processing_sener.SenerProcessor",
}
CUSTOM_PIPELINES = {
    "entity-extraction": {"impl": "pipeline_sener.SenerPipeline", "pt": ["AutoModel"], "tf": [], "type": "text"}
}


class SenerConfig(PretrainedConfig):
    r"""
    Configuration of a [`SenerModel`] (Chen, Zhang, Tang: "Small Language Model Makes an Effective Long Text
    Extractor", AAAI 2025). A value out of range raises `ValueError` with the field's name and the value.

    Args:
        backbone_config (`dict` or `PretrainedConfig`):
            Configuration of the encoder, with its `model_type`: any encoder of transformers whose
            attention goes through its `AttentionInterface`, or DeBERTa-v2 and -v3.
        attention (`"arrow"`, `"sliding_window"` or `"full"`):
            Keys of the encoder's tokens: a window and [CLS], which sees all tokens; the window alone; all tokens.
        attention_window (`int`):
            Tokens on either side that a token attends to (the paper's window of arrow attention).
        log_n_scaling (`bool`):
            Multiply [CLS]'s scores by log(L) / log(512), L the number of tokens of the text.
        span_window (`int` or `None`):
            w: pairs of words up to w apart are scored, so that an entity has at most w + 1 words. `None` scores all
            pairs of a text: the quadratic baseline.
        triangles (`"both"` or `"upper"`):
            The paper's band, which holds each pair as (i, j) and as (j, i), or only the cells with start <= end, about
            half of them (as `SenerModel.from_backbone` makes models). It decides what the weights mean: a checkpoint
            keeps its own.
        biaffine_size (`int`): p, the size of the start and end vectors.
        span_channels (`int`): C, the channels of a cell of the span tensor; even.
        span_layers (`int`): the number of span interaction blocks.
        span_interaction (`"bispa"`, `"cnn"` or `"none"`):
            Plus-shaped attention and convolutions; convolutions alone; no interaction between cells.
        vertical_readout (`"mirrored"` or `"transposed"`):
            Cell (i, j) joins row i with column i (the released code), or with column j (the paper). `None`: mirrored
            with both triangles, transposed with the upper one.
        triangle_mean (`"logit"` or `"probability"`):
            Quantity averaged over the cells (i, j) and (j, i) of a span; has no effect with the upper triangle.
        labels_per_span (`"all"` or `"best"`):
            Every label above its threshold, or only the best of them.
        biaffine_dropout, span_dropout (`float`): dropout of the biaffine layers and of the blocks, in [0, 1).
        threshold (`float` or `dict[str, float]`): score from which a span is accepted, in [0, 1]; one, or one a label.
        allow_nested (`bool`): accept a span inside another one.
        cross_blank_lines (`bool`): accept a span that holds a blank line. Training sets it to whether an entity of the
            training data does.
        chunk_size (`int`): tokens of a batch that are computed at a time, with 48 cells of the band for each; encoders
            of transformers take at least 16 attention windows. In inference it changes time and memory only; in
            training also which cells dropout drops. `None`: 1,024 on the CPU, 16,384 on an accelerator.
    """

    model_type = "sener"

    def __init__(
        self,
        backbone_config=None,
        attention="arrow",
        attention_window=128,
        log_n_scaling=True,
        span_window=128,
        triangles="both",
        biaffine_size=100,
        span_channels=32,
        span_layers=2,
        span_interaction="bispa",
        vertical_readout=None,
        triangle_mean="logit",
        labels_per_span="all",
        biaffine_dropout=0.4,
        span_dropout=0.2,
        threshold=0.5,
        allow_nested=True,
        cross_blank_lines=True,
        chunk_size=None,
        **kwargs,
    ):
        self.backbone_config = _revive(backbone_config)
        self.attention = attention
        self.attention_window = attention_window
        self.log_n_scaling = log_n_scaling
        self.span_window = span_window
        self.triangles = triangles
        self.biaffine_size = biaffine_size
        self.span_channels = span_channels
        self.span_layers = span_layers
        self.span_interaction = span_interaction
        if vertical_readout is None:
            vertical_readout = "mirrored" if triangles == "both" else "transposed"
        self.vertical_readout = vertical_readout
        self.triangle_mean = triangle_mean
        self.labels_per_span = labels_per_span
        self.biaffine_dropout = biaffine_dropout
        self.span_dropout = span_dropout
        self.threshold = threshold
        self.allow_nested = allow_nested
        self.cross_blank_lines = cross_blank_lines
        self.chunk_size = chunk_size
        _check_given(kwargs)
        try:
            super().__init__(**kwargs)
        except Exception as error:  # each field of every model of transformers has errors of its own
            raise ValueError(f"SenerConfig: {error}") from error
        if self.label2id is None and isinstance(self.id2label, dict):
            self.label2id = {label: i for i, label in self.id2label.items()}
        self.check()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in transformers; raises `ValueError` for fields that are not a SeNER model's."""
        if not isinstance(config_dict, dict):
            raise ValueError(f"config.json holds a {type(config_dict).__name__}: expected the fields of a SenerConfig")
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(f"SenerConfig.model_type is {found!r}: expected {cls.model_type!r}")
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """
        Write `config.json` and the code that it names: with weights and tokenizer beside them, a Hub repository.

        The config asks for float32, whatever precision the weights are stored in; `dtype` overrides it at loading.
        """
        config = copy.deepcopy(self)
        config.dtype = "float32"
        # After loading from the Hub these name its repository; saved, they name the files beside config.json.
        config.auto_map = dict(AUTO_MAP)
        config.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super(SenerConfig, config).save_pretrained(save_directory, **kwargs)
        here, folder = Path(__file__).parent, Path(save_directory)
        if here.resolve() != folder.resolve():
            for file in here.glob("[!_]*.py"):
                shutil.copyfile(file, folder / file.name)

    @property
    def labels(self) -> list[str]:
        """Labels in the order of the model's outputs."""
        return [self.id2label[i] for i in range(len(self.id2label))]

    def check(self):
        """Raise `ValueError` naming the first field whose value cannot be used."""
        for field, choices in CHOICES.items():
            _require(self, field, getattr(self, field) in choices, f"one of {', '.join(map(repr, choices))}")
        for field, (least, most) in RANGES.items():
            value, expected = getattr(self, field), f"an integer from {least} to {most}"
            if field in OR_NONE:
                _require(self, field, value is None or _is_int(value, least, most), f"{expected}, or {OR_NONE[field]}")
            else:
                _require(self, field, _is_int(value, least, most), expected)
        _require(self, "span_channels", self.span_channels % 2 == 0, "even: rotary positions turn pairs of channels")
        for field in ("biaffine_dropout", "span_dropout"):
            value = getattr(self, field)
            _require(self, field, _is_number(value) and 0 <= value < 1, "a number from 0 to below 1")
        for field in ("log_n_scaling", "allow_nested", "cross_blank_lines"):
            _require(self, field, isinstance(getattr(self, field), bool), "true or false")
        _require(self, "vertical_readout", self.triangles == "both" or self.vertical_readout == "transposed",
                 "'transposed' with triangles 'upper', which has no cell (j, i) to mirror")  # fmt: skip
        self._check_labels()
        if isinstance(self.threshold, dict):
            _require(self, "threshold", set(self.threshold) == set(self.labels),
                     f"a number, or one for each label of {self.labels}")  # fmt: skip
        values = self.threshold.values() if isinstance(self.threshold, dict) else [self.threshold]
        _require(self, "threshold", all(_is_number(v) and 0 <= v <= 1 for v in values), "within 0 to 1")

    def _check_labels(self):
        labels = self.id2label
        _require(self, "id2label", isinstance(labels, dict) and len(labels) > 0, "a dict with at least one label")
        _require(self, "id2label", sorted(labels) == list(range(len(labels))), "numbered from 0 without gaps")
        _require(self, "id2label", all(isinstance(v, str) and v for v in labels.values())
                 and len(set(labels.values())) == len(labels), "different, non-empty strings")  # fmt: skip
        _require(
            self, "label2id", self.label2id == {label: i for i, label in labels.items()}, "id2label the other way"
        )


def _revive(backbone_config):
    """Make the encoder's configuration an object of its own class, without network."""
    if backbone_config is None:
        return None  # transformers builds an empty configuration to find the defaults
    if isinstance(backbone_config, dict):
        fields = {name: value for name, value in backbone_config.items() if name not in UNREAD_OF_BACKBONE}
        model_type = fields.pop("model_type", None)
        if not isinstance(model_type, str):
            raise ValueError(f"backbone_config.model_type is {model_type!r}: name an encoder of transformers")
        try:
            backbone_config = AutoConfig.for_model(model_type, **fields)
        except Exception as error:  # each class of encoder has errors of its own
            raise ValueError(f"backbone_config with model_type {model_type!r}: {error}") from error
    if not isinstance(backbone_config, PretrainedConfig):
        raise ValueError(f"backbone_config is {backbone_config!r}: expected a dict or a PretrainedConfig")
    _check_backbone(backbone_config)
    # The outer model sets the precision; a dtype of the encoder would override it.
    backbone_config.dtype = None
    backbone_config.name_or_path = ""  # often a path of the machine that made it
    return backbone_config


def _check_backbone(config: PretrainedConfig):
    """Raise `ValueError` naming the first field of an encoder that would fail later or change its results."""

    def require(field: str, holds: bool, expected: str):
        if not holds:
            name = config.attribute_map.get(field, field)
            raise ValueError(f"backbone_config.{name} is {getattr(config, field)!r}: expected {expected}")

    for field, (least, most) in RANGES_OF_BACKBONE.items():
        require(field, _is_int(getattr(config, field, most), least, most), f"an integer from {least} to {most}")
    heads, pad = config.num_attention_heads, config.pad_token_id
    require("hidden_size", config.hidden_size % heads == 0, f"a multiple of num_attention_heads, {heads}")
    require("pad_token_id", pad is None or _is_int(pad, 0, config.vocab_size - 1), "a number of the vocabulary")
    buckets, longest = getattr(config, "position_buckets", 0), getattr(config, "max_relative_positions", 0)
    require("position_buckets", _is_int(buckets, -1, LARGEST_OF_BACKBONE), "an integer from -1")
    field = "max_relative_positions" if longest > 0 else "max_position_embeddings"
    require(field, buckets <= 0 or getattr(config, field) > buckets // 2 + 1, "more than half of position_buckets")
    for field, value in config.to_dict().items():
        if isinstance(value, int):
            require(field, abs(value) <= LARGEST_OF_BACKBONE, f"an integer up to {LARGEST_OF_BACKBONE}")
        if "dropout" in field and value is not None:
            require(field, _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
        elif field.endswith("eps"):
            require(field, _is_number(value) and value >= 0, "a number from 0")
        elif field in ACTIVATIONS:
            require(field, value in ACT2FN, "an activation of transformers")


def _require(config, field: str, holds: bool, expected: str):
    if not holds:
        raise ValueError(f"SenerConfig.{field} is {getattr(config, field)!r}: expected {expected}")


def _check_given(fields: dict):
    """Check the fields of every model that transformers itself does not check."""
    labels = fields.get("id2label", {})
    if not isinstance(labels, dict) or not all(str(number).isdecimal() for number in labels):
        raise ValueError(f"SenerConfig.id2label is {labels!r}: expected a dict from numbers to labels")
    least, most = (len(labels), len(labels)) if labels else (1, LARGEST_OF_BACKBONE)
    if "num_labels" in fields and not _is_int(fields["num_labels"], least, most):
        raise ValueError(f"SenerConfig.num_labels is {fields['num_labels']!r}: expected the number of labels")
    dtype = fields.get("dtype")
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise ValueError(f"SenerConfig.dtype is {dtype!r}: expected one of {', '.join(DTYPES)}")


def _is_int(value, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
