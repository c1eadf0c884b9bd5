"""A toy corpus that a tiny random encoder learns by heart, and the commands of `training/` as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tiny import CORPUS, tiny_tokenizer
from transformers import BertConfig, BertModel


ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
LABELS = ["Material", "Method", "Person", "Task"]
# What is an entity wherever it stands; nested and same-span ones are among them.
ENTITIES = (
    ("ResNet-50", "Method"),
    ("ImageNet", "Material"),
    ("Arrow attention", "Method"),
    ("low-rank adaptation of language models", "Method"),
    ("language models", "Task"),
    ("Ada Lovelace", "Person"),
    ("Charles Babbage", "Person"),
    ("Analytical Engine", "Method"),
    ("Analytical Engine", "Material"),
)


def toy_records(count=8):
    """`count` texts of words in the format of the data files, each of three sentences."""
    records = []
    for n in range(count):
        words = " ".join(CORPUS[(n + k) % len(CORPUS)] for k in range(3)).split()
        entities = []
        for name, label in ENTITIES:
            parts = name.split()
            for i in range(len(words)):
                if words[i : i + len(parts)] == parts:
                    entities.append([i, i + len(parts), name, label])
        records.append({"doc_id": f"toy{n}", "text": words, "entity": entities})
    return records


def as_raw(record):
    """The same text in the format of raw text: a string, offsets in characters."""
    words, starts, length = record["text"], [], 0
    for word in words:
        starts.append(length)
        length += len(word) + 1
    entities = [{"start": starts[i], "end": starts[j - 1] + len(words[j - 1]), "label": label}
                for i, j, _, label in record["entity"]]  # fmt: skip
    return {"id": record["doc_id"], "text": " ".join(words), "entities": entities}


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def toy_backbone(folder, hidden_size=32, **fields):
    """A folder with a tiny random BERT, dropout off, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("wordpiece")
    sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "max_position_embeddings": 128,
             "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout_prob": 0.0}  # fmt: skip
    BertModel(BertConfig(vocab_size=len(tokenizer), **{**sizes, **fields})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def launch(script, *arguments, **environment):
    """`accelerate launch training/SCRIPT ARGUMENTS` from the root, as in the README; no network."""
    return _run([SCRIPTS / "accelerate", "launch", f"training/{script}", *arguments], environment)


def python(*arguments, **environment):
    return _run([sys.executable, *arguments], environment)


def _run(command, environment):
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
    # One core: work this small gains nothing from a second thread, and loses much when another process wants it.
    one_core = (lambda: os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])) if sys.platform == "linux" else None
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **settings, **environment},
        capture_output=True, text=True, timeout=600, preexec_fn=one_core,
    )  # fmt: skip
