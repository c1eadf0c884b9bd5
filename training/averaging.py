"""
The mean of the weights of a run's last epochs, often a better model than any one of them (Izmailov et al. 2018,
"Averaging Weights Leads to Wider Optima and Better Generalization").
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.cli import on_main_process
from training.files import writing
from training.state import ResumeError


def average_weights(
    accelerator: Accelerator, checkpoints: Path, weights: dict[str, torch.Tensor], epoch: int, count: int
) -> dict[str, torch.Tensor]:
    """
    The mean of `weights`, a model's at the end of `epoch` (from 1), and those of the epochs before it, `count` in all
    or as many as there are. All processes have to call this at the end of each epoch.

    They are kept in a file for each of these epochs below `checkpoints`. A run that is resumed in `epoch` finds those
    of the epochs before it there, wherever it was killed, and writes its own again.

    Raises:
        ResumeError: an earlier epoch's file is gone or damaged.
        WriteError: the disk is full, for one.
    """
    if count == 1:
        return weights
    first = max(1, epoch - count + 1)
    files = [checkpoints / f"weights_{number:04d}.safetensors" for number in range(first, epoch + 1)]

    def keep():
        for file in set(checkpoints.glob("weights_*")) - set(files):
            file.unlink()
        aside = files[-1].with_suffix(".partial")
        with writing(files[-1], "; make room and go on with --resume"):
            save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, aside)
            os.replace(aside, files[-1])

    on_main_process(accelerator, keep)
    mean = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in weights.items()}
    for file in files:
        try:
            part = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ResumeError(f"{file}: the weights of an earlier epoch, which the mean of {count} needs, cannot be "
                              f"read ({error}); start the run again without --resume") from error  # fmt: skip
        for name, total in mean.items():
            total += part[name]
    return {name: total / len(files) if total.is_floating_point() else weights[name] for name, total in mean.items()}
