"""`torch.compile` over the model: the same scores, in inference and in training."""

import pytest
import torch
from support.tiny_models import batch, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["deberta-v3", "bert"])
def test_compiled_equals_eager(backbone):
    model = tiny_model(backbone, chunk_size=64)
    compiled = torch.compile(model)
    for lengths in ([150], [90, 41]):
        inputs = batch(lengths)
        with torch.no_grad():
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
        gradients = []
        for each in (model, compiled):
            logits = each(**inputs).logits
            each(**inputs, labels=torch.ones_like(logits)).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
        # The bias of keys does not change a softmax: its gradient is rounding error alone.
        rounding = 1e-6 * max(expected.abs().max() for expected in gradients[0].values())
        for name, expected in gradients[0].items():
            assert (gradients[1][name] - expected).abs().max() <= 1e-4 * expected.abs().max() + rounding, name
