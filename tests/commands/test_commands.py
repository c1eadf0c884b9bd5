"""score, predict and extract as a user runs them, with valid and invalid input."""

import json

import pytest
import torch
from support.tiny import tiny_tokenizer
from support.toy import ROOT, as_raw, fails, launch, python, toy_backbone, toy_records, write_jsonl

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training import extract, predict, score, train
from training.fitting.checkpoint import CheckpointError, load_checkpoint


LABELS = ["Material", "Method", "Person", "Task"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained checkpoint, which finds all spans with threshold 0, and toy data."""
    folder = tmp_path_factory.mktemp("commands")
    toy_backbone(folder / "bert")
    torch.manual_seed(0)
    model = SenerModel.from_backbone(
        str(folder / "bert"), LABELS, span_window=4, biaffine_size=8, span_channels=4, span_layers=1
    )
    model.save_pretrained(folder / "model")
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(folder / "model")
    write_jsonl(folder / "words.jsonl", toy_records(3))
    write_jsonl(folder / "raw.jsonl", [as_raw(record) for record in toy_records(3)])
    return folder


def test_predict_keeps_ids_order_and_units(folder, tmp_path):
    text = "Ada Lovelace\r\nin  London 😀 ."
    (tmp_path / "note.txt").write_bytes(text.encode())
    (tmp_path / "empty.txt").write_text("")
    write_jsonl(tmp_path / "mixed.jsonl", [{"id": 5, "text": "London"}, {"doc_id": "w", "text": ["Ada", "Lovelace"]},
                                           {"text": " "}])  # fmt: skip
    done = launch("predict.py", "--model", folder / "model", "--threshold", "0", "--output", tmp_path / "out.jsonl",
                  "--input", tmp_path / "note.txt", tmp_path / "mixed.jsonl", tmp_path / "empty.txt")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [
        str(tmp_path / "note.txt"), "5", "w", f"{tmp_path / 'mixed.jsonl'}:3", str(tmp_path / "empty.txt")
    ]  # fmt: skip
    note, london, words, blank, empty = (line["entities"] for line in lines)
    assert note and all(text[entity["start"] : entity["end"]] == entity["text"] for entity in note)
    assert {entity["text"] for entity in london} == {"London"}
    assert {(entity["start"], entity["end"]) for entity in words} >= {(0, 2)} and blank == empty == []
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_extract_prints_a_table_as_wide_as_the_terminal_or_json(folder, tmp_path, capsys):
    text = "Arrow attention\tscores the span tensor 東京 of long texts ."
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    command = [ROOT / "training" / "extract.py", tmp_path / "a.txt", "--model", folder / "model", "--threshold", "0"]
    done = python(*command, COLUMNS="50")
    assert done.returncode == 0, done.stderr
    *table, blank, summary = done.stdout.splitlines()
    assert table[0].split() == ["TEXT", "LABEL", "SCORE", "POSITION"] and blank == ""
    assert max(map(extract.columns, table)) <= 50
    assert f"entities in {len(text)} characters: " in summary
    done = python(*command, "--format", "json")
    entities = json.loads(done.stdout)
    assert len(entities) == len(table) - 1
    assert all(text[entity["start"] : entity["end"]] == entity["text"] for entity in entities)
    (tmp_path / "empty.txt").write_text(" \n")
    command[1] = tmp_path / "empty.txt"
    done = python(*command)
    assert (done.stdout, done.stderr) == ("0 entities in 2 characters\n", "no span reaches the threshold 0.0\n")
    extract.main([str(argument) for argument in command[1:4]])
    assert "no span reaches the model's thresholds; --threshold 0.1 shows" in capsys.readouterr().err


def test_score_counts_entities_that_the_model_cannot_find(folder, tmp_path, capsys):
    record = {"id": "a", "text": "Big data sets", "entities": [{"start": 0, "end": 6, "label": "Task"}]}
    wide = {"doc_id": "b", "text": ["a"] * 9, "entity": [[0, 8, "a a a a a a a a", "Task"]]}
    write_jsonl(tmp_path / "data.jsonl", [record, wide])
    score.main(["--model", str(folder / "model"), "--data", str(tmp_path / "data.jsonl"), "--threshold", "0"])
    printed = capsys.readouterr()
    result = json.loads(printed.out.splitlines()[-1])
    assert (result["off_word_boundaries"], result["wider_than_window"], result["fn"]) == (1, 1, 2)
    assert "  note: 2 entities in 2 texts are few" in printed.err
    by_overlap = f"; by overlap {result['overlap']['f1']:.4f}\n"
    assert printed.err.endswith(f"recall 0.0000, F1 0.0000 (95 % interval 0.0000 to 0.0000){by_overlap}")
    assert result["recall"] == 0.0
    assert "1 entities are wider than span_window 4" in printed.err
    assert "(span_window 7 would hold all)" in printed.err
    assert "1 entities do not begin and end with a word" in printed.err


BAD = {
    "broken": ('{"id": "a", "text"', "not valid JSON"),
    "label": ('{"id": "a", "text": "x y", "entities": [{"start": 0, "end": 1, "label": "Nope"}]}', "unknown label"),
    "range": ('{"id": "a", "text": "x y", "entities": [{"start": 0, "end": 9, "label": "Task"}]}', "outside the text"),
    "reversed": ('{"id": "a", "text": "x y", "entities": [{"start": 2, "end": 1, "label": "Task"}]}', "reversed"),
    "type": ('{"id": "a", "text": 7, "entities": []}', "text: expected a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_with_file_and_line(folder, tmp_path, name):
    line, message = BAD[name]
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(as_raw(toy_records(1)[0])) + "\n" + line + "\n")
    done = python(ROOT / "training" / "score.py", "--model", folder / "model", "--data", path)
    fails(done, f"{path}:2: ", message)
    assert done.stdout == ""


def test_training_refuses_bad_data_before_it_starts(folder, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(BAD["range"][0] + "\n")
    given = ["--backbone", folder / "bert", "--dev_file", folder / "raw.jsonl", "--output_dir", tmp_path / "out"]
    done = python(ROOT / "training" / "train.py", "--train_file", path, *given)
    fails(done, f"{path}:1: entities[0]: span [0, 9) is outside the text's 3 characters")
    path.write_text("")
    done = python(ROOT / "training" / "train.py", "--train_file", path, *given)
    fails(done, f"{path}: no document in this file")
    assert not (tmp_path / "out").exists()
    done = python(ROOT / "training" / "train.py", "--train_file", path, *given, "--span_windows", "3")
    assert done.returncode == 2 and "--span_windows" in done.stderr and "Traceback" not in done.stderr


def test_the_launcher_fails_if_its_command_fails(folder, tmp_path):
    done = launch("predict.py", "--model", folder / "model", "--input", tmp_path / "none.txt",
                  "--output", tmp_path / "out.jsonl")  # fmt: skip
    assert done.returncode == 1
    assert f"error: {tmp_path / 'none.txt'}: no such file" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", [score, predict, extract])
def test_a_folder_that_is_no_checkpoint_is_refused(folder, tmp_path, command):
    arguments = {
        score: ["--data", folder / "raw.jsonl"],
        predict: ["--input", folder / "raw.jsonl", "--output", tmp_path / "out.jsonl"],
        extract: [folder / "raw.jsonl"],
    }[command]
    done = python(command.__file__, *arguments, "--model", folder / "bert")
    fails(done, f"{folder / 'bert'}: not a SeNER checkpoint: config.json: model_type: found 'bert'")


def test_every_kind_of_incomplete_checkpoint_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"not a SeNER checkpoint \(a folder with a config.json\)"):
        load_checkpoint(tmp_path)
    config = SenerConfig.from_pretrained(folder / "model")
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a complete SeNER checkpoint"):
        load_checkpoint(tmp_path)
    SenerModel.from_pretrained(folder / "model").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a complete SeNER checkpoint"):
        load_checkpoint(tmp_path)  # no tokenizer
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a SeNER checkpoint"):
        load_checkpoint(tmp_path)


def test_missing_weights_are_named(folder, tmp_path):
    model, processor = load_checkpoint(folder / "model")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "classifier.bias"}
    model.save_pretrained(tmp_path, state_dict=state)
    processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="weights are missing: classifier.bias"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        (["--span_window", "0"], "SenerConfig.span_window is 0"),
        (["--attention", "dense"], "SenerConfig.attention is 'dense'"),
        (["--labels", "Task,Task"], "labels is ['Task', 'Task']: expected a list of different labels"),
        (["--labels", "Task"], "unknown label 'Method'"),
        (["--backbone", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_wrong_model_field_is_named(folder, tmp_path, fields, message):
    given = ["--backbone", folder / "bert", "--train_file", folder / "raw.jsonl", "--dev_file", folder / "raw.jsonl",
             "--output_dir", tmp_path / "out", *fields]  # fmt: skip
    with pytest.raises((ValueError, OSError)) as error:
        train.main([str(value) for value in given])
    assert message in str(error.value)


def test_texts_are_clipped_to_columns_of_the_terminal():
    assert extract.clip_to_columns("a\n b\t\x00c", 20) == "a b ?c"
    assert extract.clip_to_columns("東京" * 9, 10) == "東京東..."
    assert extract.columns("e\u0301東") == 3
