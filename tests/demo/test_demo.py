"""The demo without a browser: reading files, running a model with progress and a stop, messages for the page."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reading
import torch
from app import Demo, main
from extraction import FLOOR, MAX_CHARACTERS, DemoError, PageRun, _run, load, watch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Models, on_offer
from pypdf import PdfWriter
from support.demo_server import DemoServer, tiny_checkpoint
from support.tiny_models import batch, tiny_model
from support.toy import LABELS, ROOT
from transformers import pipeline

from modeling_sener.decoding import Candidates


TEXT = "We train ResNet-50 on ImageNet . Ada Lovelace worked with Charles Babbage in London . " * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def models(checkpoint):
    return Models(on_offer(str(checkpoint)))


@pytest.fixture(scope="module")
def extractor(models):
    return models.get()


def last(steps):
    *_, result = steps
    return result


# The page filters spans: the result must equal a run at the same setting.

WORDS = [f"w{n}" for n in range(9)]
SPANS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 9), st.integers(0, 3), st.integers(0, 20)),
    max_size=25,
    unique_by=lambda span: span[:3],
)


@settings(max_examples=200, deadline=None)
@given(
    spans=SPANS,
    threshold=st.integers(1, 20),
    own=st.lists(st.integers(0, 20), min_size=4, max_size=4),
    per_span=st.sampled_from(["all", "best"]),
)
def test_filtered_spans_equal_a_new_run(extractor, spans, threshold, own, per_span):
    processor, text = extractor.processor, " ".join(WORDS)
    inputs = processor(text)
    spans = [(start, end, label, score / 20) for start, end, label, score in spans if start < end]
    start, end, label, score = (
        (np.array(column) for column in zip(*spans, strict=True)) if spans else [np.zeros(0)] * 4
    )
    every = Candidates(*(c.astype(np.int64) for c in (0 * start, start, end, label)), score.astype(np.float32))
    own = {name: value / 20 for name, value in zip(LABELS, own, strict=True)}
    kept = (processor.config.threshold, processor.config.labels_per_span)
    processor.config.threshold, processor.config.labels_per_span = own, per_span
    try:
        floor = np.minimum([own[name] for name in LABELS], FLOOR)
        shown = extractor.shown(text, every.take(every.score >= floor[every.label]), inputs)
        columns = shown["entities"]
        rows = list(zip(*columns.values(), strict=True))
        for mode, (thresholds, nested) in enumerate(
            [(threshold / 20, n) for n in (True, False)] + [(own, n) for n in (True, False)]
        ):
            limits = processor.thresholds(thresholds).numpy()
            expected = processor.entities(every.take(every.score >= limits[every.label]), inputs, nested)[0]
            lowest = threshold / 20 if mode < 2 else 0
            found = [(a, b, LABELS[c], s) for a, b, c, s, modes in rows if modes >> mode & 1 and s >= lowest]
            assert found == [(e["start"], e["end"], e["label"], e["score"]) for e in expected]
    finally:
        processor.config.threshold, processor.config.labels_per_span = kept


def test_reading_equals_the_pipeline(extractor, checkpoint):
    extract = pipeline("entity-extraction", model=str(checkpoint), trust_remote_code=True)
    for threshold in (None, 0.05, 0.7):
        expected = extract(TEXT) if threshold is None else extract(TEXT, threshold=threshold)
        assert extractor.extract(TEXT, threshold) == expected
    columns = last(extractor.read(TEXT))["entities"]
    shown = [row for row in zip(*columns.values(), strict=True) if row[4] & 1]
    expected = extract(TEXT, threshold=FLOOR)
    assert [(a, b, LABELS[c], s) for a, b, c, s, _ in shown] == [
        (e["start"], e["end"], e["label"], e["score"]) for e in expected
    ]
    assert len(shown) > 50 and last(extractor.read("\x00"))["entities"]["start"] == ()


# Progress and stopping.


def test_progress_rises_to_all(extractor):
    *steps, _ = extractor.read(TEXT * 30)
    assert steps == sorted(steps) and steps[-1] == pytest.approx(1) and len(set(steps)) >= 3


@pytest.mark.parametrize("backbone", ["bert", "deberta-v3", "modernbert"])
def test_every_encoder_reports_all_of_its_layers(backbone):
    model = tiny_model(backbone)
    inputs = batch([40])
    run = PageRun(watch(model), int(inputs["word_index"].max()))
    token = _run.set(run)
    try:
        model.find_candidates(**inputs, thresholds=torch.full((model.config.num_labels,), 0.5))
    finally:
        _run.reset(token)
    assert run.layers_done == model.config.backbone_config.num_hidden_layers == run.num_layers
    assert run.rows_done == run.num_words and run.fraction() == pytest.approx(1)


def test_closing_stops_the_model(extractor):
    rows = []
    handle = extractor.model.classifier.register_forward_hook(
        lambda module, given, logits: rows.append(logits.shape[1])
    )
    before = set(threading.enumerate())
    steps = extractor.read(TEXT * 300)
    next(steps)
    (worker,) = set(threading.enumerate()) - before
    steps.close()
    worker.join(60)
    handle.remove()
    assert not worker.is_alive() and sum(rows) < len(extractor.processor.split_words(TEXT * 300))
    assert last(extractor.read("London"))["words"] == 1  # the model still works


def test_a_run_is_stopped_after_its_deadline(extractor, monkeypatch):
    rows = []

    def time_is_over(module, given, logits):
        rows.append(logits.shape[1])
        _run.get().deadline = 0.0

    handle = extractor.model.classifier.register_forward_hook(time_is_over)
    before = set(threading.enumerate())
    with pytest.raises(DemoError, match="longer than the 180 seconds that this page gives a text, and was stopped"):
        list(extractor.read(TEXT * 300))
    handle.remove()
    for worker in set(threading.enumerate()) - before:
        worker.join(60)
        assert not worker.is_alive()
    assert len(rows) == 1 and rows[0] < len(extractor.processor.split_words(TEXT * 300))
    monkeypatch.setattr(extractor, "max_seconds", 1e-9)
    with pytest.raises(DemoError, match="longer than the 1e-09 seconds"):
        extractor.extract(TEXT)
    monkeypatch.undo()
    assert last(extractor.read("London"))["words"] == 1


def test_the_next_run_waits_until_a_stopped_one_has_ended(extractor, monkeypatch):
    compute, active, most = extractor.compute, [], []

    def watched(run, *arguments):
        active.append(run)
        most.append(len(active))
        try:
            return compute(run, *arguments)
        finally:
            active.remove(run)

    monkeypatch.setattr(extractor, "compute", watched)
    for _ in range(5):
        steps = extractor.read(TEXT * 1000)
        next(steps)
        steps.close()
    assert last(extractor.read("London"))["words"] == 1
    assert max(most) == 1 and len(most) >= 2


def test_two_runs_at_once_do_not_mix(extractor):
    first, second = extractor.read(TEXT * 20), extractor.read("Ada Lovelace " * 300)
    results, steps = [None, None], [[], []]
    while None in results:
        for n, run in enumerate((first, second)):
            for step in run:
                if not isinstance(step, float):
                    results[n] = step
                else:
                    steps[n].append(step)
                    break
    assert [result["text"] for result in results] == [TEXT * 20, "Ada Lovelace " * 300]
    assert all(part == sorted(part) and part[-1] == pytest.approx(1) for part in steps)


# Messages for the page.


def test_messages_carry_any_string(models):
    text = "A </script> \ud800 \x00 \U0001f600 \u2028 end"
    message = last(Demo(models).run(text))
    assert message.isascii() and "<" not in message and json.loads(message)["result"]["text"] == text
    errors = [
        json.loads(last(Demo(models).run(text)))["error"] for text in ("", " ", None, "a" * (MAX_CHARACTERS + 1))
    ]
    assert ["no text yet" in error for error in errors] == [True, True, True, False]
    assert "1,000,001 characters" in errors[3] and "Nothing was cut" in errors[3]
    assert last(Demo(models).run("")) != last(Demo(models).run(""))  # Gradio would not pass an equal value on


def test_a_model_that_fails_is_an_error_message(models, extractor, monkeypatch):
    def fail(**inputs):
        raise FloatingPointError("the scores are not finite")

    monkeypatch.setattr(extractor.model, "find_candidates", fail)
    assert "the scores are not finite" in json.loads(last(Demo(models).run("London")))["error"]


# Loading.


def test_a_model_that_cannot_be_loaded_is_an_error_that_says_what_to_do(checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").unlink()
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    cases = {
        "user/name": "no such folder.*SENER_MODEL=user/name@COMMIT",
        str(tmp_path / "none"): "no such folder",
        str(tmp_path): "config.json cannot be read",
        str(other): 'no model_type "sener"',
        str(broken): "cannot be loaded.*a folder that training wrote",
    }
    for name, message in cases.items():
        with pytest.raises(DemoError, match=message):
            load(name)


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_wrong_time_limit_ends_with_one_line(value, monkeypatch, capsys):
    monkeypatch.setenv("SENER_MAX_SECONDS", value)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == f"error: SENER_MAX_SECONDS is '{value}': expected a number of seconds above 0.\n"


def test_a_failing_load_ends_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "space/app.py"], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SENER_MODEL": "nobody/nothing"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: SENER_MODEL is 'nobody/nothing': no such folder")


@pytest.mark.slow
def test_a_page_on_another_port_says_so(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        server = DemoServer(checkpoint, GRADIO_SERVER_PORT=port)
        deadline = time.monotonic() + 60
        while "note: " not in server.log and time.monotonic() < deadline:
            time.sleep(0.1)
        server.stop()
    note = next(line for line in server.lines if line.startswith("note: "))
    assert note.strip().removesuffix("/") == (
        f"note: port {port} is taken, perhaps by another page; this is at {server.url}".removesuffix("/")
    )
    assert port not in server.url and server.process.returncode == 143
    assert server.lines[-1] == "terminated\n"


# Files.


def pdf(lines):
    """A PDF of one page with these lines."""
    drawn = b"BT /F1 12 Tf 50 700 Td 14 TL " + b" ".join(b"(%s) Tj T*" % line for line in lines) + b" ET"
    parts = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    content, offsets = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, start=1):
        offsets.append(len(content))
        content += b"%d 0 obj%sendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return content + b"xref\n0 6\n0000000000 65535 f \n%strailer<</Root 1 0 R/Size 6>>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(content),
    )


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return folder / name


def test_texts_are_read_from_files_of_each_kind(tmp_path):
    def texts(name, content):
        return reading.read_file(write(tmp_path, name, content))

    plain = "line one\r\nline\rtwo \U0001f600\n\n\ttab\n"
    assert texts("a.txt", plain.encode()) == [("a.txt", plain)]  # line ends are kept: offsets are the file's own
    assert texts("b.MD", b"\xef\xbb\xbf# Head") == [("b.MD", "# Head")]
    assert texts("c.txt", "wide \u00e9".encode("utf-16")) == [("c.txt", "wide \u00e9")]
    page = """<html><head><title>T</title><style>p{}</style></head><body><h1>Head</h1><p>Caf\u00e9 <b>bo</b>ld
      &lt;script&gt;<script>no()</script><span style="display:none">no</span><i hidden>no</i><template>no</template>
      <p>x"""
    for encoding, head in (("utf-8", ""), ("latin-1", '<meta charset="latin-1">')):
        content = (head + page).encode(encoding)
        assert texts("d.html", content)[0][1].split() == ["Head", "Caf\u00e9", "bold", "<script>", "x"]
    assert texts("e.pdf", pdf([b"We train", b"ResNet-50."])) == [("e.pdf", "We train\nResNet-50.\n")]
    lines = b'{"id": 7, "text": "one \\ud83d\\ude00"}\r\n\n{"text": ["two", "words"]}\n'
    assert texts("f.jsonl", lines) == [("1: 7", "one \U0001f600"), ("line 3", "two words")]
    assert texts("g.jsonl", b'{"text": " "}\n{"text": "x"}') == [("line 1", " "), ("line 2", "x")]


def test_a_process_of_its_own_reads_a_file_within_time_and_memory(tmp_path, monkeypatch):
    texts = [("1: 7", "one \U0001f600 \ud800"), ("line 2", "two")]
    lines = b'{"id": 7, "text": "one \\ud83d\\ude00 \\ud800"}\n{"text": "two"}'
    assert reading.read_apart(write(tmp_path, "a.jsonl", lines)) == texts
    with pytest.raises(DemoError, match="b.jsonl, line 1: not JSON"):
        reading.read_apart(write(tmp_path, "b.jsonl", b"{"))
    path = write(tmp_path, "c.html", b"<i>x</i>" * 1_000_000)
    monkeypatch.setattr(reading, "READING_MEMORY", 300_000_000)
    with pytest.raises(DemoError, match="c.html: damaged, or more than this page's memory holds"):
        reading.read_apart(path)
    monkeypatch.undo()
    monkeypatch.setattr(reading, "READING_SECONDS", 0.05)
    with pytest.raises(DemoError, match="c.html: reading it took longer than 0.05 seconds and was stopped"):
        reading.read_apart(path)
    assert reading.read_file(write(tmp_path, "d.jsonl", b'{"id": "%s", "text": "x"}' % (b"x" * 500)))[0][0] == (
        "1: " + "x" * 97
    )


def test_files_that_cannot_be_read_say_why(tmp_path, monkeypatch):
    locked = PdfWriter()
    locked.add_blank_page(100, 100)
    locked.encrypt("secret", algorithm="RC4-128")
    locked.write(tmp_path / "locked.pdf")
    blank = PdfWriter()
    blank.add_blank_page(100, 100)
    blank.write(tmp_path / "blank.pdf")
    for name, content, message in (
        ("a.docx", b"x", "a.docx: files of this kind are not read"),
        ("a.txt", b"caf\xe9", r"a.txt: not UTF-8 text \(byte 3\)"),
        ("a.txt", b" \n ", "a.txt: there is no text in it"),
        ("a.html", b"", "a.html: there is no text in it"),
        ("a.html", b"<script>x</script>", "a.html: there is no text in it"),
        ("a.html", b"<div>" * 20_000 + b"x", "a.html: its elements are nested too deeply"),
        ("a.txt", b"a" * (MAX_CHARACTERS + 1), "1,000,001 characters; this page takes up to 1,000,000"),
        ("a.pdf", b"%PDF-1.4 nonsense", "a.pdf: not a PDF that can be read"),
        ("locked.pdf", None, "locked.pdf: protected by a password"),
        ("blank.pdf", None, "blank.pdf: no text in 1 pages: scanned images"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 1}', "a.jsonl, line 2: expected an object with a field text"),
        ("a.jsonl", b"{", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", b"\n", "a.jsonl: there is no text in it"),
        ("a.jsonl", b'{"text": "x"}\n' * 1001, "more than 1,000 lines"),
    ):
        path = tmp_path / name if content is None else write(tmp_path, name, content)
        with pytest.raises(DemoError, match=message):
            reading.read_file(path)
    monkeypatch.setattr(reading, "MAX_CHARACTERS", 5)
    with pytest.raises(DemoError, match="more than 5 characters after 1 of 1 pages"):
        reading.read_file(write(tmp_path, "b.pdf", pdf([b"too long"])))
