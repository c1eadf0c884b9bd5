"""Exports are read back unchanged, tags and TSV 3 follow their definitions, damaged records cause no crash."""

import json

import pytest
import spacy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from spacy.tokens import DocBin
from support.entities import LABELS, PROCESSOR, TEXTS, draw_entities
from support.importing import EXPORTS, marked

from training.corpus.data import DataError, parse_record
from training.corpus.recognise import recognise, recognise_head
from training.importing.columns import spans_of_tags
from training.importing.documents import READERS, as_record, import_documents
from training.importing.draft import Reading
from training.importing.offsets import OffsetCheck
from training.importing.records import read_records
from training.inference.interop import to_brat, to_conll, to_spacy


NLP = spacy.blank("en")
WORDS = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=5) | st.sampled_from(
    ["_", "*", "a|b", "[1]", "\\", "->", ";", "😀", "#", "O", "B-X", "a\\t"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def read(kind, path):
    """Read the records of a file, and assert that nothing was left out."""
    reading = Reading()
    records = [as_record(draft, OffsetCheck().convert(draft, reading)) for draft in READERS[kind](str(path), reading)]
    assert reading.left_out == []
    return records


def spans_of(record):
    return [(item["start"], item["end"], item["label"]) for item in record["entities"]]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.data())
def test_brat_is_read_back_unchanged(folder, text, data):
    places = [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]
    entities = draw_entities(data, text, places)
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "a.ann").write_bytes(to_brat(text, entities).encode())
    (record,) = read("brat", folder / "a.ann")
    assert record["text"] == text
    assert spans_of(record) == [(entity["start"], entity["end"], entity["label"]) for entity in entities]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.randoms()), min_size=1, max_size=3), st.data())
def test_conll_is_read_back_unchanged(folder, texts, data):
    content, expected = "", []
    for text, _ in texts:
        offsets = PROCESSOR.split_words(text)
        words = [(start, end) for start, end in offsets if text[start:end].strip()]
        entities = draw_entities(data, text, words, flat=True)
        content += to_conll(text, entities, offsets)
        starts, ends = [start for start, _ in words], [end for _, end in words]
        spans = [(starts.index(e["start"]), ends.index(e["end"]) + 1, e["label"]) for e in entities]
        expected += [([text[start:end] for start, end in words], spans)] if words else []
    (folder / "a.conll").write_bytes(content.encode())
    read_back = [(record["text"], [(start, end, label) for start, end, _, label in record["entity"]])
                 for record in read("conll", folder / "a.conll")]  # fmt: skip
    assert read_back == expected


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.data())
def test_spacy_is_read_back_unchanged(folder, text, data):
    doc = NLP(text)
    entities = draw_entities(data, text, [(token.idx, token.idx + len(token)) for token in doc if not token.is_space])
    to_spacy(doc, entities)
    DocBin(docs=[doc]).to_disk(folder / "a.spacy")
    (record,) = read("spacy", folder / "a.spacy")
    assert record["text"] == text
    assert sorted(spans_of(record)) == sorted((e["start"], e["end"], e["label"]) for e in entities)


SCHEMES = {
    "IOB1": lambda length, follows: ["B" if follows else "I"] + ["I"] * (length - 1),
    "IOB2": lambda length, follows: ["B"] + ["I"] * (length - 1),
    "BILOU": lambda length, follows: ["U"] if length == 1 else ["B"] + ["I"] * (length - 2) + ["L"],
    "BIOES": lambda length, follows: ["S"] if length == 1 else ["B"] + ["I"] * (length - 2) + ["E"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(["A", "B-A", "O", "ORG", "I-"]))))
def test_tags_of_every_scheme_give_the_spans_that_made_them(scheme, items):
    """An item is the number of words before an entity, the number of its words, and its label."""
    tags, expected = [], []
    for gap, length, label in items:
        tags += ["O"] * gap
        follows = not gap and bool(expected) and expected[-1][2] == label
        expected.append((len(tags), len(tags) + length, label))
        tags += [f"{prefix}-{label}" for prefix in SCHEMES[scheme](length, follows)]
    reading = Reading()
    assert [span[:3] for span in spans_of_tags(tags, reading, "")] == expected
    assert reading.left_out == [] and (scheme == "IOB1" or not +reading.remarks)


def escaped(text):
    """Escape the reserved characters that INCEpTION's user guide lists."""
    for character in ("\\", "[", "]", "|", "_", "->", ";", "\t", "\n", "*"):
        text = text.replace(character, {"\t": "\\t", "\n": "\\n"}.get(character, "\\" + character))
    return text


