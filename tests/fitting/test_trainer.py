"""Training with `transformers.Trainer`: labels and windows of the processor, its collator, a run and its folder."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import band_labels
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, tiny_config
from support.toy import LABELS, as_raw, toy_backbone, toy_records
from transformers import Trainer, TrainingArguments

from modeling_sener import SenerModel, SenerPipeline, SenerProcessor
from modeling_sener.band import Band
from modeling_sener.starts import HIGHEST, LOWEST
from modeling_sener.windows import cut_windows
from training.corpus.batches import Collator
from training.corpus.data import parse_record
from training.corpus.windows import encode_document
from training.evaluation.scoring import as_spans, score


HEAD = {"span_window": 8, "attention_window": 16, "biaffine_size": 16, "span_channels": 8, "span_layers": 1,
        "biaffine_dropout": 0.0, "span_dropout": 0.0}  # fmt: skip


def processor(**fields):
    labels = fields.pop("labels", ["A", "B"])
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return SenerProcessor(tiny_tokenizer("wordpiece"), tiny_config(**names, **fields))


LETTERS = "ab1 .\x00-\n"


@st.composite
def annotated(draw):
    """Texts with spans anywhere: nested, crossing, equal, inside words, with white space around; one or more texts."""
    texts, entities = [], []
    for _ in range(draw(st.integers(1, 3))):
        text = draw(st.text(LETTERS, min_size=1, max_size=20) | st.text(LETTERS, min_size=30, max_size=60))
        spans = draw(st.lists(st.tuples(st.integers(0, len(text)), st.integers(1, 30), st.sampled_from("AB")),
                              max_size=8))  # fmt: skip
        spans = [(start, min(start + size, len(text)), label) for start, size, label in spans]
        texts.append(text)
        entities.append([{"start": start, "end": end, "label": label}
                         for start, end, label in spans if text[start:end].strip()])  # fmt: skip
    return texts, entities


WIDTHS = st.sampled_from([1, 3, None])
TRIANGLES = st.sampled_from(["both", "upper"])


@settings(max_examples=80, deadline=None)
@given(annotated(), WIDTHS, TRIANGLES)
def test_labels_of_a_call_are_the_words_that_gold_touches(drawn, span_window, triangles):
    texts, entities = drawn
    own = processor(span_window=span_window, triangles=triangles)
    inputs = own(texts, entities=entities)
    lengths = [len(offsets) for offsets in inputs.word_offsets]
    window = max(max(lengths) - 1, 0) if span_window is None else span_window
    for labels, text, gold, offsets in zip(inputs["labels"], texts, entities, inputs.word_offsets, strict=True):
        spans = set()
        for entity in gold:
            letters = [i for i in range(entity["start"], entity["end"]) if text[i].strip()]
            touched = [n for n, (start, end) in enumerate(offsets) if start <= letters[-1] and letters[0] < end]
            if touched and touched[-1] - touched[0] <= window:
                spans.add((touched[0], touched[-1] + 1, "AB".index(entity["label"])))
        expected = torch.zeros_like(labels)
        expected[: len(offsets)] = band_labels(sorted(spans), len(offsets), window, 2, triangles)
        assert torch.equal(labels, expected)


@settings(max_examples=80, deadline=None)
@given(annotated(), WIDTHS, TRIANGLES, st.sampled_from([None, 8, 12, 40]), st.booleans())
def test_windows_and_their_batches_are_those_of_training(drawn, span_window, triangles, max_tokens, is_split):
    texts, entities = drawn
    own = processor(span_window=span_window, triangles=triangles)
    if is_split:  # each character is a word
        texts = [list(text) for text in texts]
        records = [{"text": text, "entity": [[e["start"], e["end"], "", e["label"]] for e in gold]}
                   for text, gold in zip(texts, entities, strict=True)]  # fmt: skip
    else:
        records = [{"text": text, "entities": gold} for text, gold in zip(texts, entities, strict=True)]
    encoded = [encode_document(own, parse_record(record, "data:1")) for record in records]
    cut = [window for each in encoded
           for window in cut_windows(each, max_tokens or 10**6, span_window, {"A": 0, "B": 1})[0]]  # fmt: skip
    windows = own.training_windows(texts, entities, max_tokens, is_split_into_words=is_split)
    assert len(windows) == len(cut)
    if cut:
        expected = Collator(own.tokenizer.pad_token_id, span_window, triangles, 2)(cut)
        batch = own.collate(windows)
        assert list(batch) == list(expected) and all(torch.equal(batch[name], expected[name]) for name in batch)
    if cut and max_tokens is None and len(cut) == len(texts):
        inputs = own(texts, entities=entities, is_split_into_words=is_split)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_one_text_may_come_without_a_list():
    own, gold = processor(), [{"start": 0, "end": 3, "label": "B", "score": 0.5}]
    for texts, is_split in (("Big data", False), (["Big", "data", "."], True)):
        one = own(texts, entities=gold, is_split_into_words=is_split)
        assert torch.equal(one["labels"], own([texts], entities=[gold], is_split_into_words=is_split)["labels"])
        windows = own.training_windows(texts, gold, is_split_into_words=is_split)
        assert windows == own.training_windows([texts], [gold], is_split_into_words=is_split)
    numbers = [{"start": np.int64(0), "end": np.int64(3), "label": "B"}]  # of a data frame
    assert own.training_windows("Big data", numbers) == own.training_windows("Big data", gold)
    assert own([], entities=[], is_split_into_words=True)["labels"].shape[:2] == (1, 0)


A = {"start": 0, "end": 3, "label": "A"}


@pytest.mark.parametrize(
    "entities, message",
    [
        ("A", "entities is of type str; expected a list of entities for each text"),
        ([[A]], "entities has 1 lists for 2 texts"),
        ([[A], None], "entities[1] is of type NoneType; expected a list of entities"),
        ([[A], [A, (0, 3, "A")]], 'entities[1][1]: expected an object with "start", "end" and "label", found [0, 3'),
        ([[A], [{"start": 0, "end": 3}]], "entities[1][0].label: expected a value, found nothing"),
        ([[A], [{**A, "start": "0"}]], 'entities[1][0] start: expected an integer, found "0"'),
        ([[A], [{**A, "end": 3.0}]], "entities[1][0] end: expected an integer, found 3.0"),
        ([[A], [{**A, "label": ["A"]}]], 'entities[1][0] label: expected a non-empty string, found ["A"]'),
        ([[A], [A, {**A, "label": "C"}]], "entities[1][1]: unknown label 'C'; known labels: A, B"),
        ([[A], [{**A, "end": 9}]], "entities[1][0]: span [0, 9) is outside the text's 8 characters"),
        ([[A], [{**A, "start": 3}]], "entities[1][0]: span [3, 3) is reversed or empty"),
        ([[A], [{**A, "start": 3, "end": 4}]], "entities[1][0]: span [3, 4) is white space alone: remove it"),
    ],
)
def test_faults_name_text_entity_and_field(entities, message):
    own = processor()
    for call in (lambda: own.training_windows(["Big data", "Big data"], entities),
                 lambda: own(["Big data", "Big data"], entities=entities)):  # fmt: skip
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        assert str(error.value).startswith(message)


def test_other_faults_are_named():
    own = processor()
    with pytest.raises(ValueError, match="max_tokens is 7: expected an integer from 8, or None"):
        own.training_windows(["Big data"], [[A]], max_tokens=7)
    with pytest.raises(ValueError, match="pass windows of `training_windows`"):
        own.collate([own("Big data", entities=[A])])


def test_nothing_is_lost_silently(caplog):
    own = processor(span_window=1, cross_blank_lines=False)
    own.training_windows(["Big data", "fine"], [[A], []])
    assert not caplog.records
    text = "Big data\n\nof nothing \x00 " + "ta" * 20 + " ta"
    spans = [(0, 3), (0, 3), (0, 4), (1, 3), (0, 12), (21, 22), (4, 12), (23, 66)]
    gold = [{"start": start, "end": end, "label": "A"} for start, end in spans] + [{**A, "text": "other"}]
    own.training_windows([text, "\x00"], [gold, []], max_tokens=8)
    parts = caplog.records[0].getMessage().removeprefix("gold: ").split("; ")
    assert parts == [
        "3 entities were there twice", "the copies were left out",
        "1 entities quote other words than stand at their offsets", "the offsets are used",
        "1 entities had white space around them, which was trimmed",
        "1 entities do not begin and end with a word", "the words they touch are learnt",
        "1 entities touch no word with tokens and cannot be learnt",
        "1 entities are wider than span_window 1 and cannot be learnt or found",
        "2 entities hold a blank line and cannot be found", "set the config's cross_blank_lines",
        "1 entities fit no training window", "raise max_tokens",
        "1 words have more tokens than max_tokens", "their first tokens are used",
        "1 texts have no words",
    ]  # fmt: skip
    own([text], entities=[gold])
    assert [record.getMessage()[:33] for record in caplog.records] == ["gold: 3 entities were there twice"] * 2


def toy_model(tmp_path, **fields):
    backbone = toy_backbone(tmp_path / "bert", attention_probs_dropout_prob=0.0)
    model = SenerModel.from_backbone(backbone, labels=LABELS, **{**HEAD, **fields})
    return model, SenerProcessor(tiny_tokenizer("wordpiece"), model.config)


def toy_windows(own):
    raw = [as_raw(record) for record in toy_records()]
    return own.training_windows([each["text"] for each in raw], [each["entities"] for each in raw], max_tokens=64)


def options(folder, **more):
    return TrainingArguments(str(folder), **{
        "use_cpu": True, "disable_tqdm": True, "max_grad_norm": 0, "save_strategy": "no", "seed": 1, **more
    })  # fmt: skip


@pytest.mark.parametrize("batch_size, accumulation", [(4, 1), (2, 2), (1, 4)])
def test_a_step_lowers_the_mean_loss_of_its_windows(tmp_path, batch_size, accumulation):
    model, own = toy_model(tmp_path)
    windows = toy_windows(own)[:4]
    model.set_starts(windows)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.train()
    model(**own.collate(windows)).loss.backward()
    expected = {name: before[name] - 1e-3 * weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    arguments = options(tmp_path / "out", max_steps=1, optim="sgd", learning_rate=1e-3, lr_scheduler_type="constant",
                        per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation)  # fmt: skip
    Trainer(model, arguments, own.collate, windows).train()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-4)
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def right_cells(found):
    """What a user may compute in an evaluation; batches of fewer words are padded with -100."""
    assert found.predictions.shape == found.label_ids.shape and set(np.unique(found.label_ids)) == {-100, 0, 1}
    cells = found.label_ids >= 0
    return {"right": ((found.predictions > 0) == found.label_ids)[cells].mean()}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trainer_learns_resumes_and_leaves_a_hub_folder(tmp_path, checkpointing):
    """Columns that the model does not know are removed; a resumed run ends with the weights of one that is not."""
    ended = []
    for number, resumed in enumerate((None, True)):
        model, own = toy_model(tmp_path)
        windows = toy_windows(own)
        model.set_starts(windows)
        data = Dataset.from_list([{**window, "id": str(i)} for i, window in enumerate(windows)])
        arguments = options(
            tmp_path / "out", num_train_epochs=12, learning_rate=5e-3, per_device_train_batch_size=2,
            per_device_eval_batch_size=2, save_steps=30,
            save_strategy="steps", eval_strategy="epoch", gradient_checkpointing=checkpointing,
        )  # fmt: skip
        trainer = Trainer(model, arguments, own.collate, data, data, processing_class=own, compute_metrics=right_cells)
        if number:
            for folder in sorted((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[1:]:
                folder.rename(tmp_path / folder.name)
        trainer.train(resume_from_checkpoint=resumed)
        ended.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        assert losses[-1] < losses[0] / 3 and trainer.evaluate()["eval_right"] > 0.99
        expected = np.mean([model(**own.collate([window])).loss.item() for window in windows])
        assert losses[-1] == pytest.approx(expected, rel=0.1)  # batches have one size, but for the last one
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    trainer.save_model()
    again = SenerModel.from_pretrained(tmp_path / "out")
    extract = SenerPipeline(again, SenerProcessor.from_pretrained(tmp_path / "out"))
    raw = [as_raw(record) for record in toy_records()]
    gold = [[(e["start"], e["end"], e["label"]) for e in each["entities"]] for each in raw]
    assert score(gold, [as_spans(found) for found in extract([each["text"] for each in raw])])["f1"] > 0.8


def test_starts_are_the_shares_of_the_labels(tmp_path):
    for fields in ({"triangles": "upper"}, {"triangles": "both", "span_window": 3}):
        model, own = toy_model(tmp_path, **fields)
        windows = toy_windows(own)
        model.set_starts(windows)
        batch = own.collate(windows)
        lengths = batch["word_index"].amax(1)
        valid = Band.of(lengths, model.config.span_window, fields["triangles"]).mask(slice(0, int(lengths.max())))
        shares = batch["labels"].sum((0, 1, 2)) / valid.sum()
        torch.testing.assert_close(model.classifier.bias.sigmoid(), shares.clamp(LOWEST, HIGHEST))


def test_other_labels_keep_the_outputs_that_are_known(tmp_path):
    model = SenerModel(tiny_config(BACKBONES["bert"], threshold={"Method": 0.3, "Task": 0.4, "Material": 0.5}))
    own = SenerProcessor(tiny_tokenizer("wordpiece"), tiny_config())
    weight, bias = (each.detach().clone() for each in (model.classifier.weight, model.classifier.bias))
    for wrong in ("Task", ["Task", "Task"], ["Task", ""], []):
        with pytest.raises(ValueError, match="labels is the string 'Task'|id2label"):
            model.set_labels(wrong, own)
        assert model.config.labels == ["Method", "Task", "Material"] and model.config.threshold["Task"] == 0.4
    model.set_labels(["Dose", "Material"], own)
    assert own.config.labels == ["Dose", "Material"] and model.config.threshold == 0.5
    assert model.classifier.out_features == 2
    torch.testing.assert_close(model.classifier.weight, torch.stack([weight.mean(0), weight[2]]))
    torch.testing.assert_close(model.classifier.bias, torch.stack([bias.mean(), bias[2]]))
    model.save_pretrained(tmp_path)
    assert torch.equal(SenerModel.from_pretrained(tmp_path).classifier.weight, model.classifier.weight)
