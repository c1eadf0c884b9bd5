"""Entities as spaCy, brat and CoNLL: they are read back unchanged, and those that do not fit raise an error."""

import json
import re

import pytest
import spacy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import Doc
from spacy.training.converters import conll_ner_to_docs
from support.entities import HARD_LABELS, PROCESSOR, TEXTS, draw_entities, make
from support.tiny import tiny_tokenizer
from support.toy import toy_backbone

from modeling_sener import SenerModel, SenerProcessor
from training import extract
from training.corpus.labels import NOT_IN, escape_label, unescape_label
from training.inference.interop import flat, to_brat, to_conll, to_spacy


NLP = spacy.blank("en")


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_spacy_gives_back_the_same_entities_from_its_bytes(text, data):
    doc = NLP(text)
    places = [(token.idx, token.idx + len(token)) for token in doc if not token.is_space]
    entities = draw_entities(data, text, places)
    to_spacy(doc, entities)
    read = Doc(NLP.vocab).from_bytes(doc.to_bytes())  # kept in a variable: spans need their document
    spans = read.spans["sc"]
    read = [(span.start_char, span.end_char, span.text, span.label_, score)
            for span, score in zip(spans, spans.attrs["scores"], strict=True)]  # fmt: skip
    assert read == [tuple(entity.values()) for entity in entities]


def test_an_entity_that_covers_a_part_of_a_spacy_token_is_refused_or_expanded():
    doc = NLP("We train ResNet-50 now.")
    entity = make(doc.text, 9, 15)
    with pytest.raises(ValueError, match=r"'ResNet' \(Method, 9-15\) covers the tokens \['ResNet-50'\] partly"):
        to_spacy(doc, [entity])
    assert "sc" not in doc.spans
    to_spacy(doc, [entity], key="own", expand=True)
    assert [(span.text, span.label_) for span in doc.spans["own"]] == [("ResNet-50", "Method")]


def plain(label):
    """Replace each _xHHHH_, as any reader of such names does."""
    return re.sub("_x([0-9A-F]{4,6})_", lambda match: chr(int(match[1], 16)), label)


def read_brat(text, content):
    """Read files as brat's documentation describes them. brat's server splits lines with Python's `splitlines`."""
    entities, scores = {}, {}
    for line in content.splitlines():
        name, middle, quote = line.split("\t")
        kind, _, rest = middle.partition(" ")
        if name.startswith("#"):
            scores[rest] = float(quote.removeprefix("score "))
            continue
        assert re.fullmatch(r"T\d+", name) and name not in entities
        assert re.fullmatch(
            "[a-zA-Z0-9_-]+", kind
        )  # or its server does not know the type (`normalize_to_storage_form`)
        fragments = [tuple(map(int, place.split(" "))) for place in rest.split(";")]
        assert " ".join(text[start:end] for start, end in fragments) == quote
        assert fragments == sorted(fragments) and all(start < end for start, end in fragments)
        between = [text[a[1] : b[0]] for a, b in zip(fragments, fragments[1:], strict=False)]
        assert all(gap.isspace() for gap in between)
        entities[name] = (fragments[0][0], fragments[-1][1], plain(kind))
    return [(*entity, scores[name]) for name, entity in entities.items()]


@settings(max_examples=120, deadline=None)
@given(TEXTS, st.data())
def test_brat_gives_back_the_same_entities(text, data):
    places = [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]
    entities = draw_entities(data, text, places)
    read = read_brat(text, to_brat(text, entities))
    assert [entity[:3] for entity in read] == [(e["start"], e["end"], e["label"]) for e in entities]
    assert [entity[3] for entity in read] == pytest.approx([e["score"] for e in entities], abs=5.1e-5)


def test_brat_writes_a_fragment_for_each_line():
    text = "the Analytical \r\n\n  Engine 😀 of 1837"
    entities = [make(text, 4, 26, score=0.98765), make(text, 27, 28, "Task")]
    assert to_brat(text, entities) == (
        "T1\tMethod 4 14;20 26\tAnalytical Engine\n#1\tAnnotatorNotes T1\tscore 0.9877\n"
        "T2\tTask 27 28\t😀\n#2\tAnnotatorNotes T2\tscore 0.5000\n"
    )


