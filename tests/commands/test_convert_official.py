"""convert_official.py: a checkpoint of the published implementation becomes a folder with the same scores."""

import json

import peft
import pytest
import torch
from support import golden_files
from support.tiny_models import batch, randomize, tiny_model
from support.toy import ROOT, python
from transformers import AutoModel


FOLDER = golden_files.FOLDER
IO = FOLDER / "official_checkpoint_io.safetensors"


@pytest.fixture(scope="module")
def golden():
    return golden_files.Golden(IO)


@pytest.fixture(scope="module")
def backbone(golden, tmp_path_factory):
    """A config file of the encoder, without `model_type`."""
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
        (lambda s: s.update({PREFIX + "U": torch.zeros(8, 13, 12)}), "U: shape (8, 13, 12), expected (channels"),
        (lambda s: s.update({"module.U": s[PREFIX + "U"]}), "U: twice in the checkpoint"),
        (lambda s: s.pop(QUERY + "base_layer.weight"), "query_proj.weight: missing"),
        (lambda s: s.pop(QUERY + "lora_A.default.weight"), "query_proj.lora_B.default.weight: an adapter's part"),
        (
            lambda s: s.update({QUERY + "lora_magnitude_vector.default.weight": torch.ones(32)}),
            "query_proj.lora_magnitude_vector.default.weight: an adapter's part",
        ),
        (
            lambda s: s.update({QUERY + "lora_A.default.weight": s[QUERY + "lora_A.default.weight"].T}),
            "query_proj: lora_A (32, 8) and lora_B (32, 8) do not fit the weight (32, 32)",
        ),
        (
            lambda s: s.update({PREFIX + "head_mlp.1.weight": s[PREFIX + "head_mlp.1.weight"].T}),
            "biaffine.start.weight: shape (32, 12) in the checkpoint",
        ),
    ],
)
def test_a_weight_that_does_not_fit_is_named(golden, backbone, tmp_path, change, message, capsys):
    from training import convert_official
    from training.common.start import run

    given = [str(a) for a in arguments(golden, backbone, tmp_path / "out", changed(tmp_path, change))]
    with pytest.raises(SystemExit) as end:
        run(lambda: convert_official.main(given))
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_number_of_labels_is_refused(golden, backbone, tmp_path):
    given = arguments(golden, backbone, tmp_path / "out")
    given[given.index("--labels") + 1] = "a,b"
    done = python(ROOT / "training" / "convert_official.py", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "labels: 2 given, but the checkpoint has 3 outputs" in done.stderr


def test_a_file_that_is_no_checkpoint_is_named(golden, backbone, tmp_path, capsys):
    from training.convert_official import ConversionError, read_checkpoint

    for content in ("not a checkpoint", ""):
        (tmp_path / "x.pth").write_text(content)
        with pytest.raises(ConversionError, match="x.pth: not a file of weights alone: ."):
            read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="none.pth: no such file"):
        read_checkpoint(tmp_path / "none.pth")


def test_prefixes_are_removed_and_adapters_merged():
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


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    from training.convert_official import ConversionError, read_checkpoint

    torch.save({"U": torch.zeros(2, 3, 3), "code": Code(tmp_path / "written")}, tmp_path / "evil.pth")
    with pytest.raises(ConversionError, match="evil.pth: not a file of weights alone"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "written").exists()


HEAD_NAMES = (
    ("biaffine.start.", "head_mlp.1."), ("biaffine.end.", "tail_mlp.1."), ("biaffine.bilinear.weight", "U"),
    ("biaffine.linear.weight", "W"), ("classifier.", "down_fc."), ("blocks.", "cross_layers."),
    (".triangle.", ".pos_embed."), (".horizontal.", ".h_qkv."), (".vertical.", ".v_qkv."),
    (".conv1.", ".conv1.conv2d."), (".conv2.", ".conv2.conv2d."), (".norm.", ".LayerNorm."),
    (".conv_norm.", ".LayerNorm2."),
)  # fmt: skip


def released_name(name):
    if name.startswith("backbone."):
        return name.replace("backbone.", "pretrain_model.", 1)
    for ours, theirs in HEAD_NAMES:
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("prefix, rank", [("", None), ("module.", None), ("module.", 4), ("_forward_module.", 16)])
def test_a_generated_checkpoint_gives_the_scores_of_its_model(prefix, rank):
    """Names have the prefixes of PEFT and DeepSpeed. The reference is a model whose adapters PEFT itself merged."""
    from training.convert_official import converted_model, official_to_sener

    labels = ["b", "a", "c"]
    model = tiny_model("deberta-v3", vertical_readout="mirrored", triangle_mean="probability", labels_per_span="best")
    encoder = torch.nn.ModuleDict({"pretrain_model": model.backbone})
    wrapper = prefix
    if rank is not None:
        targets = ["query_proj", "value_proj"]
        config = peft.LoraConfig(r=rank, lora_alpha=16, target_modules=targets, bias="lora_only")
        encoder = randomize(peft.PeftModel(encoder, config), seed=1)
        wrapper += "base_model.model."
    state = {prefix + name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if not name.startswith("backbone."):
            assert golden_files.our_name(released_name(name)) == name
            state[wrapper + released_name(name)] = tensor
    assert all(name.startswith(wrapper) for name in state)
    assert any(".lora_A." in name for name in state) == (rank is not None)
    if rank is not None:
        model.backbone = encoder.merge_and_unload()["pretrain_model"]
    backbone = json.loads(json.dumps(model.config.backbone_config.to_dict()))
    converted = converted_model(official_to_sener(state), backbone, labels, span_window=4, attention_window=8)
    assert converted.config.labels == labels
    inputs = batch([40, 23])
    with torch.no_grad():
        torch.testing.assert_close(converted(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
