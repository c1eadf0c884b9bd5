"""Every reader follows one rule for text files: the demo's page, extract, predict, train and import."""

import gzip
import json
import random

import pytest
import reading
from limits import DemoError
from support.tiny import tiny_tokenizer
from support.tiny_models import tiny_model

from modeling_sener import SenerProcessor
from training.corpus.data import DataError, read_documents, read_text
from training.importing.documents import import_documents
from training.importing.draft import Reading
from training.inference.inputs import count_texts, stream_inputs


MARKS = {"utf-8": "", "utf-8-sig": "", "utf-16": "", "utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}  # to be written
LINE_ENDS = ["\n", "\r", "\r\n"]
every = pytest.mark.parametrize("encoding", MARKS)
every_end = pytest.mark.parametrize("line_end", LINE_ENDS)


def encoded(text, encoding):
    return (MARKS[encoding] + text).encode(encoding)


@every
@every_end
def test_a_text_is_the_same_in_each_encoding_for_each_reader(tmp_path, encoding, line_end):
    """The text may hold a byte order mark after its first character."""
    chance = random.Random(0)
    for case in range(50):
        lines = ["".join(chance.choices("ab é药😀\ufeff\t\x0b\u2028", k=chance.randrange(20))) for _ in range(4)]
        text = f"x{line_end.join(lines)}"
        path = tmp_path / f"{case}.txt"
        path.write_bytes(encoded(text, encoding))
        assert read_text(str(path)) == text
        assert [document.text for document in stream_inputs([str(path)])] == [text] and count_texts(str(path)) == 1
        assert reading.read_file(path) == [(path.name, text)]


def test_words_are_the_same_with_each_kind_of_line_end():
    processor = SenerProcessor(tiny_tokenizer("wordpiece"), tiny_model("bert").config)
    lines = ["We train ResNet-50", "", "on ImageNet. ", "\tIt", "works"]
    texts = [line_end.join(lines) for line_end in LINE_ENDS]
    inputs = processor(texts)
    quotes = [[text[start:end] for start, end in offsets]
              for text, offsets in zip(texts, inputs.word_offsets, strict=True)]  # fmt: skip
    assert quotes[0] == quotes[1] == quotes[2] and len(quotes[0]) > 8
    assert inputs["input_ids"][0].tolist() == inputs["input_ids"][1].tolist() == inputs["input_ids"][2].tolist()


RECORDS = [{"id": 7, "text": "one \r\n é 😀", "entities": [{"start": 0, "end": 3, "label": "X"}]},
           {"id": 8, "text": "two \u2028\x85 药", "entities": []}]  # fmt: skip


@every
@every_end
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
def test_records_are_the_same_in_each_encoding_for_each_reader(tmp_path, encoding, line_end, ending):
    content = encoded(line_end.join(json.dumps(record, ensure_ascii=False) for record in RECORDS), encoding)
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(content) if ending == ".jsonl.gz" else content)
    texts = [record["text"] for record in RECORDS]
    assert [document.text for document in read_documents(path)] == texts
    assert [document.text for document in stream_inputs([str(path)])] == texts and count_texts(str(path)) == 2
    assert [record["text"] for record in import_documents([str(path)], None, Reading(), 1.0, [])] == texts
    if ending == ".jsonl":
        assert [text for _, text in reading.read_file(path)] == texts


@every
@every_end
@pytest.mark.parametrize("name", ["a.json", "a.conll", "a.tsv"])
def test_exports_are_the_same_in_each_encoding(tmp_path, encoding, line_end, name):
    webanno = ["#FORMAT=WebAnno TSV 3.3", "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|value", "", "",
               "#Text=one é", "1-1\t0-3\tone\tX\t", "1-2\t4-5\té\t_\t"]  # fmt: skip
    lines = {"a.json": json.dumps(RECORDS[:1], indent=1, ensure_ascii=False).split("\n"),
             "a.conll": ["one\tB-X", "é\tO", "", "two\tO"], "a.tsv": webanno}[name]  # fmt: skip
    (tmp_path / name).write_bytes(encoded(line_end.join(lines), encoding))
    plain = tmp_path / f"plain.{name}"
    plain.write_bytes("\n".join(lines).encode())
    found, expected = ([{**record, "id": 0, "doc_id": 0} for record in import_documents([str(path)], None, Reading(),
                        1.0, [])] for path in (tmp_path / name, plain))  # fmt: skip
    assert found == expected and found


@every
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_offsets_of_brat_count_the_text_without_its_mark(tmp_path, encoding, line_end):
    """brat itself counts the mark of UTF-8 as a character."""
    text = line_end.join(["é one", "two"])
    shift = encoding == "utf-8-sig"
    start = text.index("two") + shift
    (tmp_path / "a.txt").write_bytes(encoded(text, encoding))
    (tmp_path / "a.ann").write_bytes(encoded(f"T1\tX {start} {start + 3}\ttwo{line_end}", encoding))
    (record,) = import_documents([str(tmp_path)], None, Reading(), 0.0, [])
    (entity,) = record["entities"]
    assert record["text"][entity["start"] : entity["end"]] == "two"


def test_bytes_that_are_neither_utf_8_nor_utf_16_are_refused_by_every_reader(tmp_path):
    path = tmp_path / "a.txt"
    for content, byte in ((b"caf\xe9", 3), ("é".encode("utf-16") + b"\x00", 4), ("\xe9x".encode("utf-16-be"), 1)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a.txt: not UTF-8 text, .*byte {byte}.*; save it as UTF-8"):
            read_text(str(path))
        with pytest.raises(DemoError, match=rf"a.txt: not UTF-8 text \(byte {byte}\)"):
            reading.read_file(path)
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"text": "a"}\n' * 20_000 + b'{"text": "\xed\xa0\x80"}')
    with pytest.raises(DataError, match=r"a.jsonl:20001: not UTF-8 text"):
        list(stream_inputs([str(lines)]))
    lines.write_bytes('{"text": "a"}\n'.encode("utf-16") + b"\x00")
    with pytest.raises(DataError, match=r"a.jsonl: not UTF-16 text"):
        list(stream_inputs([str(lines)]))
