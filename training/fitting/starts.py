"""
Initialise each label's bias from its share of the training cells. Almost no cell of the band is an entity, so that the
first steps would only lower all scores. (Lin et al. 2017, "Focal Loss for Dense Object Detection", start at a prior
probability.)

R labels.
"""

import numpy as np
import torch

from modeling_sener import SenerConfig, SenerModel
from training.corpus.windows import StoredWindows


LOWEST, HIGHEST = 1e-6, 0.1  # probabilities; more extreme ones would take many steps to correct


def count_cells(windows: StoredWindows, config: SenerConfig, empty_window_share: float) -> tuple[np.ndarray, float]:
    """
    Count the cells over which an epoch's loss is summed.

    Args:
        empty_window_share: share of the windows without an entity that an epoch draws.

    Returns:
        positive: *Shape:* (R,), the cells that are entities of each label.
        valid: the number of cells that are a pair of words.
    """
    words, spans = windows.num_words.astype(np.int64), windows.spans()
    window = words - 1 if config.span_window is None else np.minimum(words - 1, config.span_window)
    cells = words * (window + 1) - window * (window + 1) // 2  # of the upper triangle, the diagonal included
    cells_of_span = np.ones(len(spans))
    if config.triangles == "both":
        cells = 2 * cells - words
        cells_of_span += spans[:, 1] - spans[:, 0] > 1  # a span of one word has one cell, on the diagonal
    positive = np.bincount(spans[:, 2], weights=cells_of_span, minlength=config.num_labels)
    return positive, float(cells @ np.where(windows.is_empty, empty_window_share, 1.0))


def start_biases(positive: np.ndarray, valid: float) -> torch.Tensor:
    """
    The logit of each label's share of the cells, limited to `LOWEST` and `HIGHEST`. A label without a positive cell
    counts as if it had one.

    Args:
        positive, valid: of `count_cells`.

    Returns:
        *Shape:* (R,), float32.
    """
    shares = np.clip(np.maximum(positive, 1) / valid, LOWEST, HIGHEST)
    return torch.from_numpy(shares).logit().float()


def set_starts(model: SenerModel, positive: np.ndarray, valid: float) -> None:
    """Set the biases of a new model's labels; arguments as for `start_biases`."""
    with torch.no_grad():
        model.classifier.bias.copy_(start_biases(positive, valid))
