"""A model whose modules other libraries replaced or hooked computes the right result, or is refused in one line."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import LoraConfig, inject_adapter_in_model
from support.tiny_models import BACKBONES, LABELS, batch, tiny_model
from torch import nn

from modeling_sener import SenerModel


REFUSED = "the weights lie on several devices, .*: load the model without device_map, or with one device"
LENGTHS = [40, 17]


def to_meta_and_cpu(model, folder):
    places = {name: "disk" if name == "blocks" else "cpu" for name, _ in model.named_children()}
    dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def loaded(model, folder):
    """Save the model and load it with a device map, as users do."""
    model.save_pretrained(folder / "model")
    places = {name: "disk" if name == "backbone" else "cpu" for name, _ in model.named_children()}
    return SenerModel.from_pretrained(folder / "model", device_map=places, offload_folder=folder / "offload")


WAYS = {
    "dispatched": to_meta_and_cpu,
    "kept in CPU memory": lambda model, folder: cpu_offload(model, execution_device=torch.device("cpu")) and None,
    "kept on disk": lambda model, folder: disk_offload(model, folder, torch.device("cpu")) and None,
    "loaded": loaded,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backbone", ["bert", "deberta-convolution"])
def test_several_devices_are_refused_in_one_line(tmp_path, backbone, way):
    model, inputs = tiny_model(backbone, chunk_size=6, attention_window=2), batch(LENGTHS)
    model = WAYS[way](model, tmp_path) or model
    for compute in (model, lambda **given: model.find_candidates(**given, thresholds=torch.full((len(LABELS),), 0.5))):
        with pytest.raises(ValueError, match=REFUSED) as refused, torch.no_grad():
            compute(**inputs)
        assert "\n" not in str(refused.value)


def test_a_map_of_one_device_works(tmp_path):
    model, inputs = tiny_model("bert"), batch(LENGTHS)
    model.save_pretrained(tmp_path)
    for device_map in ("auto", {"": "cpu"}):
        other = SenerModel.from_pretrained(tmp_path, device_map=device_map).to("cpu")
        assert torch.equal(other(**inputs).logits, model(**inputs).logits)


def with_adapters(model):
    names = [name for name, module in model.named_modules()
             if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("backbone.")]  # fmt: skip
    torch.manual_seed(0)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=names), model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return names


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("triangles", ["upper", "both"])
def test_adapters_on_the_head_count_in_training_and_in_inference(triangles, checkpointing):
    model, inputs = tiny_model("bert", chunk_size=6, attention_window=2, triangles=triangles), batch(LENGTHS)
    with torch.no_grad():
        plain = model(**inputs).logits
    names = with_adapters(model)
    assert "classifier" in names and len(names) >= 4
    if checkpointing:
        model.activation_checkpointing_enable()
    with torch.no_grad():
        inferred = model(**inputs).logits
    assert not torch.allclose(inferred, plain, atol=1e-3)
    trained = model(**inputs, labels=torch.zeros_like(plain))  # dropout is off: a model is made in evaluation mode
    torch.testing.assert_close(trained.logits, inferred, atol=1e-5, rtol=1e-5)
    model.train()(**inputs, labels=torch.zeros_like(plain)).loss.backward()
    without = [name for name, parameter in model.named_parameters() if "lora_" in name and
               (parameter.grad is None or not parameter.grad.abs().sum())]  # fmt: skip
    assert not without


@pytest.mark.skipif(not hasattr(torch.ao, "quantization"), reason="torch has no dynamic quantisation")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("backbone", BACKBONES)
def test_linear_layers_in_eight_bits_give_nearly_the_same_scores(backbone):
    """On average: rounding may change single scores of a tiny random model by far."""
    fields = {"chunk_size": 6, "attention_window": 2}
    model, inputs = tiny_model(backbone, **fields), batch(LENGTHS)
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        own, found = model(**inputs).logits, small(**inputs).logits
    assert not torch.equal(own, found)
    assert (own.sigmoid() - found.sigmoid()).abs().mean() < 0.02
