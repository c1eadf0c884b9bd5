"""
From logits to spans, as pure functions: probabilities of a chunk of rows, candidates, and the choice among them.

B batch, N words, w window, W band columns, R labels, n rows of a chunk, K candidates. With both triangles a chunk
needs a halo of the w rows that follow, with the upper one none: a text is decoded as its logits come.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


CHUNK = 2048  # rows decoded at a time: bounds the memory, changes no result


class Candidates(NamedTuple):
    """
    Spans of words with their labels, as arrays of one length K: `text` (number in the batch), `start`, `end`
    (exclusive) and `label` (number in the order of the model's outputs) are int64, `score` is float32 in 0..1.
    """

    text: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    score: np.ndarray

    def take(self, which: np.ndarray) -> "Candidates":
        """The candidates that `which` (numbers or a mask) picks, in its order."""
        return Candidates(*(field[which] for field in self))

    @staticmethod
    def join(chunks: list["Candidates"]) -> "Candidates":
        """Join the candidates of several chunks, in their order; of no chunk, none."""
        if not chunks:
            numbers = np.zeros(0, dtype=np.int64)
            return Candidates(numbers, numbers, numbers, numbers, np.zeros(0, dtype=np.float32))
        return Candidates(*(np.concatenate(fields) for fields in zip(*chunks, strict=True)))


def span_probabilities(logits: Tensor, triangles: str, triangle_mean: str) -> Tensor:
    """
    P(i, i + k): the mean of the cells (i, i + k) and (i + k, i) if the band has both triangles (eq. 12).

    Args:
        logits: *Shape:* with both triangles (B, n + w, W, R), rows [a, a + n + w), zeros past the text's end;
            with the upper one (B, n, W, R).
        triangle_mean: "logit" (sigmoid of the mean logit) or "probability" (mean of the two sigmoids).

    Returns:
        *Shape:* (B, n, w + 1, R), float32 (float64 for float64 logits); NaN where a logit is NaN or infinite.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    # The vectorised sigmoid and the one for the last few elements differ in the last digit; rounded from double
    # precision they agree, so that equal logits tie wherever they stand.
    if triangles == "upper":
        return torch.where(logits.isfinite(), logits.double().sigmoid().to(logits.dtype), torch.nan)
    batch, rows, width, labels = logits.shape
    window = width // 2
    upper = logits[:, : rows - window, window:]
    # Cell (i + k, i) lies in row i + k, column w - k: one row down and one column back for each step of k.
    to_batch, to_row, to_column, to_label = logits.stride()
    lower = logits.as_strided(
        (batch, rows - window, window + 1, labels),
        (to_batch, to_row, to_row - to_column, to_label),
        logits.storage_offset() + window * to_column,
    )
    mean = (upper + lower) / 2
    if triangle_mean == "logit":
        probabilities = mean.double().sigmoid()
    else:
        probabilities = (upper.double().sigmoid() + lower.double().sigmoid()) / 2
    return torch.where(mean.isfinite(), probabilities.to(mean.dtype), torch.nan)


def find_candidates(probabilities: Tensor, thresholds: Tensor, lengths: Tensor, first_row: int = 0) -> Candidates:
    """
    Find the spans of a chunk whose score is at least their label's threshold.

    Args:
        probabilities: *Shape:* (B, n, w + 1, R), rows [first_row, first_row + n), of `span_probabilities`.
        thresholds: *Shape:* (R,); infinity switches a label off.
        lengths: *Shape:* (B,), the number of words of each text.

    Returns:
        The candidates in the order of text, start, end, label; only pairs of words of the text.

    Raises:
        FloatingPointError: a pair of words has a score that is not finite.
    """
    _, rows, width, _ = probabilities.shape
    device = probabilities.device
    thresholds = thresholds.to(device, torch.float64)
    last = first_row + torch.arange(rows, device=device)[:, None] + torch.arange(width, device=device)
    valid = last < lengths.to(device)[:, None, None]
    # The chunk's one wait for the device: NaN passes as a hit, and is looked for among the few hits.
    hits = ~(probabilities < thresholds.to(probabilities.dtype)) & valid[..., None]
    text, row, span, label = hits.nonzero(as_tuple=True)
    score = probabilities[text, row, span, label]
    # 0.9 rounds down in single precision: the caller's number decides, not its rounding.
    reached = ~(score < thresholds[label])
    found = (text, row + first_row, row + span + first_row + 1, label, score)
    found = Candidates(*(field.detach().cpu().numpy() for field in found)).take(reached.cpu().numpy())
    if np.isnan(found.score).any():
        raise FloatingPointError(
            "the model's scores are not finite (NaN or infinity): check its weights and the precision it runs in"
        )
    return found


def select(candidates: Candidates, labels_per_span: str, allow_nested: bool) -> Candidates:
    """
    Choose the spans of one text: highest score first, ties by start, end, label. A span that crosses an accepted one
    is dropped; without `allow_nested`, so is one that overlaps it. Several labels of one span never conflict.

    Args:
        candidates: of one text; only those that may be returned, thresholds and label choice applied.
        labels_per_span: "all" or "best", the highest score of a span (the first label of a tie).

    Returns:
        The accepted ones in text order (start, end, label). Time is linear in the number of spans but for sorting,
        times the width of a span.
    """
    _, start, end, label, score = candidates
    candidates = candidates.take(np.lexsort((label, end, start, -score)))
    if not len(score):
        return candidates
    spans = np.stack([candidates.start, candidates.end], axis=1)
    # All labels of a span are accepted or dropped together.
    _, first, span_of = np.unique(spans, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    accept = _without_crossings if allow_nested else _without_overlaps
    accepted = np.zeros(len(first), dtype=bool)
    accepted[order] = accept(spans[first[order]])
    keep = accepted[span_of.reshape(-1)]
    if labels_per_span == "best":
        is_first = np.zeros(len(keep), dtype=bool)
        is_first[first] = True
        keep &= is_first
    candidates = candidates.take(keep)
    return candidates.take(np.lexsort((candidates.label, candidates.end, candidates.start)))


def _without_crossings(spans: np.ndarray) -> np.ndarray:
    """Mark the spans, best first, that cross no better accepted one: distinct spans (K, 2) -> (K,) bool."""
    size = int(spans.max()) + 1
    farthest_end = np.full(size, -1)  # of the accepted spans that start at a position
    nearest_start = np.full(size, size)  # of the accepted spans that end at a position
    accepted = np.zeros(len(spans), dtype=bool)
    for k, (start, end) in enumerate(spans.tolist()):
        if end - start > 1 and (
            farthest_end[start + 1 : end].max() > end or nearest_start[start + 1 : end].min() < start
        ):
            continue
        accepted[k] = True
        farthest_end[start] = max(farthest_end[start], end)
        nearest_start[end] = min(nearest_start[end], start)
    return accepted


def _without_overlaps(spans: np.ndarray) -> np.ndarray:
    """Mark the spans, best first, that share no word with a better accepted one: distinct (K, 2) -> (K,) bool."""
    taken = np.zeros(int(spans.max()) + 1, dtype=bool)
    accepted = np.zeros(len(spans), dtype=bool)
    for k, (start, end) in enumerate(spans.tolist()):
        if not taken[start:end].any():
            accepted[k] = True
            taken[start:end] = True
    return accepted


def logit_candidates(
    logits: Tensor, lengths: Tensor, thresholds: Tensor, triangles: str, triangle_mean: str, chunk: int = CHUNK
) -> Candidates:
    """
    Find the spans of a batch whose score reaches their label's threshold, from the logits of the whole texts.

    Args:
        logits: *Shape:* (B, N, W, R), W = 2w + 1 with both triangles, w + 1 with the upper one.
        lengths: *Shape:* (B,), words of each text, at most N.
        thresholds: *Shape:* (R,); infinity switches a label off, before conflicts are looked at.
        chunk: rows at a time; the result does not depend on it.

    Raises:
        FloatingPointError: a pair of words has a score that is not finite.
    """
    rows, width = logits.shape[1:3]
    halo = width // 2 if triangles == "both" else 0
    lengths, found = lengths.cpu(), []
    for first in range(0, rows, chunk):
        count = min(chunk, rows - first)
        cells = logits[:, first : first + count + halo]
        cells = F.pad(cells, (0, 0, 0, 0, 0, count + halo - cells.shape[1])).cpu()
        probabilities = span_probabilities(cells, triangles, triangle_mean)
        found.append(find_candidates(probabilities, thresholds, lengths, first))
    return Candidates.join(found)


def select_all(candidates: Candidates, batch: int, labels_per_span: str, allow_nested: bool) -> list[Candidates]:
    """`select` for each of the texts of a batch: a `Candidates` per text."""
    return [select(candidates.take(candidates.text == text), labels_per_span, allow_nested) for text in range(batch)]
