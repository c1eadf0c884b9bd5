"""WholeText gives the output and gradients of a plain pass, and keeps only inputs and outputs for backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import batch, tiny_model
from torch import nn

from modeling_sener.band import Band, pad_rows
from modeling_sener.dropout import Dropout
from modeling_sener.row_executors import WholeText


W = 5


class Neighbours(nn.Module):
    """Computes row i from rows i - 1, i and i + 2, the number i, and row i of another tensor; with dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.dropout = Dropout(dropout)

    def step(self, cells, other, rows):
        place = torch.arange(rows.start, rows.stop, dtype=cells.dtype)[:, None, None]
        mixed = self.linear(cells[:, :-3] + 2 * cells[:, 1:-2] * cells[:, 3:])
        return self.dropout((mixed * other).sin() * (place + 1))


def gradients(function, module, *inputs):
    module.zero_grad()
    leaves = [leaf.clone().requires_grad_() for leaf in inputs]
    torch.manual_seed(3)
    out = function(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape))
    return [out.detach(), *(leaf.grad for leaf in leaves), *(weight.grad.clone() for weight in module.parameters())]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.integers(1, 3), rows=st.integers(1, 40), size=st.integers(1, 45))
def test_output_and_gradients_equal_a_plain_pass(texts, rows, size):
    module, generator = Neighbours().double(), torch.Generator().manual_seed(0)
    cells, other = (torch.randn(texts, rows, W, size, generator=generator, dtype=torch.float64) for size in (3, 4))
    run = WholeText(size)
    ours = gradients(lambda *inputs: run.map(module.step, *inputs, owner=module, halo=(1, 2)), module, cells, other)
    expected = gradients(lambda x, y: module.step(pad_rows(x, 1, 2), y, slice(0, rows)), module, cells, other)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_dropout_is_the_same_when_it_is_computed_again():
    """With a single chunk, the random numbers are those of a plain pass, which is the reference."""
    module = Neighbours(dropout=0.4).double()
    cells, other = torch.randn(1, 9, W, 3).double(), torch.randn(1, 9, W, 4).double()
    ways = (
        lambda *inputs: WholeText(9).map(module.step, *inputs, owner=module, halo=(1, 2)),
        lambda x, y: module.step(pad_rows(x, 1, 2), y, slice(0, 9)),
    )
    results = [gradients(way, module, cells, other) for way in ways]
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_backward_does_not_change_the_random_state():
    """Other numbers are drawn between forward and backward: recomputing must not set the state back before them."""
    module = Neighbours(dropout=0.4)
    cells, other = torch.randn(1, 9, W, 3, requires_grad=True), torch.randn(1, 9, W, 4)
    out = WholeText(4).map(module.step, cells, other, owner=module, halo=(1, 2))
    torch.rand(5)
    state = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_weights_get_no_gradient():
    module = Neighbours()
    module.linear.bias.requires_grad_(False)
    cells = torch.randn(1, 9, W, 3, requires_grad=True)
    WholeText(4).map(module.step, cells, torch.ones(1, 9, W, 4), owner=module, halo=(1, 2)).sum().backward()
    assert module.linear.bias.grad is None and module.linear.weight.grad is not None and cells.grad is not None


def test_a_gradient_of_the_gradient_is_refused():
    module = Neighbours()
    cells = torch.randn(1, 9, W, 3, requires_grad=True)
    out = WholeText(4).map(module.step, cells, torch.ones(1, 9, W, 4), owner=module, halo=(1, 2)).sum()
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(out, cells, create_graph=True)


def test_autocast_holds_when_it_is_computed_again():
    """Backward runs outside of autocast. Recomputed in float32, products would differ from those of forward."""
    module, seen = nn.Linear(3, 3), []

    def product(cells, rows):
        out = module(cells)
        seen.append(out.dtype)
        return out.float()

    cells = torch.randn(1, 4, W, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = WholeText(4).map(product, cells, owner=module)
    out.sum().backward()
    assert seen == [torch.bfloat16] * 2


def test_hooks_and_adapters_of_a_module_see_both_passes():
    """A module in the head may be wrapped (LoRA, quantised layers, hooks): it must be called, not its weights read."""
    module, seen = Neighbours(), []
    module.linear.register_forward_hook(lambda layer, given, made: seen.append(made.shape[1]))
    cells = torch.randn(1, 9, W, 3, requires_grad=True)
    WholeText(4).map(module.step, cells, torch.ones(1, 9, W, 4), owner=module, halo=(1, 2)).sum().backward()
    assert seen == [4, 4, 1] * 2


@pytest.mark.parametrize("triangles", ["both", "upper"])
@pytest.mark.parametrize("interaction", ["bispa", "cnn"])
def test_a_block_keeps_a_few_bands_for_backward(interaction, triangles):
    """A plain pass would keep projections (three bands each) and hidden states of convolutions: about 20 bands."""
    sizes = {"span_layers": 1, "span_window": 20, "span_channels": 32}
    model = tiny_model("bert", span_interaction=interaction, triangles=triangles, **sizes).train()
    band = Band.of(torch.tensor([400]), 20, triangles)
    cells = torch.randn(1, 400, band.width, 32, requires_grad=True)
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.blocks[0](cells, band, WholeText(100))
    bands = sum(kept.values()) / (cells.numel() * cells.element_size())
    assert bands < (5 if interaction == "bispa" else 2)


@pytest.mark.parametrize("backbone", ["deberta-v3", "bert"])
def test_the_gradient_with_dropout_is_that_of_the_forward_pass(backbone):
    """Backward must recompute with the random numbers of forward. The reference: finite differences."""
    model = tiny_model(backbone, span_dropout=0.3, biaffine_dropout=0.3).double().train()
    inputs = batch([30])
    weight = model.blocks[0].horizontal.weight

    def loss():
        torch.manual_seed(0)
        return model(**inputs).logits.sigmoid().sum()

    loss().backward()
    gradient = weight.grad[0, 0].item()
    step = 1e-5
    with torch.no_grad():
        weight[0, 0] += step
    higher = loss().item()
    with torch.no_grad():
        weight[0, 0] -= 2 * step
    lower = loss().item()
    assert gradient == pytest.approx((higher - lower) / (2 * step), rel=1e-5, abs=1e-7)
