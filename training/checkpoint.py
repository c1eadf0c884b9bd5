"""Saving and loading checkpoints: each is a complete Hub folder."""

import os
import shutil
from pathlib import Path

import torch

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.lora import merged_state_dict


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class CheckpointError(ValueError):
    """A folder or repository that is not a SeNER checkpoint."""


def save_checkpoint(model: SenerModel, processor: SenerProcessor, folder: str | Path, dtype: str = "float32") -> None:
    """
    Write a Hub folder: code, config, tokenizer and weights, adapters merged.

    Args:
        dtype: precision of the stored numbers. The config says float32 all the same, so that a plain `from_pretrained`
            computes in float32: half precision halves the file, not the arithmetic.

    The files are written aside and moved into place one by one, the weights last.
    """
    folder = Path(folder)
    aside = folder / "checkpoints" / "saving"
    shutil.rmtree(aside, ignore_errors=True)
    state = {name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
             for name, tensor in merged_state_dict(model).items()}  # fmt: skip
    model.save_pretrained(aside, state_dict=state)
    processor.save_pretrained(aside)
    for file in sorted(aside.iterdir(), key=lambda file: file.name.startswith("model")):
        os.replace(file, folder / file.name)
    aside.rmdir()


def load_checkpoint(name: str | Path) -> tuple[SenerModel, SenerProcessor]:
    """
    Model (float32, evaluation mode) and processor of a folder or a Hub repository.

    Raises:
        CheckpointError: where there is no SeNER checkpoint, or one whose weights are not complete.
    """
    path = Path(name)
    if path.exists() and not (path / "config.json").is_file():
        raise CheckpointError(f"{name}: not a SeNER checkpoint (a folder with a config.json)")
    try:
        fields, _ = SenerConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: not a SeNER checkpoint: {_first_line(error)}") from error
    if fields.get("model_type") != SenerConfig.model_type:
        found = fields.get("model_type")
        raise CheckpointError(f"{name}: not a SeNER checkpoint: config.json: model_type: found {found!r}")
    try:
        model, info = SenerModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        processor = SenerProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{name}: not a complete SeNER checkpoint: {_first_line(error)}") from error
    if info["missing_keys"]:
        raise CheckpointError(f"{name}: weights are missing: {', '.join(sorted(info['missing_keys'])[:5])}")
    return model.eval(), processor


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
