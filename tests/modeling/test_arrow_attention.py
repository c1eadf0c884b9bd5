"""Block-wise arrow attention against dense T x T attention, outputs and every gradient."""

import pytest
import torch
from support import references
from transformers import AttentionInterface, AttentionMaskInterface

from modeling_sener import arrow_attention as arrow_module
from modeling_sener.arrow_attention import BLOCK, ArrowAttentionContext, arrow_attention


w = 5
LENGTHS = [
    [1],
    [w],
    [w + 1],
    [2 * w - 1],
    [2 * w],
    [2 * w + 1],
    [BLOCK - 1],
    [BLOCK],
    [BLOCK + 1],
    [2 * BLOCK + w + 2],
]
BATCHES = LENGTHS + [[2 * w + 3, 1, w + 1], [BLOCK + 9, 3, BLOCK], [2 * BLOCK, w]]
B_H_D = (2, 3)  # heads, head size


def states(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), B_H_D[0], max(lengths), B_H_D[1])
    q, k, v, weight = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return [q, k, v], weight * mask[:, None, :, None], mask


def check(qkv, weight, mask, kernel, dense):
    """Outputs on real tokens, and the gradients of q, k and v for a loss on real tokens."""
    results = []
    for function in (kernel, dense):
        leaves = [x.clone().requires_grad_() for x in qkv]
        out = function(*leaves)
        (out * weight).sum().backward()
        results.append((out.detach() * mask[:, None, :, None], *(leaf.grad for leaf in leaves)))
    for name, ours, expected in zip(("output", "dq", "dk", "dv"), *results, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("log_n", [False, True])
@pytest.mark.parametrize("kind", ["arrow", "sliding_window", "full"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_attention_equals_dense(lengths, kind, log_n):
    qkv, weight, mask = states(lengths)
    arrow = ArrowAttentionContext(kind, w, log_n, mask)
    # Without global attention, [CLS] is a token like any other: its scores are not scaled.
    log_n = log_n and kind != "sliding_window"
    check(
        qkv, weight, mask,
        lambda q, k, v: arrow_attention(torch.nn.Identity(), q, k, v, None, 0.4, arrow=arrow)[0].transpose(1, 2),
        lambda q, k, v: references.generic_attention(q, k, v, mask, 0.4, kind, w, log_n),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["arrow", "sliding_window", "full"])
@pytest.mark.parametrize("lengths", BATCHES, ids=str)
def test_a_layer_with_a_narrower_window_keeps_it(lengths, kind):
    qkv, weight, mask = states(lengths)
    arrow = ArrowAttentionContext(kind, w, True, mask)

    def local(q, k, v):
        out = arrow_attention(torch.nn.Identity(), q, k, v, None, 0.4, sliding_window=3 + 1, arrow=arrow)
        return out[0].transpose(1, 2)

    check(qkv, weight, mask, local,
          lambda q, k, v: references.generic_attention(q, k, v, mask, 0.4, "sliding_window", 3))  # fmt: skip


def test_a_layer_with_a_wider_window_becomes_an_arrow_layer():
    qkv, weight, mask = states([40, 23])
    arrow = ArrowAttentionContext("arrow", w, True, mask)
    check(
        qkv, weight, mask,
        lambda q, k, v: arrow_attention(
            torch.nn.Identity(), q, k, v, None, 0.4, sliding_window=w + 2, arrow=arrow
        )[0].transpose(1, 2),
        lambda q, k, v: references.generic_attention(q, k, v, mask, 0.4, "arrow", w, log_n=True),
    )  # fmt: skip


def test_scaling_defaults_to_the_head_size():
    (q, k, v), _, mask = states([19])
    arrow = ArrowAttentionContext("arrow", w, False, mask)
    default = arrow_attention(torch.nn.Identity(), q, k, v, None, arrow=arrow)[0]
    named = arrow_attention(torch.nn.Identity(), q, k, v, None, q.shape[-1] ** -0.5, arrow=arrow)[0]
    assert torch.equal(default, named)


def test_padding_changes_nothing():
    qkv, _, mask = states([BLOCK + 9, 20])
    padded = arrow_attention(
        torch.nn.Identity(), *qkv, None, 0.4, arrow=ArrowAttentionContext("arrow", w, True, mask)
    )[0]
    short = [x[1:, :, :20] for x in qkv]
    alone = arrow_attention(
        torch.nn.Identity(), *short, None, 0.4, arrow=ArrowAttentionContext("arrow", w, True, mask[1:, :20])
    )[0]
    torch.testing.assert_close(padded[1:, :20], alone, atol=1e-12, rtol=0)


def test_outputs_of_padding_are_finite_and_have_finite_gradients():
    qkv, _, mask = states([BLOCK + 9, 1])
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = arrow_attention(
        torch.nn.Identity(), *leaves, None, 0.4, arrow=ArrowAttentionContext("arrow", w, True, mask)
    )[0]
    out.sum().backward()
    assert out.isfinite().all() and all(leaf.grad.isfinite().all() for leaf in leaves)


def test_values_of_padding_change_nothing():
    qkv, _, mask = states([2 * w + 3, w + 1])
    other = [torch.where(mask[:, None, :, None], x, 50 * torch.ones_like(x)) for x in qkv]
    arrow = ArrowAttentionContext("arrow", w, True, mask)
    first, second = (arrow_attention(torch.nn.Identity(), *x, None, 0.4, arrow=arrow)[0] for x in (qkv, other))
    torch.testing.assert_close(first[mask], second[mask], atol=1e-12, rtol=0)


def test_an_encoder_that_drops_keyword_arguments_is_an_error():
    (q, k, v), _, _ = states([4])
    with pytest.raises(ValueError, match="Identity"):
        arrow_attention(torch.nn.Identity(), q, k, v, None, 0.4)


def test_attention_and_mask_are_registered_under_one_name():
    assert AttentionInterface()[arrow_module.NAME] is arrow_attention
    assert AttentionMaskInterface()[arrow_module.NAME] is arrow_module.plain_padding_mask
