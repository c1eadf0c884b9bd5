"""The files of training/configs: fields exist, values are the published ones, and runs work."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from support.tiny import tiny_tokenizer
from support.toy import launch, toy_folder, training_arguments
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import DebertaV2Config, DebertaV2Model

from training import train as training
from training.common.models import MODELS
from training.fitting.fields import parse_fields


CONFIGS = Path(training.__file__).parent / "configs"
RECIPES = {"scholar_xl": 4e-4, "scirex": 3e-4, "profiling_07": 2e-4}
SMALL = [f"{name}_small" for name in RECIPES]
ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
REQUIRED = ["--train_file", "a", "--dev_file", "b", "--output_dir", "c"]


def fields_of(name):
    return parse_fields(["--config", str(CONFIGS / f"{name}.yaml"), *REQUIRED])


def test_every_config_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*RECIPES, *SMALL, "few_documents"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_are_the_published_ones(name):
    fields = fields_of(name)
    assert (fields.backbone, fields.learning_rate) == ("microsoft/deberta-v3-large", RECIPES[name])
    assert (fields.head_learning_rate, fields.weight_decay, fields.warmup_share) == (7e-4, 0.01, 0.1)
    assert (fields.num_epochs, fields.patience, fields.max_norm_ratio, fields.max_tokens) == (30, 10, 1, 5120)
    assert fields.batch_size * fields.gradient_accumulation_steps == 16
    assert (fields.mask_share, fields.lora_rank, fields.lora_alpha) == (0.15, 8, 16)
    assert fields.model == {
        "attention": "arrow", "attention_window": 128, "log_n_scaling": True, "span_window": 128, "triangles": "both",
        "biaffine_size": 100,
        "span_channels": 32, "span_layers": 2, "biaffine_dropout": 0.4, "span_dropout": 0.2,
    }  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_the_small_recipes_are_for_minilm(name):
    fields = fields_of(name)
    assert fields.backbone == "sentence-transformers/all-MiniLM-L6-v2"
    assert fields.lora_rank == 0 and fields.model["span_window"] <= 64
    assert fields.mixed_precision == "auto"


def test_few_documents_start_from_a_bundled_model_and_steps_follow_the_data():
    fields = fields_of("few_documents")
    assert fields.backbone == str(MODELS["biomedical"])
    assert fields.min_epoch_steps > 100 and fields.patience == fields.num_epochs
    assert fields.lora_rank == 0 and fields.mixed_precision == "auto"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = toy_folder(tmp_path_factory.mktemp("toy"))
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer("unigram")
    config = DebertaV2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=512, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0,
    )  # fmt: skip
    DebertaV2Model(config).save_pretrained(folder / "deberta")
    tokenizer.save_pretrained(folder / "deberta")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, *SMALL])
def test_every_config_runs_an_epoch(toy, tmp_path, name):
    """The command trains a tiny random encoder of the family that the config names."""
    given = training_arguments(toy, tmp_path)
    paths = {given[i]: given[i + 1] for i in range(0, len(given), 2)}
    encoder = toy / ("bert" if name in SMALL else "deberta")
    files = [part for field in ("--train_file", "--dev_file", "--output_dir") for part in (field, paths[field])]
    done = launch("train.py", "--config", CONFIGS / f"{name}.yaml", *files, "--backbone", encoder,
                  "--num_epochs", "1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epoch 1: loss" in done.stdout
    config = json.loads((tmp_path / "config.json").read_text())
    assert {key: config[key] for key in fields_of(name).model} == fields_of(name).model


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_config_files(path, monkeypatch):
    """The launcher turns the file into the environment of a process, from which Accelerate makes its plugin."""
    kind, _, place = path.stem.partition("_")
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == {"fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}[kind]
    assert set(config.fsdp_config or config.deepspeed_config) <= set(vars(launch_command_parser().parse_args(["x"])))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "training/train.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    machines = 2 if place == "nodes" else 1
    assert (arguments.num_machines, arguments.num_processes) == (machines, 8 * machines)
    assert (arguments.main_process_ip is None) == (machines == 1)
    assert arguments.mixed_precision == "bf16"
    if kind == "fsdp2":
        environment = prepare_multi_gpu_env(arguments)
    else:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    if kind == "fsdp2":
        plugin = FullyShardedDataParallelPlugin()
        assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
        assert plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT
        assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
        assert not plugin.cpu_ram_efficient_loading and not plugin.activation_checkpointing
    else:
        plugin = DeepSpeedPlugin()
        assert plugin.zero_stage == 2 and plugin.deepspeed_config["zero_optimization"]["stage"] == 2
        assert plugin.deepspeed_config["gradient_accumulation_steps"] == "auto"


def test_there_are_four_accelerate_configs():
    assert len(ACCELERATE) == 4
