"""Texts in, entities out, many at a time: the path that evaluation, scoring and prediction share with users."""

from collections.abc import Iterator, Sequence

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm


BATCH_WORDS = 8192  # words of a batch, padding included; a longer text is a batch of its own
CHARACTERS_A_WORD = 5


def extract(
    model,
    processor,
    texts: Sequence[str | list[str]],
    batch_size: int = 16,
    progress: bool = False,
    threshold: float | dict[str, float] | None = None,
    allow_nested: bool | None = None,
) -> list[list[dict]]:
    """
    Entities of every text, in the order of `texts`, by the path of the pipeline.

    Texts of similar length share a batch.

    Args:
        texts: strings, lists of words, or a mixture.
        threshold: a number, or one per label; the model's own by default.
        allow_nested: whether an entity may lie inside another one; the model's own by default.

    Returns:
        For each text its entities as `{"start", "end", "text", "label", "score"}`, in the text's own units.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    found: list = [None] * len(texts)
    for indices, inputs in encoded_batches(processor, texts, batch_size, progress):
        inputs = inputs.to(device)
        candidates = model.find_candidates(**inputs, thresholds=processor.thresholds(threshold))
        for i, entities in zip(indices, processor.entities(candidates, inputs, allow_nested), strict=True):
            found[i] = entities
    model.train(was_training)
    return found


def extract_shared(model, processor, texts: Sequence[str | list[str]], progress: bool = False, **options) -> list:
    """
    `extract` with the texts shared out over the processes of `accelerate launch`; each gets the whole answer.

    All processes must be given the same texts. Each gets long and short ones, so that none waits long for another.
    """
    state = PartialState()
    longest_first = sorted(range(len(texts)), key=lambda i: -words_in(texts[i]))
    own = longest_first[state.process_index :: state.num_processes]
    found = extract(model, processor, [texts[i] for i in own], progress=progress and state.is_main_process, **options)
    gathered = dict(gather_object(list(zip(own, found, strict=True))))
    return [gathered[i] for i in range(len(texts))]


def encoded_batches(processor, texts: Sequence[str | list[str]], batch_size: int, progress: bool) -> Iterator[tuple]:
    """(indices of texts, their inputs) of every batch of `length_batches`, with a bar where there is to be one."""
    with tqdm(total=len(texts), unit="text", disable=not progress, leave=False) as bar:
        for indices in length_batches(texts, batch_size):
            batch = [texts[i] for i in indices]
            yield indices, processor(batch, return_tensors="pt", is_split_into_words=isinstance(batch[0], list))
            bar.update(len(indices))


def length_batches(texts: Sequence[str | list[str]], batch_size: int) -> Iterator[list[int]]:
    """Indices of texts of one kind and of similar length, the longest first: memory runs out at once or not at all."""
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
    """The number of words, of a string an estimate."""
    return len(text) if isinstance(text, list) else len(text) // CHARACTERS_A_WORD
