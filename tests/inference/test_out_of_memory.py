"""Out of memory: real errors, in a process with a bounded address space."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from support.predictions import read, toy_checkpoint
from support.toy import ROOT, python, write_jsonl

from modeling_sener.memory import TextTooLargeError, is_out_of_memory
from training.inference import extraction


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded as Linux does it")

# MB. 16 texts of 500 words take more than `ROOM` in one batch, and less in two. A text of 100,000 words takes more
# than `LARGE_ROOM`. Its tokens alone take less: out of memory, the tokenizer would abort the process.
ROOM, LARGE_ROOM = 50, 250
# A first text runs before the bound is set, to load libraries and fill caches. MALLOC_MMAP_THRESHOLD_ gives the memory
# of large tensors back at once: free memory then does not depend on earlier computations.
SETTINGS = {"MALLOC_MMAP_THRESHOLD_": "65536", "TOKENIZERS_PARALLELISM": "0", "OMP_NUM_THREADS": "1"}
BOUND = f"""
import json, resource, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch
torch.set_num_threads(1)
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract
from modeling_sener import SenerModel, SenerPipeline
from modeling_sener.memory import TextTooLargeError

def bound(megabytes):
    taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20, resource.RLIM_INFINITY))

def text(words, first="Ada"):
    return [first, *(("Lovelace", "worked", "London")[i % 3] for i in range(words - 1))]

folder = sys.argv[1]
model, processor = load_checkpoint(folder)
computed, compute = [], SenerModel._find_candidates

def note(self, **inputs):
    computed.append(list(inputs["input_ids"].shape))
    return compute(self, **inputs)

SenerModel._find_candidates = note
"""
PARTS = """
texts = [text(500, str(n)) for n in range(16)]
expected = extract(model, processor, texts)
bound(int(sys.argv[2]))
computed.clear()
found = extract(model, processor, texts)
spans, wanted = ([[(e["start"], e["end"], e["label"]) for e in entities] for entities in each]
                 for each in (found, expected))
print(json.dumps({"same": spans == wanted, "entities": sum(map(len, found)), "computed": computed}))
"""
ALONE = """
texts = [text(20), text(100_000), text(500), text(30), text(120_000)]
warm = extract(model, processor, [text(500)] * 16)
bound(int(sys.argv[2]))
found = extract(model, processor, texts, keep_going=True)
try:
    extract(model, processor, texts)
except TextTooLargeError as error:
    message = str(error)
strings = [" ".join(words) for words in texts]
pipe, messages = SenerPipeline(model=model, processor=processor, device="cpu"), []
for batch_size in (1, 2):
    stream = pipe(iter(strings), batch_size=batch_size)
    try:
        for entities in stream:
            messages.append(len(entities) > 0)
    except TextTooLargeError as error:
        messages.append(str(error))
print(json.dumps({"found": [entities and len(entities) for entities in found], "message": message,
                  "pipeline": messages}))
"""
COMMAND = """
from importlib import import_module
import training.corpus.parquet
from training.common.start import run
room, main, sys.argv = int(sys.argv[2]), import_module(f"training.{sys.argv[3]}").main, ["training", *sys.argv[4:]]
extract(model, processor, [text(500)] * 16)
bound(room)
run(main)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint with a large hidden size, so that long texts need much memory."""
    return toy_checkpoint(tmp_path_factory.mktemp("model"), hidden_size=256)


def bounded(code, *arguments):
    return python("-c", BOUND + code, *arguments, **SETTINGS)


def test_a_batch_that_does_not_fit_is_split_until_it_does(model):
    done = bounded(PARTS, model, ROOM)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["same"] and result["entities"] > 1000
    batches = [texts for texts, _ in result["computed"]]
    assert batches[:2] == [16, 8] and batches[-1] < 16  # the whole batch was tried, then halves


def test_a_text_that_does_not_fit_alone_is_named_and_the_others_are_done(model):
    done = bounded(ALONE, model, LARGE_ROOM)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert [bool(entities) for entities in result["found"]] == [True, False, True, True, False]
    assert result["found"][1] is result["found"][4] is None
    assert result["message"] == "inputs[4] does not fit into memory (120,002 tokens)"  # the longest comes first
    first, last = "inputs[1] does not fit into memory (100,002 tokens)", "inputs[4] does not fit into memory"
    assert result["pipeline"][:2] == [True, first] and result["pipeline"][2].startswith(last)


@pytest.mark.slow
def test_prediction_writes_all_other_texts_and_names_the_one(model, tmp_path):
    words = ["Lovelace", "worked", "London"]
    lines = [{"id": n, "text": ["Ada", *words * (40_000 if n in (3, 90) else 6)]} for n in range(100)]
    write_jsonl(tmp_path / "a.jsonl", lines[:60])
    write_jsonl(tmp_path / "b.jsonl", lines[60:])
    for ending in (".jsonl", ".parquet"):
        output = tmp_path / f"out{ending}"
        done = bounded(COMMAND, model, LARGE_ROOM, "predict", "--model", model, "--input", tmp_path / "a.jsonl",
                       tmp_path / "b.jsonl", "--output", output)  # fmt: skip
        errors = [line.rpartition("\r")[2] for line in done.stderr.splitlines()]
        named = [line for line in errors if "does not fit into memory: " in line and not line.startswith("error")]
        assert [line.partition(": does")[0] for line in named] == [
            f"{tmp_path}/a.jsonl: text 4", f"{tmp_path}/b.jsonl: text 31"
        ]  # fmt: skip
        assert done.returncode == 1 and errors[-1] == (
            f"error: 2 of 100 texts: does not fit into memory: {output} is complete but for them, their lines have an "
            "`error`"
        ), done.stderr
        records = read(output)
        assert [record["id"] for record in records] == [str(n) for n in range(100)]
        assert [int(record["id"]) for record in records if record["entities"] is None] == [3, 90]
        assert [int(record["id"]) for record in records if record.get("error")] == [3, 90]
        assert sum(len(record["entities"] or ()) for record in records) > 100


@pytest.mark.slow
def test_scoring_names_the_document(model, tmp_path):
    records = [{"id": n, "text": "Ada Lovelace worked " * (40_000 if n == 3 else 5), "entities": []} for n in range(8)]
    data = write_jsonl(tmp_path / "gold.jsonl", [{**record, "id": f"text {record['id']}"} for record in records])
    done = bounded(COMMAND, model, LARGE_ROOM, "score", "--model", model, "--data", data)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "error: text 3: does not fit into memory (120,002 tokens)"


def test_other_errors_are_not_taken_for_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(TextTooLargeError(0, 1))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_text_is_named_by_its_place_among_the_texts_of_all_processes(monkeypatch):
    """Of two processes, the second has every other text, the longest first."""
    texts = [["a"] * words for words in (3, 50, 1, 40, 2, 60)]

    def refuse(model, processor, own, **options):
        raise TextTooLargeError(own.index(texts[1]), 50)

    state = SimpleNamespace(process_index=1, num_processes=2, is_main_process=False)
    monkeypatch.setattr(extraction, "extract", refuse)
    monkeypatch.setattr(extraction, "PartialState", lambda: state)
    with pytest.raises(TextTooLargeError, match=r"inputs\[1\] does not fit"):
        extraction.extract_shared(None, None, texts)
