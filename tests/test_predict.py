"""Prediction over a corpus: every format, one stretch in memory, nothing lost or repeated, faults named."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions import assert_same, read, toy_checkpoint, toy_corpus
from toy import ONE_PROCESS, ROOT, TWO_PROCESSES, launch, one_core, python, write_jsonl

from training import predict
from training.data import DataError, Document, read_documents
from training.results import Results, as_line


COUNT = 200  # texts of the corpus: four stretches of one process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, a corpus, and what an unbroken run makes of it."""
    folder = tmp_path_factory.mktemp("predict")
    toy_checkpoint(folder)
    toy_corpus(folder / "corpus.jsonl", COUNT)
    run(folder, folder / "corpus.jsonl", output=folder / "expected.jsonl")
    return folder


def arguments(folder, *inputs, output, more=()):
    return ["--model", str(folder / "model"), "--input", *map(str, inputs), "--output", str(output), *more]


def run(folder, *inputs, output, more=()):
    predict.main(arguments(folder, *inputs, output=output, more=more))


def test_all_formats_give_the_entities_of_the_pipeline_path(folder, tmp_path):
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
    documents = list(predict.stream_inputs([str(tmp_path / "a.parquet")]))
    assert documents == [Document(f"{tmp_path}/a.parquet row 1", "Ada Lovelace"), Document("7", "London")]


def test_half_a_surrogate_pair_is_written(tmp_path):
    entity = {"start": 0, "end": 2, "text": "x\ud83d", "label": "Task", "score": 0.5}
    for name, text in (("a.jsonl", "x\ud83d"), ("a.parquet", "x\ufffd")):
        results = Results(str(tmp_path / name))
        results.write([as_line("\ud83d\ude00\ud83d", [entity])])
        results.finish()
        (record,) = read(tmp_path / name)
        assert record["entities"] == [entity | {"text": text}]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_wherever_the_file_was_cut_whole_lines_stay_and_no_text_is_left_out(tmp_path_factory, data):
    ids = data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=6))
    whole = "".join(as_line(name, []) + "\n" for name in ids).encode()
    cut = data.draw(st.integers(0, len(whole)))
    results = Results(str(tmp_path_factory.mktemp("cut") / "out.jsonl"))
    with open(results.partial, "wb") as file:
        file.write(whole[:cut])
    documents = iter([Document(name, "") for name in ids])
    results.resume(documents)
    assert results.done == whole[:cut].count(b"\n")
    results.write(as_line(document.id, []) for document in documents)
    results.finish()
    assert open(results.path, "rb").read() == whole


