"""Read data files and data sets; their report; gold mapped to words; training windows."""

import gzip
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import ROOT, python

from modeling_sener import SenerConfig
from modeling_sener.gold import covering_words, trim
from modeling_sener.windows import EncodedDocument, Window, cut_windows, window_bounds
from training.corpus.data import DataError, Document, read_documents, stream_documents
from training.corpus.report import DataReport, count_overlaps, report_on


WORDS = {"doc_id": "a", "text": ["Big", "data", "."], "entity": [[0, 2, "Big data", "Task"]]}
RAW = {"id": "b", "text": "Big data.", "entities": [{"start": 0, "end": 8, "label": "Task"}]}


def write(tmp_path, *lines):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_both_formats_are_read(tmp_path):
    words, raw = read_documents(write(tmp_path, WORDS, "", RAW), labels=["Task"])
    assert (words.id, words.is_split, words.entities) == ("a", True, ((0, 2, "Task"),))
    assert (raw.id, raw.is_split, raw.entities) == ("b", False, ((0, 8, "Task"),))


def test_duplicates_are_removed_and_counted_and_wrong_quotes_counted(tmp_path):
    entities = [[0, 2, ["Big", "data"], "Task"], [0, 2, "Big data", "Task"], [0, 2, "Big  data", "Method"],
                [1, 2, "Big", "Task"]]  # fmt: skip
    document = read_documents(write(tmp_path, {**WORDS, "entity": entities}))[0]
    assert document.entities == ((0, 2, "Task"), (0, 2, "Method"), (1, 2, "Task"))
    assert (document.duplicates, document.misquoted) == (1, 1)


@given(st.text(" \t\u3000ab", max_size=12).flatmap(lambda text: st.tuples(
    st.just(text), st.integers(0, len(text)), st.integers(0, len(text)))))  # fmt: skip
def test_white_space_is_trimmed_from_both_ends(drawn):
    text, start, end = drawn[0], *sorted(drawn[1:])
    first, last = trim(text, start, end)
    assert start <= first <= last <= end and text[first:last] == text[start:end].strip()
    assert trim(list(text), start, end) == (first, last)


def test_white_space_around_gold_is_trimmed_and_counted(tmp_path):
    entities = [{"start": start, "end": end, "label": "A"} for start, end in ((3, 10), (6, 10), (0, 3))]
    raw = {"text": "Big \n data.", "entities": entities}
    words = {"text": ["Big", " ", "", "data"], "entity": [[0, 3, "Big", "A"], [1, 4, "data", "A"]]}
    documents = read_documents(write(tmp_path, raw, words))
    assert documents[0].entities == ((6, 10, "A"), (0, 3, "A")) and documents[1].entities == ((0, 1, "A"), (3, 4, "A"))
    assert [(document.trimmed, document.duplicates) for document in documents] == [(1, 1), (2, 0)]
    report = report_on("train", documents, [encoded_text([1, 1], [])] * 2, SenerConfig())
    assert "  note: 3 entities had white space around them, which was trimmed" in report.lines()


