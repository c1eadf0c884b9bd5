"""Runs of the real command on several processes equal those on one; precisions and trackers."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.utils.fsdp_utils import get_module_class_from_name
from safetensors.torch import load_file
from support.hostile import MINUTE, pair, wait_for
from support.tiny_models import BACKBONES, batch, tiny_model
from support.toy import ONE_PROCESS, ROOT, TWO_PROCESSES, launch, python, toy_folder, training_arguments
from torch.distributed.fsdp import fully_shard

from training import train as training
from training.common.cli import on_main_process
from training.fitting.fields import FieldError, parse_fields
from training.fitting.lora import add_lora, merged_state_dict
from training.fitting.state import newest_state


# Two epochs over 15 windows in steps of 4; the last step has 3. Without dropout: processes draw it differently.
FIELDS = ["--num_epochs", "2", "--lora_rank", "0", "--mask_share", "0", "--biaffine_dropout", "0",
          "--span_dropout", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = toy_folder(tmp_path_factory.mktemp("toy"))
    lines = (folder / "both.jsonl").read_text().splitlines(keepends=True)
    (folder / "both.jsonl").write_text("".join(lines[:15]))
    return folder


def logged_losses(output):
    """(step, loss) of every step in TensorBoard's log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "checkpoints" / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def history(output):
    return json.loads((output / "checkpoints" / "history.json").read_text())


@pytest.mark.slow
def test_two_processes_train_the_weights_of_one(toy, tmp_path):
    """
    Losses of all steps and final weights are equal to 1e-5: float32 sums are in another order. Each step has the same
    four windows: in one batch, two on each of two processes, or one on each in two batches.
    """
    ways = {
        "one": (ONE_PROCESS, "4", "1"),
        "two": (TWO_PROCESSES, "2", "1"),
        "two, accumulating": (TWO_PROCESSES, "1", "2"),
    }
    for name, (processes, batch_size, accumulation) in ways.items():
        given = training_arguments(toy, tmp_path / name, *FIELDS, "--batch_size", batch_size,
                                   "--gradient_accumulation_steps", accumulation)  # fmt: skip
        done = launch("train.py", *given, options=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 2:") == 1  # only one process prints
    expected, losses = load_file(tmp_path / "one" / "model.safetensors"), logged_losses(tmp_path / "one")
    assert [step for step, _ in losses] == list(range(1, 9))
    for name in ("two", "two, accumulating"):
        weights = load_file(tmp_path / name / "model.safetensors")
        for key, tensor in weights.items():
            # A bias of keys adds the same to all scores of a query: its gradient is rounding error, scaled up by Adam.
            atol = 1e-4 if key.endswith("key.bias") else 1e-5
            torch.testing.assert_close(tensor, expected[key], atol=atol, rtol=0)
        shared = torch.tensor(logged_losses(tmp_path / name))
        torch.testing.assert_close(shared, torch.tensor(losses), rtol=1e-5, atol=0)
        assert history(tmp_path / name)[-1]["f1"] == history(tmp_path / "one")[-1]["f1"]


@pytest.mark.slow
def test_two_processes_report_a_fault_once(toy, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": 3}\n')
    given = training_arguments(toy, tmp_path / "out", "--train_file", str(tmp_path / "bad.jsonl"))
    done = launch("train.py", *given, options=TWO_PROCESSES)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'bad.jsonl'}:1: text: expected a string or a list of words, found 3"
    ]
    assert not (tmp_path / "out").exists()


# A DeBERTa without position terms (none is published) has a position table that it does not use.
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "deberta-no-terms"])
def test_every_parameter_has_a_gradient(backbone):
    """Processes that exchange gradients wait for the gradient of each parameter."""
    model = tiny_model(backbone).train()
    inputs = batch([12, 7])
    rows = int(inputs["word_index"].max())
    model(**inputs, labels=torch.ones(2, rows, 9, model.config.num_labels)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


# transformers names no layers to shard for these two families: they are sharded as a whole.
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name not in ("electra", "distilbert")])
def test_every_layer_is_sharded(backbone):
    """FSDP finds each layer class by its name, and refuses a model that lacks a class that it names."""
    model = tiny_model(backbone)
    sharded = [get_module_class_from_name(model, name) for name in model._no_split_modules]
    assert None not in sharded
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [layer for stack in stacks for layer in stack]
    assert len(layers) == model.config.backbone_config.num_hidden_layers + model.config.span_layers
    assert all(isinstance(layer, tuple(sharded)) for layer in layers)


