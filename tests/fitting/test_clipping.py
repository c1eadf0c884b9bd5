"""Gradients are clipped at a measured norm, at which a window with entities among many without keeps its weight."""

import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training.fitting.clipping import NormHistory, clip_gradients


def clipped_sum(gradients, ratio, limit=None):
    """The sum of the gradients, each clipped as in a step of a run, or at the fixed norm `limit`."""
    accelerator, norms, total = Accelerator(cpu=True), NormHistory(), torch.zeros(gradients.shape[1])
    model = nn.ParameterList([nn.Parameter(torch.zeros(gradients.shape[1]))])
    for gradient in gradients:
        model[0].grad = gradient.clone()
        if limit is None:
            clip_gradients(accelerator, model, norms, ratio)
        else:
            accelerator.clip_grad_norm_(model.parameters(), limit)
        total += model[0].grad
    return total


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one, other, dim=0).item()


def test_a_window_with_entities_among_many_without_keeps_its_weight():
    """Each step has one window. One in ten has a gradient a hundred times as large, in another direction."""
    steps = torch.arange(200)
    gradients = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)) * 0.1
    gradients[:, 0] += 1.0  # the direction of empty windows
    gradients[steps % 10 == 7, 1] += 100.0  # the direction of entities
    mean = gradients.sum(0)
    assert cosine(clipped_sum(gradients, ratio=4.0), mean) > 0.99
    assert cosine(clipped_sum(gradients, None, limit=1.0), mean) < 0.5, "a fixed norm keeps the direction"


def test_an_outlier_is_scaled_down():
    gradients = torch.ones(100, 4)
    gradients[60] = torch.tensor([0.0, 0.0, 0.0, 1e6])
    total = clipped_sum(gradients, ratio=4.0)
    assert total[3] < 99 + 10 and (total[:3] == 99).all()


def test_one_outlier_hardly_raises_the_limit_of_later_steps():
    norms = NormHistory()
    for norm in [1.0] * 60 + [1e6]:
        norms.add(norm, norms.limit(4.0))
    assert norms.limit(4.0) < 30


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(1e-3, 1e3), st.floats(1.0, 5.0))
def test_the_limit_follows_the_scale_of_the_gradients(norms, scale, ratio):
    histories = NormHistory(), NormHistory()
    for norm in norms:
        limits = [history.limit(ratio) for history in histories]
        torch.testing.assert_close(limits[1], limits[0] * scale, rtol=1e-6, atol=0)
        for history, factor, limit in zip(histories, (1.0, scale), limits, strict=True):
            history.add(norm * factor, limit)
    assert ratio * min(norms) * (1 - 1e-9) <= histories[0].limit(ratio) <= ratio * max(norms) * (1 + 1e-9)