@pytest.mark.parametrize("write", [to_brat, lambda text, found: to_conll(text, found, PROCESSOR.split_words(text)),
                                   lambda text, found: NLP_spans(text, found)])  # fmt: skip
def test_white_space_around_an_entity_is_trimmed_with_a_warning(write):
    text = "We  train\n ResNet-50\u3000now."
    with pytest.warns(UserWarning, match="^2 entities had white space around them, which was trimmed"):
        written = write(text, [make(text, 3, 11), make(text, 11, 21, "Task")])
    assert written == write(text, [make(text, 4, 9), make(text, 11, 20, "Task")])
    with pytest.raises(ValueError, match=r"'\\n ' \(Method, 9-11\) is white space alone"):
        write(text, [make(text, 9, 11)])


def NLP_spans(text, entities):
    doc = NLP(text)
    to_spacy(doc, entities, expand=True)
    return [(span.start_char, span.end_char, span.label_) for span in doc.spans["sc"]]


def read_conll(content):
    """Read (words, [(first word, last word + 1, label), ...]) of a text."""
    *lines, last = content.split("\n")[:-1]
    assert last == ""
    words, tags = [list(column) for column in zip(*(line.split("\t") for line in lines), strict=True)] or ([], [])
    entities = []
    for number, tag in enumerate(tags):
        if tag.startswith("B-"):
            entities.append([number, number + 1, plain(tag[2:])])
        elif tag.startswith("I-"):
            assert entities[-1][1:] == [number, plain(tag[2:])]
            entities[-1][1] += 1
        else:
            assert tag == "O"
        assert tag.split() == [tag]
    return words, [tuple(entity) for entity in entities]


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_conll_gives_back_the_same_entities(text, data):
    offsets = PROCESSOR.split_words(text)
    words = [(start, end) for start, end in offsets if text[start:end].strip()]
    entities = draw_entities(data, text, words, flat=True)
    content = to_conll(text, entities, offsets)
    read, spans = read_conll(content) if words else ([], [])
    assert read == [text[start:end] for start, end in words]
    assert [(words[i][0], words[j - 1][1], label) for i, j, label in spans] == [
        (entity["start"], entity["end"], entity["label"]) for entity in entities
    ]
    in_words = [make(read, i, j, label) for i, j, label in spans]
    assert to_conll(read, in_words) == content


def test_spacy_reads_the_written_conll():
    text = ["Ada", "Lovelace", "met", "Charles", "Babbage", "😀"]
    entities = [make(text, 0, 2, "Person"), make(text, 2, 3, "Task"), make(text, 3, 5, "Person")]
    (doc,) = conll_ner_to_docs(to_conll(text, entities), no_print=True)
    assert [token.text for token in doc] == text
    assert [(e.start, e.end, e.text, e.label_) for e in doc.ents] == [tuple(e.values())[:4] for e in entities]


def test_conll_holds_flat_entities_of_whole_words():
    text = "We train ResNet-50 now."
    words = PROCESSOR.split_words(text)
    nested = [make(text, 9, 18), make(text, 16, 18, "Task")]
    with pytest.raises(ValueError, match=r"'ResNet-50' \(Method, 9-18\) and '50' \(Task, 16-18\) share the word '50'"):
        to_conll(text, nested, words)
    for start, end in ((10, 18), (9, 17), (7, 18), (9, 20), (10, 12)):
        with pytest.raises(ValueError, match=f"{start}-{end}.*does not begin and end with the words"):
            to_conll(text, [make(text, start, end)], words)
    with pytest.raises(ValueError, match="needs its words"):
        to_conll(text, [])
    for word in ("", "a b", "a\x1c"):
        with pytest.raises(ValueError, match="word 1 is"):
            to_conll(["We", word], [])


SCORED = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from([0.5, 0.6, 0.7, 0.8])))


