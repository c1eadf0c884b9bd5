"""Out of memory: halve the batch and retry; name a text that does not fit alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from .decoding import Candidates


# Of torch's CPU allocator, of C++, and of accelerators that raise a plain RuntimeError.
MESSAGES = ("can't allocate memory", "std::bad_alloc", "out of memory")


class TextTooLargeError(MemoryError):
    """
    A text does not fit into memory, even alone.

    Attributes:
        text: its number among the given texts, from 0.
        tokens: its length in tokens.
    """

    def __init__(self, text: int, tokens: int):
        super().__init__(f"inputs[{text}] does not fit into memory ({tokens:,} tokens)")
        self.text, self.tokens = text, tokens


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or an accelerator is out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


def split_where_memory_ends(compute: Callable[..., Candidates], inputs: dict[str, Tensor]) -> Candidates:
    """
    Compute the candidates of a batch, `compute(**inputs)`; if it does not fit into memory, those of its halves, each
    halved again if need be.

    Args:
        inputs: tensors of *Shape:* (B, T), `attention_mask` among them, padded at the end.

    Raises:
        TextTooLargeError: a text does not fit, even alone.
    """
    try:
        return compute(**inputs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of `except`, where the error would keep alive everything that the attempt has computed.
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    if len(lengths) == 1:
        raise TextTooLargeError(0, lengths[0])
    half, found = len(lengths) // 2, []
    for first, texts in ((0, slice(0, half)), (half, slice(half, None))):
        fewer = {name: tensor[texts, : max(lengths[texts])] for name, tensor in inputs.items()}
        try:
            candidates = split_where_memory_ends(compute, fewer)
        except TextTooLargeError as error:
            raise TextTooLargeError(first + error.text, error.tokens) from None
        found.append(candidates._replace(text=candidates.text + first))
    return Candidates.join(found)
