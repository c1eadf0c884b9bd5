"""A saved folder stands on its own: loaded in an interpreter without this repository, without caches, offline."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.fresh import run_fresh
from support.tiny import CORPUS, tiny_tokenizer
from support.tiny_models import BACKBONES, batch, randomize, tiny_config, tiny_model

from modeling_sener import SenerModel, SenerProcessor


NAMES = ["bert", "deberta-v3", "deberta-projected", "roberta", "modernbert"]
LOAD_MODELS = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

for name in {names!r}:
    folder = {root!r} + "/" + name
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "SenerModel" and not model.training
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with torch.no_grad():
        logits = model(**load_file(folder + "-inputs.safetensors")).logits
    save_file({{"logits": logits.contiguous()}}, folder + "-logits.safetensors")
"""


def test_models_of_each_encoder_give_the_same_logits(tmp_path):
    expected = {}
    for name in NAMES:
        model = tiny_model(name)
        model.save_pretrained(tmp_path / name)
        inputs = batch([33, 12])
        save_file(inputs, tmp_path / f"{name}-inputs.safetensors")
        with torch.no_grad():
            expected[name] = model(**inputs).logits
    run_fresh(LOAD_MODELS.format(names=NAMES, root=str(tmp_path)), tmp_path)
    for name in NAMES:
        found = load_file(tmp_path / f"{name}-logits.safetensors")["logits"]
        torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=0)


LOAD_ALL = """
import json
import torch
from transformers import AutoModel, AutoProcessor, pipeline

folder, texts = {folder!r}, {texts!r}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(texts, return_tensors="pt")
with torch.no_grad():
    outputs = model(**inputs)
extract = pipeline("entity-extraction", model=folder, trust_remote_code=True)
print(json.dumps([processor.post_process(outputs, inputs), extract(texts), outputs.logits.sum().item()]))
"""


def test_model_processor_and_pipeline_give_the_same_entities(tmp_path):
    tokenizer = tiny_tokenizer("wordpiece")
    backbone = {**BACKBONES["bert"], "vocab_size": len(tokenizer)}
    config = tiny_config(backbone, threshold=0.6)
    model = randomize(SenerModel(config)).eval()
    processor = SenerProcessor(tokenizer, config)
    model.save_pretrained(tmp_path / "folder")
    processor.save_pretrained(tmp_path / "folder")
    texts = list(CORPUS)
    inputs = processor(texts)
    with torch.no_grad():
        outputs = model(**inputs)
    expected = json.loads(json.dumps(processor.post_process(outputs, inputs)))
    assert any(expected)
    printed = run_fresh(LOAD_ALL.format(folder=str(tmp_path / "folder"), texts=texts), tmp_path)
    processed, extracted, total = json.loads(printed.splitlines()[-1])
    assert total == pytest.approx(outputs.logits.sum().item(), rel=1e-5)
    for found in (processed, extracted):
        assert [[(e["start"], e["end"], e["text"], e["label"]) for e in text] for text in found] == [
            [(e["start"], e["end"], e["text"], e["label"]) for e in text] for text in expected
        ]
        for ours, theirs in zip(sum(found, []), sum(expected, []), strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_file_loads_as_float32(dtype, tmp_path):
    model = tiny_model("deberta-v3").to(dtype)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    again = SenerModel.from_pretrained(tmp_path)
    for name, parameter in again.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, stored[name].float()), name


def test_a_model_saved_over_its_own_folder_keeps_its_weights(tmp_path):
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    again = SenerModel.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path)
    for name, tensor in SenerModel.from_pretrained(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_missing_or_unknown_weight_is_an_error(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    _, info = SenerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
