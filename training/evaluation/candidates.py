"""
Keep the scored spans of a corpus, so that the model runs once and scoring can try several thresholds.

D texts, N words (those with tokens) of all texts one after the other, K candidates, R labels.
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
# The lowest score of spans that are kept, and of the precision-recall curve. Of a calibrated model's spans with this
# score one in a hundred is right: spans with lower scores are many, and add next to nothing to the area.
CURVE_FLOOR = 0.01


@dataclass(frozen=True)
class ScoredSpans:
    """
    Attributes:
        candidates: `text` is the number of the text; `start` and `end` count the words of all texts, so that spans of
            different texts never overlap.
        offsets: *Shape:* (N, 2), start and end of each word in its text's units.
        first_word: *Shape:* (D + 1,), text d has the words [first_word[d], first_word[d + 1]).
    """

    candidates: Candidates
    offsets: np.ndarray
    first_word: np.ndarray

    @staticmethod
    def join(texts: list[tuple[Candidates, np.ndarray]]) -> "ScoredSpans":
        """Join each text's candidates and the offsets (words, 2) of its words."""
        first_word = np.cumsum([0] + [len(offsets) for _, offsets in texts])
        shifted = [
            own._replace(text=np.full_like(own.start, text), start=own.start + first, end=own.end + first)
            for text, ((own, _), first) in enumerate(zip(texts, first_word, strict=False))
        ]
        offsets = np.concatenate([offsets for _, offsets in texts] or [np.zeros((0, 2), dtype=np.int64)])
        return ScoredSpans(Candidates.join(shifted), offsets, first_word)

    def above(self, thresholds: np.ndarray) -> "ScoredSpans":
        """The candidates whose score reaches their label's threshold; `thresholds` is of *Shape:* (R,)."""
        # Scores are single precision, thresholds double: compare them as doubles, as the model does.
        reached = self.candidates.score.astype(np.float64) >= thresholds[self.candidates.label]
        return replace(self, candidates=self.candidates.take(reached))

    def choose(self, thresholds: np.ndarray, config: SenerConfig) -> Candidates:
        """The spans that the pipeline accepts with these thresholds (R,)."""
        return select(self.above(thresholds).candidates, config.labels_per_span, config.allow_nested)

    def entities(self, chosen: Candidates, labels: list[str]) -> list[list[Entity]]:
        """(start, end, label) of the chosen spans by text, in the text's units."""
        found: list[list[Entity]] = [[] for _ in self.first_word[1:]]
        starts, ends = self.offsets[chosen.start, 0], self.offsets[chosen.end - 1, 1]
        columns = (chosen.text, starts, ends, chosen.label)
        for text, start, end, label in zip(*(column.tolist() for column in columns), strict=True):
            found[text].append((start, end, labels[label]))
        return found

    def with_scores(self, chosen: Candidates, labels: list[str]) -> list[dict[Entity, float]]:
        """As `entities`, each entity with its score."""
        score = iter(chosen.score.tolist())
        return [{entity: next(score) for entity in found} for found in self.entities(chosen, labels)]

    def words(self) -> list[np.ndarray]:
        """The offsets of each text's words: *Shape:* (words, 2)."""
        return [self.offsets[first:last] for first, last in pairwise(self.first_word)]

    def keys(self, candidates: Candidates) -> np.ndarray:
        """A number for each candidate, unique for its span and label in the corpus: *Shape:* (K,)."""
        return self._keys(candidates.start, candidates.end, candidates.label)

    def gold_keys(self, gold: Sequence[Sequence[Entity]], labels: list[str]) -> np.ndarray:
        """`keys` of all texts' gold entities that begin and end with a word; no others can be found."""
        number = {label: i for i, label in enumerate(labels)}
        keys = [np.zeros(0, dtype=np.int64)]
        for entities, first_word, words in zip(gold, self.first_word[:-1], self.words(), strict=True):
            known = [(start, end, number[label]) for start, end, label in entities if label in number]
            spans = np.array(known, dtype=np.int64).reshape(-1, 3)
            first, last = (numbers + first_word for numbers in touched(words, spans[:, 0], spans[:, 1]))
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
    Find the spans of all texts that score at least `CURVE_FLOOR`, or their label's threshold if that is lower, as the
    pipeline does. The processes of `accelerate launch` share the texts; each gets all spans.

    Args:
        texts: strings, lists of words, or a mixture.
        thresholds: *Shape:* (R,), of `SenerProcessor.thresholds`.

    Raises:
        TextTooLargeError: a text does not fit into memory, even alone; the error has its number.
    """
    state, floor = PartialState(), thresholds.clamp(max=CURVE_FLOOR)
    model.eval()
    with state.split_between_processes(list(range(len(texts)))) as share:
        own = [texts[i] for i in share]
        scored: list = [None] * len(share)
        for indices, inputs in encoded_batches(processor, own, batch_size, progress and state.is_main_process):
            found, inputs = batch_candidates(model, [share[i] for i in indices], inputs, floor)
            found = processor.allowed(found, inputs)
            for i, index in enumerate(indices):
                offsets = np.array(inputs.word_offsets[i], dtype=np.int64).reshape(-1, 2)
                scored[index] = found.take(found.text == i), offsets
    return ScoredSpans.join(gather_object(scored))
