"""Faults of imports: errors with their place, entities that are left out and listed, atomic writes."""

import gzip
import json
import os
import random
import tracemalloc
import zlib

import pytest
import spacy
from spacy.tokens import DocBin
from support.importing import EXPORTS, REPLY, TEXT, import_files, marked, read_jsonl
from support.toy import write_jsonl

from training import import_data
from training.common.files import WriteError
from training.corpus.data import DataError, read_documents
from training.importing import docbin, output, records
from training.importing.documents import import_documents
from training.importing.draft import Reading


GOOD = {"text": TEXT, "label": [[0, 12, "Person"]]}


def task(*regions, text=TEXT, **fields):
    results = [{"value": region, "type": "labels", "to_name": region.pop("of", "text")} for region in regions]
    return {"id": 1, "data": {"text": text, **fields}, "annotations": [{"result": results}]}


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", None, "a.jsonl: no such file"),
        ("a.jsonl", "", "a.jsonl: its format is not recognised; known: doccano, "),
        ("a.jsonl", '{"x": 1}\n[1]\n', "a.jsonl: its format is not recognised"),
        ("a.zip", b"PK\x03\x04", "a.zip: its format is not recognised (a zip archive: unpack it"),
        ("a.xmi", "<?xml?>", "a.xmi: its format is not recognised (XML: export JSON, from INCEpTION WebAnno TSV 3)"),
        ("a.csv", "text,label\na,X\n", "a.csv: its format is not recognised (CSV: export JSON)"),
        ("a.txt", "Some prose.\nMore of it.\n", "a.txt: its format is not recognised"),
        ("a.jsonl", json.dumps(GOOD) + "\n{", "a.jsonl:2: not valid JSON"),
        ("a.jsonl", json.dumps(GOOD).encode() + b"\n\xff", "a.jsonl:2: not UTF-8 text"),
        ("a.json", f"[\n {json.dumps(GOOD)},\n {{]", "a.json:3 item 2: not valid JSON"),
        ("a.json", f"[\n {json.dumps(GOOD)}\n {{}}]", "a.json:2 item 1: not valid JSON: expected , or ]"),
        ("a.json", "[" * 100_000, "a.json:1 item 1: not valid JSON"),
        ("a.json", b"[\n\xff", "a.json: not UTF-8 text"),
        ("a.jsonl", json.dumps({**GOOD, "label": []}), "a.jsonl: no entity in it"),
        ("a.jsonl", json.dumps({"text": " ", "label": []}), "a.jsonl: nothing in it can be used as a doccano"),
        ("a.conll", "a\tO\nb\tB-X\nc\n", "a.conll:3: expected 2 columns (a word first, its tag last), found 1"),
        ("a.tsv", "#FORMAT=WebAnno TSV 3.3\n#T_SP=a.B|v\n\n#Text=a\nx\n", "a.tsv:5: expected a token after a #Text="),
        ("a.tsv", "#FORMAT=WebAnno TSV 3.3\n\n1-1\t0-1\ta\t\n", "a.tsv:3: expected a token after a #Text="),
        ("a.spacy", zlib.compress(b"nothing"), "a.spacy: cannot be read as a DocBin"),
        ("a.spacy", b"x\x9cnothing", "a.spacy: cannot be read as a DocBin"),
        ("a.parquet", b"PAR1nothing", "a.parquet: cannot be read after row 0"),
        ("a.jsonl.gz", b"nothing", "a.jsonl.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:-9], "a.jsonl.gz: cannot be read"),
        ("a.tsv", "#FORMAT=WebAnno TSV 3.3\n\n#Text=a\n1-1\t999999998-999999999\ta\t\n", "a.tsv:4: [999999998"),
        ("a.json", json.dumps([{**task({"start": 0, "end": 3, "labels": ["X"]}), "data": {"b": TEXT, "a": TEXT}}]),
         "a.json: which of the fields a, b is the annotated text?"),
    ],
)  # fmt: skip
def test_an_export_that_cannot_be_imported_is_named_with_its_place(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError) as error:
        import_files(tmp_path / "out", capsys, path)
    assert str(error.value).startswith(f"{tmp_path}/") and message in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_or_text_without_annotations_is_named(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(DataError, match="a folder without .ann files: name its files"):
        import_files(tmp_path, capsys, tmp_path)
    with pytest.raises(DataError, match="no .ann file in this folder"):
        import_files(tmp_path, capsys, tmp_path, "--format", "brat")
    with pytest.raises(DataError, match=r"nothing in it can be used .*: left out: .*a.txt: document \(no .ann file"):
        import_files(tmp_path, capsys, tmp_path / "a.txt", "--format", "brat")


def test_files_over_a_limit_are_refused(tmp_path, capsys, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD], indent=1))
    monkeypatch.setattr(records, "MAX_WHOLE", 50)
    with pytest.raises(DataError, match="a.json: larger than 50 bytes, which is read as a whole: split it, or export"):
        import_files(tmp_path, capsys, path)
    monkeypatch.setattr(records, "MAX_WHOLE", 10_000)
    monkeypatch.setattr(docbin, "MAX_WHOLE", 10_000)
    DocBin(docs=[spacy.blank("en")("word " * 5000)]).to_disk(tmp_path / "a.spacy")
    assert (tmp_path / "a.spacy").stat().st_size < 10_000
    with pytest.raises(DataError, match="a.spacy: more than 10,000 bytes when unpacked"):
        import_files(tmp_path, capsys, tmp_path / "a.spacy")