def test_sharded_weights_are_merged_whole(tmp_path):
    model = tiny_model("bert")
    add_lora(model, 4, 8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = merged_state_dict(model)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        for layer in [*model.backbone.encoder.layer, *model.blocks, model]:
            fully_shard(layer, mesh=mesh)
        merged = merged_state_dict(model)
    finally:
        torch.distributed.destroy_process_group()
    assert set(merged) == set(expected)
    for name, tensor in merged.items():
        assert type(tensor) is torch.Tensor and torch.equal(tensor, expected[name]), name


def test_the_main_process_alone_reports_its_failure():
    class Accelerator:
        num_processes, is_main_process = 1, True

    assert on_main_process(Accelerator, lambda: 7) == 7
    with pytest.raises(ValueError, match="why"):
        on_main_process(Accelerator, lambda: (_ for _ in ()).throw(ValueError("why")))


THREADS = """
import os, torch
from training.common.cli import use_all_cores
use_all_cores(torch.device("cpu"))
open(os.environ["THREADS_FILE"], "a").write(f"{torch.get_num_threads()} ")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.parametrize("chosen, options, threads", [
    (None, [], "all"), (None, TWO_PROCESSES, "half"), ("1", [], 1), ("2", [], 2), ("1", TWO_PROCESSES, 1),
    (None, ["--num_cpu_threads_per_process", "1"], 1),
])  # fmt: skip
def test_a_launched_process_has_all_cores_unless_others_were_chosen(tmp_path, chosen, options, threads):
    (tmp_path / "threads.py").write_text(THREADS)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"THREADS_FILE": str(tmp_path / "found"), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment |= {} if chosen is None else {"OMP_NUM_THREADS": chosen}
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "threads.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    cores = len(os.sched_getaffinity(0))
    expected = {"all": cores, "half": max(1, cores // 2)}.get(threads, threads)
    assert {*(tmp_path / "found").read_text().split()} == {str(expected)}


WAITING = """
import sys, time
from datetime import timedelta
from accelerate import PartialState
from training.common.cli import on_main_process, set_timeout
from training.common.start import run
def main():
    state = PartialState(cpu=True, timeout=timedelta(minutes=5))
    on_main_process(state, lambda: time.sleep(5))
    set_timeout(2 / 60)
    on_main_process(state, lambda: time.sleep(20))
run(main)
"""


@pytest.mark.slow
def test_processes_wait_no_longer_than_the_timeout():
    """The main process works for 5 seconds with a timeout of minutes, then for 20 with a timeout of 2 seconds."""
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    first, second = [
        subprocess.Popen([sys.executable, "-c", WAITING], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                         env={**environment, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]  # fmt: skip
    errors = second.communicate(timeout=120)[1]
    assert first.poll() is None  # it still works
    first.kill()
    first.communicate()
    assert second.returncode == 1 and errors.splitlines()[-1].startswith(
        "error: another process of this run hangs, or needs more than the minutes of `timeout` ("
    ), errors  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_in_training_ends_the_others(toy, tmp_path, rank):
    given = training_arguments(toy, tmp_path / "out", *FIELDS[2:], "--num_epochs", "500", "--timeout", "0.5")
    both = pair("train", given, 29541 + rank)
    wait_for(lambda: newest_state(tmp_path / "out" / "checkpoints"), lambda: all(each.is_running() for each in both))
    both[rank].send(signal.SIGSTOP)
    code, lines = both[1 - rank].end(timeout=2 * MINUTE)
    both[rank].send(signal.SIGKILL)
    assert code == 1 and "another process of this run hangs, or needs more than the minutes" in lines[-1], lines


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_trackers_and_precision_are_the_given_ones(toy, tmp_path, no_state, precision):
    given = training_arguments(toy, tmp_path, "--num_epochs", "1", "--save_steps", "3")
    training.main([*given, "--mixed_precision", precision])
    steps, losses = zip(*logged_losses(tmp_path), strict=True)
    assert list(steps) == list(range(1, 9))
    # Of 15 windows, two a step, the last step has one: the epoch's loss is the mean over windows, not over steps.
    assert history(tmp_path)[0]["loss"] == pytest.approx((2 * sum(losses[:7]) + losses[7]) / 15, rel=1e-5)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_a_tracker_that_is_not_installed_is_named(toy, tmp_path):
    given = training_arguments(toy, tmp_path)
    with pytest.raises(FieldError, match="report_to is 'tensorboard,wandb': wandb is not installed"):
        training.build_accelerator(parse_fields([*given, "--report_to", "tensorboard,wandb"]))
    with pytest.raises(ValueError, match="Unsupported logging capability: nothing"):
        training.build_accelerator(parse_fields([*given, "--report_to", "nothing"]))


FAULTS = """
import resource, sys, torch
from training.common.cli import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory(torch.device("cpu"))
def work():
    return sum(torch.ones(size).sum() for size in (3_000_000, 9_000_000))
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_kept():
    """Ten times 48 MB are 117,000 pages of 4 kB. If freed memory is kept, only the first 48 MB cause page faults."""
    faults = {}
    for mode in ("leave", "keep"):
        done = python("-c", FAULTS, mode)
        assert done.returncode == 0, done.stderr
        faults[mode] = int(done.stdout)
    assert faults["keep"] < 0.3 * faults["leave"]
