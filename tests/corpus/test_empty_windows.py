"""Windows without an entity in a run: the number drawn in an epoch, the report, runs without other windows."""

import json

import pytest
from support.toy import (
    LABELS,
    empty_records,
    tagger_arguments,
    toy_folder,
    toy_records,
    training_arguments,
    write_jsonl,
)

from modeling_sener import SenerModel
from training import baseline_tagger as tagger
from training import train as training
from training.corpus.data import DataError
from training.fitting import loop


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


def given(toy, output, *more):
    return training_arguments(toy, output, "--train_file", str(toy / "sparse.jsonl"), "--report_to", "none",
                              "--num_epochs", "3", "--batch_size", "4", *more)  # fmt: skip


@pytest.mark.parametrize("share, drawn, said", [("1", 8, "an epoch reads all of them"),
                                                ("0.5", 4, "an epoch draws 4 of them"),
                                                ("0.2", 2, "an epoch draws 2 of them"),
                                                ("0", 0, "an epoch draws 0 of them")])  # fmt: skip
def test_an_epoch_reads_the_reported_windows_and_its_loss_is_their_mean(
    toy, tmp_path, monkeypatch, capsys, share, drawn, said
):
    """The data has 12 windows with an entity and 8 without."""
    forward, end_step, seen, steps = SenerModel.forward, loop.end_step, [], []

    def spy(model, *inputs, **named):
        if model.training:
            seen.extend(named["labels"].flatten(1).any(dim=1).tolist())
        return forward(model, *inputs, **named)

    def note(run, loss):
        steps.append(loss)
        end_step(run, loss)

    monkeypatch.setattr(SenerModel, "forward", spy)
    monkeypatch.setattr(loop, "end_step", note)
    training.main(given(toy, tmp_path, "--empty_window_share", share))
    assert f"20 windows\n  windows without an entity: 8; {said}\n" in capsys.readouterr().out
    size = 12 + drawn
    assert len(seen) == 3 * size and sum(seen) == 3 * 12
    history = json.loads((tmp_path / "checkpoints" / "history.json").read_text())
    each = -(-size // 4)
    assert len(steps) == 3 * each  # the learning rate decays to 0 over these steps
    for epoch, entry in enumerate(history):
        sizes = [min(4, size - 4 * step) for step in range(each)]
        own = steps[epoch * each : (epoch + 1) * each]
        assert entry["loss"] == pytest.approx(sum(n * loss for n, loss in zip(sizes, own, strict=True)) / size)


def test_the_learning_rate_is_0_after_the_last_step(toy, tmp_path, monkeypatch):
    rates, end_step = [], loop.end_step

    def note(run, loss):
        end_step(run, loss)
        rates.append(run.scheduler.get_last_lr()[0])
        assert run.bar.total == 3 * 4

    monkeypatch.setattr(loop, "end_step", note)
    training.main(given(toy, tmp_path, "--empty_window_share", "0.5"))
    assert len(rates) == 12 and rates[-1] == 0 < rates[-2]


def test_the_tagger_draws_as_many_windows(toy, tmp_path, capsys):
    more = ["--train_file", str(toy / "sparse.jsonl"), "--num_epochs", "1", "--empty_window_share", "0.5"]
    tagger.main(tagger_arguments(toy, tmp_path, *more))
    printed = capsys.readouterr()
    assert "windows without an entity: 8; an epoch draws 4 of them\n" in printed.out
    assert "4/4 " in printed.err  # 16 windows in steps of 4


@pytest.mark.parametrize("command", [training, tagger], ids=["train", "baseline_tagger"])
@pytest.mark.parametrize("share", ["1", "0"])
def test_a_run_without_a_window_that_holds_an_entity_ends_before_its_first_step(toy, tmp_path, command, share):
    data = str(write_jsonl(tmp_path / "data.jsonl", empty_records(3)))
    arguments = tagger_arguments if command is tagger else training_arguments
    more = ["--train_file", data, "--labels", ",".join(LABELS), "--empty_window_share", share]
    with pytest.raises(DataError) as error:
        command.main(arguments(toy, tmp_path / "out", *more))
    assert str(error.value).startswith(f"{data}: none of the 3 training windows holds an entity")
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_error_names_entities_that_no_window_holds(toy, tmp_path):
    record = toy_records(1)[0]
    record["entity"] = [[0, 6, "", "Task"], [2, 9, "", "Task"]]
    data = str(write_jsonl(tmp_path / "data.jsonl", [record]))
    with pytest.raises(DataError, match="of 2 in the texts, .* raise span_window to 5, for the shortest of 6 words"):
        training.main(training_arguments(toy, tmp_path / "out", "--train_file", data, "--span_window", "4"))
