"""Save and load checkpoints; each is a complete Hub folder."""

import os
import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers.utils import logging

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.common.cli import first_line
from training.common.files import nearest, writing
from training.fitting.lora import merged_state_dict


SHARD_SIZE = "5GB"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CheckpointError(ValueError):
    """A folder or repository is not a SeNER checkpoint."""


def save_checkpoint(model: SenerModel, processor: SenerProcessor, folder: str | Path, dtype: str = "float32",
                    advice: str = "") -> None:  # fmt: skip
    """
    Write a Hub folder: code, config, tokenizer and weights, adapters merged. The files are written aside and moved to
    their places one by one, the weights last.

    Args:
        dtype: precision of the stored weights. The config always says float32, so that a plain `from_pretrained`
            computes in float32: half precision halves the file size only.
        advice: the end of a `WriteError`'s message.

    Raises:
        WriteError: a file cannot be written, as on a full disk; the previous checkpoint is kept.
    """
    folder = Path(folder)
    aside = folder / "checkpoints" / "saving"
    shutil.rmtree(aside, ignore_errors=True)
    state = {name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
             for name, tensor in merged_state_dict(model).items()}  # fmt: skip
    with writing(folder, advice):
        model.save_pretrained(aside, state_dict=state)
        processor.save_pretrained(aside)
        for file in sorted(aside.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            os.replace(file, folder / file.name)
        aside.rmdir()


def save_stored(model: SenerModel, source: Path, folder: Path) -> None:
    """Save config, code and weights, with the weights in the precision of `source`."""
    stored = {}
    for file in sorted(source.glob("model*.safetensors")):
        stored |= load_file(file)
    model.save_pretrained(folder, state_dict=stored, max_shard_size=SHARD_SIZE)


def load_checkpoint(name: str | Path) -> tuple[SenerModel, SenerProcessor]:
    """
    Load model (float32, evaluation mode) and processor from a folder or a Hub repository.

    Raises:
        CheckpointError: this is no SeNER checkpoint, or its files are damaged, incomplete, or do not belong together.
    """
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise CheckpointError(f"{name}: not a SeNER checkpoint (a folder with a config.json)")
    try:
        fields, _ = SenerConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: not a SeNER checkpoint: {first_line(error).rstrip('.')}{nearest(name)}"
        ) from error
    found = fields.get("model_type") if isinstance(fields, dict) else None
    if found != SenerConfig.model_type:
        raise CheckpointError(f"{name}: not a SeNER checkpoint: config.json: model_type: found {found!r}")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings about the weights are errors here
    try:
        model = SenerModel.from_pretrained(name, dtype=torch.float32)
        processor = SenerProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error).removeprefix(f"{name}: ")
        raise CheckpointError(f"{name}: not a complete SeNER checkpoint: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
    tokens, known = len(processor.tokenizer), model.config.backbone_config.vocab_size
    if tokens > known:
        raise CheckpointError(f"{name}: tokenizer.json has {tokens} tokens, the weights {known}: they do not belong "
                              "together")  # fmt: skip
    return model.eval(), processor


def load_for_labels(name: str | Path, labels: list[str], config_fields: dict) -> tuple[SenerModel, SenerProcessor]:
    """
    Load a checkpoint to train it further: its encoder, head and tokenizer, with outputs for `labels`, as
    `SenerModel.set_labels` makes them. Prints which labels are kept and which are new.

    Args:
        config_fields: fields of `SenerConfig` that replace the checkpoint's own.

    Raises:
        CheckpointError: as `load_checkpoint`; `triangles` is another; or a field changes the sizes of weights.
    """
    trained, processor = load_checkpoint(name)
    triangles = config_fields.get("triangles", trained.config.triangles)
    if triangles != trained.config.triangles:
        raise CheckpointError(f"{name}: triangles is {triangles!r}, this checkpoint was trained with "
                              f"{trained.config.triangles!r}: leave the field out")  # fmt: skip
    known = trained.config.labels
    trained.set_labels(labels, processor)
    config = SenerConfig.from_dict({**trained.config.to_dict(), **config_fields})
    model = SenerModel(config)
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"{name}: its weights are of other sizes than the fields {', '.join(config_fields)} "
                              "say: leave out those that differ from its config.json") from error  # fmt: skip
    kept = [label for label in labels if label in known]
    new = [label for label in labels if label not in known]
    told = [f"{', '.join(some)} {how}" for some, how in ((kept, "kept"), (new, "new")) if some]
    PartialState().print(f"{name} is trained further; of the labels, {'; '.join(told)}")
    return model, SenerProcessor(processor.tokenizer, config, processor.word_pattern)
