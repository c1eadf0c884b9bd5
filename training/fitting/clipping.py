"""
Clip gradients at a measured norm.

The loss is a sum over cells, so that the gradient of a window full of entities is hundreds of times that of a window
without one. Clipped at a fixed norm both would count the same, and a run on few documents would learn from the many
empty windows to find nothing. Clipping at a multiple of the usual norm scales down outliers only (Seetharaman et al.
2020, "AutoClip: Adaptive Gradient Clipping").
"""

import math
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn


DECAY = 0.98  # of the mean of squared norms, which thus covers about 50 steps
MOST = 10  # a norm counts as at most this many limits: one outlier hardly moves the mean, several soon do


@dataclass
class NormHistory:
    """
    The norms of a run's gradients so far.

    Attributes:
        mean_square: exponential moving average of the squared norms, starting at 0.
        weight: sum of the norms' weights in it: 0 before the first step, then rising to 1.
    """

    mean_square: float = 0.0
    weight: float = 0.0

    def limit(self, ratio: float) -> float:
        """The largest norm that is not scaled down: `ratio` times the usual one; infinity before the first step."""
        return ratio * (self.mean_square / self.weight) ** 0.5 if self.weight > 0 else float("inf")

    def add(self, norm: float, limit: float) -> None:
        """Add the norm of a step's gradient, which was clipped at `limit`."""
        self.mean_square = DECAY * self.mean_square + (1 - DECAY) * min(norm, MOST * limit) ** 2
        self.weight = DECAY * self.weight + 1 - DECAY


def clip_gradients(accelerator: Accelerator, model: nn.Module, norms: NormHistory, ratio: float) -> float:
    """
    Scale gradients down if their norm exceeds `ratio` times the usual one. Add the norm to `norms` if it is finite.

    Returns:
        The norm before clipping. With DeepSpeed nothing is clipped: its engine clips at fixed norms only.
    """
    limit = norms.limit(ratio)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), limit) or 0.0)
    if math.isfinite(norm):
        norms.add(norm, limit)
    return norm