def as_tsv(sentences, spans):
    """Format a document with one layer as WebAnno TSV 3. Spans (start, end, label) count words and may be stacked."""
    lines, place, number = ["#FORMAT=WebAnno TSV 3.3", "#T_SP=webanno.custom.Span|value", ""], 0, 0
    for count, words in enumerate(sentences, start=1):
        lines += ["", f"#Text={escaped(' '.join(words))}"]
        for token, word in enumerate(words, start=1):
            size = len(word.encode("utf-16-le")) // 2
            cell = "|".join(f"{escaped(label)}[{index}]" for index, (start, end, label) in enumerate(spans, start=1)
                            if start <= number < end) or "_"  # fmt: skip
            lines.append(f"{count}-{token}\t{place}-{place + size}\t{escaped(word)}\t{cell}\t")
            place, number = place + size + 1, number + 1
    return "\n".join([*lines, ""])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_webanno_tsv_is_read_back_unchanged(folder, sentences, data):
    words = [word for sentence in sentences for word in sentence]
    numbers = st.integers(0, len(words))
    spans = data.draw(st.lists(st.tuples(numbers, numbers, LABELS | st.sampled_from(["_", "*", "a|b[1]", "\\"]))))
    spans = [(start, end, label) for start, end, label in spans if start < end]
    (folder / "a.tsv").write_bytes(as_tsv(sentences, spans).encode())
    assert recognise_head((folder / "a.tsv").read_bytes()) == "webanno"
    (record,) = read("webanno", folder / "a.tsv")
    assert record["text"] == " ".join(words)
    assert sorted(marked(record)) == sorted((" ".join(words[start:end]), label) for start, end, label in spans)


LEAVES = st.none() | st.booleans() | st.integers(-2, 90) | st.sampled_from(
    [0.5, "", "X", "ab 😀 cd", "B-X", "/p[1]", "accept", "ner", "text", "labels", 10**30]
)  # fmt: skip
NAMES = st.text("labelstx_", max_size=6)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
FILES = {"doccano.jsonl": "doccano", "doccano-relations.jsonl": "doccano", "label-studio.json": "label-studio",
         "label-studio-min.json": "label-studio", "prodigy.jsonl": "prodigy", "spacy.json": "spacy",
         "gliner.json": "gliner", "huggingface.jsonl": "huggingface"}  # fmt: skip


def damage(value, data):
    """Replace, remove or rename something in a JSON value."""
    children = list(value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []))
    if not children or data.draw(st.integers(0, 5)) == 0:
        return data.draw(VALUES)
    key, child = data.draw(st.sampled_from(children))
    if isinstance(value, dict) and data.draw(st.integers(0, 9)) == 0:
        return {("text" if name == key else name): item for name, item in value.items()}
    changed = damage(child, data)
    return {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_records_are_read_or_refused(folder, name, data):
    path, reading = folder / "damaged.jsonl", Reading(tag_names=["O", "B-X"])
    records = [record for _, record in read_records(str(EXPORTS / name))]
    for _ in range(data.draw(st.integers(1, 3))):
        number = data.draw(st.integers(0, len(records) - 1))
        records[number] = damage(records[number], data)
    path.write_text("\n".join(map(json.dumps, records)))
    try:
        for record in import_documents([str(path)], FILES[name], reading, 1, []):
            parse_record(record, "imported")
    except DataError as error:
        assert str(path) in str(error)


@given(VALUES, st.binary(max_size=200))
def test_any_json_is_recognised_or_not_without_a_crash(value, head):
    recognise(value)
    recognise_head(head)


@pytest.mark.parametrize("kind", ["webanno", "conll", "brat"])
@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("#T_SP=Text 1-\t.a[]|\\*_O\nBI;é😀-DOCSTART-"), max_size=80), st.data())
def test_any_lines_are_read_or_refused(folder, kind, content, data):
    begin = "#FORMAT=WebAnno TSV 3.3\n#T_SP=a.B|value\n#Text=a é\n1-1\t0-1\ta\tX\n" if kind == "webanno" else ""
    path = folder / ("b.ann" if kind == "brat" else "b.tsv")
    (folder / "b.txt").write_text("a é", encoding="utf-8")
    path.write_bytes((begin + content).encode())
    assume(content.strip())
    try:
        for draft in READERS[kind](str(path), Reading()):
            parse_record(as_record(draft, OffsetCheck().convert(draft, Reading())), "imported")
    except DataError as error:
        assert str(path) in str(error)