def test_json_lines_are_streamed(tmp_path):
    """Reading a file five times as large takes no more memory."""
    peaks = []
    for count in (20, 100):
        record = {"text": "Big data. " * 2000, "label": [[0, 8, "X"]]}
        path = write_jsonl(tmp_path / "a.jsonl", [{"id": number, **record} for number in range(count)])
        tracemalloc.start()
        assert sum(1 for _ in import_documents([str(path)], None, Reading(), 0, [])) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


LEFT_OUT = {
    "no offsets": [["0", 3, "X"], [True, 3, "X"], [0.5, 3, "X"], {"label": "X"}, 7, None],
    "no label": [[0, 3, " "], {"start_offset": 0, "end_offset": 3, "label": 5}],
    "empty, reversed or before the text": [[3, 3, "X"], [5, 3, "X"], [-1, 3, "X"]],
    "outside the text, or within a character": [[0, len(TEXT) + 1, "X"], [0, 10**30, "X"]],
}


def test_annotations_that_cannot_be_kept_are_counted_and_shown(tmp_path, capsys):
    faulty = [{"id": number, "text": TEXT, "label": [[0, 3, "Y"], *items, "text"]}
              for number, items in enumerate(LEFT_OUT.values())]  # fmt: skip
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, *faulty])
    kept, printed = import_files(tmp_path, capsys, path)
    assert [marked(record) for record in kept] == [[("Ada Lovelace", "Person")], *[[("Ada", "Y")]] * 4]
    listed = (tmp_path / "train.left-out.txt").read_text().splitlines()
    assert len(listed) == sum(map(len, LEFT_OUT.values())) and "not read: 4 labels of whole texts" in printed
    assert f"left out: {len(listed)} (all of them: {tmp_path}/train.left-out.txt)" in printed
    for line, (reason, items) in enumerate(LEFT_OUT.items(), start=2):
        assert f"  {len(items)}: {reason}\n    {path}:{line}: label[1]: " in printed
        for number in range(len(items)):
            assert any(
                row.startswith(f"{path}:{line}: label[{number + 1}]: ") and row.endswith(reason) for row in listed
            )
    assert printed.count("    ...\n") == 1  # six have no offsets, five are shown


