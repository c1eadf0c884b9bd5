"""The model gives the numbers of the published implementation, for every golden file.

The environment variable `SENER_REFERENCE_DIR` points the tests at another folder of golden files.
"""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fresh import ROOT, run_fresh
from support.golden_files import COPY, FOLDER, Golden, golden_files, our_name
from support.references import valid_band
from support.tiny_models import randomize

from modeling_sener import SenerConfig, SenerModel
from modeling_sener.pooling import pool_words


ENCODERS = golden_files("arrow_encoder*.safetensors")
HEADS = golden_files("bispa_head*.safetensors")
WHOLE = golden_files("sener_full*.safetensors")
CHECKPOINTS = golden_files("official_checkpoint*.pth")
CHUNK_SIZES = [32, 100_000]  # many chunks, and one


def name(path):
    return path.stem


def test_every_file_of_the_folder_is_checked():
    found = {path for path in FOLDER.iterdir() if path.suffix in (".safetensors", ".pth")}
    assert found, f"{FOLDER} holds no golden files"
    checked = {*ENCODERS, *HEADS, *WHOLE, *CHECKPOINTS, *map(scores_of_checkpoint, CHECKPOINTS)}
    assert found == checked


@pytest.mark.parametrize("pattern", ["arrow_encoder*", "bispa_head*", "sener_full*", "official_checkpoint*.pth"])
def test_the_repository_has_golden_files_of_each_kind(pattern):
    assert golden_files(pattern, COPY)


def scores_of_checkpoint(path):
    """The file of a checkpoint's inputs and scores: `official_checkpoint_io` beside `official_checkpoint.pth`."""
    return path.with_name(f"{path.stem}_io.safetensors")


def build(backbone, head, device="cpu", **fields):
    """A model of the sizes of the tensors `head` (with our names), with the published implementation's choices."""
    channels, size, _ = head["biaffine.bilinear.weight"].shape
    labels = [f"label{i}" for i in range(len(head["classifier.weight"]))]
    config = SenerConfig(
        backbone_config=backbone,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        biaffine_size=size - 1,
        span_channels=channels,
        span_layers=len({key.split(".")[1] for key in head if key.startswith("blocks.")}),
        vertical_readout="mirrored",
        **fields,
    )
    return SenerModel(config).to(device).eval()


