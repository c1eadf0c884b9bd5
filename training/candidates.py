"""
The scored spans of a corpus, kept until it is known which of them to accept: scoring looks at them with several
thresholds, and the model runs once.

D texts, N rows (words with pieces) of all texts one after the other, K candidates, R labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from modeling_sener.decoding import Candidates, select
from training.inference import encoded_batches, find_candidates
from training.scoring import Entity


FLOOR = 0.05  # spans with a lower score are kept only where a lower threshold is in use


@dataclass(frozen=True)
class ScoredSpans:
    """
    Attributes:
        candidates: `text` is the number of the text; `start` and `end` count the rows of all texts, so that spans of
            different texts never meet.
        offsets: *Shape:* (N, 2), start and end of each row in its text's units.
        first_row: *Shape:* (D + 1,), text d has the rows [first_row[d], first_row[d + 1]).
    """

    candidates: Candidates
    offsets: np.ndarray
    first_row: np.ndarray

    @staticmethod
    def join(texts: list[tuple[Candidates, np.ndarray]]) -> "ScoredSpans":
        """Of each text's candidates and the offsets (rows, 2) of its rows."""
        first_row = np.cumsum([0] + [len(offsets) for _, offsets in texts])
        parts = [
            part._replace(text=np.full_like(part.start, text), start=part.start + first, end=part.end + first)
            for text, ((part, _), first) in enumerate(zip(texts, first_row, strict=False))
        ]
        offsets = np.concatenate([offsets for _, offsets in texts] or [np.zeros((0, 2), dtype=np.int64)])
        return ScoredSpans(Candidates.join(parts), offsets, first_row)

    def choose(self, thresholds: np.ndarray, config: SenerConfig) -> Candidates:
        """The accepted spans, as the pipeline accepts them with these thresholds (R,)."""
        # Scores are single precision, thresholds double: they are compared as doubles, as the model does.
        reached = self.candidates.score.astype(np.float64) >= thresholds[self.candidates.label]
        return select(self.candidates.take(reached), config.labels_per_span, config.allow_nested)

    def entities(self, chosen: Candidates, labels: list[str]) -> list[list[Entity]]:
        """(start, end, label) of each text, in the text's units."""
        found: list[list[Entity]] = [[] for _ in self.first_row[1:]]
        starts, ends = self.offsets[chosen.start, 0], self.offsets[chosen.end - 1, 1]
        columns = (chosen.text, starts, ends, chosen.label)
        for text, start, end, label in zip(*(column.tolist() for column in columns), strict=True):
            found[text].append((start, end, labels[label]))
        return found

    def rows(self, text: int, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first row, last row + 1), counted from the text's own first, of the rows that spans of one text touch."""
        own = self.offsets[self.first_row[text] : self.first_row[text + 1]]
        return np.searchsorted(own[:, 1], start, side="right"), np.searchsorted(own[:, 0], end, side="left")

    def keys(self, candidates: Candidates) -> np.ndarray:
        """A number for each span and label of the corpus: *Shape:* (K,)."""
        return self._keys(candidates.start, candidates.end, candidates.label)

    def gold_keys(self, gold: Sequence[Sequence[Entity]], labels: list[str]) -> np.ndarray:
        """`keys` of the gold entities of all texts that stand on the edges of rows: no other can be found."""
        number = {label: i for i, label in enumerate(labels)}
        keys = [np.zeros(0, dtype=np.int64)]
        for text, entities in enumerate(gold):
            known = [(start, end, number[label]) for start, end, label in entities if label in number]
            spans = np.array(known, dtype=np.int64).reshape(-1, 3)
            first, last = (rows + self.first_row[text] for rows in self.rows(text, spans[:, 0], spans[:, 1]))
            spans, first, last = (column[first < last] for column in (spans, first, last))
            exact = (self.offsets[first, 0] == spans[:, 0]) & (self.offsets[last - 1, 1] == spans[:, 1])
            keys.append(self._keys(first, last, spans[:, 2])[exact])
        return np.concatenate(keys)

    def _keys(self, start: np.ndarray, end: np.ndarray, label: np.ndarray) -> np.ndarray:
        size = len(self.offsets) + 1
        return (label * size + start) * size + end


def score_spans(
    model: SenerModel,
    processor: SenerProcessor,
    texts: Sequence[str | list[str]],
    thresholds: torch.Tensor,
    batch_size: int = 16,
    progress: bool = False,
) -> ScoredSpans:
    """
    The spans of all texts with a score from `FLOOR` on, or from their label's threshold if that is lower, by the path
    of the pipeline. The texts are shared out over the processes of `accelerate launch`; each gets the whole answer.

    Args:
        texts: strings, lists of words, or a mixture.
        thresholds: *Shape:* (R,), of `SenerProcessor.thresholds`.

    Raises:
        TextTooLargeError: a text does not fit into memory, alone as it is; has its number.
    """
    state, floor = PartialState(), thresholds.clamp(max=FLOOR)
    model.eval()
    with state.split_between_processes(list(range(len(texts)))) as share:
        own = [texts[i] for i in share]
        scored: list = [None] * len(share)
        for indices, inputs in encoded_batches(processor, own, batch_size, progress and state.is_main_process):
            found, inputs = find_candidates(model, [share[i] for i in indices], inputs, floor)
            for i, index in enumerate(indices):
                offsets = np.array(inputs.word_offsets[i], dtype=np.int64).reshape(-1, 2)
                scored[index] = found.take(found.text == i), offsets
    return ScoredSpans.join(gather_object(scored))
