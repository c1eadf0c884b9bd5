"""
The outputs of a model's labels before training: for other labels, and at the shares of the training data.

Almost no cell of the band is an entity, so that the first steps would only lower all scores. (Lin et al. 2017, "Focal
Loss for Dense Object Detection", start at a prior probability.)

R labels.
"""

import numpy as np
import torch
from torch import nn


LOWEST, HIGHEST = 1e-6, 0.1  # probabilities; more extreme ones would take many steps to correct


def count_cells(num_words: np.ndarray, spans: np.ndarray, config, weights=1.0) -> tuple[np.ndarray, float]:
    """
    Count the cells over which an epoch's loss is summed.

    Args:
        num_words: *Shape:* (number of windows,), the words of each training window.
        spans: *Shape:* (S, 3), first word, last word + 1, label number of all spans.
        weights: *Shape:* (number of windows,), how often an epoch reads each window.

    Returns:
        positive: *Shape:* (R,), the cells that are entities of each label.
        valid: the number of cells that are a pair of words.
    """
    words = num_words.astype(np.int64)
    window = words - 1 if config.span_window is None else np.minimum(words - 1, config.span_window)
    cells = words * (window + 1) - window * (window + 1) // 2  # of the upper triangle, the diagonal included
    cells_of_span = np.ones(len(spans))
    if config.triangles == "both":
        cells = 2 * cells - words
        cells_of_span += spans[:, 1] - spans[:, 0] > 1  # a span of one word has one cell, on the diagonal
    positive = np.bincount(spans[:, 2], weights=cells_of_span, minlength=config.num_labels)
    return positive, float(cells @ np.broadcast_to(weights, cells.shape))


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


class LabelOutputs:
    """Part of [`SenerModel`]: the outputs of its labels before training."""

    def set_labels(self, labels: list[str], processor) -> None:
        """
        Change the labels, to train further. A label that the model has keeps its output, at any place. Outputs of new
        labels start as the mean of all trained ones ("some entity"): a random output on trained states, which are
        large, starts with a loss that destroys the trained weights. `threshold` becomes 0.5, as it was fitted to the
        old labels.

        Args:
            processor: the model's, which gets the model's config.

        Raises:
            ValueError: `labels` are not different, non-empty strings.
        """
        if isinstance(labels, str):
            raise ValueError(f"labels is the string {labels!r}: expected a list of labels")
        labels, known = list(labels), self.config.label2id
        fields = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
            "threshold": 0.5,
        }
        type(self.config).from_dict({**self.config.to_dict(), **fields})  # raises before anything is changed
        for name, value in fields.items():
            setattr(self.config, name, value)
        for name, outputs in [*self.classifier.named_parameters()]:
            mean = outputs.detach().mean(dim=0)
            chosen = [outputs.detach()[known[label]] if label in known else mean for label in labels]
            setattr(self.classifier, name, nn.Parameter(torch.stack(chosen)))
        self.classifier.out_features = len(labels)
        processor.config = self.config

    def set_starts(self, windows: list[dict]) -> None:
        """
        Start the labels of a new model at their shares of the training cells.

        Args:
            windows: of `SenerProcessor.training_windows`.
        """
        num_words = np.array([max(window["word_index"]) for window in windows])
        spans = np.array([span for window in windows for span in window["labels"]], dtype=np.int64).reshape(-1, 3)
        self.set_biases(*count_cells(num_words, spans, self.config))

    def set_biases(self, positive: np.ndarray, valid: float) -> None:
        """Set the biases of a new model's labels; arguments as for `start_biases`."""
        with torch.no_grad():
            self.classifier.bias.copy_(start_biases(positive, valid))
