"""Checkpointing by rows: the same output and gradients as without it, and nothing kept but what goes in and out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import batch, tiny_model
from torch.nn import functional as F

from modeling_sener import row_checkpoint
from modeling_sener.band import pad_rows
from modeling_sener.row_checkpoint import by_rows


W = 5


def neighbours(rows, chunk, weight, bias):
    """Row i from rows i - 2, i and i + 2, and from where it stands."""
    place = torch.arange(chunk.start, chunk.stop, dtype=rows.dtype)[:, None, None]
    return ((rows[:, :-4] + 2 * rows[:, 2:-2] * rows[:, 4:]) @ weight).sin() * (place + bias)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts=st.integers(1, 3), rows=st.integers(1, 40), size=st.integers(1, 30))
def test_equals_one_pass(texts, rows, size):
    generator = torch.Generator().manual_seed(0)
    shapes = (texts, rows, W, 3), (3, 4), (4,), (texts, rows, W, 4)
    cells, weight, bias, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_checkpoint, "CELLS", size * texts * W)
        for function in (
            lambda *leaves: by_rows(neighbours, 2, *leaves),
            lambda cells, *leaves: neighbours(pad_rows(cells, 2, 2), range(rows), *leaves),
        ):
            leaves = [leaf.clone().requires_grad_() for leaf in (cells, weight, bias)]
            out = function(*leaves)
            out.backward(grad)
            results.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)


def test_autocast_holds_when_it_is_computed_again():
    """Backward runs outside of autocast: in float32 its products would differ from those of forward."""
    seen = []

    def product(rows, chunk, weight):
        out = F.linear(rows, weight)
        seen.append(out.dtype)
        return out.float()

    cells, weight = torch.randn(1, 4, W, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = by_rows(product, 0, cells, weight)
    out.sum().backward()
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("interaction", ["bispa", "cnn"])
def test_a_block_keeps_a_few_bands_for_backward(interaction):
    """Without checkpointing by rows it would keep projections (three bands each) and hidden maps, about 20 bands."""
    model = tiny_model("bert", span_interaction=interaction, span_layers=1, span_window=20, span_channels=32).train()
    lengths = torch.tensor([400])
    cells = torch.randn(1, 400, 41, 32, requires_grad=True)
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.blocks[0](cells, lengths)
    bands = sum(kept.values()) / (cells.numel() * cells.element_size())
    assert bands < (12 if interaction == "bispa" else 5)


@pytest.mark.parametrize("backbone", ["deberta-v3", "bert"])
def test_no_random_number_is_drawn_twice(backbone):
    """With dropout, what backward computes again must be what forward computed: gradients by finite differences."""
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
