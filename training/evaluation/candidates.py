"""
The scored spans of a corpus, kept until it is known which of them to accept: scoring looks at them with several
thresholds, and the model runs once.

D texts, N rows (words with tokens) of all texts one after the other, K candidates, R labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from modeling_sener.decoding import Candidates, select
from training.evaluation.scoring import Entity, touched
from training.inference.extraction import batch_candidates, encoded_batches


FLOOR = 0.05  # fitted thresholds and calibration disregard spans below it, unless a lower threshold is in use
# The precision-recall curve ends at this score, and so do the spans that are kept. Of a calibrated model's spans with
# this score one in a hundred is right: lower ones are many, and add next to nothing to the area.
CURVE_FLOOR = 0.01


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
    first_word: np.ndarray

    @staticmethod
    def join(texts: list[tuple[Candidates, np.ndarray]]) -> "ScoredSpans":
        """Of each text's candidates and the offsets (rows, 2) of its rows."""
        first_word = np.cumsum([0] + [len(offsets) for _, offsets in texts])
        parts = [
            part._replace(text=np.full_like(part.start, text), start=part.start + first, end=part.end + first)
            for text, ((part, _), first) in enumerate(zip(texts, first_word, strict=False))
        ]
        offsets = np.concatenate([offsets for _, offsets in texts] or [np.zeros((0, 2), dtype=np.int64)])
        return ScoredSpans(Candidates.join(parts), offsets, first_word)

    def above(self, thresholds: np.ndarray) -> "ScoredSpans":
        """Those candidates whose score reaches their label's threshold; `thresholds` is of *Shape:* (R,)."""
        # Scores are single precision, thresholds double: they are compared as doubles, as the model does.
        reached = self.candidates.score.astype(np.float64) >= thresholds[self.candidates.label]
        return replace(self, candidates=self.candidates.take(reached))

    def choose(self, thresholds: np.ndarray, config: SenerConfig) -> Candidates:
        """The accepted spans, as the pipeline accepts them with these thresholds (R,)."""
        return select(self.above(thresholds).candidates, config.labels_per_span, config.allow_nested)

    def entities(self, chosen: Candidates, labels: list[str]) -> list[list[Entity]]:
        """(start, end, label) of each text, in the text's units."""
        found: list[list[Entity]] = [[] for _ in self.first_word[1:]]
        starts, ends = self.offsets[chosen.start, 0], self.offsets[chosen.end - 1, 1]
        columns = (chosen.text, starts, ends, chosen.label)
        for text, start, end, label in zip(*(column.tolist() for column in columns), strict=True):
            found[text].append((start, end, labels[label]))
        return found

    def words(self) -> list[np.ndarray]:
        """`offsets` of each text: *Shape:* (rows, 2)."""
        return [self.offsets[first:last] for first, last in pairwise(self.first_word)]

    def keys(self, candidates: Candidates) -> np.ndarray:
        """A number for each span and label of the corpus: *Shape:* (K,)."""
        return self._keys(candidates.start, candidates.end, candidates.label)

    def gold_keys(self, gold: Sequence[Sequence[Entity]], labels: list[str]) -> np.ndarray:
        """`keys` of the gold entities of all texts that stand on the edges of rows: no other can be found."""
        number = {label: i for i, label in enumerate(labels)}
        keys = [np.zeros(0, dtype=np.int64)]
        for entities, first_word, words in zip(gold, self.first_word[:-1], self.words(), strict=True):
            known = [(start, end, number[label]) for start, end, label in entities if label in number]
            spans = np.array(known, dtype=np.int64).reshape(-1, 3)
            first, last = (rows + first_word for rows in touched(words, spans[:, 0], spans[:, 1]))
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
    The spans of all texts with a score from `CURVE_FLOOR` on, or from their label's threshold if that is lower, by the
    path of the pipeline. The texts are shared out over the processes of `accelerate launch`; each gets the whole
    answer.

    Args:
        texts: strings, lists of words, or a mixture.
        thresholds: *Shape:* (R,), of `SenerProcessor.thresholds`.

    Raises:
        TextTooLargeError: a text does not fit into memory, alone as it is; has its number.
    """
    state, floor = PartialState(), thresholds.clamp(max=CURVE_FLOOR)
    model.eval()
    with state.split_between_processes(list(range(len(texts)))) as share:
        own = [texts[i] for i in share]
        scored: list = [None] * len(share)
        for indices, inputs in encoded_batches(processor, own, batch_size, progress and state.is_main_process):
            found, inputs = batch_candidates(model, [share[i] for i in indices], inputs, floor)
            for i, index in enumerate(indices):
                offsets = np.array(inputs.word_offsets[i], dtype=np.int64).reshape(-1, 2)
                scored[index] = found.take(found.text == i), offsets
    return ScoredSpans.join(gather_object(scored))
