"""Masked words are predicted beside the spans: their loss equals a reference, is learnt, and is not published."""

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import BACKBONES, VOCABULARY, batch, tiny_model
from support.toy import launch, toy_folder, training_arguments

from modeling_sener import SenerModel
from training.corpus.masking import NOT_MASKED
from training.fitting.checkpoint import load_checkpoint
from training.fitting.masked_words import MaskedWords


def masked_batch(lengths=(23, 9), labels=3):
    inputs = batch(lengths)
    generator = torch.Generator().manual_seed(1)
    chosen = (torch.rand(inputs["input_ids"].shape, generator=generator) < 0.3) & (inputs["word_index"] > 0)
    masked_ids = inputs["input_ids"].masked_fill(~chosen, NOT_MASKED)
    inputs["input_ids"] = inputs["input_ids"].masked_fill(chosen, 4)
    words = int(inputs["word_index"].max())
    spans = torch.rand(len(lengths), words, 9, labels, generator=generator) < 0.1
    return inputs | {"labels": spans.to(torch.uint8)}, masked_ids


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_loss_is_that_of_the_spans_and_of_each_masked_token(backbone):
    """Each masked token is predicted from the state at its position; losses are summed, then averaged over windows."""
    model = tiny_model(backbone)
    with_words = MaskedWords(model, weight=0.25).eval()
    with torch.no_grad():
        with_words.bias.normal_()
    inputs, masked_ids = masked_batch()
    output = with_words(masked_ids=masked_ids, **inputs)
    spans = model(**inputs)
    assert torch.equal(output.logits, spans.logits)

    # Each token is a word: word states are token states.
    each = torch.arange(1, masked_ids.shape[1] + 1) * inputs["attention_mask"]
    states, _ = model.encode(inputs["input_ids"], inputs["attention_mask"], each)
    embeddings = model.backbone.get_input_embeddings().weight
    dense, _, norm = with_words.states
    guessing = 0.0
    for b, t in (masked_ids != NOT_MASKED).nonzero().tolist():
        x = dense.weight @ states[b, t] + dense.bias
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
        x = (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
        guessing -= (embeddings @ x + with_words.bias).log_softmax(0)[masked_ids[b, t]]
    torch.testing.assert_close(output.loss, spans.loss + 0.25 * guessing / 2, rtol=1e-4, atol=1e-4)


def test_windows_without_a_masked_word_have_the_loss_of_their_spans():
    model = tiny_model()
    inputs, masked_ids = masked_batch()
    loss = MaskedWords(model, weight=0.25)(masked_ids=torch.full_like(masked_ids, NOT_MASKED), **inputs).loss
    assert loss == model(**inputs).loss


def test_the_masked_tokens_are_learnt():
    inputs, masked_ids = masked_batch()
    with_words = MaskedWords(tiny_model(), weight=1.0)
    optimizer = torch.optim.Adam(with_words.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        loss = with_words(masked_ids=masked_ids, **inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(float(loss - with_words.model(**inputs).loss))
    chance = float((masked_ids != NOT_MASKED).sum()) / 2 * torch.tensor(float(VOCABULARY)).log()
    assert losses[0] > 0.8 * chance and losses[-1] < 0.1 * chance


def test_the_weights_that_predict_masked_words_are_not_published(tmp_path):
    toy = toy_folder(tmp_path / "toy")
    done = launch("train.py", *training_arguments(toy, tmp_path / "out", "--num_epochs", "2", "--mask_share", "0.15",
                                         "--masked_words_weight", "0.1"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    model, _ = load_checkpoint(tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(SenerModel(model.config).state_dict())
