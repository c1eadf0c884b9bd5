"""The pipeline: the results of model and processor, their order, batches, options and errors."""

import copy
import json
import logging
from array import array
from collections import UserList, deque
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from support.fresh import run_fresh
from support.tiny import tiny_tokenizer
from transformers.pipelines.pt_utils import KeyDataset

from modeling_sener import SenerConfig, SenerModel, SenerPipeline, SenerProcessor
from modeling_sener.pipeline_sener import BATCHES


LABELS = ["Method", "Task"]
TEXTS = ["We train ResNet-50 on ImageNet .", "", "Long texts 漢字 \ud800", "Our method improves low-rank adaptation ."]
BACKBONE = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = SenerConfig(
        BACKBONE, id2label=dict(enumerate(LABELS)), span_window=3, biaffine_size=8, span_channels=4, threshold=0.5
    )
    model = SenerModel(config)
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)  # about half of the scores are above the threshold, at any distance
    return model


@pytest.fixture(scope="module")
def processor(model):
    return SenerProcessor(tiny_tokenizer("wordpiece"), model.config)


@pytest.fixture(scope="module")
def extract(model, processor):
    return SenerPipeline(model=model, processor=processor, device="cpu")


@pytest.fixture(scope="module")
def expected(model, processor):
    """The entities that model and processor give without a pipeline, text by text."""
    model.eval()
    with torch.no_grad():
        return [processor.post_process(model(**inputs), inputs)[0] for inputs in map(processor, TEXTS)]


def same(found, expected):
    assert len(found) == len(expected)
    for entities, others in zip(found, expected, strict=True):
        scores = [entity["score"] for entity in entities]
        assert scores == pytest.approx([entity["score"] for entity in others], abs=1e-5)
        assert [{**e, "score": 0} for e in entities] == [{**e, "score": 0} for e in others]


def test_a_string_gives_its_entities_and_a_list_those_of_each_text(extract, expected):
    assert any(expected) and expected[1] == []
    for text, entities in zip(TEXTS, expected, strict=True):
        same([extract(text)], [entities])
    same(extract(TEXTS), expected)
    same(extract(tuple(TEXTS)), expected)
    assert extract([]) == []


PLAIN = [text for text in TEXTS if text.isascii()]  # a data set cannot hold a lone surrogate
SEQUENCES = {
    "list": list,
    "tuple": tuple,
    "column": lambda texts: Dataset.from_dict({"text": texts})["text"],
    "key": lambda texts: KeyDataset(Dataset.from_dict({"text": texts}), "text"),
    "array": np.array,
    "objects": lambda texts: np.array(texts, dtype=object),
    "series": lambda texts: pd.Series(texts, index=range(7, 7 + len(texts))),
    "deque": deque,
    "own": UserList,
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_any_sequence_of_strings_is_a_list_of_texts(extract, processor, kind):
    made = SEQUENCES[kind]
    same(extract(made(PLAIN)), extract(PLAIN))
    assert processor(made(PLAIN)).texts == PLAIN
    words = PLAIN[0].split()
    for given in (made(words), [made(words)]):
        assert processor(given, is_split_into_words=True).texts == [words]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"a": "b"}, "dict; expected a string"),
        ({"a", "b"}, "set; expected"),
        (b"a", "bytes: decode it; expected"),
        (np.array("a"), "ndarray; expected"),
        (np.array([["a"]]), "ndarray; expected"),
        (array("d", [0.5]), r"\[0\] is of type float; expected a string"),
        (pd.Series(["a", None]), r"\[1\] is of type (float|NoneType); expected"),
        (torch.tensor([1]), r"\[0\] is of type Tensor; expected"),
        (pd.DataFrame({"text": ["a"]}), "DataFrame, a table: pass one of its columns; expected"),
        (Dataset.from_dict({"text": ["a"]}), "Dataset, a table: pass one of its columns; expected"),
        (Path("a.txt"), r"PosixPath: read the file \(`path.read_text\(\)`\); expected"),
    ],
)
def test_inputs_that_are_no_sequence_of_strings_are_named_by_their_type(extract, processor, wrong, message):
    for given in (extract, processor):
        with pytest.raises(TypeError, match=message):
            given(wrong)


