"""A run that is killed anywhere and resumed ends with the weights of an uninterrupted run, bit for bit."""

import json
import signal
import time

import pytest
import torch
from safetensors.torch import load_file
from support.killed import Stopped, kill_with_workers, run_until_killed, start_two_processes, stopped_after
from support.toy import ROOT, TWO_PROCESSES, launch, python, toy_folder, training_arguments

from training import train as training
from training.fitting import loop
from training.fitting.state import Progress, ResumeError, newest_state, states


OPTIMIZER, EVALUATION = "torch.optim:AdamW.step", "modeling_sener:SenerModel.find_candidates"
# Kills in the order of the run, which is resumed after each. An epoch has 8 steps; a state is saved after every 3.
KILLS = {
    "before the first state": (OPTIMIZER, "", 2, 0),
    "at a step": (OPTIMIZER, "", 5, 0),
    "as a state is begun": ("os.mkdir", "checkpoints/writing", 1, 0),
    "in the middle of a state": ("os.mkdir", "checkpoints/writing", 1, 0.004),
    "as a state is finished": ("open", "writing/progress.json", 1, 0),
    "before a state gets its name": ("os.rename", "checkpoints/writing", 1, 0),
    "as older states go": ("shutil.rmtree", "_0000003", 1, 0),
    "in evaluation": (EVALUATION, "", 1, 0),
    "later in a state": ("os.mkdir", "checkpoints/writing", 2, 0.008),
    "as the best weights are written": ("os.mkdir", "checkpoints/saving", 1, 0.01),
    "as the best weights take their place": ("os.rename", "saving/model.safetensors", 1, 0),
    "soon after a state": ("os.rename", "checkpoints/writing", 1, 0.01),
}  # fmt: skip
FIELDS = ["--num_epochs", "3", "--lora_rank", "4", "--save_steps", "3", "--mask_share", "0.15", "--report_to", "none",
          "--average_epochs", "2", "--masked_words_weight", "0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"))


def weights(folder):
    return load_file(folder / "model.safetensors")


def losses(folder):
    history = json.loads((folder / "checkpoints" / "history.json").read_text())
    return [(entry["epoch"], entry["loss"], entry["f1"]) for entry in history]


def assert_same_end(folder, unbroken):
    expected = weights(unbroken)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())
    assert losses(folder) == losses(unbroken)
    found, expected = (newest_state(each / "checkpoints") for each in (folder, unbroken))
    assert found.name == expected.name == "state_0004_0000000" and len(states(folder / "checkpoints")) >= 2
    found, expected = (load_file(state / "model.safetensors") for state in (found, expected))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.slow
