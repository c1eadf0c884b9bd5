"""Data files, gold on rows, training windows."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import DataError, labels_of, read_documents
from training.report import report_on
from training.windows import Collator, EncodedDocument, LengthBatches, Window, cover, cut_windows, window_bounds


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
    assert labels_of([words, raw]) == ["Task"]


def test_duplicates_are_removed_and_counted_and_wrong_quotes_counted(tmp_path):
    entities = [[0, 2, ["Big", "data"], "Task"], [0, 2, "Big data", "Task"], [0, 2, "Big  data", "Method"],
                [1, 2, "Big", "Task"]]  # fmt: skip
    document = read_documents(write(tmp_path, {**WORDS, "entity": entities}))[0]
    assert document.entities == ((0, 2, "Task"), (0, 2, "Method"), (1, 2, "Task"))
    assert (document.duplicates, document.misquoted) == (1, 1)


def test_gold_is_not_needed_for_prediction(tmp_path):
    documents = read_documents(write(tmp_path, {"text": "x"}, {"doc_id": 7, "text": ["x"]}), with_gold=False)
    assert [document.id for document in documents] == [f"{tmp_path}/data.jsonl:1", "7"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "a", "text": ', "not valid JSON"),
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


def test_files_that_hold_no_document(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(DataError, match="cannot be read"):
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


def test_gold_off_word_boundaries_is_put_on_the_rows_it_touches():
    offsets = [(0, 3), (4, 8), (8, 9), (12, 15)]
    spans = [(0, 8, "exact"), (1, 5, "inside"), (3, 5, "white space before"), (9, 12, "nothing"), (8, 9, "one"),
             (9, 13, "reaches")]  # fmt: skip
    covered, off_boundary, unreachable = cover(offsets, spans)
    assert covered == [(0, 2, "exact"), (0, 2, "inside"), (1, 2, "white space before"), (2, 3, "one"),
                       (3, 4, "reaches")]  # fmt: skip
    assert (off_boundary, unreachable) == (3, 1)


@st.composite
def texts_with_spans(draw):
    pieces = draw(st.lists(st.integers(1, 4), min_size=1, max_size=80))
    bounds = np.concatenate([[0], np.cumsum(pieces)])
    starts = draw(st.lists(st.integers(0, len(pieces) - 1), max_size=20))
    spans = [(start, min(len(pieces), start + draw(st.integers(1, 10)))) for start in starts]
    return bounds, spans


@settings(max_examples=200, deadline=None)
@given(texts_with_spans(), st.integers(1, 60), st.integers(1, 12))
def test_windows_hold_every_row_and_every_span_that_fits(text, budget, overlap):
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


def test_neighbours_overlap():
    cuts = window_bounds(np.arange(101), [], budget=20, overlap=4)
    assert all(following == end - 4 for (_, end), (following, _) in zip(cuts, cuts[1:], strict=False))


def encoded_text(pieces, entities):
    bounds = np.concatenate([[0], np.cumsum(pieces)]).astype(np.int64)
    return EncodedDocument(np.arange(10, 10 + bounds[-1]), bounds, np.array([1]), np.array([2]), entities, 0, 0)


def test_windows_have_special_tokens_rows_from_one_and_their_own_spans():
    windows, lost, cut = cut_windows(encoded_text([2, 1, 1, 2], [(0, 2, "A"), (2, 4, "A")]), 5, 2, {"A": 0})
    assert [window.input_ids.tolist() for window in windows] == [[1, 10, 11, 12, 2], [1, 13, 14, 15, 2]]
    assert [window.word_index.tolist() for window in windows] == [[0, 1, 1, 2, 0], [0, 1, 2, 2, 0]]
    assert [window.spans for window in windows] == [[(0, 2, 0)], [(0, 2, 0)]]
    assert (lost, cut) == (0, 0)


def test_what_no_window_holds_is_counted():
    encoded = encoded_text([9, 1, 3, 3], [(0, 1, "A"), (2, 4, "A"), (0, 4, "A")])
    windows, lost, cut = cut_windows(encoded, 6, 2, {"A": 0})
    assert max(len(window.input_ids) for window in windows) == 6
    assert (lost, cut) == (1, 1)  # (2, 4) fits the span window only; (0, 4) is too wide for both; row 0 is cut


def test_the_report_counts_what_cannot_be_learnt(tmp_path):
    entities = [[0, 3, "Big data .", "Task"], [0, 1, "Big", "Task"], [0, 1, "Big", "Task"]]
    documents = read_documents(write(tmp_path, *[{**WORDS, "entity": entities}] * 2))
    encoded = [encoded_text([1, 1, 1], list(document.entities)) for document in documents]
    report = report_on("train", documents, encoded, ["Method"], span_window=1)
    text = "\n".join(report.lines())
    for line in (
        "train: 2 texts, 6 words, 6 pieces",
        "entities: 4 (Task 4); the longest has 3 words",
        "2 entities are wider than span_window 1 and cannot be learnt or found (span_window 2 would hold all): Task 2",
        "2 entities were there twice",
        "1 texts have an id that an earlier text has",
        "4 entities have labels that the model does not know and count as missed: Task 4",
    ):
        assert line in text


@pytest.mark.parametrize("span_window", [2, None])
def test_batches_are_padded_and_labelled_in_both_triangles(span_window):
    windows = [cut_windows(encoded_text([1] * n, [(0, 2, "B")]), 50, span_window, {"A": 0, "B": 1})[0][0]
               for n in (3, 5)]  # fmt: skip
    batch = Collator(pad_id=7, span_window=span_window, num_labels=2)(windows)
    assert batch["input_ids"].tolist()[0] == [1, 10, 11, 12, 2, 7, 7]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert batch["word_index"].tolist()[0] == [0, 1, 2, 3, 0, 0, 0]
    assert batch["labels"].shape == (2, 5, 5, 2)
    cells = [(0, 3), (1, 1)] if span_window else [(0, 1), (1, 0)]
    assert batch["labels"].nonzero().tolist() == [[b, *cell, 1] for b in (0, 1) for cell in cells]


def test_batches_hold_each_window_once_and_change_with_the_epoch():
    lengths = np.random.default_rng(0).integers(1, 100, 1003).tolist()
    sampler = LengthBatches(lengths, batch_size=4, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first == again != second
    assert len(first) == len(sampler) == 251
    for batches in (first, second):
        assert sorted(index for batch in batches for index in batch) == list(range(1003))
    padding = sum(max(lengths[i] for i in batch) * len(batch) for batch in first) / sum(lengths)
    assert padding < 1.1


def test_a_window_knows_its_rows():
    assert Window(np.array([1, 2]), np.array([0, 0]), []).rows == 0
