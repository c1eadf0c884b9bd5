"""A run that cannot learn anything does not start, and one that has learnt nothing says so."""

import pytest
from support.tiny import tiny_tokenizer
from support.toy import (
    LABELS,
    empty_records,
    tagger_arguments,
    toy_folder,
    toy_records,
    training_arguments,
    write_jsonl,
)

from training import baseline_tagger as tagger
from training import train as training
from training.corpus.data import DataError
from training.fitting.checkpoint import load_checkpoint


BOTH = pytest.mark.parametrize("command", [training, tagger], ids=["train", "baseline_tagger"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("hopeless"))


def given(command, *arguments):
    return (tagger_arguments if command is tagger else training_arguments)(*arguments, "--report_to", "none")


def record(number, *entities):
    return {**toy_records(number + 1)[number], "entity": [[*entity[:2], "", entity[2]] for entity in entities]}


@BOTH
@pytest.mark.parametrize(
    "field, records, message",
    [
        ("dev_file", empty_records(3), "no entity in it, so that F1 would be 0 in every epoch: put annotated texts"),
        ("dev_file", [record(0, (0, 1, "Zebra"))], "none of its 1 entities has a label that is learnt"),
        ("dev_file", [{"text": "Ada Lovelaces", "entities": [{"start": 0, "end": 12, "label": "Person"}]}],
         "none of the 1 entities can be found, so that F1 would be 0 in every epoch: 1 begin or end inside a word"),
        ("train_file", [record(0, (0, 1, "Task")), {**record(0), "doc_id": "other"}], "all 2 texts are the same one"),
    ],
)  # fmt: skip
def test_data_that_nothing_can_be_learnt_from_is_an_error_before_the_first_step(
    toy, tmp_path, command, field, records, message
):
    data = str(write_jsonl(tmp_path / "data.jsonl", records))
    with pytest.raises(DataError) as error:
        command.main(given(command, toy, tmp_path / "out", f"--{field}", data))
    assert str(error.value).startswith(f"{data}: ") and message in str(error.value)
    assert not (tmp_path / "out" / "config.json").exists()


def test_development_entities_that_all_hold_a_blank_line_are_an_error(toy, tmp_path):
    data = str(write_jsonl(tmp_path / "data.jsonl", [
        {"text": "Ada\n\nLovelace", "entities": [{"start": 0, "end": 13, "label": "Person"}]}]))  # fmt: skip
    with pytest.raises(DataError, match=r"none of the 1 .*: 1 hold a blank line \(set cross_blank_lines\)$"):
        training.main(given(training, toy, tmp_path / "out", "--dev_file", data))


def test_development_entities_that_are_all_too_wide_are_an_error(toy, tmp_path):
    data = str(write_jsonl(tmp_path / "data.jsonl", [record(0, (0, 6, "Task")), record(1, (0, 9, "Task"))]))
    with pytest.raises(DataError, match=r"none of the 2 .* 2 are wider than span_window 4 \(raise it to 8\)$"):
        training.main(given(training, toy, tmp_path / "out", "--dev_file", data, "--span_window", "4"))


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


@pytest.mark.parametrize("fields", [["--span_window", "4"], ["--max_tokens", "9"]])
def test_a_label_that_no_window_holds_is_named_with_the_window_that_would(toy, tmp_path, monkeypatch, capsys, fields):
    monkeypatch.setattr(training, "train", stop)
    long = [record(0, (0, 2, "Task"), (4, 12, "Method"), (6, 12, "Method")), record(1, (1, 2, "Task"))]
    data = str(write_jsonl(tmp_path / "data.jsonl", long))
    with pytest.raises(Stopped):
        training.main(given(training, toy, tmp_path / "out", "--train_file", data, *fields))
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    tokens = 2 + sum(len(tiny_tokenizer("wordpiece").tokenize(word)) for word in long[0]["text"][6:12])
    cure = "span_window to 5" if "--span_window" in fields else f"max_tokens to {tokens}"
    assert lines == ["  warning: no training window holds an entity of Method, which cannot be learnt: "
                     f"raise {cure}, for the shortest of 6 words"]  # fmt: skip


@BOTH
def test_a_run_that_learns_nothing_stops_by_patience_and_says_what_helps(toy, tmp_path, monkeypatch, capsys, command):
    """With such small learning rates nothing is found. The last weights are still saved."""
    rates = ["--learning_rate", "1e-9", "--head_learning_rate", "1e-9"]
    if command is tagger:
        monkeypatch.setattr(tagger, "find_entities", lambda *given: [[] for _ in given[3]])
    command.main(given(command, toy, tmp_path / "out", *rates, "--num_epochs", "9", "--patience", "2"))
    printed = capsys.readouterr()
    assert "best" not in printed.out and "best" not in printed.err
    assert "nothing was learnt: F1 on dev was 0 in all 2 epochs; the last one's weights are saved in" in printed.out
    assert "take more steps than these" in printed.out
    assert ("--backbone biomedical" in printed.out) is (command is training)  # the tagger takes no checkpoint
    if command is training:
        assert load_checkpoint(tmp_path / "out")[0].config.labels == LABELS
