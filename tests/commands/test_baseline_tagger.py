"""baseline_tagger.py: tags and spans, windows in prediction, nested gold, and a run of the command."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import (
    LABELS,
    ROOT,
    as_raw,
    fails,
    python,
    tagger_arguments,
    toy_backbone,
    toy_folder,
    toy_records,
    write_jsonl,
)
from transformers import AutoModelForTokenClassification

from modeling_sener import SenerConfig, SenerProcessor
from modeling_sener.windows import Window, window_bounds
from training import baseline_tagger as tagger
from training.corpus.data import read_documents
from training.corpus.windows import encode_document
from training.evaluation.overlap import match_overlap, touched_words
from training.evaluation.scoring import match, score, summarise
from training.fitting.fields import parse_fields


SPANS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from("abc")).map(
    lambda item: (item[0], item[0] + item[1], item[2])), max_size=12)  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("tagger"))


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """A run of the command, and its output folder."""
    output = tmp_path_factory.mktemp("trained") / "out"
    script = ROOT / "training" / "baseline_tagger.py"
    return python(script, *tagger_arguments(toy, output, "--num_epochs", "20"), OMP_NUM_THREADS="1"), output


def flat(document):
    """Gold without nested entities, and with the first label of each span. Toy gold has no crossing entities."""
    spans = {}
    for start, end, label in document.entities:
        spans.setdefault((start, end), label)
    return [(start, end, label) for (start, end), label in spans.items()
            if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in spans)]  # fmt: skip


def test_flat_gold_is_learnt_by_heart_and_recall_counts_all_gold(toy, trained):
    done, output = trained
    assert done.returncode == 0, done.stderr[-3000:]
    documents = read_documents(toy / "both.jsonl")
    expected = score([document.entities for document in documents], [flat(document) for document in documents])
    result = json.loads(done.stdout.splitlines()[-1])
    assert expected["precision"] == 1.0 > expected["recall"]
    for name in ("precision", "recall", "f1", "tp", "fp", "fn", "per_label", "macro", "interval"):
        assert result[name] == json.loads(json.dumps(expected[name])), name
    assert set(result["per_label"]) == set(LABELS)
    processor = SenerProcessor.from_backbone(str(output), SenerConfig())
    words = [[(i, i + 1) for i in range(len(document.text))] if document.is_split
             else processor.split_words(document.text) for document in documents]  # fmt: skip
    outcomes = match([document.entities for document in documents], [flat(document) for document in documents])
    overlap = summarise(match_overlap(outcomes, *touched_words(outcomes, words)), {})
    assert result["overlap"] == json.loads(json.dumps(overlap)) and set(overlap["per_label"]) == set(LABELS)
    assert result == json.loads((output / "report.json").read_text())
    gold, held = sum(len(document.entities) for document in documents), sum(map(len, map(flat, documents)))
    assert f"the outermost {held} of {gold} entities are learnt" in done.stdout
    assert f"they can hold {held} of {gold} entities; the others count as missed, like those off" in done.stdout
    assert "windows of 64 tokens\n" in done.stdout and "training:" in done.stderr


def test_the_saved_tagger_is_the_one_that_was_scored(toy, trained):
    _, output = trained
    model = AutoModelForTokenClassification.from_pretrained(output)
    assert [model.config.id2label[i] for i in range(9)] == ["O", *(f"{mark}-{label}" for label in LABELS
                                                                   for mark in "BI")]  # fmt: skip
    processor = SenerProcessor.from_backbone(str(output), SenerConfig())
    documents = read_documents(toy / "both.jsonl")
    found = tagger.find_entities(model, processor, LABELS, documents, 64)
    assert found == [sorted(flat(document)) for document in documents]


@given(SPANS)
def test_outermost_spans_do_not_overlap_and_each_span_left_out_overlaps_one_as_long(spans):
    kept = tagger.outermost(spans)
    assert kept == sorted(kept) and set(kept) <= set(spans)
    for a, b in zip(kept, kept[1:], strict=False):
        assert a[1] <= b[0]
    for first, last, label in set(spans) - set(kept):
        rivals = [own for own in kept if own[0] < last and first < own[1]]
        assert max((own[1] - own[0] for own in rivals), default=0) >= last - first, (first, last, label)
    for span in kept:  # outermost: every larger span that holds it was left out
        holders = [own for own in spans if own[0] <= span[0] and span[1] <= own[1] and own[:2] != span[:2]]
        assert not set(holders) & set(kept)


@given(SPANS, st.integers(18, 25))
def test_tags_hold_flat_spans_exactly(spans, num_words):
    numbered = [(first, last, "abc".index(label)) for first, last, label in tagger.outermost(spans)]
    tags = tagger.encode_tags(numbered, num_words)
    assert tags.shape == (num_words,) and tagger.decode_tags(tags) == numbered


@given(st.lists(st.integers(0, 6), max_size=20))
def test_any_tags_are_spans_as_conll_reads_them(tags):
    """Reference: a regular expression over the tags of one label. A span is a B or I, and every I after it."""
    expected = []
    for label, (b, i) in enumerate([(1, 2), (3, 4), (5, 6)]):
        text = "".join("B" if tag == b else "I" if tag == i else "O" for tag in tags)
        expected += [(match.start(), match.end(), label) for match in re.finditer("[BI]I*", text)]
    assert tagger.decode_tags(np.array(tags, dtype=np.int64)) == sorted(expected)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=60), st.integers(4, 60))
def test_each_word_is_taken_once_from_the_window_where_it_stands_farthest_from_an_edge(sizes, budget):
    bounds = np.cumsum([0, *sizes])
    cuts = window_bounds(bounds, [], budget, len(sizes))
    kept = tagger.kept_words(cuts)
    assert [word for a, b in kept for word in range(a, b)] == list(range(len(sizes)))
    for (first, last), (a, b), (before, after) in zip(
        cuts, kept, zip([None, *cuts], [*cuts[1:], None], strict=False), strict=True
    ):
        assert first <= a and b <= last
        for word in range(a, b):  # a neighbour has no more context on the side where this window ends
            assert before is None or word - first >= before[1] - 1 - word
            assert after is None or last - word > word - after[0]


def test_words_are_tagged_the_same_however_the_text_is_cut(tmp_path):
    """An encoder without layers and positions sees single tokens: windows of any length must give the same tags."""
    toy_backbone(tmp_path, num_hidden_layers=0)
    torch.manual_seed(0)
    model = tagger.build_tagger(str(tmp_path), LABELS).eval()
    torch.nn.init.zeros_(model.bert.embeddings.position_embeddings.weight)
    torch.nn.init.normal_(model.classifier.weight)
    processor = SenerProcessor.from_backbone(str(tmp_path), SenerConfig())
    words = [word for record in toy_records(2) for word in record["text"]]
    words.insert(7, "\x00")  # a word without tokens
    write_jsonl(tmp_path / "data.jsonl", [{"text": words, "entity": []}, {"text": ["\x00"], "entity": []},
                                          as_raw({"doc_id": "a", "text": words[10:], "entity": []})])  # fmt: skip
    documents = read_documents(tmp_path / "data.jsonl")
    for document in documents:
        encoded = encode_document(processor, document)
        whole = tagger.tag_document(model, encoded, 128, processor.tokenizer)
        assert len(set(whole)) > 3 or encoded.num_words == 0
        for max_tokens in (8, 9, 13, 24, 50):
            np.testing.assert_array_equal(tagger.tag_document(model, encoded, max_tokens, processor.tokenizer), whole)
    entities = [tagger.find_entities(model, processor, LABELS, documents, max_tokens) for max_tokens in (8, 128)]
    assert entities[0] == entities[1] and entities[0][1] == []
    whole, kept = documents[0].text, [word for word in words if word != "\x00"]
    tags = tagger.tag_document(model, encode_document(processor, documents[0]), 128, processor.tokenizer)
    spans = tagger.decode_tags(tags)
    assert [whole[start] for start, _, _ in entities[0][0]] == [kept[first] for first, _, _ in spans]


def test_only_first_tokens_have_labels(toy):
    """A batch of two texts, the shorter one padded. The second word of the first has three tokens."""
    processor = SenerProcessor.from_backbone(str(toy / "bert"), SenerConfig())
    assert processor.tokenizer.pad_token_id == 0
    long = Window(np.array([2, 7, 8, 9, 6, 5, 3]), np.array([0, 1, 2, 2, 2, 3, 0]), [(1, 3, 1)])
    short = Window(np.array([2, 7, 3]), np.array([0, 1, 0]), [(0, 1, 0)])
    batch = tagger.TagCollator(processor.tokenizer)([long, short])
    none = tagger.IGNORED
    assert batch["labels"].tolist() == [[none, 0, 3, none, none, 4, none], [none, 1, *[none] * 5]]
    assert batch["input_ids"][1].tolist() == [2, 7, 3, 0, 0, 0, 0]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]


def test_encoder_and_classifier_have_their_learning_rates(toy):
    fields = parse_fields(tagger_arguments(toy, "out"))
    model = tagger.build_tagger(str(toy / "bert"), LABELS)
    assert model.config.attention_probs_dropout_prob == 0.0
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in tagger.build_optimizer(model, model.base_model, fields).param_groups:
        for parameter in group["params"]:
            name = names[parameter]
            seen.add(name)
            assert group["lr"] == (1e-2 if name.startswith("classifier.") else 5e-3), name
            assert (group["weight_decay"] == 0) == (name.endswith("bias") or "LayerNorm" in name), name
    assert seen == set(names.values())


def test_mask_share_of_the_tokens_is_masked(toy, tmp_path):
    fields = parse_fields(tagger_arguments(toy, tmp_path / "out", "--mask_share", "0.5"))
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    run = tagger.build_tagger_run(tagger.build_accelerator(fields), fields)
    run.bar.close()
    tokens = torch.cat([batch["input_ids"][batch["attention_mask"] == 1] for batch, _ in run.batches.loader(0)])
    # Of the chosen tokens, 80 % become [MASK].
    assert 0.2 < (tokens == run.processor.tokenizer.mask_token_id).float().mean() < 0.5


def test_windows_are_no_longer_than_the_position_table(toy, tmp_path, capsys):
    """The toy encoder has 128 positions; a longer window would end in an index error."""
    write_jsonl(tmp_path / "both.jsonl", [{"text": ["Ada", "Lovelace"] * 100, "entity": [[0, 2, "", "Person"]]}])
    (tmp_path / "bert").symlink_to(toy / "bert")
    tagger.main(tagger_arguments(tmp_path, tmp_path / "out", "--max_tokens", "500", "--num_epochs", "1"))
    printed = capsys.readouterr().out
    assert "windows of 128 tokens (max_tokens is 500; the encoder has no more positions)" in printed
    assert json.loads(printed.splitlines()[-1])["entities"] == 1


@pytest.mark.parametrize("more, message", [
    (["--lora_rank", "8"], "lora_rank is 8: the tagger trains its whole encoder; set it to 0"),
    (["--resume"], "resume is true: a run of the tagger starts anew; leave it out"),
    (["--backbone", str(ROOT / "modeling_sener")], "a SeNER checkpoint: the tagger takes a plain encoder"),
])  # fmt: skip
def test_fields_that_the_tagger_does_not_support_are_refused(toy, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        tagger.main(tagger_arguments(toy, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_faults_end_the_command_with_one_message(toy, tmp_path):
    script = ROOT / "training" / "baseline_tagger.py"
    write_jsonl(tmp_path / "bad.jsonl", [{"text": ["a"], "entity": [[0, 9, "", "Person"]]}])
    fails(python(script, *tagger_arguments(toy, tmp_path / "out", "--train_file", tmp_path / "bad.jsonl")),
          f"{tmp_path / 'bad.jsonl'}:1: entity[0]: span [0, 9) is outside")  # fmt: skip
    fails(python(script, *tagger_arguments(toy, tmp_path / "out", "--backbone", "/nowhere/at/all")), "/nowhere/at/all")
