"""The released code's checkpoint -> a folder that AutoModel loads and that gives the same scores."""

import json

import golden_files
import pytest
import torch
from toy import ROOT, python
from transformers import AutoModel


FOLDER = golden_files.FOLDER
IO = FOLDER / "official_checkpoint_io.safetensors"


@pytest.fixture(scope="module")
def golden():
    return golden_files.Golden(IO)


@pytest.fixture(scope="module")
def backbone(golden, tmp_path_factory):
    """A config file without `model_type`."""
    path = tmp_path_factory.mktemp("backbone") / "config.json"
    path.write_text(json.dumps(golden.sizes["backbone_config"]))
    return path


def arguments(golden, backbone, output, checkpoint=FOLDER / "official_checkpoint.pth"):
    labels = ",".join(f"label{i}" for i in range(golden.sizes["labels"]))
    return ["--checkpoint", checkpoint, "--backbone", backbone, "--labels", labels, "--output", output,
            "--span_window", golden.sizes["span_window"],
            "--attention_window", golden.sizes["attention_window"]]  # fmt: skip


def test_the_converted_folder_gives_the_official_scores(golden, backbone, tmp_path):
    done = python(ROOT / "training" / "convert_official.py", *arguments(golden, backbone, tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "no tokenizer" in done.stdout
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert not model.training and model.dtype == torch.float32
    assert model.config.labels == [f"label{i}" for i in range(golden.sizes["labels"])]
    assert (model.config.vertical_readout, model.config.triangle_mean, model.config.labels_per_span) == (
        "mirrored", "probability", "best"
    )  # fmt: skip
    word_index = golden.inputs["word_index"]
    input_ids = golden.inputs["input_ids"]
    with torch.no_grad():
        logits = model(input_ids, torch.ones_like(input_ids), word_index).logits
    w = golden.sizes["span_window"]
    i = torch.arange(logits.shape[1])[:, None]
    j = i + torch.arange(-w, w + 1)
    for b, length in enumerate(word_index.amax(1)):
        valid = (i < length) & (j >= 0) & (j < length)
        difference = (logits[b] - golden.outputs["scores"][b])[valid].abs().max()
        assert difference <= 1e-4


def changed(tmp_path, change):
    state = torch.load(FOLDER / "official_checkpoint.pth", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


PREFIX = "module.base_model.model."
QUERY = f"{PREFIX}pretrain_model.encoder.layer.0.attention.self.query_proj."


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop(PREFIX + "down_fc.weight"), "classifier.weight: missing"),
        (lambda s: s.pop(PREFIX + "tail_mlp.1.bias"), "biaffine.end.bias: missing"),
        (lambda s: s.pop(QUERY + "lora_B.default.weight"), "query_proj.lora_B.default.weight: missing"),
        (lambda s: s.update({PREFIX + "what.weight": torch.zeros(1)}), "what.weight: not a parameter"),
        (lambda s: s.update({PREFIX + "U": torch.zeros(8, 14, 14)}), "biaffine.start.weight: shape (12, 32)"),
        (lambda s: s.update({"epoch": 3}), "expected a state dict of tensors"),
    ],
)
def test_what_does_not_fit_is_named(golden, backbone, tmp_path, change, message, capsys):
    from training import convert_official
    from training.cli import run

    given = [str(a) for a in arguments(golden, backbone, tmp_path / "out", changed(tmp_path, change))]
    with pytest.raises(SystemExit) as end:
        run(lambda: convert_official.main(given))
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_labels_must_be_as_many_as_outputs(golden, backbone, tmp_path):
    given = arguments(golden, backbone, tmp_path / "out")
    given[given.index("--labels") + 1] = "a,b"
    done = python(ROOT / "training" / "convert_official.py", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "labels: 2 given, but the checkpoint has 3 outputs" in done.stderr


def test_a_file_that_is_no_checkpoint(golden, backbone, tmp_path, capsys):
    from training.convert_official import ConversionError, read_checkpoint

    (tmp_path / "x.pth").write_text("not a checkpoint")
    with pytest.raises(ConversionError, match="x.pth: not a file of weights alone"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="cannot be read"):
        read_checkpoint(tmp_path / "none.pth")


def test_prefixes_and_lora():
    from training.convert_official import official_to_sener

    down, up = torch.randn(2, 4), torch.randn(4, 2)
    name = "pretrain_model.encoder.layer.0.attention.self.query_proj"
    state = {
        f"{PREFIX}{name}.base_layer.weight": torch.eye(4), f"{PREFIX}{name}.base_layer.bias": torch.ones(4),
        f"{PREFIX}{name}.lora_A.default.weight": down, f"{PREFIX}{name}.lora_B.default.weight": up,
        f"{PREFIX}down_fc.bias": torch.zeros(3), f"{PREFIX}cross_layers.0.embed_positions.weight": torch.zeros(2, 2),
    }  # fmt: skip
    ours = official_to_sener(state)
    layer = "backbone.encoder.layer.0.attention.self.query_proj"
    assert set(ours) == {f"{layer}.weight", f"{layer}.bias", "classifier.bias"}
    torch.testing.assert_close(ours[f"{layer}.weight"], torch.eye(4) + 8 * up @ down)
