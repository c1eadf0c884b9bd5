"""The whole model and its ablations against the dense references, transformers' own encoders, and each text alone."""

import copy
import json

import pytest
import torch
from support import references
from support.tiny_models import (
    BACKBONES,
    DEBERTAS,
    HEAD,
    LABELS,
    alone,
    assert_close,
    batch,
    dense_states,
    on,
    own_encoder,
    randomize,
    tiny_config,
    tiny_model,
)

from modeling_sener import SenerConfig, SenerModel
from modeling_sener.pooling import pool_in_place, pool_words


w_a, w = HEAD["attention_window"], HEAD["span_window"]
R = len(LABELS)
BANDS = [
    {"vertical_readout": "transposed"},
    {"vertical_readout": "mirrored"},
    {"triangles": "upper"},
]
ABLATIONS = [
    {"attention": "sliding_window"},
    {"attention": "full"},
    {"attention": "full", "log_n_scaling": False},
    {"log_n_scaling": False},
    {"span_interaction": "cnn"},
    {"span_interaction": "none"},
    {"vertical_readout": "transposed"},
    {"span_layers": 1},
    {"span_layers": 0},
    {"span_window": 60},
    {"attention_window": 1, "span_window": 1},
    {"attention_window": 3},
    {"span_window": None},
    {"span_window": None, "span_interaction": "cnn"},
    {"span_window": None, "vertical_readout": "transposed"},
    {"triangles": "upper"},
    {"triangles": "upper", "span_interaction": "cnn"},
    {"triangles": "upper", "span_interaction": "none"},
    {"triangles": "upper", "span_window": 60},
    {"triangles": "upper", "span_window": 1},
    {"triangles": "upper", "span_window": None},
]


def token_states(model, inputs):
    """States of the encoder (B, T, d). Each token is a word of its own: word states are token states."""
    T = inputs["input_ids"].shape[1]
    every_token = torch.arange(1, T + 1, device=inputs["input_ids"].device).expand_as(inputs["input_ids"])
    return model.encode(inputs["input_ids"], inputs["attention_mask"], every_token)[0]


def dense_how(config):
    # Without global attention, [CLS] is a token like any other: its scores are not scaled.
    log_n = config.log_n_scaling and config.attention != "sliding_window"
    return {"kind": config.attention, "window": config.attention_window, "log_n": log_n}


def dense_logits(model, inputs):
    config, state = model.config, dict(model.named_parameters())
    states = dense_states(model, inputs["input_ids"], inputs["attention_mask"], **dense_how(config))
    how = (config.span_window, config.span_interaction, config.vertical_readout, config.triangles)
    return references.head_logits(state, states, inputs["word_index"], *how)


def valid_cells(inputs, config):
    counts, N = inputs["word_index"].max(1).values, int(inputs["word_index"].max())
    window = max(N - 1, 0) if config.span_window is None else config.span_window
    return references.valid_band(counts, N, window, config.triangles).to(counts.device)


