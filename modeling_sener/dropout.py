"""Dropout that is cheap on the CPU, where torch draws one random number after the other in double precision."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


LEVELS = 2**16  # 16 random bits an element: a probability is met to within 1 / 131,072


def dropout(states: Tensor, p: float) -> Tensor:
    """
    Set each element to 0 with probability `p`, and divide the others by 1 - p.

    Args:
        p: from 0 to 1. On the CPU it is rounded to a multiple of 1 / `LEVELS`, 0 and 1 excepted.

    Returns:
        The shape of `states`, a new tensor.
    """
    cut = min(max(round(p * LEVELS), 1), LEVELS - 1)
    if states.device.type != "cpu" or p in (0, 1) or torch.compiler.is_compiling():
        return F.dropout(states, p)
    # random_ of int64 fills 64 bits a draw: four elements.
    draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64, device=states.device)
    draws.random_(torch.iinfo(torch.int64).min, None)
    bits = draws.view(torch.int16)[: states.numel()].view(states.shape)
    dropped = bits < cut - LEVELS // 2
    return states.masked_fill(dropped, 0).mul_(LEVELS / (LEVELS - cut))


class Dropout(nn.Dropout):
    """`nn.Dropout` that calls `dropout`."""

    def forward(self, states: Tensor) -> Tensor:
        return dropout(states, self.p) if self.training else states