def assert_scores(logits, golden):
    """Compare scores of valid cells, to 1e-4. Rows without a valid cell may be missing."""
    expected = golden.outputs["scores"]
    counts = golden.inputs["word_index"].max(1).values
    N, w = logits.shape[1], expected.shape[2] // 2
    assert N == counts.max() and logits.shape[2:] == expected.shape[2:]
    valid = valid_band(counts, N, w)
    torch.testing.assert_close(logits.cpu()[valid], expected[:, :N][valid], atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("path", ENCODERS, ids=name)
def test_the_encoder_gives_the_published_states(device, path, chunk_size):
    golden = Golden(path)
    backbone = {"model_type": "deberta-v2", **golden.sizes["backbone_config"]}
    config = SenerConfig(
        backbone_config=backbone,
        attention_window=golden.sizes["attention_window"],
        id2label={0: "label"},
        label2id={"label": 0},
        chunk_size=chunk_size,
    )
    model = SenerModel(config).to(device).eval()
    model.backbone.load_state_dict(golden.weights)
    for key, input_ids in golden.inputs.items():
        # Each token is a word of its own: word states are token states.
        input_ids = input_ids.to(device)
        every_token = torch.arange(1, input_ids.shape[1] + 1, device=device).expand_as(input_ids)
        with torch.no_grad():
            states, _ = model.encode(input_ids, torch.ones_like(input_ids), every_token)
        expected = golden.outputs[key.replace("input_ids", "last_hidden_state")]
        torch.testing.assert_close(states.cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("path", HEADS, ids=name)
def test_the_head_gives_the_published_scores(device, path, chunk_size):
    golden = Golden(path)
    hidden_states, word_index = (golden.inputs[name].to(device) for name in ("hidden_states", "word_index"))
    head = golden.our_weights()
    some_encoder = {
        "model_type": "bert", "vocab_size": 8, "hidden_size": hidden_states.shape[-1], "num_hidden_layers": 1,
        "num_attention_heads": 1, "intermediate_size": 8, "max_position_embeddings": 8,
    }  # fmt: skip
    w = golden.outputs["scores"].shape[2] // 2
    model = build(some_encoder, head, device, span_window=w, chunk_size=chunk_size)
    loaded = model.load_state_dict(head, strict=False)
    assert not loaded.unexpected_keys
    assert all(key.startswith("backbone.") for key in loaded.missing_keys), loaded.missing_keys
    counts = word_index.max(1).values
    words = pool_words(hidden_states, word_index, int(counts.max()))
    with torch.no_grad():
        logits = torch.cat(list(model.logit_chunks(words, model.band(words, counts))), dim=1)
    assert_scores(logits, golden)


def whole_model(golden, device="cpu", **fields):
    weights = golden.our_weights()
    backbone = {"model_type": "deberta-v2", **golden.sizes["backbone_config"]}
    w = golden.outputs["scores"].shape[2] // 2
    window = golden.sizes["attention_window"]
    model = build(backbone, weights, device, span_window=w, attention_window=window, **fields)
    model.load_state_dict(weights)
    inputs = {key: golden.inputs[key].to(device) for key in ("input_ids", "word_index")}
    return model, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("path", WHOLE, ids=name)
def test_the_whole_model_gives_the_published_scores(device, path, chunk_size):
    golden = Golden(path)
    model, inputs = whole_model(golden, device, chunk_size=chunk_size)
    with torch.no_grad():
        assert_scores(model(**inputs).logits, golden)


@pytest.mark.parametrize("path", WHOLE, ids=name)
def test_loss_and_gradients_are_the_published_ones(device, path):
    golden = Golden(path)
    model, inputs = whole_model(golden, device)
    labels = golden.inputs["labels"][:, : int(inputs["word_index"].max())].to(device)
    output = model(**inputs, labels=labels)
    assert_scores(output.logits.detach(), golden)
    torch.testing.assert_close(output.loss.cpu(), golden.outputs["loss"].squeeze(), atol=0, rtol=1e-5)
    output.loss.backward()
    parameters = dict(model.named_parameters())
    assert golden.grads
    for key, expected in golden.grads.items():
        difference = (parameters[our_name(key)].grad.cpu() - expected).abs().max() / expected.abs().max()
        assert difference <= 1e-5, f"{key}: {difference:.1e} of its largest magnitude"


LOAD = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

model = AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
inputs = load_file({inputs!r})
with torch.no_grad():
    save_file({{"logits": model(**inputs).logits.contiguous()}}, {output!r})
"""


@pytest.mark.parametrize("path", CHECKPOINTS, ids=name)
def test_a_converted_checkpoint_gives_the_published_scores(path, tmp_path):
    """The command converts it, `AutoModel` alone loads it."""
    golden = Golden(scores_of_checkpoint(path))
    backbone = tmp_path / "backbone.json"
    backbone.write_text(json.dumps(golden.sizes["backbone_config"]))
    R, columns = golden.outputs["scores"].shape[-1], golden.outputs["scores"].shape[2]
    command = [
        sys.executable, str(ROOT / "training" / "convert_official.py"), "--checkpoint", str(path),
        "--backbone", str(backbone), "--labels", ",".join(f"label{i}" for i in range(R)),
        "--output", str(tmp_path / "converted"), "--span_window", str(columns // 2),
        "--attention_window", str(golden.sizes["attention_window"]),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    inputs = {key: golden.inputs[key].contiguous() for key in ("input_ids", "word_index")}
    save_file({**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}, tmp_path / "inputs.safetensors")
    files = {"folder": "converted", "inputs": "inputs.safetensors", "output": "output.safetensors"}
    paths = {key: str(tmp_path / file) for key, file in files.items()}
    run_fresh(LOAD.format(**paths), tmp_path)
    assert_scores(load_file(tmp_path / "output.safetensors")["logits"], golden)


def test_a_changed_weight_is_noticed():
    """The comparison itself is tested: with random weights in one layer, it must fail."""
    golden = Golden(golden_files("sener_full*.safetensors", COPY)[0])
    model, inputs = whole_model(golden)
    randomize(model.blocks[-1].vertical)
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_scores(model(**inputs).logits, golden)
