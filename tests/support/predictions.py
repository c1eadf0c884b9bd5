"""Make an untrained checkpoint and a corpus of short texts; write and read the lines of predictions."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from support.tiny import tiny_tokenizer
from support.toy import as_raw, toy_backbone, toy_records, write_jsonl

from modeling_sener import SenerModel, SenerProcessor
from training.fitting.checkpoint import load_checkpoint
from training.inference.inputs import stream_inputs
from training.inference.job import signature_of
from training.inference.results import Results, checksum_of_text


LABELS = ["Material", "Method", "Person", "Task"]


def toy_checkpoint(folder, bias=-4.6, **encoder):
    """
    Make `folder`/model, an untrained checkpoint that finds many entities with random scores.

    Args:
        bias: of the labels; with 0, scores spread over 0..1.
        encoder: fields of BERT's configuration.
    """
    toy_backbone(folder / "bert", **encoder)
    torch.manual_seed(0)
    model = SenerModel.from_backbone(
        str(folder / "bert"), LABELS, span_window=4, biaffine_size=8, span_channels=4, span_layers=1
    )
    torch.nn.init.normal_(model.classifier.weight, std=2)
    torch.nn.init.constant_(model.classifier.bias, bias)
    model.save_pretrained(folder / "model")
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(folder / "model")
    return folder / "model"


def toy_corpus(path, count):
    """Write `count` texts, every other one a list of words; neighbours differ in length."""
    records = []
    for n, record in enumerate(toy_records(count)):
        record["text"] = record["text"][: 3 + (7 * n) % 11]
        record["entity"] = []
        records.append({"id": f"text {n}", "text": record["text"] if n % 2 else as_raw(record)["text"]})
    return write_jsonl(path, records)


def results_of(output, **signature):
    """A `Results` for `output` that has begun, with this signature."""
    results = Results(str(output))
    results.begin(signature)
    return results


def write(results, lines):
    """Write lines, as if they were the results of empty texts."""
    lines = list(lines)
    results.write(lines, [checksum_of_text("")] * len(lines))


def write_partial(folder, inputs, output, lines):
    """Write the partial file of a run of `folder`/model that was killed after it wrote `lines` (bytes)."""
    signature = {"input": [*map(str, inputs)], **signature_of(*load_checkpoint(folder / "model"), None)}
    results, documents = results_of(output, **signature), stream_inputs(map(str, inputs))
    texts = [checksum_of_text(document.text) for document, _ in zip(documents, lines, strict=False)]
    results.write([line.decode().rstrip("\n") for line in lines], texts)
    results.close()
    return Path(results.partial)


def read(path):
    """Read the records of an output, of any format, or of a partial file."""
    path = Path(path)
    if path.suffix == ".partial":
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert {*lines[0]} == {"checksum", "signature"} and all(line.pop("check") for line in lines[1:])
        return lines[1:]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def assert_same(records, expected):
    """Compare texts, order and entities; scores to 1e-5, as batches may differ."""
    assert [record["id"] for record in records] == [record["id"] for record in expected]
    for record, wanted in zip(records, expected, strict=True):
        for entity, other in zip(record["entities"], wanted["entities"], strict=True):
            assert entity == {**other, "score": pytest.approx(other["score"], abs=1e-5)}
    assert sum(len(record["entities"]) for record in records) > len(records)