def test_gold_is_not_needed_for_prediction(tmp_path):
    documents = read_documents(write(tmp_path, {"text": "x"}, {"doc_id": 7, "text": ["x"]}), with_gold=False)
    assert [document.id for document in documents] == [f"{tmp_path}/data.jsonl:1", "7"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "a", "text": ', "not valid JSON"),
        ("9" * 5000, "not valid JSON: Exceeds the limit"),
        ("[1]", "the line: expected a JSON object"),
        ({"id": "a"}, "text: expected a string or a list of words, found nothing"),
        ({**RAW, "text": 3}, "text: expected a string or a list of words, found 3"),
        ({**WORDS, "text": ["Big", 3]}, "text[1]: expected a word, found 3"),
        ({**WORDS, "doc_id": None}, "doc_id: expected a string or a number"),
        ({**WORDS, "entity": None}, "entity: expected a list of entities"),
        ({"id": "a", "text": "x"}, "entities: expected a list of entities, found nothing"),
        ({**WORDS, "entity": [[0, 2, "Task"]]}, "entity[0]: expected [start, end, words, label]"),
        ({**WORDS, "entity": [[0, 2, 5, "Task"]]}, "entity[0] words: expected a string or a list of words"),
        ({**WORDS, "entity": [[0, True, "Big", "Task"]]}, "entity[0] end: expected an integer, found true"),
        ({**WORDS, "entity": [["0", 2, "Big", "Task"]]}, "entity[0] start: expected an integer"),
        ({**WORDS, "entity": [[0, 2, "Big", ""]]}, "entity[0] label: expected a non-empty string"),
        ({**WORDS, "entity": [[0, 2, "Big", "Nope"]]}, "entity[0]: unknown label 'Nope'; known labels: Task"),
        ({**WORDS, "entity": [[2, 1, "Big", "Task"]]}, "entity[0]: span [2, 1) is reversed or empty"),
        ({**WORDS, "entity": [[1, 1, "Big", "Task"]]}, "entity[0]: span [1, 1) is reversed or empty"),
        (
            {"text": "a  b", "entities": [{"start": 1, "end": 3, "label": "Task"}]},
            "entities[0]: span [1, 3) is white space alone: remove it",
        ),
        ({**WORDS, "entity": [[2, 4, "Big", "Task"]]}, "entity[0]: span [2, 4) is outside the text's 3 words"),
        ({**RAW, "entities": [{"start": -1, "end": 3, "label": "Task"}]}, "is outside the text's 9 characters"),
        ({**RAW, "entities": [{"start": 1, "label": "Task"}]}, "entities[0].end: expected a value, found nothing"),
        ({**RAW, "entities": [[0, 1]]}, 'entities[0]: expected an object with "start", "end" and "label"'),
    ],
)
def test_a_fault_is_named_with_file_line_and_field(tmp_path, line, message):
    path = write(tmp_path, RAW, line)
    with pytest.raises(DataError) as error:
        read_documents(path, labels=["Task"])
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_files_without_a_document_are_refused(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(DataError, match=r"data\.jsonl: no such file$"):
        read_documents(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path)
    path.write_text(" \n\n")
    with pytest.raises(DataError, match="no document in this file"):
        read_documents(path)
    path.write_bytes(json.dumps(RAW).encode() + b"\n\xff\n")
    with pytest.raises(DataError, match=r"data\.jsonl:2: not UTF-8"):
        read_documents(path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RAW).encode())
    assert read_documents(path)[0].id == "b"