def test_a_run_killed_at_every_kind_of_moment_ends_with_the_same_weights(toy, tmp_path):
    given = training_arguments(toy, tmp_path / "unbroken", *FIELDS)
    done = python(ROOT / "training" / "train.py", *given)
    assert done.returncode == 0, done.stderr
    given = training_arguments(toy, tmp_path / "killed", *FIELDS, "--resume")
    seen = []
    for place, point in KILLS.items():
        assert run_until_killed("train", *point, given) == -signal.SIGKILL, place
        state = newest_state(tmp_path / "killed" / "checkpoints")
        seen.append("" if state is None else state.name)
        if state is not None:  # a state with its final name is complete
            assert {path.name for path in state.iterdir()} == {
                "progress.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"
            }  # fmt: skip
    assert seen == sorted(seen) and len(set(seen)) > 3  # kills are spread over the run
    done = python(ROOT / "training" / "train.py", *given)
    assert done.returncode == 0 and "resumed from" in done.stdout, done.stderr
    assert_same_end(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.slow
def test_two_processes_killed_at_any_time_end_with_the_same_weights(toy, tmp_path):
    """Kills launcher and both processes together from outside, anywhere in the code."""
    done = launch("train.py", *training_arguments(toy, tmp_path / "unbroken", *FIELDS), options=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    given = training_arguments(toy, tmp_path / "killed", *FIELDS, "--resume")
    checkpoints = tmp_path / "killed" / "checkpoints"
    for wanted in ("state_0001_0000003", "state_0002_0000000", "state_0003_0000000"):
        launcher, state = start_two_processes("train.py", given), None
        while state is None or state.name < wanted:
            assert launcher.poll() is None
            time.sleep(0.01)
            state = newest_state(checkpoints) if checkpoints.exists() else None
        kill_with_workers(launcher)
    done = launch("train.py", *given, options=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert (newest_state(checkpoints) / "random_states_1.pkl").exists()
    assert_same_end(tmp_path / "killed", tmp_path / "unbroken")


@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize("train_file, share", [("both.jsonl", "1"), ("sparse.jsonl", "0.5")])
def test_a_run_resumed_within_an_epoch_ends_with_the_weights_of_an_unbroken_run(
    toy, tmp_path, monkeypatch, train_file, share, steps
):
    """An epoch has eight steps: 16 windows with entities, or 12 with entities and 4 drawn from 8 without."""
    fields = ["--num_epochs", "2", "--lora_rank", "0", "--save_steps", "3", "--report_to", "none",
              "--average_epochs", "2", "--masked_words_weight", "0.1",
              "--train_file", str(toy / train_file), "--empty_window_share", share]  # fmt: skip
    training.main(training_arguments(toy, tmp_path / "unbroken", *fields))
    with stopped_after(steps):
        training.main(training_arguments(toy, tmp_path / "broken", *fields, "--resume"))  # no state: a new run
    step, done = torch.optim.AdamW.step, []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *given, **named: done.append(1) or step(*given, **named))
    training.main(training_arguments(toy, tmp_path / "broken", *fields, "--resume"))
    assert done.count(1) == 16 - (3 if steps == 4 else 11 // 8 * 8 + 3)  # resumed, not started again
    for name in ("model.safetensors", "checkpoints/state_0003_0000000/model.safetensors"):
        whole, broken = (load_file(tmp_path / run / name) for run in ("unbroken", "broken"))
        assert all(torch.equal(tensor, broken[key]) for key, tensor in whole.items())
    assert losses(tmp_path / "unbroken") == losses(tmp_path / "broken")


def test_a_run_is_not_resumed_without_the_weights_that_its_mean_needs(toy, tmp_path, monkeypatch):
    evaluate, seen = loop.evaluate, []

    def stop(run):
        if run.progress.epoch == 2:
            raise Stopped
        return evaluate(run)

    given = training_arguments(toy, tmp_path, "--num_epochs", "2", "--average_epochs", "2", "--report_to", "none",
                               "--save_steps", "3")  # fmt: skip
    monkeypatch.setattr(loop, "evaluate", stop)
    with pytest.raises(Stopped):
        training.main(given)
    monkeypatch.setattr(loop, "evaluate", lambda run: seen.append(run) or evaluate(run))
    file = tmp_path / "checkpoints" / "weights_0001.safetensors"
    whole = file.read_bytes()
    for damage in (lambda: file.write_bytes(whole[: len(whole) // 2]), file.unlink):
        damage()
        with pytest.raises(ResumeError, match=r"weights_0001\.safetensors: (is damaged, or of an|cannot be read)"):
            training.main([*given, "--resume"])
    assert seen == []  # the error is raised at once, not at the end of the epoch
    file.write_bytes(whole)
    training.main([*given, "--resume"])


def test_a_run_that_was_ended_early_is_not_begun_anew_by_mistake(toy, tmp_path):
    given = training_arguments(toy, tmp_path, "--num_epochs", "2", "--report_to", "none", "--save_steps", "3")
    with stopped_after(4):
        training.main(given)
    kept = newest_state(tmp_path / "checkpoints")
    with pytest.raises(ResumeError, match="holds a run that was ended in epoch 1, after step 3: go on with --resume"):
        training.main(given)
    assert newest_state(tmp_path / "checkpoints") == kept and (kept / "model.safetensors").is_file()
    training.main([*given, "--resume"])
    first = weights(tmp_path)
    training.main([*given, "--seed", "3"])  # a run that came to its end may be begun anew
    assert any(not torch.equal(tensor, first[name]) for name, tensor in weights(tmp_path).items())


def test_a_run_is_not_resumed_with_other_fields(toy, tmp_path):
    fields = ["--num_epochs", "1", "--report_to", "none"]
    training.main(training_arguments(toy, tmp_path, *fields))
    with pytest.raises(ResumeError, match="learning_rate was 0.002 in this run and is 0.001 now"):
        training.main(training_arguments(toy, tmp_path, *fields, "--resume", "--learning_rate", "1e-3"))
    with pytest.raises(ResumeError, match="empty_window_share was 1.0 in this run and is 0.5 now"):
        training.main(training_arguments(toy, tmp_path, *fields, "--resume", "--empty_window_share", "0.5"))
    training.main(training_arguments(toy, tmp_path, *fields, "--resume", "--save_steps", "7"))


@pytest.mark.parametrize("file", ["train.jsonl", "dev.jsonl"])
def test_a_run_is_not_resumed_with_other_data(toy, tmp_path, file):
    """A changed label leaves the number of windows the same."""
    content = (toy / "both.jsonl").read_text()
    (tmp_path / "train.jsonl").write_text(content)
    (tmp_path / "dev.jsonl").write_text(content)
    given = training_arguments(toy, tmp_path / "out", "--num_epochs", "1", "--report_to", "none", "--train_file",
                               str(tmp_path / "train.jsonl"), "--dev_file", str(tmp_path / "dev.jsonl"))  # fmt: skip
    training.main(given)
    training.main([*given, "--resume"])
    (tmp_path / file).write_text(content.replace('"Material"', '"Task"', 1))
    with pytest.raises(ResumeError, match="checksum of the data was [0-9]+ in this run and is [0-9]+ now"):
        training.main([*given, "--resume"])


def test_training_stops_when_dev_f1_has_not_risen_for_patience_epochs():
    progress, epochs = Progress(), 0
    for f1 in (0.0, 0.3, 0.5, 0.5, 0.4, 0.6):
        if progress.is_over(num_epochs=9, patience=2):
            break
        epochs += 1
        is_best = progress.end_epoch({"epoch": progress.epoch, "f1": f1})
        assert is_best == (epochs in (2, 3))
    assert (epochs, progress.best_epoch, progress.best_f1) == (5, 3, 0.5)
    assert Progress(epoch=10, best_epoch=9).is_over(num_epochs=9, patience=2)


def test_patience_counts_epochs_that_find_nothing():
    progress = Progress()
    for left in (3, 2, 1):
        assert not progress.is_over(num_epochs=9, patience=3), left
        assert not progress.end_epoch({"epoch": progress.epoch, "f1": 0.0})
    assert progress.is_over(num_epochs=9, patience=3) and progress.best_epoch == 0