def test_the_path_of_a_file_gets_a_hint(extract, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Ada")
    (tmp_path / "in").mkdir()
    for text in ("notes.txt", str(tmp_path / "notes.txt"), str(tmp_path / "in")):
        caplog.clear()
        extract(["Ada", text])
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"the text {text!r} is the path of a file: its name is searched" in caplog.text
    caplog.clear()
    extract(["in", ".", "/", "no.txt", "a" * 5000, "é" * 300, "notes.txt\n", "\0", "\ud800", ""])
    assert not caplog.records


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
def test_any_batch_size_gives_the_same_entities(extract, expected, batch_size):
    same(extract(TEXTS, batch_size=batch_size), expected)
    same(list(extract(iter(TEXTS), batch_size=batch_size)), expected)
    same(extract(["", TEXTS[0]], batch_size=batch_size), [[], expected[0]])
    same(extract(["", " "], batch_size=batch_size), [[], []])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_generator_streams(extract, expected, batch_size):
    taken = []

    def texts():
        for number in range(1000):
            taken.append(number)
            yield TEXTS[number % len(TEXTS)]

    results = extract(texts(), batch_size=batch_size)
    assert not taken
    same([next(results) for _ in range(5)], [*expected, expected[0]])
    assert len(taken) <= (1 if batch_size == 1 else BATCHES) * batch_size + 5


def test_texts_of_similar_length_share_a_batch(model, extract):
    shapes = []
    handle = model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    words = [3, 90, 4, 80, 5, 85]
    texts = ["word " * count for count in words]
    found = extract(texts, batch_size=3)
    handle.remove()
    assert [batch for batch, _ in shapes] == [3, 3]
    assert shapes[0][1] >= 90 and shapes[1][1] < 20
    same(found, [extract(text) for text in texts])


def test_an_empty_generator_gives_no_results(extract):
    assert list(extract(text for text in [])) == []


def test_options_of_a_call_come_before_those_of_the_pipeline(model, processor, extract, expected):
    inputs = processor(TEXTS)
    with torch.no_grad():
        outputs = model(**inputs)
    choices = (
        {"threshold": 0.55}, {"threshold": {"Task": 1.0}}, {"allow_nested": False}, {"labels": ["Task"]},
        {"labels": []},
        {"threshold": 0.45, "allow_nested": False, "labels": ["Method"]},
    )  # fmt: skip
    for options in choices:
        wanted = processor.post_process(outputs, inputs, **options)
        assert [len(entities) for entities in wanted] != [len(entities) for entities in expected]
        same(extract(TEXTS, **options), wanted)
        same(SenerPipeline(model=model, processor=processor, device="cpu", batch_size=3, **options)(TEXTS), wanted)
    fixed = SenerPipeline(model=model, processor=processor, device="cpu", threshold=1.0, labels=["Task"])
    same(fixed(TEXTS, threshold=0.55), processor.post_process(outputs, inputs, threshold=0.55, labels=["Task"]))
    same(extract(TEXTS), expected)


def test_labels_may_be_any_iterable(extract):
    text, wanted = TEXTS[0], extract.model.config.labels[:1]
    assert extract(text, labels=iter(wanted), threshold=0.0) == extract(text, labels=wanted, threshold=0.0) != []


def test_options_that_are_not_given_are_the_models(model, processor):
    extract = SenerPipeline(model=copy.deepcopy(model), processor=copy.deepcopy(processor))
    assert extract(TEXTS[0]) != []
    extract.model.config.threshold = 1.0
    assert extract(TEXTS[0]) == []


def test_wrong_input_is_named(extract):
    for wrong, message in (
        (5, "int.*string"),
        (["a", None], r"inputs\[1\].*NoneType"),
        ([["a"]], r"inputs\[0\].*list"),
    ):
        with pytest.raises(TypeError, match=message):
            extract(wrong)
    with pytest.raises(TypeError, match=r"inputs\[1\].*int"):
        list(extract(iter(["a", 7])))
    with pytest.raises(ValueError, match="unknown label 'Data'"):
        extract("", labels=["Data"])
    with pytest.raises(ValueError, match="threshold 7"):
        extract("", threshold=7)
    with pytest.raises(ValueError, match="allow_nested is 'no'"):
        extract("", allow_nested="no")
    with pytest.raises(TypeError, match="treshold"):
        extract("", treshold=0.5)


def test_the_model_predicts_without_dropout_and_gradients(model, processor):
    model.train()
    extract = SenerPipeline(model=model, processor=processor, device="cpu")
    assert extract(TEXTS[0]) == extract(TEXTS[0])
    assert not model.training
    made = []
    hook = model.classifier.register_forward_hook(lambda module, args, output: made.append(output))
    extract(TEXTS[0])
    hook.remove()
    assert made and not any(output.requires_grad for output in made)
    with pytest.raises(ValueError, match="processor"):
        SenerPipeline(model=model)


LOAD = """
import json
from transformers import pipeline

folder, again, texts = {folder!r}, {again!r}, json.loads({texts!r})
extract = pipeline("entity-extraction", model=folder, trust_remote_code=True)
assert type(extract).__name__ == "SenerPipeline"
extract.save_pretrained(again)
strict = pipeline("entity-extraction", model=again, trust_remote_code=True, threshold=1.0)
assert strict(texts) == [[]] * len(texts)
print(json.dumps([extract(texts, batch_size=2), list(extract(iter(texts))), strict(texts, threshold=0.5)]))
"""


def test_a_saved_folder_is_a_pipeline_and_saves_another(extract, expected, tmp_path):
    folder, again = str(tmp_path / "model"), str(tmp_path / "again")
    extract.save_pretrained(folder)
    printed = run_fresh(LOAD.format(folder=folder, again=again, texts=json.dumps(TEXTS)), tmp_path)
    for found in json.loads(printed.splitlines()[-1]):
        same(found, expected)