def test_gzipped_files_are_read_and_their_faults_named(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(RAW) + "\n" + json.dumps(WORDS)).encode()))
    assert [document.id for document in read_documents(path)] == ["b", "a"]
    path.write_bytes(gzip.compress((json.dumps(RAW) + "\n{").encode()))
    with pytest.raises(DataError, match=r"data\.jsonl\.gz:2: not valid JSON"):
        read_documents(path)
    for content in (b"plain text", gzip.compress(b"x" * 9999)[:-9]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.jsonl\.gz: cannot be read"):
            read_documents(path)


def test_a_data_set_is_read_by_name_and_split(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    quoted = {**WORDS, "entity": [[0, 2, ["Big", "data"], "Task"], [0, 1, "Big", "Method"]]}
    (folder / "train.jsonl").write_text("\n".join(json.dumps(line) for line in (RAW, quoted, {**RAW, "id": 7})))
    (folder / "test.jsonl").write_text(json.dumps({**RAW, "entities": [{"start": 0, "end": 99, "label": "Task"}]}))
    documents = read_documents(folder)
    assert [document.id for document in documents] == ["b", "a", "7"]
    assert documents[1].entities == ((0, 2, "Task"), (0, 1, "Method"))
    with pytest.raises(DataError, match=r"set:test row 1: entities\[0\]: span \[0, 99\) is outside"):
        read_documents(f"{folder}:test")
    with pytest.raises(DataError, match="cannot be read as a data set .*validation"):
        read_documents(folder, split="validation")


def test_files_are_streamed(tmp_path):
    """Reading a file five times as large takes no more memory."""
    peaks = []
    for count in (20, 100):
        path = write(tmp_path, *[{**RAW, "text": "Big data. " * 2000}] * count)
        tracemalloc.start()
        assert sum(1 for _ in stream_documents(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_gold_off_word_boundaries_is_put_on_the_words_it_touches():
    offsets = [(0, 3), (4, 8), (8, 9), (12, 15)]
    spans = [(0, 8, "exact"), (1, 5, "inside"), (3, 5, "white space before"), (9, 12, "nothing"), (8, 9, "one"),
             (9, 13, "reaches")]  # fmt: skip
    covered, exact, off_boundary, inside_word, unreachable = covering_words(offsets, spans)
    assert covered == [(0, 2, "exact"), (0, 2, "inside"), (1, 2, "white space before"), (2, 3, "one"),
                       (3, 4, "reaches")]  # fmt: skip
    assert exact == {(0, 2, "exact"): (0, 8), (2, 3, "one"): (8, 9)}
    assert (off_boundary, inside_word, unreachable) == (3, [spans[1], spans[2], spans[5]], 1)


@st.composite
def texts_with_spans(draw):
    tokens = draw(st.lists(st.integers(1, 4), min_size=1, max_size=80))
    bounds = np.concatenate([[0], np.cumsum(tokens)])
    starts = draw(st.lists(st.integers(0, len(tokens) - 1), max_size=20))
    spans = [(start, min(len(tokens), start + draw(st.integers(1, 10)))) for start in starts]
    return bounds, spans


@settings(max_examples=200, deadline=None)
@given(texts_with_spans(), st.integers(1, 60), st.integers(1, 12))
def test_windows_hold_every_word_and_every_span_that_fits(text, budget, overlap):
    bounds, spans = text
    cuts = window_bounds(bounds, spans, budget, overlap)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(bounds) - 1
    for (start, end), (following, _) in zip(cuts, cuts[1:], strict=False):
        assert start < following <= end
    for start, end in cuts:
        assert bounds[end] - bounds[start] <= budget or end == start + 1
    for start, end in spans:
        if bounds[end] - bounds[start] <= budget:
            assert any(first <= start and end <= last for first, last in cuts)


def test_neighbouring_windows_overlap():
    cuts = window_bounds(np.arange(101), [], budget=20, overlap=4)
    assert all(following == end - 4 for (_, end), (following, _) in zip(cuts, cuts[1:], strict=False))


def encoded_text(tokens, entities):
    bounds = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
    exact = {entity: entity[:2] for entity in entities}
    return EncodedDocument(
        np.arange(10, 10 + bounds[-1]), bounds, np.array([1]), np.array([2]), entities, exact, 0, [], 0
    )


def test_windows_have_special_tokens_words_from_one_and_their_own_spans():
    windows, lost, cut = cut_windows(encoded_text([2, 1, 1, 2], [(0, 2, "A"), (2, 4, "A")]), 5, 2, {"A": 0})
    assert [window.input_ids.tolist() for window in windows] == [[1, 10, 11, 12, 2], [1, 13, 14, 15, 2]]
    assert [window.word_index.tolist() for window in windows] == [[0, 1, 1, 2, 0], [0, 1, 2, 2, 0]]
    assert [window.spans for window in windows] == [[(0, 2, 0)], [(0, 2, 0)]]
    assert (lost, cut) == (0, 0)


def test_spans_that_no_window_holds_are_counted():
    encoded = encoded_text([9, 1, 3, 3], [(0, 1, "A"), (2, 4, "A"), (0, 4, "A")])
    windows, lost, cut = cut_windows(encoded, 6, 2, {"A": 0})
    assert max(len(window.input_ids) for window in windows) == 6
    assert (lost, cut) == (1, 1)  # (2, 4) fits the span window only; (0, 4) fits neither; word 0 is cut


def test_the_report_counts_entities_that_cannot_be_learnt(tmp_path):
    entities = [[0, 3, "Big data .", "Task"], [0, 1, "Big", "Task"], [0, 1, "Big", "Task"]]
    documents = read_documents(write(tmp_path, *[{**WORDS, "entity": entities}] * 2))
    encoded = [encoded_text([1, 1, 1], list(document.entities)) for document in documents]
    config = SenerConfig(id2label={0: "Method"}, span_window=1)
    report = report_on("train", documents, encoded, config)
    text = "\n".join(report.lines())
    for line in (
        "train: 2 texts, 6 words, 6 tokens",
        "entities: 4 (Task 4); the longest has 3 words",
        "overlaps: 50.0 % lie inside another one, 0.0 % cross another one, 0.0 % have the same span as another one",
        "span_window 2 holds 99 % of the entities, 2 all",
        "1 texts are an earlier one word for word",
        "2 entities are wider than span_window 1 and cannot be learnt or found (span_window 2 would hold all): Task 2",
        "2 entities were there twice",
        "1 texts have an id that an earlier text has",
        "4 entities have labels that the model does not know and count as missed: Task 4",
    ):
        assert line in text


@pytest.mark.parametrize("crosses", [False, True])
def test_the_report_counts_gold_that_holds_a_blank_line_where_it_cannot_be_found(crosses):
    entities = ((0, 3, "A"), (0, 13, "A"), (5, 13, "A"))
    encoded = encoded_text([1, 1], [(0, 1, "A"), (0, 2, "A"), (1, 2, "A")])
    encoded = replace(encoded, exact=dict(zip(encoded.exact, [span[:2] for span in entities], strict=True)))
    config = SenerConfig(id2label={0: "A"}, cross_blank_lines=crosses)
    report = report_on("train", [Document("1", "Ada\n\nLovelace", entities)], [encoded], config)
    assert (report.with_blank_line, report.findable) == ((0, 3) if crosses else (1, 2))
    assert ("1 entities hold a blank line and cannot be found" in "\n".join(report.lines())) is not crosses


def test_many_labels_are_reported_as_a_table():
    report = DataReport("x", None)
    report.entities.update({"A": 2} | {f"label {number}": 1000 * number for number in range(1, 9)})
    lines = report.lines()
    assert "  entities: 36,002 (9 labels); the longest has 0 words" in lines
    table = lines[lines.index("    label 8      8,000") :][:9]
    assert table[-1] == "    A                2" and [line.split()[1] for line in table[:-1]] == list("87654321")


spans = st.tuples(st.integers(0, 9), st.integers(1, 6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=300, deadline=None)
@given(st.lists(spans, max_size=10))
def test_overlaps_are_counted_as_defined(spans):
    others = [(span, spans[:i] + spans[i + 1 :]) for i, span in enumerate(spans)]
    nested = sum(any(a <= start and end <= b and (a, b) != (start, end) for a, b in rest)
                 for (start, end), rest in others)  # fmt: skip
    crossing = sum(any(a < start < b < end or start < a < end < b for a, b in rest) for (start, end), rest in others)
    assert count_overlaps(spans) == (nested, crossing, sum(span in rest for span, rest in others))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=300))
def test_the_reported_window_is_the_smallest_that_holds_its_share(widths):
    report = DataReport("x", None)
    report.widths.update(widths)
    for share in (0.99, 1):
        window = report.window_for(share)
        held = [sum(width - 1 <= limit for width in widths) / len(widths) for limit in (window, window - 1)]
        assert held[0] >= share and (held[1] < share or window == 1)


def test_describe_data_prints_the_report(tmp_path):
    long = {**WORDS, "text": ["Big"] * 40, "entity": [[0, 30, "Big " * 30, "Task"], [1, 2, "Big", "Method"]]}
    path = write(tmp_path, RAW, long)
    done = python(ROOT / "training" / "describe_data.py", path, "--span_window", "20")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{path}: 2 texts, 43 words, ")
    assert "entities: 3 (Method 1, Task 2); the longest has 30 words" in lines[1]
    assert any("1 entities are wider than span_window 20" in line for line in lines)
    path.write_text("{")
    done = python(ROOT / "training" / "describe_data.py", path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"error: {path}:1: not valid JSON")


@settings(max_examples=100, deadline=None)
@given(texts_with_spans(), st.integers(4, 60), st.integers(1, 12))
def test_an_entity_across_the_border_of_two_windows_is_whole_in_one(text, max_tokens, span_window):
    """Each entity is in a window, with the tokens that it has in the document, or is counted as lost."""
    bounds, spans = text
    entities = [(start, end, "A") for start, end in dict.fromkeys(spans)]
    encoded = encoded_text(np.diff(bounds), entities)
    windows, lost, _ = cut_windows(encoded, max_tokens, span_window, {"A": 0})
    learnt = set()
    for window in windows:
        for start, end, _ in window.spans:
            tokens = window.input_ids[(window.word_index > start) & (window.word_index <= end)]
            learnt.add((int(tokens[0]), int(tokens[-1]) + 1))
    held = {(int(bounds[start]) + 10, int(bounds[end]) + 10) for start, end, _ in entities
            if end - 1 - start <= span_window and bounds[end] - bounds[start] <= max_tokens - 2}  # fmt: skip
    assert held <= learnt
    assert lost == sum(end - 1 - start <= span_window for start, end, _ in entities) - len(learnt)


def test_a_window_knows_its_number_of_words():
    assert Window(np.array([1, 2]), np.array([0, 0]), []).num_words == 0
