"""Gold inside words: it is counted, a pattern that fits it is suggested, and every command then uses that pattern."""

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny import tiny_tokenizer
from support.tiny_models import tiny_config
from support.toy import LABELS, tagger_arguments, toy_backbone, toy_folder, training_arguments, write_jsonl

from modeling_sener import SenerModel, SenerProcessor
from modeling_sener.tokenization import WORD_PATTERN, word_splitter
from training import baseline_tagger as tagger
from training import describe_data, soup
from training import train as training
from training.corpus.data import Document
from training.corpus.report import read_and_report
from training.corpus.windows import encode_document
from training.corpus.word_patterns import PATTERNS
from training.fitting.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.fitting.fields import FieldError, parse_fields
from training.fitting.run import build_model
from training.fitting.run_data import DataFacts


FACTS = DataFacts(LABELS, cross_blank_lines=False)
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
PARTS = ["HTTPServer", "v2.5", "والكتاب", "서울에서", "漢字", "e\u0301", "\u200d", "_", *" aA1.,-"]
ANYTHING = st.lists(st.one_of(st.sampled_from(PARTS), st.characters()), max_size=30).map("".join)
DIGITS, IDENTIFIERS, ARABIC, HANGUL, ALL = PATTERNS


def processor(pattern=WORD_PATTERN):
    return SenerProcessor(tiny_tokenizer("bytelevel"), tiny_config(), pattern)


def document(text, *quotes):
    places = [(text.index(quote), text.index(quote) + len(quote), "Method") for quote in quotes]
    return Document("doc", text, tuple(places))


@pytest.mark.parametrize(
    "given, name",
    [
        (document("in v12b and 5mg of it", "12", "mg"), DIGITS),
        (document("calls parseHTMLDoc(user_name)", "HTML", "user"), IDENTIFIERS),
        (document("قرأت والكتاب بالعربية", "الكتاب", "عربية"), ARABIC),
        (document("서울에서 LG에 갔다", "서울", "LG"), HANGUL),
        (document("서울에서 getName قرأت والكتاب", "서울", "Name", "كتاب"), ALL),
    ],
)
def test_the_pattern_that_cuts_least_is_suggested_and_holds_the_gold(given, name):
    lines = read_and_report("train", [given], processor(), None, 128).lines()
    count = len(given.entities)
    assert f"  note: {count} entities (100.0 %) begin or end inside a word, as in:" in lines
    assert f"    {count} of them are held with {name} (a field of training):" in lines
    option, pattern = shlex.split(lines[-1])
    assert option == "--word_pattern"
    encoded = encode_document(processor(pattern), given)
    assert encoded.off_boundary == 0 and len(encoded.exact) == count
    assert not any(
        "inside a word" in line for line in read_and_report("x", [given], processor(pattern), None, 9).lines()
    )


def test_examples_are_shown_and_probable_faults_of_annotation_are_named():
    given = document("We met Ada Lovelace\tand Charles Babbage in London .", "Ada Lovelac", "harles Babbage", "London")
    lines = read_and_report("train", [given], processor(), None, 128).lines()
    assert lines[-4:] == [
        "  note: 2 entities (66.7 %) begin or end inside a word, as in:",
        "    doc: We met [Ada Lovelac]e and Charles Babbag (Method)",
        "    doc: t Ada Lovelace and C[harles Babbage] in London . (Method)",
        r"    look at these annotations; if they are right, only words of one letter hold them: "
        r"--word_pattern '\S\p{M}*+'",
    ]


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=100, deadline=None)
@given(ANYTHING)
def test_words_of_every_pattern_cover_everything_but_spaces(name, text):
    text = text.encode("utf-8", "replace").decode()
    places = [place for _, place in word_splitter(PATTERNS[name]).pre_tokenize_str(text)]
    covered = [position for start, end in places for position in range(start, end)]
    assert covered == [position for position, character in enumerate(text) if character not in SPACES]


@pytest.mark.parametrize("pattern", ["(", r"\w*", "", "(?=a)", r"\S+|", r"\b"])
def test_a_bad_pattern_is_an_error_that_names_the_field(tmp_path, pattern):
    config = tmp_path / "run.yaml"
    config.write_text("word_pattern: " + json.dumps(pattern))
    with pytest.raises(FieldError, match="^word_pattern .*(is no regular expression|matches the empty string)"):
        parse_fields(["--config", str(config), *training_arguments(tmp_path, "out")])
    with pytest.raises(ValueError, match="^word_pattern"):
        processor(pattern)


class Stopped(Exception):
    pass


def test_training_and_its_checkpoints_split_words_with_the_given_pattern(tmp_path, monkeypatch):
    """Even a pattern that YAML would read as a list."""
    toy, seen = toy_folder(tmp_path), []
    pattern = r"[\p{L}]|\S"

    def stop(run):
        seen.append(run.processor)
        raise Stopped

    for command, train, arguments in (
        (training, "train", training_arguments),
        (tagger, "train_tagger", tagger_arguments),
    ):
        monkeypatch.setattr(command, train, stop)
        for more in (["--word_pattern", pattern], []):
            with pytest.raises(Stopped):
                command.main(arguments(toy, tmp_path / "out", *more, "--report_to", "none"))
    assert [each.word_pattern for each in seen] == [pattern, WORD_PATTERN] * 2

    model, own = build_model(parse_fields(training_arguments(toy, "out", "--word_pattern", pattern)), FACTS)
    save_checkpoint(model, own, tmp_path / "made")
    assert load_checkpoint(tmp_path / "made")[1].word_pattern == pattern
    further = training_arguments(toy, "out", "--backbone", str(tmp_path / "made"))
    assert build_model(parse_fields(further), FACTS)[1].word_pattern == pattern
    assert build_model(parse_fields([*further, "--word_pattern", r"\S+"]), FACTS)[1].word_pattern == r"\S+"


def test_describe_data_splits_words_as_the_checkpoint_or_as_given(tmp_path, capsys):
    toy_backbone(tmp_path / "bert")
    model = SenerModel.from_backbone(str(tmp_path / "bert"), ["A"], span_window=2, span_layers=1)
    own = SenerProcessor(tiny_tokenizer("wordpiece"), model.config, PATTERNS[DIGITS])
    save_checkpoint(model, own, tmp_path / "model")
    data = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "in v12 .", "entities": [{"start": 4, "end": 6, "label": "A"}]}]
    )

    def printed(*more):
        describe_data.main([str(data), *more])
        return capsys.readouterr().out

    assert "1 entities (100.0 %) begin or end inside a word" in printed("--backbone", str(tmp_path / "bert"))
    assert "inside a word" not in printed("--backbone", str(tmp_path / "model"))
    assert "inside a word" not in printed("--word_pattern", PATTERNS[DIGITS])
    with pytest.raises(ValueError, match="word_pattern '\\*'"):
        printed("--word_pattern", "*")


def test_checkpoints_that_split_words_differently_have_no_mean(tmp_path):
    toy_backbone(tmp_path / "bert")
    model = SenerModel.from_backbone(str(tmp_path / "bert"), ["A"], span_window=2, span_layers=1)
    for name, pattern in (("a", WORD_PATTERN), ("b", r"\S+")):
        save_checkpoint(model, SenerProcessor(tiny_tokenizer("wordpiece"), model.config, pattern), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"b: word_pattern is '\\\\S\+'"):
        soup.average([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "out"), "float32")
