"""Damaged files of a state are named before anything is loaded, so that no run ends with other weights."""

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from support.killed import stopped_after
from support.toy import toy_folder, training_arguments

from training import train as training
from training.fitting.state import Progress, ResumeError, load_state, newest_state, save_state, states


PROGRESS, OPTIMIZER, RANDOM = "progress.json", "optimizer.bin", "random_states_0.pkl"
FILES = [PROGRESS, "model.safetensors", OPTIMIZER, RANDOM, "../weights_0001.safetensors"]
SIGNATURE = {"seed": 1}


def flip(content, places):
    content = bytearray(content)
    for place in places:
        content[place % len(content)] ^= 1 << place % 8
    return bytes(content)


# Ways to damage a file: functions of its content and of the same file's content in another run. None: it is deleted.
DAMAGES = {
    "gone": lambda own, other: None,
    "empty": lambda own, other: b"",
    "cut after a third": lambda own, other: own[: len(own) // 3],
    "cut after two thirds": lambda own, other: own[: 2 * len(own) // 3],
    "one byte short": lambda own, other: own[:-1],
    "longer": lambda own, other: own + b"\0",
    "of another run": lambda own, other: other,
    "a bit flipped": lambda own, other: flip(own, [7 * len(own) // 9]),
    "zeros in it": lambda own, other: own[: len(own) // 2] + bytes(100) + own[len(own) // 2 + 100 :],
    "half of it of another run": lambda own, other: own[: len(own) // 2] + other[len(own) // 2 :],
}


def damage(file, how, other):
    content = DAMAGES[how](file.read_bytes(), other.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)


def named(file):
    """
    The start of the message. If the list of files is damaged, the message may name any file of its folder: all of them
    differ from the list of another run.
    """
    return f"{file.parent}/" if file.name == PROGRESS else f"{file}: "


class Training:
    """A minimal training: a linear layer and random numbers. Its state is saved after each step."""

    def __init__(self, folder, seed):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        self.accelerator, self.checkpoints = Accelerator(cpu=True), folder
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        self.scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def save(self, steps):
        self.checkpoints.mkdir(parents=True)
        beside = self.checkpoints / "weights_0001.safetensors"
        beside.write_bytes(torch.rand(100).numpy().tobytes())
        for step in range(1, steps + 1):
            self.model(torch.rand(1, 2)).sum().backward()
            self.optimizer.step()
            progress = Progress(step=step, loss_sum=torch.rand(()).item())
            save_state(self.accelerator, self.checkpoints, progress, self.scheduler, SIGNATURE, [beside])
        return progress

    def load(self, signature=SIGNATURE):
        return load_state(self.accelerator, newest_state(self.checkpoints), self.scheduler, signature)

    def everything(self):
        moments = [value for each in self.optimizer.state_dict()["state"].values() for value in each.values()]
        numbers = [torch.tensor(random.getstate()[1]), torch.tensor(np.random.get_state()[1].tolist())]
        return [*self.model.state_dict().values(), *moments, torch.get_rng_state(), *numbers]


@pytest.fixture
def two(tmp_path):
    """
    A new training in a folder with three states, the progress and values of the last of these, and the folder of
    another run.
    """
    Training(tmp_path / "other", 2).save(3)
    before = Training(tmp_path / "run", 1)
    progress = before.save(3)
    saved = before.everything()
    return Training(tmp_path / "run", 3), progress, saved, tmp_path / "other"


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_everything_is_restored_and_the_state_before_is_kept(two):
    run, progress, saved, _ = two
    assert not same(run.everything(), saved)
    assert run.load() == progress and same(run.everything(), saved)
    assert [state.name for state in states(run.checkpoints)] == ["state_0001_0000002", "state_0001_0000003"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_named_before_anything_is_loaded(two, name, how):
    run, _, _, other = two
    state, before = newest_state(run.checkpoints), run.everything()
    damage((state / name).resolve(), how, (other / state.name / name).resolve())
    with pytest.raises(ResumeError) as error:
        run.load()
    message = str(error.value)
    assert message.startswith(named((state / name).resolve()))
    assert same(run.everything(), before)
    if "weights" in name:  # both states need this file
        assert message.endswith("; no state before it is whole: start the run again without --resume")
        return
    assert message.endswith(f"; delete {state} to go on from the state before it, state_0001_0000002, which is whole")
    shutil.rmtree(state)
    assert run.load().step == 2


def test_a_state_before_it_that_is_damaged_too_is_not_offered(two):
    run, _, _, _ = two
    for state in states(run.checkpoints):
        (state / RANDOM).unlink()
    with pytest.raises(ResumeError, match="no state before it is whole: start the run again without --resume"):
        run.load()


def test_random_states_that_accelerate_does_not_restore_are_an_error(two, monkeypatch):
    """Accelerate only logs it and goes on, for example on a device without saved random states."""
    run, _, _, _ = two
    monkeypatch.setattr("accelerate.checkpointing.torch.set_rng_state", lambda state: 1 / 0)
    with pytest.raises(ResumeError, match=f"{RANDOM}: torch_manual_seed could not be put back: go on with the dev"):
        run.load()


def test_a_process_whose_random_states_are_not_in_the_folder_is_an_error(two, monkeypatch):
    """The process writes to another disk: its file would be missing when the run is resumed."""
    run, progress, _, _ = two
    progress.step += 1
    monkeypatch.setattr(type(run.accelerator), "num_processes", 2)
    with pytest.raises(OSError, match="state_0001_0000004: cannot be written .No such file"):
        save_state(run.accelerator, run.checkpoints, progress, run.scheduler, SIGNATURE)
    assert newest_state(run.checkpoints).name == "state_0001_0000003"


def test_states_are_in_the_order_of_their_numbers(tmp_path):
    names = ["state_0009_0000000", "state_0010_0000000", "state_10000_0000003", "state_10000_10000000"]
    for name in [*reversed(names), "state_0011_0000000.bak", "state_", "writing"]:
        (tmp_path / name).mkdir()
    assert [state.name for state in states(tmp_path)] == names and newest_state(tmp_path).name == names[-1]
    assert newest_state(tmp_path / "writing") is None


# Whole runs.

RUN = ["--num_epochs", "3", "--lora_rank", "0", "--save_steps", "3", "--report_to", "none", "--average_epochs", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a finished run, the same run stopped in its third epoch, and one of another seed stopped there."""
    folder = tmp_path_factory.mktemp("runs")
    toy_folder(folder)
    training.main(training_arguments(folder, folder / "whole", *RUN))
    with stopped_after(21):
        training.main(training_arguments(folder, folder / "broken", *RUN))
    with stopped_after(21):
        training.main(training_arguments(folder, folder / "other", *RUN, "--seed", "7"))
    return folder


def resume(runs, folder):
    training.main(training_arguments(runs, folder, *RUN, "--resume"))


def assert_same_weights(runs, folder):
    found, expected = (load_file(each / "model.safetensors") for each in (folder, runs / "whole"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_run_goes_on_from_the_state_before_a_damaged_one_to_the_same_weights(runs, tmp_path):
    folder = shutil.copytree(runs / "broken", tmp_path / "run")
    newest = newest_state(folder / "checkpoints")
    assert newest.name == "state_0003_0000003"
    (newest / RANDOM).unlink()
    with pytest.raises(ResumeError, match=f"{RANDOM}: cannot be read .* the state before it, state_0003_0000000"):
        resume(runs, folder)
    shutil.rmtree(newest)
    resume(runs, folder)
    assert_same_weights(runs, folder)


def test_damaged_published_weights_are_named_when_the_run_is_over(runs, tmp_path):
    folder = shutil.copytree(runs / "whole", tmp_path / "run")
    resume(runs, folder)
    file = folder / "model.safetensors"
    file.write_bytes(flip(file.read_bytes(), [5000]))
    with pytest.raises(ResumeError, match=r"/model\.safetensors: is damaged, .* in epoch [123], the best one"):
        resume(runs, folder)


def damage_at_random(folder, other, chance):
    """Damage one file of a run's folder in one way. Returns the file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
    in_states = [path for path in files if "checkpoints" in path.parts]
    file = chance.choice(in_states if chance.random() < 0.9 else files)
    own, kind = file.read_bytes(), chance.choice(["cut", "flip", "swap", "mix", "zeros", *DAMAGES])
    same_file = other / file.relative_to(folder)
    swapped = chance.choice([same_file if same_file.is_file() else file, *file.parent.glob("*.*")]).read_bytes()
    place = chance.randrange(len(own) + 1)
    if kind == "cut":
        file.write_bytes(own[:place])
    elif kind == "flip":
        file.write_bytes(flip(own, [chance.randrange(8 * len(own)) for _ in range(chance.choice([1, 2, 8]))]))
    elif kind == "swap":
        file.write_bytes(swapped)
    elif kind == "mix":
        file.write_bytes(own[:place] + swapped[place:])
    elif kind == "zeros":
        file.write_bytes(own[:place] + bytes(min(512, len(own) - place)) + own[place + 512 :])
    else:
        damage(file, kind, same_file if same_file.is_file() else file)
    return file


CASES = 200


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_no_damage_at_random_leads_to_other_weights(runs, tmp_path, part):
    """Twenty of 200 cases: the run ends with the same weights, or names the damaged file."""
    refused = 0
    for case in range(CASES // 10 * part, CASES // 10 * (part + 1)):
        folder = shutil.copytree(runs / "broken", tmp_path / str(case))
        file = damage_at_random(folder, runs / "other", random.Random(case))
        try:
            resume(runs, folder)
        except ResumeError as error:
            refused += 1
            assert str(error).startswith(named(file)), case
            if advice := re.search("delete (.*) to go on from the state before it", str(error)):
                shutil.rmtree(advice[1])
                resume(runs, folder)
                assert_same_weights(runs, folder)
        else:
            assert_same_weights(runs, folder)
        shutil.rmtree(folder)
    assert 0 < refused < 20


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_no_damage_of_any_file_leads_to_other_weights(runs, tmp_path, how):
    """Damages every file below `checkpoints/` and the published weights in turn."""
    files = [path for path in (runs / "broken").rglob("*") if path.is_file() and path.stat().st_size]
    names = [path.relative_to(runs / "broken") for path in files
             if "checkpoints" in path.parts or path.suffix == ".safetensors"]  # fmt: skip
    newest = newest_state(runs / "broken" / "checkpoints").name
    for name in names:
        folder = shutil.copytree(runs / "broken", tmp_path / str(name).replace("/", "-"))
        other = runs / "other" / name
        damage(folder / name, how, other if other.is_file() else folder / name)
        is_needed = newest in name.parts or name == Path("checkpoints/weights_0002.safetensors")
        is_whole = (folder / name).is_file() and (folder / name).read_bytes() == (runs / "broken" / name).read_bytes()
        try:
            resume(runs, folder)
        except ResumeError as error:
            assert str(error).startswith(named(folder / name)), name
        else:
            assert is_whole or not is_needed, name
            assert_same_weights(runs, folder)
        shutil.rmtree(folder)
