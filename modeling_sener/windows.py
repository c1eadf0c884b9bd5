"""
Turn texts into training windows: choose the cuts.

Only words that have tokens are counted; the model scores pairs of these. T tokens, N words.

Windows overlap. An entity in the overlap is learnt in each window that holds it whole, once or twice an epoch. A
window that cuts an entity does not have it as gold.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from .band import fits
from .gold import covering_words


@dataclass
class EncodedDocument:
    """
    A document as tokens and words.

    Attributes:
        tokens: *Shape:* (tokens,), without special tokens.
        bounds: *Shape:* (N + 1,), word i has the tokens [bounds[i], bounds[i + 1]).
        prefix, suffix: the special tokens before and after.
        entities, exact, off_boundary, inside_word, unreachable: the gold entities, see `Covering`.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    entities: list[tuple[int, int, str]]
    exact: dict[tuple[int, int, str], tuple[int, int]]
    off_boundary: int
    inside_word: list[tuple[int, int, str]]
    unreachable: int

    @classmethod
    def of(cls, inputs, entities) -> "EncodedDocument":
        """
        Map the gold entities of a text to its words; nothing is cut.

        Args:
            inputs: of the processor, for one text.
            entities: (start, end, label) in the text's units.
        """
        input_ids, word_index = inputs["input_ids"][0].numpy(), inputs["word_index"][0].numpy()
        inside = np.flatnonzero(word_index)
        # A text without words has only special tokens: all of them go into the prefix.
        first, last = (inside[0], inside[-1] + 1) if len(inside) else (len(input_ids), len(input_ids))
        bounds = np.concatenate([[0], np.cumsum(np.bincount(word_index[inside])[1:])]).astype(np.int64)
        covering = covering_words(inputs.word_offsets[0], entities)
        return cls(input_ids[first:last], bounds, input_ids[:first], input_ids[last:], *covering)

    @property
    def num_words(self) -> int:
        return len(self.bounds) - 1

    def tokens_of(self, first: int, last: int) -> int:
        """Tokens of a window of the words [first, last), with the special tokens."""
        return int(self.bounds[last] - self.bounds[first]) + len(self.prefix) + len(self.suffix)


@dataclass
class Window:
    """
    A training window: consecutive words of a document, as inputs of the model.

    Attributes:
        input_ids, word_index: *Shape:* (T,), special tokens included.
        spans: (first word, last word + 1, label number), words counted within this window.
        document: the id of its document.
        masked_ids: *Shape:* (T,), the original token at masked positions, `NOT_MASKED` elsewhere; `None` without
            masked language modelling.
    """

    input_ids: np.ndarray
    word_index: np.ndarray
    spans: list[tuple[int, int, int]]
    document: str = ""
    masked_ids: np.ndarray | None = None

    @property
    def num_words(self) -> int:
        return int(self.word_index.max(initial=0))

    def as_example(self) -> dict[str, list]:
        """The window as an example of a `Trainer`; its `labels` are the spans."""
        return {
            "input_ids": self.input_ids.tolist(),
            "word_index": self.word_index.tolist(),
            "labels": [list(span) for span in self.spans],
        }


def window_bounds(
    bounds: np.ndarray, spans: list[tuple[int, int]], budget: int, overlap: int
) -> list[tuple[int, int]]:
    """
    Cut a document into overlapping windows of at most `budget` tokens (a word with more tokens is a window itself).

    Neighbours share `overlap` words, but at most a quarter of a window. A span that a window cuts is whole in the next
    window if it fits into a window at all.

    Args:
        bounds: *Shape:* (N + 1,), the number of tokens before each word.
        spans: (first word, last word + 1) of the spans that fit the span window.

    Returns:
        (first word, last word + 1) of each window; together they hold all words.
    """

    def end_of(start: int) -> int:
        return max(start + 1, int(np.searchsorted(bounds, bounds[start] + budget, side="right")) - 1)

    num_words, spans = len(bounds) - 1, sorted(spans)
    cuts, start = [], 0
    while start < num_words:
        end = end_of(start)
        cuts.append((start, end))
        if end == num_words:
            break
        following = max(start + 1, end - min(overlap, (end - start) // 4))
        crossing = [span for span in spans[bisect_right(spans, (start, num_words)) : bisect_left(spans, (end, 0))]
                    if span[1] > end]  # fmt: skip
        if crossing:
            first, furthest = crossing[0][0], max(last for _, last in crossing)
            following = min(following, first)
            # Drop the context before the entity if its end would not fit otherwise.
            if end_of(following) < furthest:
                following = first
        start = following
    return cuts


def cut_windows(
    encoded: EncodedDocument, max_tokens: int | None, span_window: int | None, label2id: dict[str, int]
) -> tuple[list[Window], int, int]:
    """
    Cut one document into training windows of at most `max_tokens` tokens, special tokens included; `None` for one
    window.

    Returns:
        The windows; the number of entities that fit the span window but no training window; the number of words that
        are cut because they alone have too many tokens.
    """
    budget = len(encoded.tokens)
    if max_tokens is not None:
        budget = max_tokens - len(encoded.prefix) - len(encoded.suffix)
    spans = [span for span in encoded.entities if fits(span[0], span[1], span_window)]
    cuts = window_bounds(encoded.bounds, [span[:2] for span in spans], budget, span_window or encoded.num_words)
    windows, held, cut_words = [], set(), 0
    for first, last in cuts:
        low, high = encoded.bounds[first], encoded.bounds[last]
        word_of = np.repeat(np.arange(1, last - first + 1), np.diff(encoded.bounds[first : last + 1]))
        cut_words += int(high - low > budget)
        inside = [span for span in spans if first <= span[0] and span[1] <= last]
        held.update(inside)
        windows.append(Window(
            np.concatenate([encoded.prefix, encoded.tokens[low:high][:budget], encoded.suffix]),
            np.concatenate([0 * encoded.prefix, word_of[:budget], 0 * encoded.suffix]),
            [(start - first, end - first, label2id[label]) for start, end, label in inside],
        ))  # fmt: skip
    return windows, len(spans) - len(held), cut_words
