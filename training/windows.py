"""
From documents to batches: pieces and rows of each document, training windows, masking, collation, batches of similar
length.

A row is a word that has pieces; the model scores pairs of rows. B batch, T pieces, N rows, w window, W = 2w + 1,
R labels.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from modeling_sener.band import band_labels, fits
from training.data import Document
from training.masking import mask_words


@dataclass
class EncodedDocument:
    """
    A document in pieces and rows.

    Attributes:
        pieces: *Shape:* (pieces,), without special tokens.
        bounds: *Shape:* (N + 1,), row r has the pieces [bounds[r], bounds[r + 1]).
        prefix, suffix: the special tokens before and after.
        entities: (first row, last row + 1, label): the rows that the gold spans cover.
        off_boundary: gold spans that do not begin and end where a row does; they are trained on the covering rows.
        unreachable: gold spans without a single row (words without pieces); they cannot be trained on.
    """

    pieces: np.ndarray
    bounds: np.ndarray
    prefix: np.ndarray
    suffix: np.ndarray
    entities: list[tuple[int, int, str]]
    off_boundary: int
    unreachable: int

    @property
    def rows(self) -> int:
        return len(self.bounds) - 1


def encode_document(processor, document: Document) -> EncodedDocument:
    """Pieces, rows and covering spans of a document; nothing is cut."""
    inputs = processor([document.text], return_tensors="pt", is_split_into_words=document.is_split)
    input_ids, word_index = inputs["input_ids"][0].numpy(), inputs["word_index"][0].numpy()
    inside = np.flatnonzero(word_index)
    # A text without words is special tokens alone; where they stand does not matter then.
    first, last = (inside[0], inside[-1] + 1) if len(inside) else (len(input_ids), len(input_ids))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(word_index[inside])[1:])]).astype(np.int64)
    entities, off_boundary, unreachable = cover(inputs.word_offsets[0], document.entities)
    return EncodedDocument(input_ids[first:last], bounds, input_ids[:first], input_ids[last:], entities,
                           off_boundary, unreachable)  # fmt: skip


def cover(offsets, entities) -> tuple[list[tuple[int, int, str]], int, int]:
    """
    Gold spans as spans of rows.

    Args:
        offsets: (start, end) of each row in the text's units, increasing.
        entities: (start, end, label) in the same units.

    Returns:
        (first row, last row + 1, label) of the rows that each span touches, each once; how many spans do not begin and
        end on a row's edge; how many touch no row.
    """
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    covered, off_boundary, unreachable = {}, 0, 0
    for start, end, label in entities:
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        if first >= last:
            unreachable += 1
            continue
        off_boundary += (starts[first], ends[last - 1]) != (start, end)
        covered[first, last, label] = None
    return list(covered), off_boundary, unreachable


@dataclass
class Window:
    """
    A stretch of a document, ready for the model.

    Attributes:
        input_ids, word_index: *Shape:* (T,), special tokens included.
        spans: (first row, last row + 1, label number), rows of this window.
    """

    input_ids: np.ndarray
    word_index: np.ndarray
    spans: list[tuple[int, int, int]]

    @property
    def rows(self) -> int:
        return int(self.word_index.max(initial=0))


def window_bounds(
    bounds: np.ndarray, spans: list[tuple[int, int]], budget: int, overlap: int
) -> list[tuple[int, int]]:
    """
    Where to cut a document's rows: overlapping windows of at most `budget` pieces (one row that has more is a window).

    Neighbours share `overlap` rows, up to a quarter of a window, and a span across a seam is whole in the next window
    wherever a window can hold it.

    Args:
        bounds: *Shape:* (N + 1,), pieces before each row.
        spans: (first row, last row + 1), those that the model's window can hold.

    Returns:
        (first row, last row + 1) of each window, together all rows.
    """

    def end_of(start: int) -> int:
        return max(start + 1, int(np.searchsorted(bounds, bounds[start] + budget, side="right")) - 1)

    rows, spans = len(bounds) - 1, sorted(spans)
    cuts, start = [], 0
    while start < rows:
        end = end_of(start)
        cuts.append((start, end))
        if end == rows:
            break
        following = max(start + 1, end - min(overlap, (end - start) // 4))
        crossing = [span for span in spans[bisect_right(spans, (start, rows)) : bisect_left(spans, (end, 0))]
                    if span[1] > end]  # fmt: skip
        if crossing:
            first, furthest = crossing[0][0], max(last for _, last in crossing)
            following = min(following, first)
            # Context before an entity is good to have, but not at the price of its end.
            if end_of(following) < furthest:
                following = first
        start = following
    return cuts


def cut_windows(
    encoded: EncodedDocument, max_tokens: int, span_window: int | None, label2id: dict[str, int]
) -> tuple[list[Window], int, int]:
    """
    Training windows of one document, of at most `max_tokens` pieces with the special tokens.

    Returns:
        The windows; how many entities fit the span window but no training window; how many rows are cut because they
        alone have too many pieces.
    """
    budget = max_tokens - len(encoded.prefix) - len(encoded.suffix)
    spans = [span for span in encoded.entities if fits(span[0], span[1], span_window)]
    cuts = window_bounds(encoded.bounds, [span[:2] for span in spans], budget, span_window or encoded.rows)
    windows, held, cut_rows = [], set(), 0
    for first, last in cuts:
        low, high = encoded.bounds[first], encoded.bounds[last]
        row_of = np.repeat(np.arange(1, last - first + 1), np.diff(encoded.bounds[first : last + 1]))
        cut_rows += int(high - low > budget)
        inside = [span for span in spans if first <= span[0] and span[1] <= last]
        held.update(inside)
        windows.append(Window(
            np.concatenate([encoded.prefix, encoded.pieces[low:high][:budget], encoded.suffix]),
            np.concatenate([0 * encoded.prefix, row_of[:budget], 0 * encoded.suffix]),
            [(start - first, end - first, label2id[label]) for start, end, label in inside],
        ))  # fmt: skip
    return windows, len(spans) - len(held), cut_rows


class WindowDataset(Dataset):
    """
    Training windows, their words masked anew in every epoch. What an item is depends on seed, epoch and index alone:
    not on the order of calls, the number of processes, or where a run was resumed.
    """

    def __init__(self, windows: list[Window], tokenizer, mask_share: float, seed: int):
        self.windows, self.mask_share, self.seed, self.epoch = windows, mask_share, seed, 0
        self.mask_id = tokenizer.mask_token_id
        self.ordinary_ids = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        if mask_share > 0 and self.mask_id is None:
            raise ValueError(f"mask_share is {mask_share}: this tokenizer has no mask token; set mask_share to 0")

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        window = self.windows[index]
        if self.mask_share <= 0:
            return window
        generator = np.random.default_rng([self.seed, self.epoch, index])
        input_ids = mask_words(window.input_ids, window.word_index, self.mask_share, generator, self.mask_id,
                               self.ordinary_ids)  # fmt: skip
        return Window(input_ids, window.word_index, window.spans)


class Collator:
    """
    Windows -> a right-padded batch: `input_ids`, `attention_mask`, `word_index` (B, T), `labels` (B, N, W, R) uint8;
    W is N where the span window is `None`.
    """

    def __init__(self, pad_id: int, span_window: int | None, num_labels: int):
        self.pad_id, self.span_window, self.num_labels = pad_id, span_window, num_labels

    def __call__(self, windows: list[Window]) -> dict[str, torch.Tensor]:
        shape = len(windows), max(len(window.input_ids) for window in windows)
        rows = max(window.rows for window in windows)
        columns = rows if self.span_window is None else 2 * self.span_window + 1
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "word_index": torch.zeros(shape, dtype=torch.long),
            "labels": torch.zeros(len(windows), rows, columns, self.num_labels, dtype=torch.uint8),
        }
        for b, window in enumerate(windows):
            length = len(window.input_ids)
            batch["input_ids"][b, :length] = torch.from_numpy(window.input_ids)
            batch["attention_mask"][b, :length] = 1
            batch["word_index"][b, :length] = torch.from_numpy(window.word_index)
            labels = band_labels(window.spans, window.rows, self.span_window, self.num_labels)
            batch["labels"][b, : labels.shape[0], : labels.shape[1]] = labels
        return batch


class LengthBatches(Sampler):
    """
    Batches of similar length in random order: every window once an epoch, little padding. The order depends on seed
    and epoch alone.
    """

    POOL = 50  # batches that are sorted together: large enough for little padding, small enough to stay random

    def __init__(self, lengths: list[int], batch_size: int, seed: int):
        self.lengths, self.batch_size, self.seed, self.epoch = np.array(lengths), batch_size, seed, 0
        self.drop_last = False  # read by accelerate

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.lengths))
        pool = self.POOL * self.batch_size
        batches = []
        for i in range(0, len(order), pool):
            part = order[i : i + pool]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[j : j + self.batch_size].tolist() for j in range(0, len(part), self.batch_size)]
        return iter([batches[i] for i in generator.permutation(len(batches))])
