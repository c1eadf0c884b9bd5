"""A text in chunks gives the result of the whole text: any lengths, windows, chunk sizes, batches, encoders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import BACKBONES, LABELS, batch, tiny_model
from torch import nn

from modeling_sener.chunked_layers import LEAST_WINDOWS, compute_layers_in_chunks
from modeling_sener.decoding import find_candidates, span_probabilities


KINDS = ["arrow", "sliding_window", "full"]
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=3)
windows = st.integers(1, 14)
chunk_sizes = st.integers(1, 250)


def at_size(model, chunk_size):
    model.config.chunk_size = chunk_size
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@SETTINGS
@given(lengths=lengths, window=windows, chunk_size=chunk_sizes, kind=st.sampled_from(KINDS))
def test_the_encoder_in_chunks_gives_the_states_of_the_whole(device, backbone, lengths, window, chunk_size, kind):
    model = tiny_model(backbone, attention=kind, attention_window=window).double().to(device)
    inputs = batch(lengths, pad_token_id=BACKBONES[backbone].get("pad_token_id", 0), device=device)
    with torch.no_grad():
        whole, counts = at_size(model, 10**6).encode(**inputs)
        chunked, _ = at_size(model, chunk_size).encode(**inputs)
    words = torch.arange(whole.shape[1], device=device) < counts[:, None]
    torch.testing.assert_close(chunked[words], whole[words], atol=1e-9, rtol=0)


@SETTINGS
@given(
    lengths=lengths, window=windows, chunk_size=chunk_sizes, interaction=st.sampled_from(["bispa", "cnn", "none"]),
    how=st.sampled_from([("both", "transposed"), ("both", "mirrored"), ("upper", "transposed")]),
    layers=st.integers(0, 3),
)  # fmt: skip
def test_the_head_in_chunks_gives_the_logits_of_the_whole(
    device, lengths, window, chunk_size, interaction, how, layers
):
    triangles, readout = how
    fields = {"triangles": triangles, "vertical_readout": readout, "span_interaction": interaction,
              "span_layers": layers}  # fmt: skip
    model = tiny_model("bert", span_window=window, **fields).double().to(device)
    counts = torch.tensor(lengths, device=device)
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(len(lengths), max(lengths), 16, generator=generator, dtype=torch.float64).to(device)
    with torch.no_grad():
        whole, chunked = (
            torch.cat(list(at_size(model, size).logit_chunks(words, model.band(words, counts))), dim=1)
            for size in (10**6, chunk_size)
        )
    valid = model.band(words, counts).mask(range(max(lengths)))
    torch.testing.assert_close(chunked[valid], whole[valid], atol=1e-9, rtol=0)


@SETTINGS
@given(
    lengths=lengths, window=windows, chunk_size=chunk_sizes, threshold=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    triangles=st.sampled_from(["both", "upper"]),
)  # fmt: skip
def test_candidates_found_in_chunks_are_those_of_the_whole(device, lengths, window, chunk_size, threshold, triangles):
    """The logits of a chunk are dropped once its candidates are found."""
    model = tiny_model("bert", span_window=window, triangles=triangles).double().to(device)
    inputs = batch(lengths, device=device)
    thresholds = torch.full((len(LABELS),), threshold)
    found = at_size(model, chunk_size).find_candidates(**inputs, thresholds=thresholds)
    with torch.no_grad():
        logits = at_size(model, 10**6)(**inputs).logits
    padded = nn.functional.pad(logits, (0, 0, 0, 0, 0, window if triangles == "both" else 0))
    probabilities = span_probabilities(padded, triangles, model.config.triangle_mean)
    expected = find_candidates(probabilities, thresholds, inputs["word_index"].amax(1))

    def by_span(candidates):
        spans = zip(*(field.tolist() for field in candidates[:4]), strict=True)
        return dict(zip(spans, candidates.score.tolist(), strict=True))

    assert by_span(found) == pytest.approx(by_span(expected), abs=1e-9)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if not name.startswith("deberta")])
def test_layers_of_other_encoders_never_see_the_whole_text(backbone):
    model = tiny_model(backbone, chunk_size=40)
    seen = []
    for module in model.backbone.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    inputs = batch([400], pad_token_id=BACKBONES[backbone].get("pad_token_id", 0))
    with torch.no_grad():
        model.encode(**inputs)
    whole = [length for length in seen if length == 400]
    assert len(whole) <= (backbone == "electra"), "of ELECTRA the embeddings are projected as they are"
    assert max(length for length in seen if length != 400) <= LEAST_WINDOWS * 8 + 2 * 8 + 1


def test_an_encoder_without_layers_is_an_error():
    encoder = tiny_model("bert").backbone
    encoder.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match="7 layers"):
        compute_layers_in_chunks(encoder)
