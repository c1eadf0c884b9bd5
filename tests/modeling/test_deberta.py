"""DeBERTa with disentangled attention in a window, against the dense reference and transformers' helpers."""

import pytest
import torch
from support import references
from support.tiny_models import BACKBONES, DEBERTAS, batch, randomize
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from modeling_sener.arrow_attention import BLOCK, ArrowAttentionContext
from modeling_sener.deberta_arrow import DebertaArrowModel
from modeling_sener.disentangled_attention import RelativeDistance


w = 5
LENGTHS = [[1], [w], [w + 1], [2 * w - 1], [2 * w], [2 * w + 1], [BLOCK + 1], [2 * w + 3, 1, w + 1], [BLOCK + 9, 20]]
KINDS = ["arrow", "sliding_window", "full"]


def encoder(backbone, **changes):
    fields = {**BACKBONES[backbone], **changes}
    fields.pop("model_type")
    config = DebertaV2Config(**fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return randomize(DebertaArrowModel(config).double())


def run(model, inputs, kind, log_n):
    mask = inputs["attention_mask"]
    positions = torch.arange(mask.shape[1])[None] % model.config.max_position_embeddings
    return model(inputs["input_ids"], mask, ArrowAttentionContext(kind, w, log_n, mask), positions).last_hidden_state


def assert_equals_dense(model, lengths, kind, log_n):
    """Compare states of real tokens, and the gradient of every parameter for a loss on real tokens."""
    inputs = batch(lengths)
    mask = inputs["attention_mask"]
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    # Without global attention, [CLS] is a token like any other: its scores are not scaled.
    scaled = log_n and kind != "sliding_window"
    expected = references.deberta_encoder(state, model.config, inputs["input_ids"], mask, kind, w, scaled)
    ours = run(model, inputs, kind, log_n)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).double() * mask[..., None]
    torch.testing.assert_close(ours[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=0)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, parameter in model.named_parameters():
        reference = state[name].grad
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        reference = torch.zeros_like(parameter) if reference is None else reference
        # In torch, the embedding of padding gets no gradient.
        if name == "embeddings.word_embeddings.weight":
            reference = reference.index_fill(0, torch.tensor([model.config.pad_token_id]), 0.0)
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5, msg=lambda t, name=name: f"d {name}: {t}")


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("backbone", DEBERTAS)
def test_states_and_gradients_equal_dense(backbone, lengths):
    assert_equals_dense(encoder(backbone), lengths, "arrow", True)


@pytest.mark.parametrize("log_n", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["deberta-v3", "deberta-own-keys", "deberta-no-terms"])
def test_each_kind_equals_dense(backbone, kind, log_n):
    assert_equals_dense(encoder(backbone), [2 * w + 3, 1, BLOCK + 6], kind, log_n)


def test_window_beyond_the_identity_buckets():
    """With 8 buckets, distances up to 4 have their own bucket; the window is 5. The text is longer than the table."""
    small = encoder("deberta-v3", position_buckets=8, max_relative_positions=12)
    assert_equals_dense(small, [3 * w, 40], "arrow", True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", DEBERTAS)
def test_padding_changes_nothing(backbone, kind):
    model = encoder(backbone).eval()
    inputs = batch([BLOCK + 9, 20, 3])
    padded = run(model, inputs, kind, True)
    for b, length in enumerate([BLOCK + 9, 20, 3]):
        short = {name: tensor[b : b + 1, :length] for name, tensor in inputs.items()}
        torch.testing.assert_close(run(model, short, kind, True)[0], padded[b, :length], atol=1e-6, rtol=0)


def test_padding_is_finite_with_finite_gradients():
    model = encoder("deberta-v3")
    states = run(model, batch([BLOCK + 9, 1]), "arrow", True)
    states.sum().backward()
    assert states.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (256, 1024), (32, 512), (8, 12), (2, 512)])
def test_log_buckets_are_those_of_transformers(buckets, longest):
    distance = torch.arange(-20_000, 20_001)
    expected = make_log_bucket_position(distance, buckets, longest).long()
    assert torch.equal(references.log_bucket_position(distance, buckets, longest), expected)
    config = DebertaV2Config(position_buckets=buckets, max_relative_positions=longest, relative_attention=True)
    rows = RelativeDistance(config).log_bucket(distance)
    assert torch.equal(rows, (expected + buckets).clamp(0, 2 * buckets - 1))


def test_state_dict_has_the_names_of_transformers():
    from transformers import DebertaV2Model

    for backbone in DEBERTAS:
        ours = encoder(backbone)
        theirs = DebertaV2Model(ours.config)
        shapes = {name: p.shape for name, p in theirs.named_parameters()}
        assert {name: p.shape for name, p in ours.named_parameters()} == shapes, backbone
