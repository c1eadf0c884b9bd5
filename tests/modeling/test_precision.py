"""Half precision: forward and training under autocast against float32, float16's range included."""

import pytest
import torch
from support.tiny_models import DEBERTAS, OTHERS, batch, tiny_model

from modeling_sener.arrow_attention import OnlineSoftmax


PRECISIONS = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # type -> the largest relative error of rounding
BACKBONES = [DEBERTAS[0], "bert", "modernbert"]
ROUNDINGS = 32  # the tolerance: so many errors of rounding the largest logit or gradient, from all layers together


def run(model, inputs, dtype=None):
    labels = torch.zeros(1)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(**inputs).logits
        labels = torch.zeros_like(logits)
        labels[:, ::3] = 1
        loss = model(**inputs, labels=labels).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return logits.float(), loss, gradients


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_under_autocast_is_close_to_float32(backbone, dtype):
    model = tiny_model(backbone)
    inputs = batch([120, 33], pad_token_id=model.config.backbone_config.pad_token_id or 0)
    logits, loss, gradients = run(model, inputs)
    half_logits, half_loss, half_gradients = run(model, inputs, dtype)
    allowed = ROUNDINGS * PRECISIONS[dtype]
    assert (half_logits - logits).abs().max() <= allowed * logits.abs().max()
    assert half_loss.dtype == torch.float32
    assert abs(half_loss - loss) <= allowed * loss
    assert half_gradients.keys() == gradients.keys()
    for name in gradients:
        assert half_gradients[name].dtype == torch.float32, name
        assert half_gradients[name].isfinite().all(), name
    # All gradients together: that of a single tensor may be smaller than the rounding of the values behind it.
    difference = torch.cat([(half_gradients[name] - gradients[name]).flatten() for name in gradients])
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    assert difference.norm() <= allowed * whole.norm()


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("chunk_size", [40, None])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_inference_under_autocast_and_in_half_precision_is_close_to_float32(backbone, chunk_size, dtype):
    model = tiny_model(backbone, chunk_size=chunk_size)
    inputs = batch([200, 33], pad_token_id=model.config.backbone_config.pad_token_id or 0)
    with torch.no_grad():
        expected = model(**inputs).logits
        with torch.autocast("cpu", dtype):
            under_autocast = model(**inputs).logits
        in_half = model.to(dtype)(**inputs).logits
    allowed = ROUNDINGS * PRECISIONS[dtype] * expected.abs().max()
    for logits in (under_autocast, in_half):
        assert (logits.float() - expected).abs().max() <= allowed


@pytest.mark.parametrize("backbone", [DEBERTAS[0], OTHERS[0]])
def test_sums_over_long_texts_stay_within_float16(backbone):
    """Sums overflow float16 first: the loss over all cells (far above 65,504 here), [CLS]'s sum over all tokens."""
    model = tiny_model(backbone)
    inputs = batch([5000])
    with torch.autocast("cpu", torch.float16):
        logits = model(**inputs).logits
        loss = model(**inputs, labels=torch.ones_like(logits)).loss
    assert loss > 65_504 and loss.isfinite()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("under_autocast", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_the_output_of_cls_over_a_thousand_chunks_is_rounded_once(dtype, under_autocast):
    """The reference is a softmax over all keys at once, in double precision, of the same rounded numbers."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 2, 1, 4000, generator=generator).to(dtype)
    value = (1 + 0.01 * torch.randn(1, 2, 4000, 8, generator=generator)).to(dtype)
    row = OnlineSoftmax()
    with torch.autocast("cpu", dtype, enabled=under_autocast):
        for first in range(0, 4000, 4):
            row.add(scores[..., first : first + 4], value[:, :, first : first + 4])
        found = row.result()
    expected = scores.double().softmax(-1) @ value.double()
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=PRECISIONS[dtype], atol=0)