@pytest.mark.parametrize(
    "record, reason",
    [
        (task({"start": "/p[1]", "end": "/p[1]", "startOffset": 0, "labels": ["X"]}), "marked in HTML"),
        (task({"start": "/p[1]", "end": "/p[1]", "globalOffsets": {"start": 0, "end": 3}, "hypertextlabels": ["X"]},
              text=f"<p>{TEXT}</p>"), "marked in HTML"),
        (task({"start": "0", "end": "1", "startOffset": 0, "paragraphlabels": ["X"]}), "marked in a dialogue"),
        (task({"start": 0, "end": 3, "labels": []}), "no label"),
        (task({"start": 0, "end": 3, "labels": ["X"], "text": "Bob", "of": "title"}, title="Bob"),
         "marked in another text of the task: title"),
        ({**task(text="s3://bucket/a.txt"), "id": 2}, "a link in place of the text"),
        ({**task(), "data": {"image": 3}}, "no text text"),
        ([1], "no task"),
    ],
)  # fmt: skip
def test_label_studio_regions_that_are_no_spans_are_counted(record, reason, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([task({"start": 0, "end": 12, "text": "Ada Lovelace", "labels": ["Person"]}), record]))
    kept, printed = import_files(tmp_path, capsys, path)
    assert marked(kept[0]) == [("Ada Lovelace", "Person")]
    assert f"1: {reason}" in printed and f"    {path}:1 item 2: " in printed


@pytest.mark.parametrize("line", ["T1\tPerson 0 x\tAda", "T1", "T1\t\t", "T1\tPerson 0\tAda", "T1 Person 0 3 Ada"])
def test_lines_of_brat_that_are_no_entities_are_counted(line, tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.ann").write_text(f"T0\tPerson 0 3\tAda\r\n{line}\n\nE1\tMeet:T0\nA1\tOld T0\n*\tEquiv T0 T0\n")
    kept, printed = import_files(tmp_path, capsys, tmp_path / "a.ann")
    assert marked(kept[0]) == [("Ada", "Person")] and "1: expected T1, label, start and end, text" in printed
    assert f"{tmp_path}/a.ann:2: {line!r}" in printed and "not read: 1 attributes, 1 equivalences, 1 events" in printed


def test_words_that_are_no_tags_are_left_out_and_labels_keep_their_characters(tmp_path, capsys):
    path = tmp_path / "a.conll"
    path.write_text("a B-ORG-unit\nb I-ORG-unit\nc ORG\nd I-ORG-unit\ne O-X\n")
    (record,), printed = import_files(tmp_path, capsys, path, "--format", "conll")
    assert marked(record) == [("a b", "ORG-unit"), ("d", "ORG-unit")]
    assert "2: a tag that is none" in printed and f"{path}:1: word 3: 'ORG'" in printed


def test_of_several_annotators_the_first_file_counts(tmp_path, capsys):
    first = write_jsonl(tmp_path / "ada.jsonl", [{"id": 1, **GOOD}, {"id": 2, "text": REPLY, "label": []}])
    second = write_jsonl(
        tmp_path / "eve.jsonl", [{"id": 1, "text": TEXT, "label": []}, {"id": 3, "text": REPLY, "label": []}]
    )
    kept, printed = import_files(tmp_path, capsys, first, second)
    assert [(record["id"], len(record["entities"])) for record in kept] == [("1", 1), ("2", 0), ("3", 0)]
    assert (
        f"1: the same id and text were there already: of several annotators the first counts\n    {second}:1"
        in printed
    )
    write_jsonl(second, [{"id": 1, "text": TEXT, "label": []}])
    assert len(import_files(tmp_path, capsys, first, second)[0]) == 2  # every record of the second file is a duplicate


def split(tmp_path, capsys, data, share):
    path = write_jsonl(tmp_path / "export.jsonl", data)
    train, printed = import_files(tmp_path, capsys, path, "--dev_share", share)
    dev = read_jsonl(tmp_path / "train.dev.jsonl")
    return [record["text"] for record in train], [record["text"] for record in dev], printed


def test_the_split_depends_on_the_text_alone(tmp_path, capsys):
    data = [{"id": number, "text": f"{number} {TEXT}", "label": [[0, 1, "X"]]} for number in range(200)]
    train, dev, printed = split(tmp_path, capsys, data, "0.2")
    assert 20 <= len(dev) <= 60 and sorted(train + dev) == sorted(record["text"] for record in data)
    assert f"wrote {tmp_path}/train.jsonl: {len(train)} documents, {tmp_path}/train.dev.jsonl: {len(dev)} documents " \
           f"({len(dev) / 2:.1f} %)" in printed  # fmt: skip
    table = printed.split("LABEL")[1]
    assert table.split()[:5] == ["TRAIN", "DEV", "FOR", "INSTANCE", "X"] and str(len(train)) in table
    shuffled = random.Random(0).sample(data, 150)
    _, part, _ = split(
        tmp_path, capsys, [*shuffled, *({**record, "id": record["id"] + 500} for record in data)], "0.2"
    )
    assert set(part) == set(dev)  # independent of order, ids and other texts; equal texts are on one side
    _, more, _ = split(tmp_path, capsys, data, "0.5")
    assert set(dev) < set(more)


def test_both_sides_of_a_split_have_a_document(tmp_path, capsys):
    data = [{"text": f"{number} {TEXT}", "label": [[0, 1, str(number)]]} for number in range(3)]
    for share in ("0.000001", "0.999999"):
        train, dev, printed = split(tmp_path, capsys, data, share)
        assert sorted((len(train), len(dev))) == [1, 2]
        assert "note: not in TRAIN: " in printed and "note: not in DEV: " in printed
    assert "warning: " not in printed
    printed = import_files(tmp_path, capsys, tmp_path / "export.jsonl")[1]
    assert f"warning: {tmp_path}/train.dev.jsonl is left from an earlier import" in printed.splitlines()[-1]
    with pytest.raises(DataError, match="--dev_share: one text cannot be split"):
        split(tmp_path, capsys, [{**data[0], "id": number} for number in range(3)], "0.5")


def test_a_failed_import_leaves_the_earlier_output(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    import_files(tmp_path, capsys, path)
    before = (tmp_path / "train.jsonl").read_bytes()
    path.write_text(json.dumps(GOOD) + "\n{")
    with pytest.raises(DataError, match="a.jsonl:2"):
        import_files(tmp_path, capsys, path)
    assert (tmp_path / "train.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "train.jsonl"]


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD])
    with pytest.raises(WriteError, match=r"no/train.jsonl: cannot be written \(No such file or directory\)"):
        import_files(tmp_path / "no", capsys, path)
    monkeypatch.setattr(output, "record_line", lambda record: os.write(99, b""))  # a failing write
    with pytest.raises(WriteError, match=r"train.jsonl: cannot be written \(Bad file descriptor\)"):
        import_files(tmp_path, capsys, path)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_white_space_around_annotations_is_trimmed_and_counted(tmp_path, capsys):
    labels = [[3, 6, "A"], [6, 10, "B"], [0, 3, "A"], [3, 5, "A"], [4, 6, "A"]]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "Big \nA data.", "label": labels}])
    (record,), printed = import_files(tmp_path, capsys, path)
    assert marked(record) == [("Big", "A"), ("A", "A"), ("dat", "B")]
    assert "note: 3 entities had white space around them, which was trimmed" in printed
    assert "1: white space alone" in printed and "[3, 5)" in printed