@given(SCORED)
def test_flat_keeps_the_best_of_overlapping_entities(items):
    entities = [{"start": start, "end": start + length, "label": str(number), "score": score}
                for number, (start, length, score) in enumerate(items)]  # fmt: skip
    kept: list = []
    for entity in sorted(entities, key=lambda entity: (-entity["score"], entity["start"], entity["end"])):
        if all(entity["end"] <= other["start"] or other["end"] <= entity["start"] for other in kept):
            kept.append(entity)
    assert flat(entities) == sorted(kept, key=lambda entity: entity["start"])


@pytest.mark.parametrize("write", [to_brat, to_conll, lambda text, entities: to_spacy(NLP(text), entities)])
def test_entities_of_another_text_are_refused(write):
    given = (lambda text: text.split()) if write is to_conll else str
    for text, entity in (("a b c", ("x y z", 0, 1)), ("a b", ("a b c d e", 0, 5)), ("a b", ("a b", 0, 0)),
                         ("a b", ("a b", -1, len(given("a b"))))):  # fmt: skip
        with pytest.raises(ValueError, match="is no entity of this text"):
            write(given(text), [make(given(entity[0]), *entity[1:])])


@pytest.mark.parametrize("label", ["", " ", "\t\n"])
def test_blank_labels_are_refused(label):
    with pytest.raises(ValueError, match="no place for a label"):
        to_brat("word", [make("word", 0, 4, label)])
    with pytest.raises(ValueError, match="no place for a label"):
        to_conll(["word"], [make(["word"], 0, 1, label)])


def test_only_what_a_format_cannot_hold_is_escaped():
    label = "Revenue/Profit Sharing 100%_x"
    assert to_brat("word", [make("word", 0, 4, label)]).startswith(
        "T1\tRevenue_x002F_Profit_x0020_Sharing_x0020_100_x0025__x 0 4\tword\n"
    )
    assert to_conll(["word"], [make(["word"], 0, 1, label)]) == (
        "word\tB-Revenue/Profit_x0020_Sharing_x0020_100%_x\n\n"
    )


@given(HARD_LABELS, st.sampled_from(list(NOT_IN)))
def test_escaping_is_undone(label, form):
    escaped = escape_label(label, form)
    assert unescape_label(escaped) == plain(escaped) == label


@given(st.text("_x0123D8FAf ", max_size=30))
def test_any_label_can_be_unescaped_and_written(label):
    unescape_label(label).encode()


def test_extract_writes_the_formats(tmp_path, capsys):
    """An untrained model finds every span, with both labels."""
    toy_backbone(tmp_path / "bert")
    torch.manual_seed(0)
    labels = ["License Grant", "药物"]
    model = SenerModel.from_backbone(str(tmp_path / "bert"), labels, span_window=2, span_layers=1)
    model.save_pretrained(tmp_path / "model")
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(tmp_path / "model")
    text = "Ada\nLovelace\r\nand ResNet-50 😀"
    (tmp_path / "a.txt").write_bytes(text.encode())
    read, said = {}, {}
    capsys.readouterr()
    for form in ("json", "brat", "conll"):
        arguments = [tmp_path / "a.txt", "--model", tmp_path / "model", "--threshold", "0", "--format", form]
        extract.main([str(argument) for argument in arguments])
        read[form], said[form] = capsys.readouterr()
    entities = [(e["start"], e["end"], e["label"]) for e in json.loads(read["json"])]
    assert [entity[:3] for entity in read_brat(text, read["brat"])] == entities and ";" in read["brat"]
    words, tagged = read_conll(read["conll"])
    assert words == ["Ada", "Lovelace", "and", "ResNet", "-", "50", "😀"]
    assert len(tagged) == len(flat(json.loads(read["json"]))) > 0
    assert said["json"] == "" and "药物" in read["conll"] and "药物" not in read["brat"]
    notes = ["'License Grant' is License_x0020_Grant", "'药物' is _x836F__x7269_"]
    (line,) = said["brat"].splitlines()
    assert line.startswith("note: labels are escaped for brat: ") and all(note in line for note in notes)
    assert said["conll"] == f"note: labels are escaped for conll: {notes[0]}; import_data.py undoes it\n"
