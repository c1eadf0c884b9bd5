"""
Gradient clipping at a scale that is measured.

The loss is a sum over cells, so that a window full of entities has a gradient hundreds of times that of a window
without one. Clipped at a fixed norm both would count the same, and a run on few documents would learn silence from the
many that are empty. Clipped at a multiple of the norm that the run's gradients usually have, only outliers are scaled
down (Seetharaman et al. 2020, "AutoClip: Adaptive Gradient Clipping").
"""

import math
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn


DECAY = 0.98  # of the mean of the squared norms: about 50 steps count
MOST = 10  # limits that a norm counts as at most: one outlier hardly moves the mean, several of a kind do at once


@dataclass
class NormHistory:
    """
    The norms of a run's gradients so far.

    Attributes:
        mean_square: exponential mean of the squared norms.
        weight: what the norms so far weigh in it: 0 before the first step, then towards 1.
    """

    mean_square: float = 0.0
    weight: float = 0.0

    def limit(self, ratio: float) -> float:
        """The norm that a gradient is scaled down to: `ratio` times the usual one; infinity before the first step."""
        return ratio * (self.mean_square / self.weight) ** 0.5 if self.weight > 0 else float("inf")

    def add(self, norm: float, limit: float) -> None:
        """Note the norm of a step's gradient, which was clipped at `limit`."""
        self.mean_square = DECAY * self.mean_square + (1 - DECAY) * min(norm, MOST * limit) ** 2
        self.weight = DECAY * self.weight + 1 - DECAY


def clip_gradients(accelerator: Accelerator, model: nn.Module, norms: NormHistory, ratio: float) -> float:
    """
    Scale down gradients whose norm exceeds `ratio` times the usual one, and note their norm where it is finite.

    Returns:
        The norm as it was. DeepSpeed, whose engine clips by itself at fixed norms, does not clip.
    """
    limit = norms.limit(ratio)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), limit) or 0.0)
    if math.isfinite(norm):
        norms.add(norm, limit)
    return norm
