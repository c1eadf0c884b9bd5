"""Extract the entities of many texts in batches. Training, scoring and prediction share this path."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import PartialState
from accelerate.utils import gather_object

from modeling_sener.memory import TextTooLargeError
from training.common.progress import progress_bar
from training.corpus.data import DataError, Document


BATCH_WORDS = 8192  # words in a batch, padding included; a longer text is a batch by itself
CHARACTERS_A_WORD = 5


def extract(
    model,
    processor,
    texts: Sequence[str | list[str]],
    batch_size: int = 16,
    progress: bool = False,
    threshold: float | dict[str, float] | None = None,
    allow_nested: bool | None = None,
    keep_going: bool = False,
) -> list[list[dict] | None]:
    """
    Extract the entities of every text, in the order of `texts`, as the pipeline does.

    Texts of similar length share a batch. A batch that does not fit into memory is split.

    Args:
        texts: strings, lists of words, or a mixture.
        threshold: a number, or one per label; the model's own by default.
        allow_nested: whether an entity may lie inside another one; the model's own by default.
        keep_going: whether to return `None` for a text that does not fit into memory, instead of raising.

    Returns:
        The entities of each text as `{"start", "end", "text", "label", "score"}`, in the text's own units.

    Raises:
        TextTooLargeError: a text does not fit into memory alone, without `keep_going`; has the text's number.
    """
    was_training = model.training
    model.eval()
    thresholds = processor.thresholds(threshold)
    found: list = [None] * len(texts)
    for indices, inputs in encoded_batches(processor, texts, batch_size, progress):
        while indices:
            try:
                candidates, inputs = batch_candidates(model, indices, inputs, thresholds)
                for i, entities in zip(indices, processor.entities(candidates, inputs, allow_nested), strict=True):
                    found[i] = entities
                break
            except TextTooLargeError as error:
                if not keep_going:
                    raise
                indices = [i for i in indices if i != error.text]
                inputs = encode_texts(processor, texts, indices) if indices else None
    model.train(was_training)
    return found


def batch_candidates(model, indices: list[int], inputs, thresholds) -> tuple:
    """
    Find the candidates of a batch.

    Args:
        indices: the number of each of its texts among all texts.

    Returns:
        The candidates, and the inputs on the model's device.

    Raises:
        TextTooLargeError: with the text's number among all texts.
    """
    inputs = inputs.to(model.device)
    try:
        return model.find_candidates(**inputs, thresholds=thresholds), inputs
    except TextTooLargeError as error:
        raise TextTooLargeError(indices[error.text], error.tokens) from None


def extract_shared(model, processor, texts: Sequence[str | list[str]], progress: bool = False, **options) -> list:
    """
    Run `extract` with the texts shared out over the processes of `accelerate launch`; each returns all entities.

    All processes must be given the same texts. Long and short texts are spread evenly, so that no process waits long.
    """
    state = PartialState()
    longest_first = sorted(range(len(texts)), key=lambda i: -words_in(texts[i]))
    own = longest_first[state.process_index :: state.num_processes]
    progress = progress and state.is_main_process
    try:
        found = extract(model, processor, [texts[i] for i in own], progress=progress, **options)
    except TextTooLargeError as error:
        raise TextTooLargeError(own[error.text], error.tokens) from None
    gathered = dict(gather_object(list(zip(own, found, strict=True))))
    return [gathered[i] for i in range(len(texts))]


@contextmanager
def naming(documents: Sequence[Document]) -> Iterator[None]:
    """Turn a `TextTooLargeError` into a `DataError` that names the document with the text's number."""
    try:
        yield
    except TextTooLargeError as error:
        name = documents[error.text].id
        raise DataError(f"{name}: does not fit into memory ({error.tokens:,} tokens)") from None


def encoded_batches(processor, texts: Sequence[str | list[str]], batch_size: int, progress: bool) -> Iterator[tuple]:
    """Yield (indices of texts, their inputs) for every batch of `length_batches`; `progress` shows a bar."""
    with progress_bar(total=len(texts), unit="text", disable=not progress, leave=False) as bar:
        for indices in length_batches(texts, batch_size):
            yield indices, encode_texts(processor, texts, indices)
            bar.update(len(indices))


def encode_texts(processor, texts: Sequence[str | list[str]], indices: list[int]):
    """The inputs of the texts with these indices: all strings, or all lists of words."""
    batch = [texts[i] for i in indices]
    return processor(batch, return_tensors="pt", is_split_into_words=isinstance(batch[0], list))


def length_batches(texts: Sequence[str | list[str]], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices: texts of one kind and similar length. Longest first, so that memory runs out early."""
    words = [words_in(text) for text in texts]
    batch: list[int] = []
    for i in sorted(range(len(texts)), key=lambda i: (isinstance(texts[i], list), -words[i])):
        if batch:
            first = batch[0]
            same_kind = isinstance(texts[first], list) == isinstance(texts[i], list)
            if not same_kind or len(batch) == batch_size or (len(batch) + 1) * words[first] > BATCH_WORDS:
                yield batch
                batch = []
        batch.append(i)
    if batch:
        yield batch


def words_in(text: str | list[str]) -> int:
    """The number of words; for a string, an estimate."""
    return len(text) if isinstance(text, list) else len(text) // CHARACTERS_A_WORD
