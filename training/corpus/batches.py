"""
Build the batches of a step from training windows: draw, order and share out the windows, mask and pad them.

A batch depends only on the seed, the epoch and its position, not on the order of calls or on where a run was resumed.
B windows, T tokens, N words, w span window, W = 2w + 1, R labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from modeling_sener.band import batch_labels
from modeling_sener.tokenization import pad_inputs
from modeling_sener.windows import Window
from training.corpus.masking import NOT_MASKED, mask_words
from training.corpus.windows import StoredWindows


POOL = 200  # windows that are sorted by length together: enough for little padding, few enough to stay random
GROUP = 4  # windows of similar length that stay together


def epoch_order(lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """
    The order of the windows in an epoch: groups of similar length, the groups in random order.

    It does not depend on the batch size: a step has the same windows for any number of processes and batches.
    *Shape:* (number of windows,), each window once.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    # The remainder comes last: a short group among the others would misalign all groups after it.
    order, rest = np.split(order, [len(order) - len(order) % GROUP])
    groups = []
    for i in range(0, len(order), POOL):
        pool = order[i : i + POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        groups += [pool[j : j + GROUP] for j in range(0, len(pool), GROUP)]
    return np.concatenate([*(groups[i] for i in generator.permutation(len(groups))), rest])


def drawn_count(empty_windows: int, empty_window_share: float) -> int:
    """The number of windows without an entity that each epoch draws."""
    return round(empty_window_share * empty_windows)


def draw_windows(is_empty: np.ndarray, empty_window_share: float, seed: int, epoch: int) -> np.ndarray:
    """
    The windows of an epoch: all with an entity, and a share of those without one, drawn anew in each epoch.

    Args:
        is_empty: *Shape:* (number of windows,), whether a window has no entity.

    Returns:
        Indices of windows, increasing.
    """
    empty = np.flatnonzero(is_empty)
    # A stream of its own: with a share of 1 the order of windows must not depend on the draw.
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]).spawn(1)[0])
    drawn = generator.choice(empty, drawn_count(len(empty), empty_window_share), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(~is_empty), drawn]))


class Masking:
    """
    Whole-word masking of a window's tokens; the words depend on the generator's seed alone.

    Args:
        guessed: keep the original tokens in `masked_ids`, as targets of masked language modelling. Chosen words that
            stay as they are are no targets, unlike in BERT.
    """

    def __init__(self, tokenizer, share: float, guessed: bool = False):
        self.share, self.mask_id, self.guessed = share, tokenizer.mask_token_id, guessed
        self.ordinary_ids = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
        if share > 0 and self.mask_id is None:
            raise ValueError(f"mask_share is {share}: this tokenizer has no mask token; set mask_share to 0")

    def __call__(self, window: Window, seed: Sequence[int]) -> Window:
        if self.share <= 0:
            return window
        input_ids = mask_words(window.input_ids, window.word_index, self.share, np.random.default_rng(seed),
                               self.mask_id, self.ordinary_ids)  # fmt: skip
        masked_ids = np.where(input_ids == window.input_ids, NOT_MASKED, window.input_ids) if self.guessed else None
        return Window(input_ids, window.word_index, window.spans, masked_ids=masked_ids)


class Collator:
    """
    Windows -> a right-padded batch: `input_ids`, `attention_mask`, `word_index` (B, T), `labels` (B, N, W, R) uint8;
    if the span window is `None`, it is N - 1. `masked_ids` (B, T) is added if the windows have them.
    """

    def __init__(self, pad_id: int | None, span_window: int | None, triangles: str, num_labels: int):
        self.pad_id, self.span_window, self.triangles, self.num_labels = pad_id, span_window, triangles, num_labels

    def __call__(self, windows: list[Window]) -> dict[str, torch.Tensor]:
        ids, index = ([torch.from_numpy(getattr(window, name)) for window in windows]
                      for name in ("input_ids", "word_index"))  # fmt: skip
        batch = pad_inputs(ids, index, self.pad_id) | {
            "labels": batch_labels(
                [window.spans for window in windows],
                [window.num_words for window in windows],
                self.span_window,
                self.triangles,
                self.num_labels,
            )
        }
        if windows[0].masked_ids is not None:
            masked = [torch.from_numpy(window.masked_ids) for window in windows]
            batch["masked_ids"] = pad_sequence(masked, batch_first=True, padding_value=NOT_MASKED)
        return batch


