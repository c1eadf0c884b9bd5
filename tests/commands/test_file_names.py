"""A typo in a file's name: every command that reads files says that there is no such file, and offers the nearest."""

import io
import json
import sys

import pytest

from training import (
    baseline_tagger,
    convert_official,
    describe_data,
    extract,
    import_data,
    predict,
    publish,
    score,
    soup,
)
from training import train as training
from training.common.files import nearest
from training.corpus.data import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name in ("train.jsonl", "notes.txt", "rows.parquet", "weights.pth", "report.json", "run.yaml"):
        (tmp_path / "corpus" / name).write_text("")
    for name in ("bert", "model", "model2"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "README.md").write_text("")
    return tmp_path


RUN = ["--backbone", "bert", "--output_dir", "out", "--report_to", "none", "--lora_rank", "0"]
TYPOS = {  # a command, its arguments with a typo, the name that is meant
    "train": (training, [*RUN, "--dev_file", "corpus/trian.jsonl", "--train_file", "x.jsonl"], "corpus/train.jsonl"),
    "train, not a name of ours": (training, [*RUN, "--dev_file", "corpus/trian.json", "--train_file", "x"],
                                  "corpus/train.jsonl"),
    "config": (training, [*RUN, "--config", "corpus/rum.yaml"], "corpus/run.yaml"),
    "tagger": (baseline_tagger, [*RUN, "--dev_file", "korpus/train.jsonl", "--train_file", "x"], "corpus/train.jsonl"),
    "describe": (describe_data, ["corpus/train.jsnol"], "corpus/train.jsonl"),
    "score": (score, ["--model", "m", "--data", "corpus/trian"], "corpus/train.jsonl"),
    "model": (score, ["--model", "./modle", "--data", "corpus/train.jsonl"], "model"),
    "import": (import_data, ["corpus/trian.json", "--output", "a.jsonl"], "corpus/train.jsonl"),
    "predict": (predict, ["--model", "m", "--output", "o.jsonl", "--input", "corpus/train.jsnl.gz"],
                "corpus/train.jsonl"),
    "predict a text": (predict, ["--model", "m", "--output", "o.jsonl", "--input", "corpus/note.txt"],
                       "corpus/notes.txt"),
    "predict rows": (predict, ["--model", "m", "--output", "o.jsonl", "--input", "corpus/row.parquet"],
                     "corpus/rows.parquet"),
    "extract": (extract, ["corpus/note.txt"], "corpus/notes.txt"),
    "convert": (convert_official, ["--checkpoint", "corpus/weight.pth", "--backbone", "b", "--labels", "a",
                                   "--output", "out"], "corpus/weights.pth"),
    "publish": (publish, ["--model", "modell", "--repo", "a/b", "--dry-run"], "model"),
    "soup": (soup, ["--models", "./model3", "./model2", "--output_dir", "out"], "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", TYPOS)
def test_the_nearest_name_is_offered(folder, monkeypatch, name):
    command, arguments, meant = TYPOS[name]
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="^.*(no such f|not a SeNER)") as error:
        command.main(arguments)
    assert str(error.value).endswith(f"; did you mean {meant}?")
    assert not (folder / "out" / "config.json").exists()


def test_only_for_a_missing_name_a_near_one_is_offered(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert nearest("corpus/train.jsonl") == nearest("corpus") == nearest("zzzz/train.jsonl") == ""
    assert nearest(folder / "corpsu" / "nothing") == f"; did you mean {folder / 'corpus'}?"
    assert nearest("corpus/train.jsonl/deeper") == ""  # a file in place of the folder


def test_extract_reads_standard_input(monkeypatch, capsys):
    """Offsets count the text as it was sent, with its line ends. Bytes that are not UTF-8 are named."""
    text = "We train ResNet-50 on ImageNet .\r\nÜber 😀\n"

    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))

    given(text.encode())
    extract.main(["-", "--format", "json", "--threshold", "0.05"])
    found = json.loads(capsys.readouterr().out)
    assert found and all(text[entity["start"] : entity["end"]] == entity["text"] for entity in found)
    given(b"a\xff")
    with pytest.raises(
        DataError, match=r"standard input: not UTF-8 text, nor UTF-16 with its byte-order mark \(byte 1"
    ):
        extract.main(["-"])
