"""predict.py: all formats, one chunk of texts in memory, no text lost or repeated, faults named."""

import gzip
import json
import os
import platform
import random
import shutil
import signal
import time
import tracemalloc
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.killed import kill_with_workers, run_until_killed, start_two_processes
from support.predictions import assert_same, read, results_of, toy_checkpoint, toy_corpus, write, write_partial
from support.toy import ONE_PROCESS, ROOT, TWO_PROCESSES, launch, python, write_jsonl

from training import predict
from training.corpus.data import DataError, Document
from training.inference import extraction
from training.inference.extraction import BATCH_WORDS, CHARACTERS_A_WORD, length_batches
from training.inference.inputs import stream_inputs
from training.inference.job import CHUNK_TEXTS, CHUNK_WORDS, Prediction, corpus_chunks
from training.inference.results import Results, prediction_line


COUNT = 200  # texts of the corpus: four chunks of one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a corpus, and the output of an unbroken run over it."""
    folder = tmp_path_factory.mktemp("predict")
    toy_checkpoint(folder)
    toy_corpus(folder / "corpus.jsonl", COUNT)
    run(folder, folder / "corpus.jsonl", output=folder / "expected.jsonl")
    return folder


def arguments(folder, *inputs, output, more=()):
    return ["--model", str(folder / "model"), "--input", *map(str, inputs), "--output", str(output), *more]


def run(folder, *inputs, output, more=()):
    predict.main(arguments(folder, *inputs, output=output, more=more))


