"""
The mean of the weights of a run's last epochs, often a better model than any one of them (Izmailov et al. 2018,
"Averaging Weights Leads to Wider Optima and Better Generalization").
"""

import os
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from training.common.cli import on_main_process
from training.common.files import writing
from training.fitting.state import ResumeError


def files_of(checkpoints: Path, epoch: int, count: int) -> list[Path]:
    """The files of the weights at the ends of the last `count` epochs up to `epoch` (from 1), or of as many as are."""
    first = max(1, epoch - count + 1)
    return [checkpoints / f"weights_{number:04d}.safetensors" for number in range(first, epoch + 1)]


def check_weights(checkpoints: Path, epoch: int, count: int) -> None:
    """
    Check, before a run goes on in `epoch`, that the weights of earlier epochs are there that its mean needs.

    Raises:
        ResumeError: a file is gone or damaged.
    """
    for file in files_of(checkpoints, epoch, count)[:-1]:
        try:
            safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            raise ResumeError(f"{file}: the weights of an earlier epoch, which the mean of {count} needs, cannot be "
                              f"read ({error}); start the run again without --resume") from error  # fmt: skip


def average_weights(
    accelerator: Accelerator, checkpoints: Path, weights: dict[str, torch.Tensor], epoch: int, count: int
) -> dict[str, torch.Tensor]:
    """
    The mean of `weights`, a model's at the end of `epoch` (from 1), and those of the epochs before it, `count` in all
    or as many as there are. All processes have to call this at the end of each epoch.

    They are kept in a file for each of these epochs below `checkpoints`. A run that is resumed in `epoch` finds those
    of the epochs before it there, wherever it was killed, and writes its own again.

    Raises:
        WriteError: the disk is full, for one.
    """
    if count == 1:
        return weights
    files = files_of(checkpoints, epoch, count)

    def keep():
        for file in set(checkpoints.glob("weights_*")) - set(files):
            file.unlink()
        aside = files[-1].with_suffix(".partial")
        with writing(files[-1], "; make room and go on with --resume"):
            save_file({name: tensor.contiguous().cpu() for name, tensor in weights.items()}, aside)
            os.replace(aside, files[-1])

    on_main_process(accelerator, keep)
    mean = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in weights.items()
            if tensor.is_floating_point()}  # fmt: skip
    for file in files:
        part = load_file(file)
        for name, total in mean.items():
            total += part[name] / len(files)
    return weights | mean
