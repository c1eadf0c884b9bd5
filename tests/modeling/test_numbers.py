"""NaN and infinity end in an error that names their source; a text in an odd batch gives the same result as alone."""

import json
import math

import numpy as np
import pytest
import torch
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, LABELS, batch, tiny_config, tiny_model
from support.toy import toy_folder, training_arguments

from modeling_sener import SenerModel, SenerPipeline, SenerProcessor
from modeling_sener.checks import damaged_weights
from training import train
from training.corpus.windows import StoredWindows
from training.fitting import loop
from training.fitting.lora import merged_state_dict
from training.fitting.state import newest_state
from training.inference.extraction import extract


NAN, INF = math.nan, math.inf
FAST = ["deberta-v3", "bert"]
EVERY = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES]
# Without position terms, DeBERTa still has its table, under the name of pretrained files, but does not use it.
UNREAD = {"deberta-no-terms": {"rel_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"}}


def candidates(model, inputs, threshold=0.0):
    return model.find_candidates(**inputs, thresholds=torch.full((len(LABELS),), threshold, dtype=torch.float64))


def labels_of(model, inputs):
    shape = len(inputs["input_ids"]), int(inputs["word_index"].max()), 2 * model.config.span_window + 1, len(LABELS)
    return torch.zeros(shape)


class Spoilt:
    """Fill a weight of a model with a number, and restore it at the end."""

    def __init__(self, weight, number):
        self.weight, self.number = weight, number

    def __enter__(self):
        self.kept = self.weight.detach().clone()
        self.weight.data.fill_(self.number)

    def __exit__(self, *error):
        self.weight.data.copy_(self.kept)


@pytest.mark.parametrize("backbone", EVERY)
def test_every_weight_that_is_not_finite_is_named(backbone):
    model = tiny_model(backbone, chunk_size=16)
    inputs = batch([24, 12], pad_token_id=model.config.backbone_config.pad_token_id or 0)
    labels, unread = labels_of(model, inputs), set()
    passes = {
        "score": lambda: candidates(model, inputs),
        "logits": lambda: model(**inputs),
        "loss": lambda: model(**inputs, labels=labels),
    }
    for run in passes.values():
        run()
    for name, weight in model.named_parameters():
        for what, run in passes.items():
            with Spoilt(weight, {"score": NAN, "logits": INF, "loss": -INF}[what]):
                try:
                    run()
                except FloatingPointError as error:
                    assert str(error).startswith(
                        f"the {what} is not finite (NaN or infinity): the weights {name} hold"
                    )
                else:
                    unread.add(name)
    assert unread == {f"backbone.encoder.{name}" for name in UNREAD.get(backbone, ())}


@pytest.mark.parametrize("chunk_size", [16, None])
@pytest.mark.parametrize("backbone", FAST)
def test_one_number_that_is_not_finite_is_named_or_changes_nothing(backbone, chunk_size):
    """It never changes entities. An embedding that the text does not use, for example, changes nothing at all."""
    model = tiny_model(backbone, chunk_size=chunk_size)
    inputs = batch([30, 12])
    expected = candidates(model, inputs)
    named, draw = 0, np.random.default_rng(0)
    for name, weight in model.named_parameters():
        place, number = int(draw.integers(weight.numel())), [NAN, INF, -INF][draw.integers(3)]
        with Spoilt(weight.view(-1)[place : place + 1], number):
            try:
                found = candidates(model, inputs)
            except FloatingPointError as error:
                named += name in str(error)
            else:
                for one, other in zip(found, expected, strict=True):
                    assert np.array_equal(one, other), name
    assert named > 40


PLACES = {  # weights that are too large -> the message
    "backbone.embeddings.LayerNorm.weight": "the output of backbone.embeddings.LayerNorm overflows",
    "backbone.encoder.layer.1.attention.self.value.weight": "the output of backbone.encoder.layer.1.attention.self",
    "backbone.encoder.layer.1.output.dense.weight": "the output of backbone.encoder.layer.1.output.dense overflows",
    "biaffine.end.weight": "the output of biaffine.end overflows",
    "blocks.0.conv2.weight": "the output of blocks.0.conv2 overflows",
    "blocks.1.horizontal.weight": "the output of blocks.1.horizontal overflows",
    "classifier.weight": "the output of classifier overflows",
}