def test_lone_surrogates_and_control_characters_are_kept(tmp_path, capsys):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "\ud83d a\x1b[31m", "label": [[2, 8, "X"], [0, 1, "\x1b]0;x\x07"]]}]
    )
    import_files(tmp_path, capsys, path)
    (document,) = read_documents(tmp_path / "train.jsonl")
    assert document.text == "\ud83d a\x1b[31m" and len(document.entities) == 2
    assert "\x1b" not in import_files(tmp_path, capsys, path)[1].split("LABEL")[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output", "a.json"], "--output is a.json: expected a name that ends in .jsonl"),
        (["--output", "doccano.jsonl"], "doccano.jsonl would be overwritten: give another --output"),
        (["--output", "a.jsonl", "--dev_share", "1"], "--dev_share is 1.0: expected a number between 0 and 1"),
        (
            ["--output", "a.jsonl", "--max_misquoted", "nan"],
            "--max_misquoted is nan: expected a number between 0 and 1",
        ),
        (["--output", "a.jsonl", "--offsets", "utf-32"], "invalid choice: 'utf-32'"),
        (["--output", "a.jsonl", "--format", "xml"], "invalid choice: 'xml'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(EXPORTS)
    with pytest.raises(SystemExit) as end:
        import_data.main(["doccano.jsonl", *arguments])
    assert end.value.code == 2 and message in capsys.readouterr().err