@pytest.mark.parametrize("cut", [1, 0.3, 0.999, 0])
def test_a_cut_run_is_resumed_to_the_same_output(folder, tmp_path, capsys, cut):
    expected = (folder / "expected.jsonl").read_bytes()
    (tmp_path / "out.jsonl.partial").write_bytes(expected[: int(cut * len(expected))])
    run(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume"])
    assert_same(read(tmp_path / "out.jsonl"), read(folder / "expected.jsonl"))
    assert not (tmp_path / "out.jsonl.partial").exists()
    if cut:
        assert "resumed after" in capsys.readouterr().out
    written = (tmp_path / "out.jsonl").stat()
    run(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume"])
    assert "is complete" in capsys.readouterr().out
    assert (tmp_path / "out.jsonl").stat() == written


def test_a_fault_loses_nothing_that_is_done(folder, tmp_path):
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
    """40 MB of text, of which no more than a stretch (64 texts of 10 kB) and what reading ahead takes is held."""
    path, text = str(tmp_path / ("corpus" + ending)), "word " * 2000
    if ending == ".parquet":
        table = pa.table({"text": [f"{n} {text}" for n in range(4000)]})
        pq.write_table(table, path, compression="none", write_batch_size=64)  # pages of 1 MB, one row group
        del table
    else:
        with gzip.open(path, "wt", compresslevel=1) if ending.endswith("gz") else open(path, "w") as file:
            file.writelines(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(4000))
    job, most_in_arrow = predict.Prediction([path], str(tmp_path / "out.jsonl.gz"), resume=False), 0
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    job.start()
    while texts := job.next_texts():
        assert len(texts) <= predict.STRETCH_TEXTS
        job.add([[] for _ in texts])
        most_in_arrow = max(most_in_arrow, pa.total_allocated_bytes() - before)
    job.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert job.results.done == 4000 and peak < 8e6 and most_in_arrow < 8e6


def test_a_stretch_ends_after_a_long_text():
    lengths = [10, predict.STRETCH_WORDS, *[1] * 130]
    documents = [Document(str(n), ["a"] * length) for n, length in enumerate(lengths)]
    found = list(predict.stretches(documents, 1))
    assert [len(stretch) for stretch in found] == [2, 64, 64, 2]
    assert [document for stretch in found for document in stretch] == documents
    assert [len(stretch) for stretch in predict.stretches(documents, 2)] == [128, 4]


def refused(folder, tmp_path, *inputs, output="out.jsonl", more=()):
    with pytest.raises(ValueError) as error:
        run(folder, *inputs, output=tmp_path / output, more=more)
    return str(error.value)


def test_what_is_done_is_not_overwritten_nor_mixed(folder, tmp_path):
    corpus, aside = folder / "corpus.jsonl", tmp_path / "out.jsonl.partial"
    lines = (folder / "expected.jsonl").read_text().splitlines(keepends=True)
    for content, message in (
        (lines[0] + lines[2], f"{aside}:2: the text 'text 2', where the input has the text 'text 1'"),
        ("".join(lines) + lines[0], f"{aside}:{COUNT + 1}: the text 'text 0', where the input has no more text"),
        ("[]\n", f"{aside}:1: no line of this command, where the input has the text 'text 0'"),
    ):
        aside.write_text(content)
        assert f"{aside}: is of a run that did not end" in refused(folder, tmp_path, corpus)
        assert message in refused(folder, tmp_path, corpus, more=["--resume"])
        assert aside.read_text() == content


def test_what_cannot_be_used_is_named_before_anything_is_written(folder, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join((folder / "corpus.jsonl").read_text().splitlines(keepends=True)[:3]))
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "body.parquet")
    pq.write_table(pa.table({"text": [b"a"]}), tmp_path / "bytes.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    (tmp_path / "no.parquet").write_text("no")
    (tmp_path / "a.csv").write_text("a,b")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9"}\n')
    before = set(tmp_path.iterdir())
    for name, message in {
        "body.parquet": ": column text: expected strings or lists of words, found no such column",
        "bytes.parquet": ": column text: expected strings or lists of words, found binary",
        "null.parquet": " row 2: text: expected a string or a list of words, found nothing",
        "none.parquet": ": no document in this file",
        "no.parquet": ": cannot be read (",
        "nowhere.parquet": ": cannot be read (No such file",
        "a.csv": ": expected a .txt, .jsonl, .jsonl.gz or .parquet file",
        "latin.jsonl": ":2: not UTF-8 text",
    }.items():
        assert refused(folder, tmp_path, corpus, tmp_path / name).startswith(f"{tmp_path / name}{message}")
    assert "expected a .jsonl, .jsonl.gz or .parquet file" in refused(folder, tmp_path, corpus, output="out.json")
    assert "in a folder that exists" in refused(folder, tmp_path, corpus, output="no/out.jsonl")
    assert "is an input, too" in refused(folder, tmp_path, corpus, output="corpus.jsonl")
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


# training/predict.py, killed by SIGKILL from inside, some time after the n-th time that the model is called or that
# Python reports an event (a file is opened, renamed, removed) of a file whose name ends as given.
KILLED = """
import os, runpy, signal, sys, threading
point, ending, count, delay = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
def reached():
    global count
    count -= 1
    if count == 0:
        threading.Timer(delay, kill).start() if delay else kill()
if point == "model":
    from modeling_sener import SenerModel
    method = SenerModel.find_candidates
    SenerModel.find_candidates = lambda *given, **named: reached() or method(*given, **named)
else:
    sys.addaudithook(lambda event, values: event == point and str(values[0]).endswith(ending) and reached())
sys.argv[:] = ["training/predict.py", *sys.argv[5:]]
sys.path[0] = "training"
runpy.run_path("training/predict.py", run_name="__main__")
"""
KILLS = {
    "before the first line": ("open", "out.jsonl.gz.partial", 1, 0),
    "in the first stretch": ("model", "", 2, 0),
    "in the second stretch": ("model", "", 6, 0),
    "before half a line is cut": ("os.truncate", "out.jsonl.gz.partial", 1, 0),
    "in a later stretch": ("model", "", 5, 0.005),
    "before it is compressed": ("open", "out.jsonl.gz.writing", 1, 0),
    "before it gets its name": ("os.rename", "out.jsonl.gz.writing", 1, 0),
    "before what is aside goes": ("os.remove", "out.jsonl.gz.partial", 1, 0),
}


@pytest.mark.slow
def test_a_run_killed_at_every_kind_of_place_loses_and_repeats_nothing(folder, tmp_path):
    given = arguments(folder, folder / "corpus.jsonl", output=tmp_path / "out.jsonl.gz", more=["--resume"])
    aside, seen = tmp_path / "out.jsonl.gz.partial", []
    for place, point in KILLS.items():
        done = python("-c", KILLED, *point, *given)
        assert done.returncode == -signal.SIGKILL, (place, done.stderr[-2000:])
        seen.append(aside.read_bytes().count(b"\n") if aside.exists() else 0)
        assert (tmp_path / "out.jsonl.gz").exists() == (place == "before what is aside goes")
    assert seen == sorted(seen) and len(set(seen)) >= 3 and seen[-1] == COUNT
    done = python(ROOT / "training" / "predict.py", *given)
    assert done.returncode == 0 and f"resumed after {COUNT} texts" in done.stdout, done.stderr
    assert_same(read(tmp_path / "out.jsonl.gz"), read(folder / "expected.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]


def workers_of(launcher):
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_two_runs_do_not_write_one_file(tmp_path):
    first, second = (Results(str(tmp_path / "out.jsonl")) for _ in range(2))
    first.write([as_line("a", [])])
    with pytest.raises(DataError, match="another run is writing it"):
        second.resume(iter([Document("a", "")]))
    with pytest.raises(DataError, match="another run is writing it"):
        second.write([as_line("b", [])])
    first.finish()
    assert read(tmp_path / "out.jsonl") == [{"id": "a", "entities": []}]


@pytest.mark.slow
def test_two_processes_killed_at_any_time_lose_and_repeat_nothing(folder, tmp_path):
    """From outside, at times that nobody chose; the launcher and both processes die at once."""
    toy_corpus(tmp_path / "corpus.jsonl", 4000)
    given = arguments(folder, tmp_path / "corpus.jsonl", output=tmp_path / "out.jsonl", more=["--resume"])
    command = [sys.executable, "-m", "accelerate.commands.launch", *TWO_PROCESSES, "training/predict.py", *given]
    aside, kills = tmp_path / "out.jsonl.partial", 0
    for _ in range(3):
        before = aside.stat().st_size if aside.exists() else 0
        wanted = before + random.randrange(1, 300_000)
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, preexec_fn=one_core,
                                   env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        while process.poll() is None:
            if aside.exists() and aside.stat().st_size > wanted:
                for pid in workers_of(process.pid):  # each leads a session of its own
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                kills += process.wait() == -signal.SIGKILL
    assert kills >= 2 and not (tmp_path / "out.jsonl").exists()
    done = launch("predict.py", *given, options=ONE_PROCESS)
    assert done.returncode == 0 and "resumed after" in done.stdout, done.stderr
    records = read(tmp_path / "out.jsonl")
    documents = read_documents(tmp_path / "corpus.jsonl", with_gold=False)
    assert [record["id"] for record in records] == [document.id for document in documents]
    run(folder, tmp_path / "corpus.jsonl", output=tmp_path / "unbroken.jsonl")
    assert_same(records, read(tmp_path / "unbroken.jsonl"))
