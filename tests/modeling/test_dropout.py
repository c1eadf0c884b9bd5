"""The model's own dropout on the CPU: the share that it drops, its gradient and its random state."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_sener.arrow_attention import sdpa
from modeling_sener.dropout import LEVELS, Dropout, dropout


@given(p=st.floats(0.001, 0.999), size=st.integers(0, 9), seed=st.integers(0, 2**32))
def test_an_element_is_dropped_or_divided_by_the_share_that_is_kept(p, size, seed):
    torch.manual_seed(seed)
    states = torch.randn(3, size, dtype=torch.float64)
    out = dropout(states, p)
    kept = out != 0
    assert out.shape == states.shape
    torch.testing.assert_close(out[kept] * (1 - p), states[kept], rtol=0.5 / LEVELS / (1 - p) * 1.01, atol=0)


@pytest.mark.parametrize("p", [0.004, 0.1, 0.4, 0.9])
def test_the_share_that_is_dropped_is_p_in_every_place_of_a_draw(p):
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000, 4), p) == 0).double()
    error = 5 * (p * (1 - p) / len(dropped)) ** 0.5 + 0.5 / LEVELS
    torch.testing.assert_close(dropped.mean(dim=0), torch.full((4,), p, dtype=torch.float64), rtol=0, atol=error)
    # Elements that share a draw are independent: any two are dropped together with probability p * p.
    together = dropped.T @ dropped / len(dropped)
    off_diagonal = together[~torch.eye(4, dtype=torch.bool)]
    error = 5 * (p**2 * (1 - p**2) / len(dropped)) ** 0.5 + 1 / LEVELS
    torch.testing.assert_close(off_diagonal, torch.full((12,), p**2, dtype=torch.float64), rtol=0, atol=error)


@pytest.mark.parametrize("p, expected", [(0, 1.0), (1, 0.0)])
def test_p_of_0_drops_nothing_and_p_of_1_everything(p, expected):
    assert (dropout(torch.ones(1000), p) == expected).all()


def test_the_gradient_is_dropped_where_the_states_are():
    torch.manual_seed(0)
    states = torch.randn(1000, requires_grad=True)
    out = dropout(states, 0.3)
    out.sum().backward()
    torch.testing.assert_close(states.grad * states, out)
    assert (states.grad == 0).any() and (states.grad != 0).any()


def test_module_draws_in_training_only_and_repeats_with_the_seed():
    module, states = Dropout(0.5), torch.randn(1000)
    first, second = (torch.manual_seed(seed) and module(states) for seed in (1, 1))
    assert torch.equal(first, second) and not torch.equal(first, module(states))
    assert torch.equal(module.eval()(states), states)


@pytest.mark.parametrize("bias", ["none", "bool", "float"])
def test_attention_drops_weights_as_scaled_dot_product_attention_does(bias):
    """With the identity as values, the output is the weights. A kept weight is that without dropout, over 1 - p."""
    torch.manual_seed(0)
    query, key = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (40, 50))
    value = torch.eye(50, dtype=torch.float64).expand(2, 3, 50, 50)
    mask = torch.rand(2, 1, 40, 50) < 0.7
    mask = {"none": None, "bool": mask, "float": torch.randn(2, 3, 40, 50).masked_fill(~mask, -torch.inf)}[bias]
    whole, dropped = sdpa(query, key, value, mask, 0.0, 0.4), sdpa(query, key, value, mask, 0.25, 0.4)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept] * 0.75, whole[kept])
    assert abs(kept.sum() / (whole != 0).sum() - 0.75) < 0.02


def test_attention_with_dropout_has_the_gradient_of_what_it_computes():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)

    def repeated(*tensors):
        torch.manual_seed(1)
        return sdpa(*tensors, 0.3)

    assert torch.autograd.gradcheck(repeated, (query, key, value, bias))
