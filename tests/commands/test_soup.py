"""soup.py, which averages checkpoints: weights, thresholds, and checkpoints that cannot be averaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.hostile import full_disk
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, tiny_model

from modeling_sener import SenerProcessor
from training import soup
from training.common.files import WriteError
from training.fitting.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


@pytest.fixture
def checkpoints(tmp_path):
    """Three checkpoints with different weights; the fourth has another span window."""
    tokenizer, folders = tiny_tokenizer("wordpiece"), []
    backbone = BACKBONES["bert"] | {"vocab_size": len(tokenizer)}
    for seed, fields in enumerate(({"threshold": 0.3}, {}, {}, {"span_window": 3})):
        model = tiny_model(backbone, seed, **fields)
        folders.append(str(tmp_path / str(seed)))
        save_checkpoint(model, SenerProcessor(tokenizer, model.config), folders[-1])
    return folders


def test_each_weight_is_the_mean_and_thresholds_start_again(checkpoints, tmp_path, capsys):
    soup.main(["--models", *checkpoints[:3], "--output_dir", str(tmp_path / "mean")])
    assert "mean of 3 checkpoints" in capsys.readouterr().out
    parts = [load_file(f"{folder}/model.safetensors") for folder in checkpoints[:3]]
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert set(mean) == set(parts[0])
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, sum(part[name].double() for part in parts).div(3).to(tensor.dtype))
    model, processor = load_checkpoint(tmp_path / "mean")
    assert (processor.thresholds() == 0.5).all() and model.config.threshold == 0.5


def test_checkpoints_of_different_models_have_no_mean(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="3: span_window is 3, in .*0 4: only checkpoints of the same model"):
        soup.main(["--models", checkpoints[0], checkpoints[3], "--output_dir", str(tmp_path / "mean")])
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("models, output", [((0,), "mean"), ((0, 1), "1")])
def test_a_single_checkpoint_or_an_output_over_a_checkpoint_is_refused(checkpoints, tmp_path, models, output, capsys):
    with pytest.raises(SystemExit):
        soup.main(["--models", *(checkpoints[i] for i in models), "--output_dir", str(tmp_path / output)])
    assert "--models" in capsys.readouterr().err


@pytest.mark.parametrize("changed", ["the tokenizer", "word_pattern"])
def test_checkpoints_that_split_texts_differently_have_no_mean(checkpoints, tmp_path, changed):
    """The same weight belongs to another token, or the same cell to another pair of words."""
    folder = Path(checkpoints[1])
    if changed == "the tokenizer":
        state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = state["model"]["vocab"]
        first, second, *_ = (word for word in vocab if word.isalpha())
        vocab[first], vocab[second] = vocab[second], vocab[first]
        (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    else:
        fields = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
        content = json.dumps(fields | {"word_pattern": r"\\S+"})
        (folder / "processor_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"1: .*{changed} is .*only checkpoints of the same model have a mean"):
        soup.main(["--models", *checkpoints[:2], "--output_dir", str(tmp_path / "mean")])
    assert not (tmp_path / "mean").exists()


def test_a_full_disk_is_reported_without_naming_options_of_other_commands(checkpoints, tmp_path):
    with full_disk(20_000), pytest.raises(WriteError, match=r"cannot be written \([^)]*\)$"):
        soup.main(["--models", *checkpoints[:2], "--output_dir", str(tmp_path / "mean")])
