"""The pipeline `entity-extraction`: strings in, entities with character offsets out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

from transformers import Pipeline
from transformers.utils import logging

from .decoding import Candidates  # noqa: F401 (for older releases of transformers: see modeling_sener.py)
from .memory import TextTooLargeError
from .texts import is_path, is_sequence, name_type


BATCHES = 16  # batches of texts that are read ahead and sorted, so that texts of similar length share a batch


@dataclass(frozen=True)
class _Closed:
    """Hides the content of one text from the pipeline, which searches lists for tensors item by item."""

    content: Any


class SenerPipeline(Pipeline):
    """
    Extract entities with a [`SenerModel`].

    ```python
    >>> extract = pipeline("entity-extraction", model=PATH_OR_REPO, trust_remote_code=True)
    >>> extract("We train ResNet-50 on ImageNet for image classification and report top-1 accuracy.")
    [{"start": 9, "end": 18, "text": "ResNet-50", "label": "Method", "score": 0.96}, ...]
    ```

    A string gives a list of entities, a sequence of strings (a list, a column of a data set, an array, a series) a
    list of such lists, an iterator a generator of them, in the order of the input. Options of a call, or of the
    pipeline for all calls: `threshold` (a number, or a dict per label), `allow_nested`, `labels` (a subset), as in
    [`SenerProcessor.post_process`]; `batch_size`, texts that run through the model together: of 16 batches read
    ahead, those of similar length. What is not given is taken from the model's config.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, model, processor=None, **kwargs):
        if processor is None:
            raise ValueError("SenerPipeline needs the model's processor: pass processor=SenerProcessor...")
        super().__init__(model=model, processor=processor, **kwargs)
        self.processor.config = self.model.config
        self.model.eval()

    def __getstate__(self) -> dict:
        """Leave the number of calls out: `Dataset.map` hashes the pickle, which a call must not change."""
        return {**self.__dict__, "call_count": 0}

    def __call__(self, inputs, **options):
        """
        Args:
            inputs: a string, any sequence of strings, or an iterator of them. A text that is the path of a file gets
                a warning: files are not read.
            options: see the class.

        Raises:
            TypeError: something is not a string; says which.
            ValueError: an unknown label, or a threshold outside of 0..1.
            TextTooLargeError: a text does not fit into memory, even alone (batches are split); says which.
        """
        if is_sequence(inputs):
            texts = list(_strings(inputs))  # all are looked at before the first is computed
            return list(self._in_order((text for text in texts), options))
        if isinstance(inputs, Iterator):
            return self._in_order(_strings(inputs), options)
        if not isinstance(inputs, str):
            raise TypeError(name_type("the input", inputs, "a string, a list of strings or an iterator of them"))
        return super().__call__(inputs, **options)

    def _in_order(self, texts: Iterator[str], options: dict) -> Iterator[list[dict]]:
        """Yield the entities of each text in order; read ahead `BATCHES` batches at most."""
        batch_size = options.get("batch_size") or self._batch_size or 1
        if batch_size == 1:
            yield from _naming(super().__call__(texts, **options), count())
            return
        done = 0
        while ahead := list(islice(texts, BATCHES * batch_size)):
            longest_first = sorted(range(len(ahead)), key=lambda i: -len(ahead[i]))
            found = super().__call__((ahead[i] for i in longest_first), **options)
            found = list(_naming(found, [done + i for i in longest_first]))
            for _, entities in sorted(zip(longest_first, found, strict=True), key=lambda pair: pair[0]):
                yield entities
            done += len(ahead)

    def _sanitize_parameters(self, threshold=None, allow_nested=None, labels=None):
        if allow_nested is not None and not isinstance(allow_nested, bool):
            raise ValueError(f"allow_nested is {allow_nested!r}: expected True or False")
        if labels is not None and not isinstance(labels, str):
            labels = list(labels)  # read for each batch
        self.processor.thresholds(threshold, labels)  # raises before the model runs
        options = {"threshold": threshold, "allow_nested": allow_nested, "labels": labels}
        return {}, {name: value for name, value in options.items() if value is not None}, {}

    def preprocess(self, text: str) -> dict:
        """The model's inputs of one text, each tensor of *Shape:* (1, T), and the text with its offsets."""
        if is_path(text):
            logging.get_logger(__name__).warning(
                "the text %r is the path of a file: its name is searched, not what is in it. Read it first "
                "(`Path(path).read_text()`), or use training/extract.py",
                text,
            )
        inputs = self.processor(text)
        return {**inputs, "source": _Closed((text, inputs.word_offsets[0]))}

    def _forward(self, inputs: dict, threshold=None, allow_nested=None, labels=None) -> dict[str, list]:
        source = inputs.pop("source")  # of one text, or a list of a batch's
        sources = source if isinstance(source, list) else [source]
        texts, word_offsets = zip(*(each.content for each in sources), strict=True)
        thresholds = self.processor.thresholds(threshold, labels)
        candidates = self.model.find_candidates(**inputs, thresholds=thresholds)
        carried = SimpleNamespace(texts=texts, word_offsets=word_offsets)
        found = self.processor.entities(candidates, carried, allow_nested)
        return {"entities": [_Closed(entities) for entities in found]}

    def postprocess(self, outputs: dict) -> list[dict]:
        """The entities of one text."""
        entities = outputs["entities"]
        return (entities[0] if isinstance(entities, list) else entities).content

    def save_pretrained(self, save_directory, **kwargs):
        """Write model, code and processor: a folder that `pipeline` loads."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def _strings(texts: Iterable) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(name_type(f"inputs[{number}]", text, "a string"))
        yield text


def _naming(found: Iterator[list[dict]], numbers: Iterable[int]) -> Iterator[list[dict]]:
    """Pass results on; if a text does not fit into memory, put its number of `numbers` into the error."""
    numbers = iter(numbers)
    try:
        for entities in found:
            next(numbers)
            yield entities
    except TextTooLargeError as error:
        # All results of earlier batches have been passed on: `numbers` stands at the first text of this batch.
        raise TextTooLargeError(next(islice(numbers, error.text, None)), error.tokens) from None
