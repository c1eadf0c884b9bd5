"""Check properties that hold for every text, against references that do not use the processor's code."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, tiny_model
from tokenizers import Tokenizer

from modeling_sener import SenerPipeline, SenerProcessor

from .texts import SPACES
from .words import words


ROOT = Path(__file__).parents[2]
# Tokenizer -> encoder: the bundled checkpoint's tokenizer, and small ones of the two other kinds.
KINDS = {"checkpoint": "bert", "bytelevel": "roberta", "unigram": "deberta-v3"}


@cache
def pipeline(kind: str) -> SenerPipeline:
    """A tiny random model, with about half of its scores above the threshold, and the processor of one of `KINDS`."""
    if kind == "checkpoint":
        tokenizer = SenerProcessor.from_pretrained(ROOT / "modeling_sener").tokenizer
    else:
        tokenizer = tiny_tokenizer(kind)
    model = tiny_model({**BACKBONES[KINDS[kind]], "vocab_size": len(tokenizer)})
    torch.nn.init.zeros_(model.classifier.bias)
    return SenerPipeline(model=model, processor=SenerProcessor(tokenizer, model.config), device="cpu")


@cache
def own_tokenizer(processor: SenerProcessor) -> Tokenizer:
    """A copy of the processor's tokenizer that treats the names of special tokens as text."""
    tokenizer = Tokenizer.from_str(processor.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def require(holds: bool, message: str):
    if not holds:
        raise AssertionError(message)


def check_texts(processor: SenerProcessor, texts: list[str]) -> list[list[tuple[int, int]]]:
    """
    Check that words are those of the reference, tokens are those of each word alone, and texts of a batch do not
    change each other's.

    Returns:
        For each text, the offsets of the words that have tokens.

    Raises:
        AssertionError: names the property that is violated.
    """
    inputs = processor(texts)
    places = [words(text) for text in texts]
    require([processor.split_words(text) for text in texts] == places, "split_words gives other words")
    require(inputs.texts == texts, "the texts are not kept as they are")
    contents = [[text[start:end] for start, end in own] for text, own in zip(texts, places, strict=True)]
    check_inputs(processor, inputs, contents, places)
    for text, own in zip(texts, places, strict=True):
        check_cover(text, own)
    return inputs.word_offsets


def check_words(processor: SenerProcessor, texts: list[list[str]]):
    """Check the same for lists of words, whose offsets count words."""
    inputs = processor(texts, is_split_into_words=True)
    check_inputs(processor, inputs, texts, [[(k, k + 1) for k in range(len(text))] for text in texts])


def check_cover(text: str, places: list[tuple[int, int]]):
    """Check that words are not empty, in order, inside of the text, and separated only by white space."""
    position = 0
    for start, end in [*places, (len(text), len(text) + 1)]:
        require(position <= start < end, f"({start}, {end}) is no word after character {position}")
        require(not text[position:start].strip(SPACES), f"between {position} and {start} is more than white space")
        position = end


def check_inputs(processor: SenerProcessor, inputs, contents: list[list[str]], places: list[list[tuple[int, int]]]):
    """Check inputs against the words of each text (`contents`, `places`), which are tokenized one by one."""
    distinct = sorted({word for text in contents for word in text})
    sound = [["".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in word)] for word in distinct]
    alone = own_tokenizer(processor).encode_batch(sound, is_pretokenized=True, add_special_tokens=False)
    tokens = {word: encoding.ids for word, encoding in zip(distinct, alone, strict=True)}
    first, last = processor("").input_ids[0].tolist()
    pad = processor.tokenizer.pad_token_id
    ids, mask, index = (inputs[name].numpy() for name in ("input_ids", "attention_mask", "word_index"))
    for number, text in enumerate(contents):
        kept = [k for k, word in enumerate(text) if tokens[word]]
        expected = [first, *(token for k in kept for token in tokens[text[k]]), last]
        numbers = [0, *(word for word, k in enumerate(kept, start=1) for _ in tokens[text[k]]), 0]
        end = len(expected)
        require(ids[number, :end].tolist() == expected, f"text {number}: other tokens than those of its words alone")
        require(index[number, :end].tolist() == numbers, f"text {number}: tokens belong to other words")
        require(
            mask[number, :end].all() and not mask[number, end:].any(), f"text {number}: the mask is not its length"
        )
        require((ids[number, end:] == pad).all() and not index[number, end:].any(), f"text {number}: padding is not")
        offsets = [places[number][k] for k in kept]
        require(inputs.word_offsets[number] == offsets, f"text {number}: word_offsets are not those of its words")


def check_entities(text: str, offsets: list[tuple[int, int]], entities: list[dict], config, allow_nested: bool):
    """Check that entities are slices at word boundaries, in order, without conflicts, with valid scores and labels."""
    first_words = {start: word for word, (start, _) in enumerate(offsets)}
    last_words = {end: word for word, (_, end) in enumerate(offsets)}
    keys = []
    for entity in entities:
        start, end, label = entity["start"], entity["end"], entity["label"]
        require(start in first_words and end in last_words, f"({start}, {end}) is not from word to word")
        require(text[start:end] == entity["text"] != "", f"({start}, {end}) is not the entity's text")
        width = last_words[end] - first_words[start]
        require(0 <= width <= config.span_window, f"({start}, {end}) has {width + 1} words")
        require(0.5 <= entity["score"] <= 1, f"({start}, {end}) has the score {entity['score']}")
        keys.append((start, end, config.labels.index(label)))
    require(all(one < other for one, other in pairwise(keys)), "entities are not in text order, or one comes twice")
    around: list[int] = []  # ends of the spans around the next one
    for start, end in sorted({key[:2] for key in keys}, key=lambda span: (span[0], -span[1])):
        while around and around[-1] <= start:
            around.pop()
        require(not around or (allow_nested and end <= around[-1]), f"({start}, {end}) is in conflict with another")
        around.append(end)


def check_pipeline(kind: str, texts: list[str], allow_nested: bool) -> int:
    """Check the pipeline with a model. Returns the number of entities, so that a test sees that there were some."""
    extract = pipeline(kind)
    offsets = check_texts(extract.processor, texts)
    found = extract(texts, batch_size=8, allow_nested=allow_nested)
    for text, own, entities in zip(texts, offsets, found, strict=True):
        check_entities(text, own, entities, extract.model.config, allow_nested)
    return sum(map(len, found))
