"""Read the fields of a training run from a YAML file and the command line, which takes precedence."""

import argparse
import dataclasses
import difflib
import inspect
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from modeling_sener import SenerConfig
from modeling_sener.tokenization import word_splitter
from training.common.files import unreadable
from training.common.models import resolve


class FieldError(ValueError):
    """A field is unknown or missing, or its value cannot be used."""


@dataclass
class TrainingFields:
    """
    Every field of a run.

    Attributes:
        backbone: folder or Hub name of the encoder, or of a SeNER checkpoint to train further; or the short name of a
            bundled model.
        train_file, dev_file: JSON Lines files, or data sets (`NAME:SPLIT`), one or several (training/corpus/data.py).
        output_dir: becomes a Hub folder; files that only training needs are below its `checkpoints/`.
        labels: the label set, in the order of the outputs; by default the train file's labels, sorted.
        num_epochs, patience: the most epochs; epochs without a better dev F1 after which training stops.
        min_epoch_steps: steps that an epoch has at least; few windows are seen several times in it.
        fit_thresholds: after each epoch, fit a threshold for each label on dev, one for all labels with fewer than
            100 entities there, and save them with the model. The dev scores look better than they are then.
        average_epochs: the number of last epochs whose mean weights are evaluated and published.
        batch_size, gradient_accumulation_steps: windows of a batch on each process; batches of a step.
        learning_rate: of the encoder, or of its adapters.
        head_learning_rate: of everything else.
        max_norm_ratio: gradients are scaled down to this many times the norm that the run's gradients usually have.
        word_pattern: regular expression (Oniguruma) of a word, saved with the model; the checkpoint's own, or the
            processor's default, where it is not given.
        max_tokens: tokens of a training window. Evaluation always sees whole texts.
        empty_window_share: share of the training windows without an entity that an epoch draws, anew each time.
        mask_share: share of the input tokens that is masked, in whole words; 0 for none.
        masked_words_weight: weight of the masked-word loss, beside that of the spans; 0 leaves it out.
        lora_rank, lora_alpha: adapters on query and value projections; rank 0 trains the whole encoder.
        mixed_precision: "no", "bf16" or "fp16"; the weights stay float32. "auto" takes bf16 if the device computes it
            natively, else fp16 on an accelerator and "no" on the CPU.
        save_dtype: precision of the saved weights: "float32", "float16" or "bfloat16".
        save_steps: steps after which the run's state is saved for `--resume`; each epoch's end saves it, too.
        report_to: trackers of Accelerate ("tensorboard,wandb"), "none" for no tracker.
        timeout: minutes that processes wait for one that hangs; twice as many until training begins, as the first one
            reads the data alone.
        resume: go on from the newest state below `output_dir`, or start anew if there is none.
        model: the fields of `SenerConfig`.
    """

    backbone: str
    train_file: list
    dev_file: list
    output_dir: str
    labels: list | None = None
    num_epochs: int = 30
    patience: int = 10
    min_epoch_steps: int = 1
    fit_thresholds: bool = False
    average_epochs: int = 1
    batch_size: int = 1
    gradient_accumulation_steps: int = 16
    learning_rate: float = 3e-4
    head_learning_rate: float = 7e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    max_norm_ratio: float = 4.0
    word_pattern: str | None = None
    max_tokens: int = 5120
    empty_window_share: float = 1.0
    mask_share: float = 0.15
    masked_words_weight: float = 0.0
    lora_rank: int = 8
    lora_alpha: float = 16
    mixed_precision: str = "no"
    save_dtype: str = "float32"
    seed: int = 42
    save_steps: int = 100
    report_to: str = "tensorboard"
    timeout: float = 5.0
    resume: bool = False
    model: dict = field(default_factory=dict)

    def __post_init__(self):
        try:
            self.backbone = resolve(self.backbone)
        except ValueError as error:
            raise FieldError(f"backbone is {error}") from error
        for name in ("num_epochs", "patience", "min_epoch_steps", "average_epochs", "batch_size",
                     "gradient_accumulation_steps", "save_steps"):  # fmt: skip
            _must_be(self, name, getattr(self, name) >= 1, "an integer from 1")
        _must_be(self, "max_tokens", self.max_tokens >= 8, "an integer from 8")
        for name in ("learning_rate", "head_learning_rate", "max_norm_ratio", "lora_alpha", "timeout"):
            _must_be(self, name, getattr(self, name) > 0, "a number above 0")
        for name in ("lora_rank", "weight_decay", "seed", "masked_words_weight"):
            _must_be(self, name, getattr(self, name) >= 0, "a number from 0")
        for name in ("warmup_share", "mask_share"):
            _must_be(self, name, 0 <= getattr(self, name) < 1, "a number from 0 to below 1")
        _must_be(self, "empty_window_share", 0 <= self.empty_window_share <= 1, "a number from 0 to 1")
        _must_be(self, "masked_words_weight", self.masked_words_weight == 0 or self.mask_share > 0,
                 "0 where mask_share is 0, as no word is masked")  # fmt: skip
        for name, choices in (("mixed_precision", ("no", "bf16", "fp16", "auto")),
                              ("save_dtype", ("float32", "float16", "bfloat16"))):  # fmt: skip
            _must_be(self, name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        if self.word_pattern is not None:
            try:
                word_splitter(self.word_pattern)
            except ValueError as error:
                raise FieldError(str(error)) from error
        for name in FILES:
            files = getattr(self, name)
            _must_be(self, name, files and all(isinstance(file, str) for file in files), "a file or a list of files")
        strings = self.labels is None or (self.labels and all(isinstance(label, str) for label in self.labels))
        _must_be(self, "labels", strings and len(set(self.labels or ())) == len(self.labels or ()),
                 "a list of different labels")  # fmt: skip


FILES = ("train_file", "dev_file")
# On the command line: YAML would make a number, a date or a boolean of 1, 2025-01-01 and NO.
AS_WRITTEN = ("labels", "word_pattern", "backbone", "output_dir", "report_to")
OWN_FIELDS = {item.name: item.type for item in dataclasses.fields(TrainingFields) if item.name != "model"}
REQUIRED = ("backbone", "train_file", "dev_file", "output_dir")
MODEL_FIELDS = [
    name
    for name, parameter in inspect.signature(SenerConfig.__init__).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name not in ("self", "backbone_config")
]


def parse_fields(arguments: list[str] | None = None, description: str | None = None) -> TrainingFields:
    """
    Read fields from `--config FILE` and `--field value`.

    Raises:
        FieldError: a field is unknown, missing or wrong; the message names it. An unknown field on the command line
            ends the program with exit code 2, as argparse does.
    """
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file of fields; those on the command line win")
    for name in [*OWN_FIELDS, *MODEL_FIELDS]:
        if name == "resume":
            parser.add_argument("--resume", nargs="?", const="true", help="go on from the newest state")
        elif name in FILES:
            parser.add_argument(f"--{name}", nargs="+", metavar="FILE")
        else:
            parser.add_argument(f"--{name}", metavar="VALUE")
    given = vars(parser.parse_args(arguments))
    config = given.pop("config")
    values = _read_yaml(config) if config else {}
    values.update({name: value if name in (*FILES, *AS_WRITTEN) else _read_value(name, value)
                   for name, value in given.items() if value is not None})  # fmt: skip
    missing = [name for name in REQUIRED if not values.get(name)]
    if missing:
        raise FieldError(f"no value for {', '.join(missing)}: set it in the YAML file or with --{missing[0]}")
    own = {name: _convert(name, value) for name, value in values.items() if name in OWN_FIELDS}
    model = {name: _number(value) for name, value in values.items() if name in MODEL_FIELDS}
    return TrainingFields(**own, model=model)


def _read_value(name: str, text: str):
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise FieldError(f"--{name} {text!r}: not a value in YAML: {' '.join(str(error).split())}") from error


def _as_written(text: str, name: str) -> list:
    """The items of a list in a YAML mapping as strings, which YAML would else turn into values: NO, on, 1."""
    mapping = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = {key.value: value for key, value in mapping.value}
    return [item.value for item in nodes[name].value]


def _read_yaml(path: str) -> dict:
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        if isinstance(values, dict) and isinstance(values.get("labels"), list):
            values["labels"] = _as_written(text, "labels")
    except OSError as error:
        raise FieldError(unreadable(path, error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        hint = ": put it into quotes" if "cannot start any token" in str(error) else ""
        raise FieldError(f"{path}: not valid YAML: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(values, dict):
        raise FieldError(f"{path}: expected fields (`name: value`), found {values!r}")
    known = [*OWN_FIELDS, *MODEL_FIELDS]
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            raise FieldError(f"{path}: unknown field {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return values


def _convert(name: str, value):
    """Convert to the type of field `name`. YAML reads `3e-4` as a string and `no` as false; labels may be `a,b,c`."""
    kind = OWN_FIELDS[name]
    if kind is float:
        value = _number(value)
        value = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    elif kind is str:
        value = "no" if value is False else value
    elif name in FILES and isinstance(value, str):
        value = [value]
    elif kind == list | None and isinstance(value, str):
        value = [label.strip() for label in value.split(",") if label.strip()]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = {
            int: "an integer",
            float: "a number",
            bool: "true or false",
            str: "a string",
            str | None: "a string",
        }
        raise FieldError(f"{name} is {value!r}: expected {expected.get(kind, 'a list')}")
    return value


def _number(value):
    """Convert a string to a number if it is one; return anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _must_be(fields: TrainingFields, name: str, holds: bool, expected: str):
    if not holds:
        raise FieldError(f"{name} is {getattr(fields, name)!r}: expected {expected}")
