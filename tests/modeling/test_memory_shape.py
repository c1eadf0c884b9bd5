"""No tensor has size T x T or N x N: the largest tensor of a pass grows linearly with the text's length."""

import pytest
import torch
from support.tiny_models import BACKBONES, batch, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode


SMALL = {"attention_window": 4, "span_window": 2, "span_channels": 2}
ABLATIONS = [
    {}, {"attention": "sliding_window"}, {"span_interaction": "cnn"}, {"span_interaction": "none"},
    {"vertical_readout": "transposed"}, {"log_n_scaling": False}, {"chunk_size": 64},
]  # fmt: skip


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operator returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for found in out if isinstance(out, tuple | list) else (out,):
            if isinstance(found, torch.Tensor):
                self.elements = max(self.elements, found.numel())
        return out


def largest(model, length, backward):
    inputs = batch([length], tokens_per_word=1)
    with LargestTensor() as recorder, torch.set_grad_enabled(backward):
        logits = model(**inputs).logits
        if backward:
            logits.sum().backward()
    return recorder.elements


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
@pytest.mark.parametrize("backbone", ["deberta-v3", "bert"])
def test_the_largest_tensor_grows_linearly_for_each_setting(backbone, fields, backward):
    assert_linear(tiny_model(backbone, **{**SMALL, **fields}), backward)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_largest_tensor_grows_linearly_for_each_encoder(backbone):
    assert_linear(tiny_model(backbone, **SMALL), backward=True)


def assert_linear(model, backward):
    short, long = 800, 1600
    at_short, at_long = largest(model, short, backward), largest(model, long, backward)
    assert at_long <= 2.1 * at_short
    assert at_long < long * long / 4, "a tensor as large as half of one triangle of the square"


def test_a_square_is_noticed():
    model = tiny_model("deberta-v3", attention="full")
    assert largest(model, 800, backward=False) >= 800 * 800
    model = tiny_model("bert", span_window=None)
    assert largest(model, 200, backward=False) >= 200 * 200
