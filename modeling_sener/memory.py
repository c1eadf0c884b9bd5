"""Texts that memory does not hold: a batch is split, a text alone is named."""

from collections.abc import Callable

import torch
from torch import Tensor

from .decoding import Candidates


# Of the CPU's allocator, of C++ and of the accelerators' allocators that have no exception of their own.
MESSAGES = ("can't allocate memory", "std::bad_alloc", "out of memory")


class TextTooLargeError(MemoryError):
    """
    A text that memory does not hold, alone as it is.

    Attributes:
        text: its number among those that were given, from 0.
        tokens: its length in tokens.
    """

    def __init__(self, text: int, tokens: int):
        super().__init__(f"inputs[{text}] does not fit into memory ({tokens:,} tokens)")
        self.text, self.tokens = text, tokens


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of an accelerator, was asked for that is not there."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def split_where_memory_ends(compute: Callable[..., Candidates], inputs: dict[str, Tensor]) -> Candidates:
    """
    The candidates of a batch: `compute(**inputs)`, or, where that does not fit into memory, those of its halves, each
    split again where it must be.

    Args:
        inputs: tensors of *Shape:* (B, T), `attention_mask` among them, padded at the end.

    Raises:
        TextTooLargeError: a text does not fit, alone as it is.
    """
    try:
        return compute(**inputs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of `except`: there, the error holds on to everything that the attempt had computed.
    lengths = inputs["attention_mask"].sum(dim=1)
    if len(lengths) == 1:
        raise TextTooLargeError(0, int(lengths[0]))
    half, found = len(lengths) // 2, []
    for first, rows in ((0, slice(0, half)), (half, slice(half, None))):
        part = {name: tensor[rows, : int(lengths[rows].max())] for name, tensor in inputs.items()}
        try:
            candidates = split_where_memory_ends(compute, part)
        except TextTooLargeError as error:
            raise TextTooLargeError(first + error.text, error.tokens) from None
        found.append(candidates._replace(text=candidates.text + first))
    return Candidates.join(found)
