"""A toy corpus that a tiny random encoder learns by heart. Run commands of `training/` as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from support.tiny import CORPUS, tiny_tokenizer
from transformers import BertConfig, BertModel

from modeling_sener.windows import Window


ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sys.executable).parent
# All Python files but the tests.
CODE = [path for folder in ("modeling_sener", "training", "space") for path in sorted((ROOT / folder).rglob("*.py"))]
LABELS = ["Material", "Method", "Person", "Task"]
# These are entities wherever they occur; some are nested, some have the same span.
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
    """`count` records of three sentences, as lists of words, in the format of the data files."""
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
    """Convert a record to raw text: a string, offsets in characters."""
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


# Options of a small run; an epoch on `both.jsonl` has eight steps of two windows, and takes about a second.
SMALL = ["--span_window", "8", "--attention_window", "16", "--biaffine_size", "16", "--span_channels", "8",
         "--span_layers", "1", "--max_tokens", "64", "--batch_size", "2", "--gradient_accumulation_steps", "1",
         "--learning_rate", "2e-3", "--head_learning_rate", "5e-3"]  # fmt: skip


def empty_records(count):
    """`count` records without an entity, of two or three sentences, in the format of the data files."""
    return [{"doc_id": f"empty{n}", "text": f"{CORPUS[3]} ".split() * (2 + n % 2), "entity": []} for n in range(count)]


def toy_folder(folder):
    """
    Fill `folder` with `bert`, a backbone; `raw.jsonl`, the toy corpus as raw text; `both.jsonl`, the same texts as
    lists of words and as raw text; and `sparse.jsonl`, 12 of these texts and 8 without an entity. Each text is one
    training window.
    """
    toy_backbone(folder / "bert")
    words, raw = toy_records(), [as_raw(record) for record in toy_records()]
    write_jsonl(folder / "raw.jsonl", raw)
    write_jsonl(folder / "both.jsonl", words + raw)
    write_jsonl(folder / "sparse.jsonl", (words + raw)[:12] + empty_records(8))
    return folder


def training_arguments(folder, output, *more):
    """Arguments of training/train.py for a small run on `toy_folder`."""
    return ["--backbone", str(folder / "bert"), "--train_file", str(folder / "both.jsonl"),
            "--dev_file", str(folder / "both.jsonl"), "--output_dir", str(output), *SMALL, *more]  # fmt: skip


def tagger_arguments(folder, output, *more):
    """Arguments of training/baseline_tagger.py for a small run on `toy_folder`."""
    data = str(folder / "both.jsonl")
    return ["--backbone", str(folder / "bert"), "--train_file", data, "--dev_file", data, "--output_dir", str(output),
            "--lora_rank", "0", "--max_tokens", "64", "--batch_size", "4", "--gradient_accumulation_steps", "1",
            "--learning_rate", "5e-3", "--head_learning_rate", "1e-2", "--mask_share", "0", "--report_to", "none",
            *more]  # fmt: skip


def toy_window(length, first=0, spans=()):
    """A window of `length` words with one token each, between [CLS] and [SEP]."""
    tokens = 10 + first + np.arange(length)
    word_index = np.concatenate([[0], np.arange(1, length + 1), [0]])
    return Window(np.concatenate([[1], tokens, [2]]), word_index, list(spans))


# Options of `accelerate launch`. Several processes are called multi_gpu even on the CPU.
ONE_PROCESS = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_processes", "1"]
TWO_PROCESSES = [*ONE_PROCESS[:-1], "2", "--multi_gpu"]


def launch(script, *arguments, options=(), **environment):
    """Run `accelerate launch training/SCRIPT ARGUMENTS` from the root, as in the README, without a network."""
    return _run([SCRIPTS / "accelerate", "launch", *options, f"training/{script}", *arguments], environment)


def python(*arguments, **environment):
    return _run([sys.executable, *arguments], environment)


def fails(done, *parts):
    """Assert that a command failed with a single error message, which contains `parts`, and without a traceback."""
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    messages = [line for line in done.stderr.splitlines() if line.startswith("error: ") or ": error: " in line]
    assert len(messages) == 1, done.stderr
    for part in parts:
        assert str(part) in messages[0]


def one_core():
    """Bind a child process to one core: small work gains nothing from a second one, and suffers if others use it."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def _run(command, environment):
    settings = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "80"}
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **settings, **environment},
        capture_output=True, text=True, timeout=600, preexec_fn=one_core,
    )  # fmt: skip