class StepBatches:
    """
    The batches of one process. A pass has all windows with an entity, and the share `empty_window_share` of those
    without one, drawn anew in each pass. A step has `step_size` windows (`batch_size` on each process, `accumulation`
    times; the last step of a pass may have fewer), and every process has `accumulation` batches in it. An epoch is one
    pass, or as many as it takes to have `min_epoch_steps` steps.

    Each batch comes with the weight of its loss: the sum over all processes and batches of weight x mean loss of the
    batch, over processes x accumulation, is the mean loss of the step's windows. It is 1 in a full step, and 0 for a
    filler batch in the last step: all processes must run the same number of passes.
    """

    def __init__(self, windows: StoredWindows, masking: Masking, collator: Collator, *, seed: int, batch_size: int,
                 accumulation: int, empty_window_share: float = 1.0, min_epoch_steps: int = 1,
                 process: int = 0, processes: int = 1):  # fmt: skip
        self.windows, self.masking, self.collator, self.seed = windows, masking, collator, seed
        self.empty_window_share = empty_window_share
        self.batch_size, self.accumulation = batch_size, accumulation
        self.process, self.processes = process, processes
        self.step_size = batch_size * accumulation * processes
        empty = int(windows.is_empty.sum())
        self.pass_size = len(windows) - empty + drawn_count(empty, empty_window_share)
        self.pass_steps = -(-self.pass_size // self.step_size)
        self.passes = -(-min_epoch_steps // self.pass_steps)

    @property
    def epoch_size(self) -> int:
        """The number of windows in an epoch; one that is in several passes counts in each."""
        return self.passes * self.pass_size

    @property
    def steps(self) -> int:
        """The number of steps in an epoch."""
        return self.passes * self.pass_steps

    def windows_of_step(self, step: int) -> int:
        """The number of windows in a step, over all processes."""
        return min(self.step_size, self.pass_size - step % self.pass_steps * self.step_size)

    def plan(self, epoch: int) -> list[tuple[list[int], float]]:
        """The epoch's batches of this process: indices of windows and the weight of the loss."""
        return [batch for turn in range(self.passes) for batch in self._plan_pass(self.pass_number(epoch, turn))]

    def pass_number(self, epoch: int, turn: int) -> int:
        """The number of an epoch's pass `turn` (from 0) among the passes of all epochs (from 1)."""
        return (epoch - 1) * self.passes + turn + 1

    def _plan_pass(self, number: int) -> list[tuple[list[int], float]]:
        drawn = draw_windows(self.windows.is_empty, self.empty_window_share, self.seed, number)
        lengths = self.windows.lengths
        order = drawn[epoch_order(lengths[drawn], self.seed, number)]
        filler = [int(drawn[np.argmin(lengths[drawn])])]
        batches = []
        for step in range(self.pass_steps):
            members = order[step * self.step_size : (step + 1) * self.step_size]
            members = members[np.argsort(-lengths[members], kind="stable")]
            for turn in range(self.accumulation):
                first = (turn * self.processes + self.process) * self.batch_size
                batch = members[first : first + self.batch_size].tolist()
                weight = len(batch) * self.processes * self.accumulation / len(members)
                batches.append((batch or filler, weight))
        return batches

    def loader(self, epoch: int, first_step: int = 0, workers: int = 0) -> DataLoader:
        """Yield (batch, weight) for each batch of this process in the epoch, from `first_step` on."""
        batches = _Batches(self, epoch)
        left = range(first_step * self.accumulation, len(batches))
        # A generator of its own: the loader must not advance torch's global one.
        return DataLoader(batches, batch_size=None, sampler=left, num_workers=workers, generator=torch.Generator())


class _Batches(Dataset):
    def __init__(self, source: StepBatches, epoch: int):
        self.source, self.epoch, self.plan = source, epoch, source.plan(epoch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, place: int) -> tuple[dict[str, torch.Tensor], float]:
        (indices, weight), source = self.plan[place], self.source
        number = source.pass_number(self.epoch, place // (source.pass_steps * source.accumulation))
        windows = [source.masking(source.windows[i], [source.seed, number, i]) for i in indices]
        return source.collator(windows), weight