@pytest.mark.parametrize("name", PLACES)
def test_an_overflow_is_told_from_damaged_weights_and_its_layer_is_named(name):
    model, inputs = tiny_model("bert").half(), batch([60, 33])
    weight = model.get_parameter(name)
    weight.data = (weight.float() * (60_000 / weight.float().abs().max())).half()
    with pytest.raises(FloatingPointError, match="the weights are finite, but") as error:
        candidates(model, inputs)
    assert PLACES[name] in str(error.value)
    assert str(error.value).endswith("overflows float16: use float32 or bfloat16")
    candidates(model.float(), inputs)
    candidates(model.bfloat16(), inputs)


def test_an_overflow_of_float32_asks_for_other_weights():
    model, inputs = tiny_model("bert"), batch([60, 33])
    model.classifier.weight.data *= 1e38
    with pytest.raises(FloatingPointError, match="output of classifier overflows float32: they are too large"):
        model(**inputs)


def test_an_overflow_in_padding_is_no_error():
    """Only pairs of words count."""
    model, inputs = tiny_model("bert"), batch([60, 33])
    rows = int(inputs["word_index"][1].max())
    expected = model(**inputs).logits[1, :rows]

    def overflow(module, given, made):
        made[1, rows:] = NAN

    model.classifier.register_forward_hook(overflow)
    found = model(**inputs).logits
    assert found[1, rows:].isnan().all() and torch.equal(found[1, :rows], expected)


def test_every_way_to_run_the_model_raises_the_error():
    config = tiny_config({**BACKBONES["bert"], "vocab_size": 400})
    torch.manual_seed(0)
    model = SenerModel(config).eval()
    processor = SenerProcessor(tiny_tokenizer("wordpiece"), config)
    texts = ["Ada Lovelace worked", "", "Charles Babbage"]
    before = extract(model, processor, texts, threshold=0.0)
    assert before[0] and before[2]
    token = processor.tokenizer("Ada").input_ids[1]
    model.backbone.embeddings.word_embeddings.weight.data[token] = NAN
    message = "the weights backbone.embeddings.word_embeddings.weight hold NaN"
    with pytest.raises(FloatingPointError, match=message):
        extract(model, processor, texts, threshold=0.0)
    with pytest.raises(FloatingPointError, match=message):
        SenerPipeline(model=model, processor=processor)(texts[0])
    for found, expected in zip(extract(model, processor, texts[1:], threshold=0.0), before[1:], strict=True):
        assert [
            {**entity, "score": pytest.approx(entity["score"])} for entity in expected
        ] == found  # without the token
    logits = torch.full((1, 3, 9, 3), NAN)
    with pytest.raises(FloatingPointError, match="the model's scores are not finite"):
        processor.post_process(type("Outputs", (), {"logits": logits}), processor([texts[0]]))


@pytest.mark.parametrize("backbone", FAST)
@pytest.mark.parametrize("chunk_size", [24, None])
def test_texts_of_odd_batches_have_the_same_candidates_as_alone(backbone, chunk_size):
    """Texts have one word, a window of words and one more or less. One without words is first, last or between."""
    attention, window = 8, 4
    model = tiny_model(backbone, attention_window=attention, span_window=window, chunk_size=chunk_size)
    pad = model.config.backbone_config.pad_token_id or 0
    words = [1, window - 1, window, window + 1, 2 * window + 1, attention, attention + 1, 2 * attention + 1, 60]
    texts = [batch([count + 2], seed=count, tokens_per_word=1, pad_token_id=pad) for count in words]
    empty, none = batch([2], pad_token_id=pad), batch([2], pad_token_id=pad)
    none["attention_mask"] = torch.zeros_like(none["attention_mask"])  # every token masked, [CLS] too
    alone = {id(text): candidates(model, text) for text in texts}
    assert all(len(found.start) == count_pairs(count, window) * len(LABELS)
               for found, count in zip(alone.values(), words, strict=True))  # fmt: skip
    for gap in (empty, none):
        for members in ([gap, *texts], [*texts[:4], gap, *texts[4:]], [*texts, gap], [gap, texts[0], gap], [gap, gap]):
            found = candidates(model, joined(members, pad))
            for number, text in enumerate(members):
                own = found.take(found.text == number)
                if text is gap:
                    assert len(own.start) == 0
                    continue
                expected = alone[id(text)]
                for field in ("start", "end", "label"):
                    assert np.array_equal(getattr(own, field), getattr(expected, field))
                np.testing.assert_allclose(own.score, expected.score, rtol=0, atol=1e-5)


