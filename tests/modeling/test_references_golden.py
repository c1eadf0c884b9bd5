"""The dense references give the golden files' numbers: this proves the references that every other test trusts.

Only the repository's own files are used: the dense tensors of longer texts would not fit into memory.
"""

import pytest
import torch
from support.golden_files import COPY, Golden, golden_files, our_name
from support.references import deberta_encoder, head_logits, span_loss, valid_band
from transformers import DebertaV2Config


ENCODERS = golden_files("arrow_encoder*.safetensors", COPY)
HEADS = golden_files("bispa_head*.safetensors", COPY)
WHOLE = golden_files("sener_full*.safetensors", COPY)


def name(path):
    return path.stem


@pytest.mark.parametrize("path", ENCODERS, ids=name)
def test_the_encoder_gives_the_published_states(path):
    golden = Golden(path)
    config = DebertaV2Config(**golden.sizes["backbone_config"])
    for key, input_ids in golden.inputs.items():
        ones = torch.ones_like(input_ids)
        states = deberta_encoder(
            golden.weights, config, input_ids, ones, "arrow", golden.sizes["attention_window"], log_n=True
        )
        torch.testing.assert_close(
            states, golden.outputs[key.replace("input_ids", "last_hidden_state")], atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("path", HEADS, ids=name)
def test_the_head_gives_the_published_scores(path):
    golden = Golden(path)
    word_index, w = golden.inputs["word_index"], golden.sizes["span_window"]
    logits = head_logits(golden.our_weights(), golden.inputs["hidden_states"], word_index, w, "bispa", "mirrored")
    valid = valid_band(golden.inputs["word_lengths"], logits.shape[1], w)
    torch.testing.assert_close(logits[valid], golden.outputs["scores"][valid], atol=3e-5, rtol=0)


@pytest.mark.parametrize("path", WHOLE, ids=name)
def test_the_whole_model_gives_the_published_scores_loss_and_gradients(path):
    golden = Golden(path)
    w = golden.sizes["span_window"]
    state = {key: tensor.requires_grad_() for key, tensor in golden.our_weights().items()}
    backbone = {key.removeprefix("backbone."): t for key, t in state.items() if key.startswith("backbone.")}
    config = DebertaV2Config(**golden.sizes["backbone_config"])
    input_ids, word_index = golden.inputs["input_ids"], golden.inputs["word_index"]
    ones = torch.ones_like(input_ids)
    states = deberta_encoder(backbone, config, input_ids, ones, "arrow", golden.sizes["attention_window"], log_n=True)
    logits = head_logits(state, states, word_index, w, "bispa", "mirrored")
    counts = word_index.max(1).values
    valid = valid_band(counts, logits.shape[1], w)
    torch.testing.assert_close(logits[valid], golden.outputs["scores"][valid], atol=2e-5, rtol=0)
    loss = span_loss(logits, golden.inputs["labels"], counts, w)
    torch.testing.assert_close(loss, golden.outputs["loss"].squeeze(), atol=0, rtol=1e-5)
    loss.backward()
    for key, expected in golden.grads.items():
        difference = (state[our_name(key)].grad - expected).abs().max() / expected.abs().max()
        assert difference <= 1e-5, f"{key}: {difference:.1e} of its largest magnitude"


@pytest.mark.parametrize("files", [ENCODERS, HEADS, WHOLE], ids=["encoder", "head", "whole"])
def test_there_are_golden_files(files):
    assert files
