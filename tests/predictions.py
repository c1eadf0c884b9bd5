"""An untrained checkpoint, a corpus of short texts for it, and the lines of a prediction."""

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny import tiny_tokenizer
from toy import as_raw, toy_backbone, toy_records, write_jsonl

from modeling_sener import SenerModel, SenerProcessor


LABELS = ["Material", "Method", "Person", "Task"]


def toy_checkpoint(folder, **encoder):
    """`folder`/model, which finds many entities of random scores; `encoder`: fields of BERT's configuration."""
    toy_backbone(folder / "bert", **encoder)
    torch.manual_seed(0)
    model = SenerModel.from_backbone(
        str(folder / "bert"), LABELS, span_window=4, biaffine_size=8, span_channels=4, span_layers=1
    )
    torch.nn.init.normal_(model.classifier.weight, std=2)
    torch.nn.init.constant_(model.classifier.bias, -4.6)
    model.save_pretrained(folder / "model")
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(folder / "model")
    return folder / "model"


def toy_corpus(path, count):
    """`count` texts, every other one a list of words, of which no two next to each other are of one length."""
    records = []
    for n, record in enumerate(toy_records(count)):
        record["text"] = record["text"][: 3 + (7 * n) % 11]
        record["entity"] = []
        records.append({"id": f"text {n}", "text": record["text"] if n % 2 else as_raw(record)["text"]})
    return write_jsonl(path, records)


def read(path):
    """The records of an output of any format."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def assert_same(records, expected):
    """The same texts in the same order with the same entities; their scores to 1e-5, as batches may differ."""
    assert [record["id"] for record in records] == [record["id"] for record in expected]
    for record, wanted in zip(records, expected, strict=True):
        for entity, other in zip(record["entities"], wanted["entities"], strict=True):
            assert entity == {**other, "score": pytest.approx(other["score"], abs=1e-5)}
    assert sum(len(record["entities"]) for record in records) > len(records)