IN_USE = """
import ctypes, gc, json, os, sys
for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.pop(name, None)  # a prediction in the parent process has set it
from training import predict

class Heap(ctypes.Structure):  # mallinfo2(3)
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
in_use = []
for corpus in sys.argv[2:]:
    predict.main(["--model", sys.argv[1], "--input", corpus, "--output", corpus + ".out.jsonl",
                  "--batch_size", "1"])
    gc.collect()
    in_use.append(libc.mallinfo2().uordblks)
print(json.dumps(in_use))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallinfo2 is glibc's")
def test_memory_does_not_grow_with_the_number_of_different_lengths(folder, tmp_path):
    corpora = []
    for first in range(20, 320, 75):  # no two texts are of one length
        records = [{"id": n, "text": "word " * n} for n in range(first, first + 75)]
        corpora.append(write_jsonl(tmp_path / f"{first}.jsonl", records))
    done = python("-c", IN_USE, folder / "model", *corpora, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    in_use = json.loads(done.stdout.splitlines()[-1])
    assert in_use[3] - in_use[1] < 4e6


def test_all_formats_of_inputs_and_outputs_give_the_same_entities(folder, tmp_path):
    lines = (folder / "corpus.jsonl").read_text().splitlines()[:90]
    strings, words = ([json.loads(line) for line in lines[k::2]] for k in (0, 1))
    write_jsonl(tmp_path / "strings.jsonl", strings)
    (tmp_path / "words.jsonl.gz").write_bytes(gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in words)))
    pq.write_table(pa.Table.from_pylist(strings), tmp_path / "strings.parquet", row_group_size=7)
    pq.write_table(pa.Table.from_pylist(words), tmp_path / "words.parquet", row_group_size=50)
    plain = [tmp_path / "strings.jsonl", tmp_path / "words.jsonl.gz"]
    columns = [tmp_path / "strings.parquet", tmp_path / "words.parquet"]
    for name, inputs in (("out.jsonl", plain), ("out.jsonl.gz", columns), ("out.parquet", plain)):
        run(folder, *inputs, output=tmp_path / name)
    everything = {record["id"]: record for record in read(folder / "expected.jsonl")}
    expected = [everything[record["id"]] for record in strings + words]
    for name in ("out.jsonl", "out.jsonl.gz", "out.parquet"):
        assert_same(read(tmp_path / name), expected)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in plain + columns}
    assert left == {"out.jsonl", "out.jsonl.gz", "out.parquet"}


def test_a_column_of_categories_and_rows_without_an_id_are_read(folder, tmp_path):
    table = pa.table({"text": pa.array(["Ada Lovelace", "London"]).dictionary_encode(), "id": pa.array([None, 7])})
    pq.write_table(table, tmp_path / "a.parquet")
    documents = list(stream_inputs([str(tmp_path / "a.parquet")]))
    assert documents == [Document(f"{tmp_path}/a.parquet row 1", "Ada Lovelace"), Document("7", "London")]


def test_a_lone_surrogate_is_written(tmp_path):
    entity = {"start": 0, "end": 2, "text": "x\ud83d", "label": "Task", "score": 0.5}
    for name, text in (("a.jsonl", "x\ud83d"), ("a.parquet", "x\ufffd")):
        results = results_of(tmp_path / name)
        write(results, [prediction_line("\ud83d\ude00\ud83d", [entity])])
        results.finish()
        (record,) = read(tmp_path / name)
        assert record["entities"] == [entity | {"text": text}]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_partial_file_cut_anywhere_keeps_its_whole_lines_and_no_text_is_left_out(tmp_path_factory, data):
    ids = data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=6))
    lines, folder = [prediction_line(name, []) for name in ids], tmp_path_factory.mktemp("cut")
    results = results_of(folder / "out.jsonl", model="a")
    write(results, lines)
    results.close()
    whole = (folder / "out.jsonl.partial").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    (folder / "out.jsonl.partial").write_bytes(whole[:cut])
    results, documents = Results(str(folder / "out.jsonl")), iter([Document(name, "") for name in ids])
    results.resume(documents)
    assert results.done == max(whole[:cut].count(b"\n") - 1, 0)
    results.begin({"model": "a"})
    write(results, [prediction_line(document.id, []) for document in documents])
    results.finish()
    assert (folder / "out.jsonl").read_text(encoding="utf-8").split("\n") == [*lines, ""]
    assert [path.name for path in folder.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("cut", [1, 0.3, 0.999, 0])
def test_a_cut_run_is_resumed_to_the_same_output(folder, tmp_path, capsys, cut):
    aside, lines = tmp_path / "out.jsonl.partial", (folder / "expected.jsonl").read_bytes().splitlines(keepends=True)
    write_partial(folder, [folder / "corpus.jsonl"], tmp_path / "out.jsonl", lines)
    os.truncate(aside, int(cut * aside.stat().st_size))
    run(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume"])
    assert_same(read(tmp_path / "out.jsonl"), read(folder / "expected.jsonl"))
    assert not (tmp_path / "out.jsonl.partial").exists()
    printed = capsys.readouterr()
    assert f"{COUNT}/{COUNT}" in printed.err and ("resumed after" in printed.out) == bool(cut)
    written = (tmp_path / "out.jsonl").stat()
    run(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume"])
    assert "is complete" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").stat() == written


def test_a_fault_in_the_input_loses_no_finished_text(folder, tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:150], '{"id": 1, "text": 2}\n', *lines[151:]]))
    where = f"{path}:151: text: expected a string or a list of words, found 2"
    for done, more in ((128, []), (128, ["--resume"])):
        with pytest.raises(DataError) as error:
            run(folder, path, output=tmp_path / "out.jsonl", more=more)
        assert str(error.value) == (
            f"{where}; {done} texts are done: repair the input and start the same command with --resume"
        )
        assert len(read(tmp_path / "out.jsonl.partial")) == done and not (tmp_path / "out.jsonl").exists()
    path.write_text("".join(lines))
    run(folder, path, output=tmp_path / "out.jsonl", more=["--resume"])
    assert_same(read(tmp_path / "out.jsonl"), read(folder / "expected.jsonl"))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_corpus_passes_through_little_memory(tmp_path, ending):
    """40 MB of text. Only a chunk (64 texts of 10 kB) and the read-ahead buffer are in memory."""
    path, text = str(tmp_path / ("corpus" + ending)), "word " * 2000
    if ending == ".parquet":
        table = pa.table({"text": [f"{n} {text}" for n in range(4000)]})
        pq.write_table(table, path, compression="none", write_batch_size=64)  # pages of 1 MB, one row group
        del table
    else:
        with gzip.open(path, "wt", compresslevel=1) if ending.endswith("gz") else open(path, "w") as file:
            file.writelines(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(4000))
    job, most_in_arrow = Prediction([path], str(tmp_path / "out.jsonl.gz"), resume=False), 0
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    job.start()
    job.show({})
    while texts := job.next_texts():
        assert len(texts) <= CHUNK_TEXTS
        job.add([[] for _ in texts])
        most_in_arrow = max(most_in_arrow, pa.total_allocated_bytes() - before)
    job.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert job.results.done == 4000 and peak < 8e6 and most_in_arrow < 8e6


def test_a_chunk_ends_after_a_long_text():
    lengths = [10, CHUNK_WORDS, *[1] * 130]
    documents = [Document(str(n), ["a"] * length) for n, length in enumerate(lengths)]
    found = list(corpus_chunks(documents, 1))
    assert [len(chunk) for chunk in found] == [2, 64, 64, 2]
    assert [document for chunk in found for document in chunk] == documents
    assert [len(chunk) for chunk in corpus_chunks(documents, 2)] == [128, 4]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5000)), max_size=30), st.integers(1, 5))
def test_batches_hold_each_text_once_are_of_one_kind_and_full(kinds, batch_size):
    texts = [["a"] * words if is_split else "a" * CHARACTERS_A_WORD * words for is_split, words in kinds]
    batches = list(length_batches(texts, batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(texts)))
    padded = [[max(kinds[i][1] for i in batch) * count for count in (len(batch), len(batch) + 1)] for batch in batches]
    for batch, (words, _) in zip(batches, padded, strict=True):
        assert len(batch) <= batch_size and (len(batch) == 1 or words <= BATCH_WORDS)
        assert len({kinds[i][0] for i in batch}) == 1
    for (batch, (_, more)), following in zip(zip(batches, padded, strict=True), batches[1:], strict=False):
        full = len(batch) == batch_size or more > BATCH_WORDS
        assert full or (kinds[batch[0]][0], kinds[following[0]][0]) == (False, True)  # the one change of kind


def test_one_process_computes_each_text_and_long_texts_are_shared_out(monkeypatch):
    """Imitates two processes, one after the other; each returns only its own texts."""
    texts, shares = [["a"] * words for words in (3, 50, 1, 40, 2, 60)], []

    def gather(own):
        shares.append(own)
        return [*own, *((i, None) for i in range(len(texts)) if i not in dict(own))]

    monkeypatch.setattr(extraction, "extract", lambda model, processor, own, **options: own)
    monkeypatch.setattr(extraction, "gather_object", gather)
    for process in (0, 1):
        state = SimpleNamespace(process_index=process, num_processes=2, is_main_process=process == 0)
        monkeypatch.setattr(extraction, "PartialState", lambda state=state: state)
        found = extraction.extract_shared(None, None, texts)
        assert found == [text if (i, text) in shares[-1] else None for i, text in enumerate(texts)]
    assert sorted(shares[0] + shares[1]) == list(enumerate(texts))
    assert [sum(len(text) for _, text in share) for share in shares] == [102, 54]


def refused(folder, tmp_path, *inputs, output="out.jsonl", more=()):
    with pytest.raises(ValueError) as error:
        run(folder, *inputs, output=tmp_path / output, more=more)
    return str(error.value)


def test_a_partial_file_of_other_texts_is_neither_overwritten_nor_continued(folder, tmp_path):
    corpus, aside = folder / "corpus.jsonl", tmp_path / "out.jsonl.partial"
    lines = (folder / "expected.jsonl").read_bytes().splitlines(keepends=True)
    for written, message in (
        ([lines[0], lines[2]], f"{aside}:3: the text 'text 2', where the input has the text 'text 1'"),
        ([*lines, lines[0]], f"{aside}:{COUNT + 2}: the text 'text 0', where the input has no more text"),
    ):
        write_partial(folder, [corpus, corpus], tmp_path / "out.jsonl", written)
        content = aside.read_bytes()
        assert f"{aside}: is of a run that did not end" in refused(folder, tmp_path, corpus)
        assert message in refused(folder, tmp_path, corpus, more=["--resume"])
        assert aside.read_bytes() == content
        aside.unlink()
    aside.write_text("[]\n")
    assert f"{aside}:1: is damaged, or no line of this" in refused(folder, tmp_path, corpus, more=["--resume"])


# The field that the error names, a change to the model before the run is resumed, further arguments then.
OTHERS = {
    "threshold": ("threshold", lambda folder: None, ["--threshold", "0.7"]),
    "labels": (
        "labels",
        lambda folder: edit(
            folder, id2label=dict(enumerate("ABCD")), label2id={label: i for i, label in enumerate("ABCD")}
        ),
        [],
    ),
    "thresholds of the model": ("threshold", lambda folder: edit(folder, threshold=0.4), []),
    "nested entities": ("allow_nested", lambda folder: edit(folder, allow_nested=False), []),
    "the encoder's window": ("attention_window", lambda folder: edit(folder, attention_window=4), []),
    "weights": ("checksum of the weights", lambda folder: change_weights(folder), []),
    "tokenizer": ("checksum of the tokenizer", lambda folder: change_tokenizer(folder), []),
    "inputs": ("input", lambda folder: None, ["--input", "corpus.jsonl", "more.jsonl"]),
}


def edit(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def change_weights(folder):
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] += 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_tokenizer(folder):
    state = json.loads((folder / "tokenizer.json").read_text())
    first, second, *_ = (word for word in state["model"]["vocab"] if word.isalpha())
    vocab = state["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(state))


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_is_not_resumed_with_another_model_or_other_arguments(folder, tmp_path, monkeypatch, name):
    field, change, more = OTHERS[name]
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(lines[:100]))
    (tmp_path / "more.jsonl").write_text("".join(lines[100:]))
    shutil.copytree(folder / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    inference_of, calls = predict.extract_shared, []

    def extract(*arguments, **named):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inference_of(*arguments, **named)

    monkeypatch.setattr(predict, "extract_shared", extract)
    given = ["--model", "model", "--output", "out.jsonl", "--input", "corpus.jsonl"]
    with pytest.raises(KeyboardInterrupt):
        predict.main(given)
    change(tmp_path / "model")
    content = (tmp_path / "out.jsonl.partial").read_bytes()
    calls.clear()
    with pytest.raises(DataError, match=f"^out.jsonl.partial: {field} was .* in this run and is .* now: give the sa"):
        predict.main([*given, "--resume", *more])
    assert not calls and (tmp_path / "out.jsonl.partial").read_bytes() == content and len(content) > 1000


def test_a_run_is_resumed_with_another_batch_size(folder, tmp_path):
    lines = (folder / "expected.jsonl").read_bytes().splitlines(keepends=True)
    write_partial(folder, [folder / "corpus.jsonl"], tmp_path / "out.jsonl", lines[:70])
    run(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume", "--batch_size", "3"])
    assert_same(read(tmp_path / "out.jsonl"), read(folder / "expected.jsonl"))


def test_a_text_that_changed_since_its_line_was_written_is_named(folder, tmp_path):
    lines = (folder / "expected.jsonl").read_bytes().splitlines(keepends=True)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes((folder / "corpus.jsonl").read_bytes())
    aside = write_partial(folder, [corpus], tmp_path / "out.jsonl", lines[:70])
    texts = corpus.read_text().splitlines(keepends=True)
    corpus.write_text("".join([*texts[:30], json.dumps({"id": "text 30", "text": "Another one"}) + "\n", *texts[31:]]))
    assert f"{aside}:32: the text 'text 30' was another one when this line was made; resume with the input" in \
        refused(folder, tmp_path, corpus, more=["--resume"])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_bit_of_the_partial_file_is_noticed(tmp_path_factory, data):
    """Both by the run that wrote the file and by a run that resumes it."""
    folder, ids = tmp_path_factory.mktemp("flip"), ["a", "b", "c"]
    entity = {"start": 0, "end": 2, "text": "é😀", "label": "Task", "score": 0.5}
    results = results_of(folder / "out.jsonl", model="a", threshold=[0.5])
    write(results, [prediction_line(name, [entity] * n) for n, name in enumerate(ids)])
    whole = (folder / "out.jsonl.partial").read_bytes()
    # The last line's end is spared: without it, the line is computed anew.
    bit = data.draw(st.integers(0, 8 * len(whole) - 9))
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    (folder / "out.jsonl.partial").write_bytes(damaged)
    with pytest.raises(DataError, match=r"out\.jsonl\.partial:\d: (is|was) damaged.* start anew$"):
        results.finish()
    assert not (folder / "out.jsonl").exists()
    again = Results(str(folder / "out.jsonl"))
    with pytest.raises(DataError, match=r"out\.jsonl\.partial:\d: (is|was) damaged.* start anew$") as error:
        again.resume(iter([Document(name, "") for name in ids]))
    line = int(str(error.value).partition(".partial:")[2].partition(":")[0])
    if line > 1:  # follow the message's advice, and cut the file off before this line: the lines above are right
        (folder / "out.jsonl.partial").write_bytes(b"".join(bytes(damaged).splitlines(keepends=True)[: line - 1]))
        again = Results(str(folder / "out.jsonl"))
        again.resume(iter([Document(name, "") for name in ids]))
        assert again.done == line - 2


def test_an_input_or_option_that_cannot_be_used_is_named_before_anything_is_written(folder, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join((folder / "corpus.jsonl").read_text().splitlines(keepends=True)[:3]))
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "body.parquet")
    pq.write_table(pa.table({"text": [b"a"]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    (tmp_path / "no.parquet").write_text("no")
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    (tmp_path / "link.jsonl").symlink_to(corpus)
    before = set(tmp_path.iterdir())
    for name, message in {
        "body.parquet": ": column text: expected strings or lists of words, found no such column",
        "bytes.parquet": ": column text: expected strings or lists of words, found binary",
        "null.parquet": " row 2: text: expected a string or a list of words, found nothing",
        "none.parquet": ": no document in this file",
        "no.parquet": ": cannot be read (",
        "nowhere.parquet": ": no such file; did you mean ",
        "a.csv": ": expected a .txt, .jsonl, .jsonl.gz or .parquet file",
        "latin.jsonl": ":2: not UTF-8 text",
    }.items():
        assert refused(folder, tmp_path, corpus, tmp_path / name).startswith(f"{tmp_path / name}{message}")
    assert "expected a .jsonl, .jsonl.gz or .parquet file" in refused(folder, tmp_path, corpus, output="out.json")
    assert "in a folder that exists" in refused(folder, tmp_path, corpus, output="no/out.jsonl")
    for path in (corpus, tmp_path / "link.jsonl"):
        assert "is an input, too" in refused(folder, tmp_path, path, output="corpus.jsonl")
    assert "threshold 1.5" in refused(folder, tmp_path, corpus, more=["--threshold", "1.5"])
    assert "--batch_size 0: expected" in refused(folder, tmp_path, corpus, more=["--batch_size", "0"])
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(folder, tmp_path):
    done = launch("predict.py", *arguments(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl"),
                  options=TWO_PROCESSES)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same(read(tmp_path / "out.jsonl"), read(folder / "expected.jsonl"))
    assert f"{COUNT}/{COUNT}" in done.stderr  # the bar, once
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    done = launch("predict.py", *arguments(folder, tmp_path / "bad.jsonl", output=tmp_path / "b.jsonl"),
                  options=TWO_PROCESSES)  # fmt: skip
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'bad.jsonl'}:2: text: expected a string or a list of words, found 3"
    ]


MODEL = "modeling_sener:SenerModel.find_candidates"  # called four times a chunk
# The event of each kill, as `run_until_killed` takes it, in the order of a run. Each run resumes the one before it.
KILLS = {
    "before the first line": ("open", "out.jsonl.gz.partial", 1, 0),
    "in the first chunk": (MODEL, "", 2, 0),
    "in the second chunk": (MODEL, "", 6, 0),
    "before half a line is cut": ("os.truncate", "out.jsonl.gz.partial", 1, 0),
    "in a later chunk": (MODEL, "", 5, 0.005),
    "before it is compressed": ("open", "out.jsonl.gz.writing", 1, 0),
    "before it gets its name": ("os.rename", "out.jsonl.gz.writing", 1, 0),
    "before the partial file is removed": ("os.remove", "out.jsonl.gz.partial", 1, 0),
}


@pytest.mark.slow
def test_a_run_killed_at_any_kind_of_moment_loses_and_repeats_nothing(folder, tmp_path):
    given = arguments(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl.gz", more=["--resume"])
    aside, seen = tmp_path / "out.jsonl.gz.partial", []
    for place, point in KILLS.items():
        if place == "before half a line is cut":
            with aside.open("ab") as file:
                file.write(b'{"id": "text 64", "entit')
        assert run_until_killed("predict", *point, given) == -signal.SIGKILL, place
        seen.append(max(aside.read_bytes().count(b"\n") - 1, 0) if aside.exists() else 0)
        assert (tmp_path / "out.jsonl.gz").exists() == (place == "before the partial file is removed")
    assert seen == [0, 0, 64, 64, 128, COUNT, COUNT, COUNT]
    done = python(ROOT / "training" / "predict.py", *given)
    assert done.returncode == 0 and f"resumed after {COUNT} texts" in done.stdout, done.stderr
    assert_same(read(tmp_path / "out.jsonl.gz"), read(folder / "expected.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]


def test_two_runs_do_not_write_one_file(tmp_path):
    first, second = results_of(tmp_path / "out.jsonl"), Results(str(tmp_path / "out.jsonl"))
    write(first, [prediction_line("a", [])])
    assert len(read(first.partial)) == 1  # a kill does not remove it
    with pytest.raises(DataError, match="another run is writing it"):
        second.resume(iter([Document("a", "")]))
    with pytest.raises(DataError, match="another run is writing it"):
        second.begin({})
    first.finish()
    assert read(tmp_path / "out.jsonl") == [{"id": "a", "entities": []}]


@pytest.mark.slow
def test_two_processes_killed_at_any_time_lose_and_repeat_nothing(folder, tmp_path):
    """Killed from outside, at random times; the launcher and both processes die together."""
    corpus = toy_corpus(tmp_path / "corpus.jsonl", 1300)
    run(folder, corpus, output=tmp_path / "unbroken.jsonl")
    size = (tmp_path / "unbroken.jsonl").stat().st_size
    given = arguments(folder, corpus, output=tmp_path / "out.jsonl", more=["--resume"])
    aside = tmp_path / "out.jsonl.partial"
    for share in (random.uniform(0, 0.4), random.uniform(0.4, 0.8)):
        launcher = start_two_processes("predict.py", given)
        while not aside.exists() or aside.stat().st_size <= share * size:
            assert launcher.poll() is None
            time.sleep(0.01)
        kill_with_workers(launcher)
        assert not (tmp_path / "out.jsonl").exists()
    done = launch("predict.py", *given, options=ONE_PROCESS)
    assert done.returncode == 0 and "resumed after" in done.stdout, done.stderr
    assert_same(read(tmp_path / "out.jsonl"), read(tmp_path / "unbroken.jsonl"))