@pytest.mark.parametrize("lengths", [[1], [2], [w_a + 1], [w_a + 1, 3, 6]], ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_short_texts_give_the_states_of_transformers_own_encoder(backbone, lengths):
    model = tiny_model(backbone, log_n_scaling=False)
    inputs = batch(lengths, pad_token_id=model.config.backbone_config.pad_token_id or 0)
    theirs = own_encoder(model)(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(token_states(model, inputs)[real], theirs.last_hidden_state[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_full_attention_gives_the_states_of_transformers_own_encoder_at_any_length(backbone):
    model = tiny_model(backbone, attention="full", log_n_scaling=False)
    inputs = batch([60, 31], pad_token_id=model.config.backbone_config.pad_token_id or 0)
    theirs = own_encoder(model)(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(token_states(model, inputs)[real], theirs.last_hidden_state[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["arrow", "sliding_window", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_long_texts_give_dense_states(device, backbone, kind):
    """150 tokens are longer than every window and a block, and more than twice a learned position table of 64."""
    model = tiny_model(backbone, attention=kind).double()
    inputs = batch([150, 70, 5], pad_token_id=model.config.backbone_config.pad_token_id or 0)
    expected = dense_states(model, inputs["input_ids"], inputs["attention_mask"], **dense_how(model.config))
    real = inputs["attention_mask"].bool()
    states = token_states(model.to(device), on(device, inputs)).cpu()
    assert_close(states[real], expected[real], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backbone", ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-absolute"])
def test_positions_start_again_where_the_table_ends(backbone):
    """In a text that repeats one token, full attention tells positions apart by the table alone."""
    model = tiny_model(backbone, attention="full")
    ids = torch.full((1, 3 * 64), 7)
    if backbone == "deberta-absolute":
        model.backbone.encoder.rel_embeddings.weight.data.zero_()
    with torch.no_grad():
        states = token_states(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0, 1:]
    torch.testing.assert_close(states[:64], states[64:128], atol=1e-5, rtol=0)
    assert (states[:63] - states[1:64]).abs().max() > 0.1


@pytest.mark.parametrize("fields", BANDS, ids=str)
@pytest.mark.parametrize("backbone", ["deberta-v3", "deberta-own-keys", "bert", "roberta", "modernbert"])
def test_logits_loss_and_every_gradient_equal_dense(device, backbone, fields):
    model = tiny_model(backbone, **fields).double()
    assert_equals_dense(model, batch([40, 3, 17]), device)


@pytest.mark.parametrize("fields", BANDS, ids=str)
@pytest.mark.parametrize("length", [3, w + 2, w + 3, 2 * w + 1, 2 * w + 2, 2 * w + 3])
def test_every_length_equals_dense(device, length, fields):
    """Words have one token each. Their number is 1, w, w + 1, 2w - 1, 2w or 2w + 1."""
    model = tiny_model("deberta-v3", **fields).double()
    assert_equals_dense(model, batch([length], tokens_per_word=1), device)


@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
def test_ablations_equal_dense(device, fields):
    assert_equals_dense(tiny_model("deberta-v3", **fields).double(), batch([40, 3, 17]), device)


def assert_equals_dense(model, inputs, device):
    valid = valid_cells(inputs, model.config)
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(*valid.shape, R, generator=generator) < 0.3).to(torch.uint8)
    ours = copy.deepcopy(model).to(device)
    output = ours(**on(device, inputs), labels=labels.to(device))
    output.loss.backward()
    logits = dense_logits(model, inputs)
    assert_close(output.logits.cpu()[valid], logits[valid], atol=1e-5, rtol=0)
    cells = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    loss = cells[valid].sum() / len(valid)
    if model.config.span_window is not None:
        how = inputs["word_index"].max(1).values, model.config.span_window, model.config.triangles
        torch.testing.assert_close(references.span_loss(logits, labels, *how), loss)
    assert_close(output.loss.double(), loss, atol=0, rtol=1e-6)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found = torch.zeros_like(parameter) if gradients[name] is None else gradients[name].cpu()
        if name == "backbone.embeddings.word_embeddings.weight":
            # In torch, the embedding of padding gets no gradient.
            expected[model.config.backbone_config.pad_token_id] = 0
        scale = expected.abs().max().clamp(min=1e-3)
        assert (found - expected).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("chunk_size", [7, 1024])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_text_has_the_same_logits_alone_and_in_a_padded_batch(device, backbone, chunk_size):
    model = tiny_model(backbone, chunk_size=chunk_size).double().to(device)
    inputs = batch([45, 3, 20, 80], pad_token_id=model.config.backbone_config.pad_token_id or 0, device=device)
    with torch.no_grad():
        together = model(**inputs).logits
        for b in range(4):
            single = alone(inputs, b)
            logits = model(**single).logits[0]
            valid = valid_cells(single, model.config)[0]
            torch.testing.assert_close(together[b, : len(logits)][valid], logits[valid], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
def test_with_ablations_a_text_has_the_same_logits_alone_and_in_a_padded_batch(device, fields):
    model = tiny_model("deberta-v3", **fields).double().to(device)
    inputs = batch([45, 3, 20], device=device)
    with torch.no_grad():
        together = model(**inputs).logits
        for b in range(3):
            single = alone(inputs, b)
            logits = model(**single).logits[0]
            valid = valid_cells(single, model.config)[0]
            columns = logits.shape[1]
            # Without a span window, a batch has that of its longest text. With both triangles, the diagonal is the
            # middle column.
            first = 0 if model.config.triangles == "upper" else (together.shape[2] - columns) // 2
            there = together[b, : len(logits), first : first + columns]
            torch.testing.assert_close(there[valid], logits[valid], atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 33, 64, 90, 180])
@pytest.mark.parametrize("fields", ABLATIONS, ids=str)
def test_with_ablations_chunks_do_not_change_the_result(device, fields, chunk_size):
    assert_chunks_do_not_change_the_result("deberta-v3", fields, chunk_size, device)


@pytest.mark.parametrize("chunk_size", [1, 5, 33])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_chunks_do_not_change_the_result(device, backbone, chunk_size):
    assert_chunks_do_not_change_the_result(backbone, {}, chunk_size, device)


def assert_chunks_do_not_change_the_result(backbone, fields, chunk_size, device):
    inputs = batch([90, 41], pad_token_id=BACKBONES[backbone].get("pad_token_id", 0), device=device)
    whole = tiny_model(backbone, **fields, chunk_size=100_000).double().to(device)
    chunked = tiny_model(backbone, **fields, chunk_size=chunk_size).double().to(device)
    valid = valid_cells(inputs, whole.config)
    with torch.no_grad():
        torch.testing.assert_close(chunked(**inputs).logits[valid], whole(**inputs).logits[valid], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fields", [{}, {"span_window": None}, {"span_interaction": "none"}], ids=str)
def test_texts_without_words_have_loss_0_and_finite_gradients(fields):
    model = tiny_model("deberta-v3", **fields)
    nothing = batch([2, 1])
    output = model(**nothing, labels=torch.zeros(model(**nothing).logits.shape))
    assert output.logits.shape[:2] == (2, 0) and output.logits.shape[-1] == R
    assert output.loss == 0
    inputs = batch([20, 2])
    valid = valid_cells(inputs, model.config)
    logits = model(**inputs).logits
    assert logits[valid].isfinite().all() and not valid[1].any()
    output = model(**inputs, labels=torch.ones_like(logits))
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_labels_in_invalid_cells_count_for_nothing():
    model, inputs = tiny_model("bert"), batch([30, 12])
    valid = valid_cells(inputs, model.config)[..., None]
    labels = torch.ones(*valid.shape[:3], R)
    with torch.no_grad():
        assert model(**inputs, labels=labels).loss == model(**inputs, labels=labels * valid).loss


def test_labels_of_another_shape_are_refused():
    model, inputs = tiny_model("bert"), batch([30, 12])
    with pytest.raises(ValueError, match="labels"):
        model(**inputs, labels=torch.zeros(2, 5, 2 * w + 1, R))


def test_words_are_pooled_by_their_maximum():
    hidden = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)) - 5
    index = torch.tensor([[0, 1, 1, 2, 3, 3, 3, 0, 0], [0, 1, 2, 2, 0, 0, 0, 0, 0]])
    words = pool_words(hidden, index, 3)
    assert torch.equal(words[0], references.pool_words(hidden[0], index[0]))
    assert torch.equal(words[1, :2], references.pool_words(hidden[1], index[1]))
    assert not words[1, 2:].any()
    for chunk_size in range(1, 9):
        assert torch.equal(pool_in_place(hidden.clone(), index, 3, chunk_size), words)


@pytest.mark.parametrize("field", ["biaffine_dropout", "span_dropout"])
def test_dropout_works_in_training_only(field):
    other = {"biaffine_dropout": 0.0, "span_dropout": 0.0}
    model = tiny_model("bert", **{**other, field: 0.5})
    inputs = batch([30])
    torch.manual_seed(0)
    model.train()
    model.backbone.eval()
    assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
    model.eval()
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    undropped = tiny_model("bert", **other).train()
    undropped.backbone.eval()
    torch.testing.assert_close(undropped(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["deberta-v3", "bert"])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(device, backbone):
    fields = {**BACKBONES[backbone], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    inputs, gradients, kept = batch([40, 12], device=device), [], []

    def count(tensor):
        kept[-1] += tensor.numel()
        return tensor

    for checkpointing in (False, True):
        model = tiny_model(fields, biaffine_dropout=0.0, span_dropout=0.0).double().to(device).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = model(**inputs).logits
        logits[valid_cells(inputs, model.config)].square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0] / 2
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_of_the_head_learns(backbone):
    model, inputs = tiny_model(backbone), batch([30, 12])
    labels = torch.ones_like(model(**inputs).logits)
    model(**inputs, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            assert parameter.grad is not None and parameter.grad.any(), name


def test_parameters_of_the_head_keep_their_names():
    names = {name for name, _ in tiny_model("bert").named_parameters() if not name.startswith("backbone.")}
    block = "triangle.weight horizontal.weight horizontal.bias vertical.weight vertical.bias dense.weight dense.bias"
    block += " norm.weight norm.bias conv1.weight conv2.weight conv_norm.weight conv_norm.bias"
    expected = {f"blocks.{n}.{part}" for n in range(2) for part in block.split()}
    expected |= {f"biaffine.{side}.{part}" for side in ("start", "end") for part in ("weight", "bias")}
    expected |= {"biaffine.bilinear.weight", "biaffine.linear.weight", "classifier.weight", "classifier.bias"}
    assert names == expected


def test_a_model_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match="backbone_config is None"):
        SenerModel(SenerConfig(id2label={0: "a"}, label2id={"a": 0}))


@pytest.mark.parametrize("kind", ["convbert", "mpnet", "big_bird", "roformer"])
def test_an_encoder_that_computes_attention_itself_is_refused(kind):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with pytest.raises(ValueError, match=f"{kind}: transformers computes the attention of this encoder in its own"):
        SenerModel(SenerConfig({"model_type": kind, "vocab_size": 50, **sizes}, id2label={0: "Task"}))


@pytest.mark.parametrize("backbone", ["bert", "modernbert", *DEBERTAS])
def test_from_backbone_takes_the_pretrained_encoder(backbone, tmp_path):
    source = randomize(own_encoder(tiny_model(backbone)), seed=5).half()
    source.save_pretrained(tmp_path)
    model = SenerModel.from_backbone(tmp_path, labels=LABELS, **HEAD)
    assert model.config.labels == LABELS and model.config.span_window == w
    expected = source.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, expected[name].float()), name
    logits = model(**batch([20, 9])).logits
    assert logits.isfinite().all() and torch.sigmoid(logits).mean() < 0.5


def test_a_new_model_starts_with_different_head_weights():
    torch.manual_seed(0)
    model = SenerModel(tiny_config())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if not name.startswith("backbone.") and parameter.dim() > 1 and "linear" not in name:
            assert parameter.std() > 0, name


@pytest.mark.parametrize("interaction", ["bispa", "none"])
@pytest.mark.parametrize("trained, asked", [("both", "upper"), ("upper", "both")])
def test_a_checkpoint_keeps_its_triangles(tmp_path, trained, asked, interaction):
    """With span_interaction "none", the weights of either fit the other, but mean something else."""
    model = tiny_model("bert", triangles=trained, span_interaction=interaction)
    model.save_pretrained(tmp_path)
    assert SenerModel.from_pretrained(tmp_path).config.triangles == trained
    other = SenerConfig.from_pretrained(tmp_path, triangles=asked, vertical_readout="transposed")
    for options in ({"triangles": asked}, {"config": other}):
        with pytest.raises(ValueError, match=f"triangles is '{asked}', this checkpoint was trained with '{trained}'"):
            SenerModel.from_pretrained(tmp_path, **options)


def test_a_config_from_before_the_field_has_both_triangles(tmp_path):
    model = tiny_model("bert", triangles="both")
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("triangles", None)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert SenerModel.from_pretrained(tmp_path).config.triangles == "both"


def test_the_upper_triangle_has_nothing_to_mirror():
    with pytest.raises(
        ValueError, match="vertical_readout is 'mirrored': expected 'transposed' with triangles 'upper'"
    ):
        tiny_model("bert", triangles="upper", vertical_readout="mirrored")
    assert tiny_config("bert", triangles="upper").vertical_readout == "transposed"
    assert tiny_config("bert", triangles="both").vertical_readout == "mirrored"
