"""Follow the loss over the last steps of a run."""

import math
from collections import deque


STEPS = 50
RISE = 10.0  # times the lowest mean


class RecentLoss:
    """The mean loss of the last `STEPS` steps, as single ones vary with the entities of their windows."""

    def __init__(self):
        self._losses: deque[float] = deque(maxlen=STEPS)
        self._lowest = math.inf
        self._has_risen = False

    @property
    def mean(self) -> float:
        return math.fsum(self._losses) / len(self._losses)

    def add(self, loss: float) -> str | None:
        """Add a step's loss. Returns a warning when the mean first is `RISE` times its lowest so far."""
        self._losses.append(loss)
        if len(self._losses) < STEPS:
            return None
        self._lowest = min(self._lowest, self.mean)
        if self._has_risen or self.mean < RISE * self._lowest:
            return None
        self._has_risen = True
        return (f"warning: the loss has risen from {self._lowest:.4g} to {self.mean:.4g} (means over {STEPS} steps): "
                "the learning rates are likely to be too high; end the run, and lower learning_rate and "
                "head_learning_rate")  # fmt: skip