def count_pairs(words, window):
    return sum(min(words - i, window + 1) for i in range(words))


def joined(texts, pad):
    length = max(text["input_ids"].shape[1] for text in texts)
    fill = {"input_ids": pad, "attention_mask": 0, "word_index": 0}
    return {name: torch.cat([torch.nn.functional.pad(text[name], (0, length - text[name].shape[1]), value=value)
                             for text in texts]) for name, value in fill.items()}  # fmt: skip


@pytest.mark.parametrize("backbone", FAST)
def test_texts_whose_tokens_are_all_masked_give_no_gradient(backbone):
    model = tiny_model(backbone)
    text = batch([33])
    labels = labels_of(model, text)
    gradients = []
    for inputs in (text, {name: torch.cat([tensor, torch.zeros_like(tensor)]) for name, tensor in text.items()}):
        # Shows memory that is read before it is written.
        junk = [torch.full((size,), NAN) for size in (100, 300, 1000, 5000, 10000, 20000)]
        del junk
        size = len(inputs["input_ids"])
        output = model(**inputs, labels=labels.expand(size, -1, -1, -1))
        (output.loss * size).backward()  # the loss is a mean over texts
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
        model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5 * float(largest), msg=name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("numbers"))


FAULTS = {
    "loss": (lambda loss: loss * NAN, "the loss is not finite (NaN or infinity): the weights are finite, and so is"),
    # The slope of the root is infinite at 0, and adds 0 to the loss: only gradients are not finite.
    "gradients": (lambda loss: loss + (loss - loss.detach()).sqrt(), "the norm of the gradients is"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_training_stops_at_the_step_names_its_documents_and_keeps_the_last_good_state(
    folder, tmp_path, monkeypatch, fault
):
    spoil, message = FAULTS[fault]
    own, encode, calls = SenerModel.loss, SenerModel.encode, []

    def loss(self, *arguments):
        made = own(self, *arguments)
        return spoil(made) if len(calls) == 4 else made

    def noted(self, input_ids, *arguments):
        calls.append(input_ids)
        return encode(self, input_ids, *arguments)

    given = training_arguments(folder, tmp_path / "out", "--num_epochs", "1", "--save_steps", "1", "--mask_share", "0")
    monkeypatch.setattr(SenerModel, "loss", loss)
    monkeypatch.setattr(SenerModel, "encode", noted)
    with pytest.raises(FloatingPointError) as error:
        train.main(given)
    text = str(error.value)
    assert text.startswith("epoch 1, step 4 of 8 (documents ") and message in text
    checkpoints = tmp_path / "out" / "checkpoints"
    seen = {tuple(row[row != 0].tolist()) for row in calls[3]}
    members = {window.document for window in StoredWindows(checkpoints / "windows.arrow")
               if tuple(window.input_ids.tolist()) in seen}  # fmt: skip
    assert len(members) == 2 and set(text.partition("(documents ")[2].partition(")")[0].split(", ")) == members
    state = newest_state(checkpoints)
    assert state.name.endswith("0000003") and f"The last state, {state}, is kept" in text
    assert json.loads((state / "progress.json").read_text())["content"]["progress"]["step"] == 3
    monkeypatch.setattr(SenerModel, "loss", own)
    published = []
    monkeypatch.setattr(loop, "evaluate", lambda run: published.append(merged_state_dict(run.model)) or
                        {"precision": 0.0, "recall": 0.0, "f1": 0.0})  # fmt: skip
    train.main([*given, "--resume"])
    assert all(tensor.isfinite().all() for tensor in published[0].values())


def test_training_on_a_damaged_encoder_does_not_begin(folder, tmp_path):
    model = SenerModel.from_backbone(str(folder / "bert"), LABELS, span_window=4)
    encoder = model.backbone
    encoder.encoder.layer[1].output.dense.weight.data[0, 0] = INF
    assert damaged_weights(model) == ["backbone.encoder.layer.1.output.dense.weight"]
    encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the weights encoder.layer.1.output.dense.weight hold NaN or infinity"):
        SenerModel.from_backbone(str(tmp_path), LABELS)
    state = {name: weight for name, weight in encoder.state_dict().items() if "layer.1" not in name}
    encoder.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"weights are missing: encoder.layer.1.\S+ \(and 15 more\)"):
        SenerModel.from_backbone(str(tmp_path), LABELS)
