"""
Turn documents into training windows: tokenize, choose the cuts, store the windows on disk.

Only words that have tokens are counted; the model scores pairs of these. T tokens, N words.

Windows overlap. An entity in the overlap is learnt in each window that holds it whole, once or twice an epoch. A
window that cuts an entity does not have it as gold.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeling_sener.band import fits
from training.corpus.data import Document


@dataclass
class EncodedDocument:
    """
    A document as tokens and words.

    Attributes:
        tokens: *Shape:* (tokens,), without special tokens.
        bounds: *Shape:* (N + 1,), word i has the tokens [bounds[i], bounds[i + 1]).
        prefix, suffix: the special tokens before and after.
        entities: (first word, last word + 1, label): the words that the gold spans cover.
        exact: those of `entities` whose gold span begins and ends with a word: no other can be found.
        off_boundary: the number of gold spans that do not begin and end with a word; they are trained on the words
            that they touch.
        inside_word: those of them (start, end, label), in the text's units, that begin or end inside a word.
        unreachable: the number of gold spans that touch no word with tokens; they cannot be trained on.
    """

    tokens: np.ndarray
    bounds: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    entities: list[tuple[int, int, str]]
    exact: list[tuple[int, int, str]]
    off_boundary: int
    inside_word: list[tuple[int, int, str]]
    unreachable: int

    @property
    def num_words(self) -> int:
        return len(self.bounds) - 1

    def tokens_of(self, first: int, last: int) -> int:
        """Tokens of a window of the words [first, last), with the special tokens."""
        return int(self.bounds[last] - self.bounds[first]) + len(self.prefix) + len(self.suffix)


def encode_document(processor, document: Document) -> EncodedDocument:
    """Tokenize a document and map its gold spans to words; nothing is cut."""
    inputs = processor([document.text], return_tensors="pt", is_split_into_words=document.is_split)
    input_ids, word_index = inputs["input_ids"][0].numpy(), inputs["word_index"][0].numpy()
    inside = np.flatnonzero(word_index)
    # A text without words has only special tokens: all of them go into the prefix.
    first, last = (inside[0], inside[-1] + 1) if len(inside) else (len(input_ids), len(input_ids))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(word_index[inside])[1:])]).astype(np.int64)
    covered = covering_words(inputs.word_offsets[0], document.entities)
    return EncodedDocument(input_ids[first:last], bounds, input_ids[:first], input_ids[last:], *covered)


def covering_words(offsets, entities) -> tuple[list, list, int, list, int]:
    """
    Map gold spans to the words that they touch.

    Args:
        offsets: (start, end) of each word in the text's units, increasing.
        entities: (start, end, label) in the same units.

    Returns:
        (first word, last word + 1, label) of each span, without duplicates; those of them whose span begins and ends
        with a word; the number of spans that do not; the spans that begin or end inside a word; the number of spans
        that touch no word.
    """
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    covered, exact, off_boundary, inside_word, unreachable = {}, {}, 0, [], 0
    for start, end, label in entities:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        if first >= last:
            unreachable += 1
            continue
        covered[first, last, label] = None
        if (starts[first], ends[last - 1]) == (start, end):
            exact[first, last, label] = None
        else:
            off_boundary += 1
            if starts[first] < start or end < ends[last - 1]:
                inside_word.append((start, end, label))
    return list(covered), list(exact), off_boundary, inside_word, unreachable


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
    encoded: EncodedDocument, max_tokens: int, span_window: int | None, label2id: dict[str, int]
) -> tuple[list[Window], int, int]:
    """
    Cut one document into training windows of at most `max_tokens` tokens, special tokens included.

    Returns:
        The windows; the number of entities that fit the span window but no training window; the number of words that
        are cut because they alone have too many tokens.
    """
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


class StoredWindows:
    """
    Windows in a memory-mapped file, which may be larger than memory.

    Attributes:
        lengths: *Shape:* (number of windows,), the number of tokens, special tokens included.
        num_words: *Shape:* (number of windows,), the number of words.
        is_empty: *Shape:* (number of windows,), bool, whether the window has no entity.
    """

    def __init__(self, path: Path):
        # A late import: extraction and prediction work without this library.
        from datasets import Dataset

        self.rows = Dataset.from_file(str(path))
        self.lengths = self.rows.data.column("length").to_numpy()
        self.num_words = self.rows.data.column("num_words").to_numpy()
        self.is_empty = self._span_lists().value_lengths().to_numpy() == 0

    @staticmethod
    def write(path: Path, windows: Iterable[Window]) -> None:
        """Write windows to a file, one by one."""
        from datasets import Features, List, Value
        from datasets.arrow_writer import ArrowWriter

        numbers = List(Value("int32"))
        features = Features(length=Value("int32"), num_words=Value("int32"), input_ids=numbers, word_index=numbers,
                            spans=List(numbers), document=Value("string"))  # fmt: skip
        with ArrowWriter(path=str(path), features=features, writer_batch_size=100) as writer:
            for window in windows:
                writer.write({
                    "length": len(window.input_ids), "num_words": window.num_words, "input_ids": window.input_ids,
                    "word_index": window.word_index, "spans": [list(span) for span in window.spans],
                    "document": window.document,
                })  # fmt: skip
            writer.finalize()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Window:
        row = self.rows[int(index)]
        spans = [tuple(span) for span in row["spans"]]
        return Window(np.array(row["input_ids"]), np.array(row["word_index"]), spans, row["document"])

    def spans(self) -> np.ndarray:
        """The spans of all windows: first word, last word + 1, label number. *Shape:* (S, 3)."""
        return self._span_lists().flatten().flatten().to_numpy().reshape(-1, 3)

    def _span_lists(self):
        return self.rows.data.column("spans").combine_chunks()
