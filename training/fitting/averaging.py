"""
Average the weights of a run's last epochs: often a better model than any one of them (Izmailov et al. 2018,
"Averaging Weights Leads to Wider Optima and Better Generalization").
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from training.common.cli import on_main_process
from training.common.files import writing


def files_of(checkpoints: Path, epoch: int, count: int) -> list[Path]:
    """The files of the weights at the ends of the last `count` epochs up to `epoch` (from 1), or of all if fewer."""
    first = max(1, epoch - count + 1)
    return [checkpoints / f"weights_{number:04d}.safetensors" for number in range(first, epoch + 1)]


def average_weights(
    accelerator: Accelerator, checkpoints: Path, weights: dict[str, torch.Tensor], epoch: int, count: int
) -> dict[str, torch.Tensor]:
    """
    Average `weights`, a model's at the end of `epoch` (from 1), with those of the epochs before: `count` epochs in
    all, or as many as there are. All processes have to call this at the end of each epoch.

    The weights of each of these epochs are kept in a file below `checkpoints`; so are those of one epoch more, which
    the state before the newest may need. A run that is resumed in `epoch`, wherever it was killed, finds the files of
    earlier epochs there and writes its own again.

    Raises:
        WriteError: a file cannot be written, as on a full disk.
    """
    if count == 1:
        return weights
    files = files_of(checkpoints, epoch, count)

    def keep():
        for file in set(checkpoints.glob("weights_*")) - set(files_of(checkpoints, epoch, count + 1)):
            file.unlink()
        aside = files[-1].with_suffix(".partial")
        with writing(files[-1], "; make room and go on with --resume"):
            save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, aside)
            os.replace(aside, files[-1])

    on_main_process(accelerator, keep)
    mean = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in weights.items()
            if tensor.is_floating_point()}  # fmt: skip
    for file in files:
        kept = load_file(file)
        for name, total in mean.items():
            total += kept[name] / len(files)
    return weights | mean
