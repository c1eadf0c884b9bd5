"""A short run of hostile texts with fixed seeds, and tests that the long run (`make fuzz`) detects faults."""

import base64
import json
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from fuzz import jobs, plan, targets
from fuzz.__main__ import write
from fuzz.plan import Finding, Job
from fuzz.properties import KINDS, check_entities, check_pipeline, check_texts, check_words, pipeline
from fuzz.texts import CATEGORIES, LONG, NO_SPACES, SPACES, batch, long_text
from fuzz.words import words
from fuzz.worker import Worker
from support import fuzz_faults

from modeling_sener import SenerProcessor
from modeling_sener.decoding import Candidates


SEED = 7


# Hostile texts


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts_have_the_references_words_and_tokens(kind):
    """Offsets and padding, too."""
    processor = pipeline(kind).processor
    for number in range(6):
        texts = [text for _, text in batch(SEED, number)]
        check_texts(processor, texts)
        check_words(processor, [text.split(" ") for text in texts[::4]])


@pytest.mark.parametrize("kind", KINDS)
def test_entities_of_hostile_texts_have_all_properties(kind):
    texts = [text for _, text in batch(SEED, 100, size=24)]
    assert check_pipeline(kind, texts, allow_nested=True) > check_pipeline(kind, texts, allow_nested=False) > 100


@pytest.mark.parametrize("name", LONG)
def test_long_texts_have_the_references_words_and_tokens(name):
    for kind in KINDS:
        check_texts(pipeline(kind).processor, [long_text(name, 10_000), "", long_text(name, 9_999)])


@pytest.mark.parametrize("target", targets.TARGETS)
def test_each_target_holds_for_random_bytes(target):
    random = Random(SEED)
    for size in range(120):
        targets.TARGETS[target](random.randbytes(size))


# The texts


def test_texts_follow_from_the_seed():
    assert batch(3, 5) == batch(3, 5)
    assert batch(3, 5) != batch(3, 6) != batch(4, 5)


def test_every_category_has_the_texts_that_it_is_named_for():
    named = [pair for number in range(60) for pair in batch(SEED, number)]
    texts = {name: [text for category, text in named if category == name] for name in CATEGORIES}
    assert min(map(len, texts.values())) > 100
    together = {name: "".join(own) for name, own in texts.items()}
    assert {ord(character) >> 16 for character in together["planes"]} == set(range(17))
    assert any("\ud800" <= character <= "\udfff" for character in together["binary as utf 8"])
    assert max(map(len, texts["marks"])) > 1000 and max(map(len, texts["one giant word"])) > 1000
    assert max(len(words(text)) for text in texts["tiny words"]) > 500
    assert {unicodedata.category(character)[0] for character in together["only punctuation"]} == {"P", "S"}
    assert set(together["only whitespace"]) == set(SPACES + NO_SPACES)
    assert "[MASK]" in together["special tokens"] and "</s>" in together["special tokens"]
    assert "" in texts["html"] and "" in texts["planes"] and "" in texts["only whitespace"]
    assert not any("\ud800" <= c <= "\udfff" for c in together["binary as latin 1"] + together["controls"])


def test_the_reference_splits_words_as_documented():
    text = "low-rank ResNet50, 1,000.5 in\u00adfor 漢字 cafe\u0301 a\u200bb ,\u0301 1.a \x00"
    expected = "low - rank ResNet50 , 1,000.5 in\u00adfor 漢 字 cafe\u0301 a \u200b b ,\u0301 1 . a \x00"
    assert [text[start:end] for start, end in words(text)] == expected.split(" ")


# Faults are detected


class Damaged(SenerProcessor):
    """A processor whose results `damage` changes."""

    def __call__(self, texts, **options):
        inputs = super().__call__(texts, **options)
        if texts:  # `check_inputs` calls the processor for the empty text, too, to learn the special tokens
            self.damage(inputs)
        return inputs


def shift(inputs):
    start, end = inputs.word_offsets[0][-1]
    inputs.word_offsets[0][-1] = (start, end - 1)


def drop_the_last_word(inputs):
    inputs.word_offsets[0].pop()


def move_a_token(inputs):
    inputs["word_index"][0, 2] = inputs["word_index"][0, 1]


def cut(inputs):
    for name in ("input_ids", "attention_mask", "word_index"):
        inputs[name] = inputs[name][:, :-1]


def unmask(inputs):
    inputs["attention_mask"][0, -1] = 0


def pad_with_another_token(inputs):
    inputs["input_ids"][1, -1] = 7


def change_the_text(inputs):
    inputs.texts[0] = inputs.texts[0].lower()


DAMAGES = [shift, drop_the_last_word, move_a_token, cut, unmask, pad_with_another_token, change_the_text]


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_inputs_are_noticed(damage):
    own = pipeline("checkpoint").processor
    broken = Damaged(own.tokenizer, own.config)
    broken.damage = lambda inputs: None
    check_texts(broken, ["We train ResNet-50", "We"])
    broken.damage = damage
    with pytest.raises(AssertionError):
        check_texts(broken, ["We train ResNet-50", "We"])


@pytest.mark.parametrize("pattern", [r"\S+", r"\w+", r"\w+|\S", r".", r"[\p{L}\p{M}\p{N}_]+|\S\p{M}*"])
def test_other_words_are_noticed(pattern):
    own = pipeline("checkpoint").processor
    with pytest.raises(AssertionError, match="other words"):
        check_texts(SenerProcessor(own.tokenizer, own.config, pattern), ["low-rank 1,000.5 cafe\u0301 ,\u0301 漢字"])


TEXT, OFFSETS = "We train it now", [(0, 2), (3, 8), (9, 11), (12, 15)]


def entity(start, end, label="Task", score=0.75, **fields):
    return {"start": start, "end": end, "text": TEXT[start:end], "label": label, "score": score, **fields}


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([entity(0, 3)], "word to word"),
        ([entity(1, 8)], "word to word"),
        ([entity(3, 8, text="Train")], "text"),
        ([entity(3, 2)], "text"),
        ([entity(0, 2, score=1.01)], "score"),
        ([entity(0, 2, score=0.4)], "score"),
        ([entity(0, 2, score=float("nan"))], "score"),
        ([entity(3, 8), entity(0, 2)], "order"),
        ([entity(3, 8), entity(3, 8)], "order"),
        ([entity(0, 8), entity(3, 11)], "conflict"),
        ([entity(0, 11), entity(0, 2), entity(3, 15)], "order|conflict"),
    ],
)
def test_wrong_entities_are_noticed(entities, message):
    config = pipeline("checkpoint").model.config
    nested = [entity(0, 2), entity(0, 11), entity(3, 8, "Method"), entity(3, 8), entity(12, 15)]
    check_entities(TEXT, OFFSETS, nested, config, allow_nested=True)
    with pytest.raises(AssertionError, match="conflict"):
        check_entities(TEXT, OFFSETS, nested, config, allow_nested=False)
    with pytest.raises(AssertionError, match=message):
        check_entities(TEXT, OFFSETS, entities, config, allow_nested=True)


def test_wrong_choices_are_noticed(monkeypatch):
    random = Random(SEED)
    problems = [random.randbytes(80) for _ in range(20)]
    monkeypatch.setattr(targets, "select", lambda candidates, **how: candidates)
    with pytest.raises(AssertionError, match="brute force"):
        for data in problems:
            targets.choice(data)
    right = targets.decode
    monkeypatch.setattr(targets, "decode", lambda *fields, **how: [Candidates.join([])] * len(right(*fields, **how)))
    with pytest.raises(AssertionError, match="brute force"):
        for data in problems:
            targets.decoder(data)
    monkeypatch.setattr(targets, "decode", lambda logits, *rest, **how: right(torch.zeros_like(logits), *rest, **how))
    with pytest.raises(AssertionError, match="not finite"):
        for data in problems:
            targets.decoder(data[:12] + b"\xff" * 9)


# The parts of the run


def test_a_text_that_fails_is_named_and_shrunk(monkeypatch):
    def check(processor, texts):
        assert not any("\u202e" in text and "\u200d" in text for text in texts)

    monkeypatch.setattr(jobs, "check_texts", check)
    found = [finding for number in range(1, 6) for finding in jobs.run(Job("batches", SEED, number)).findings]
    assert found and {finding.category for finding in found} <= set(CATEGORIES)
    assert {text for finding in found for text in finding.inputs} <= {"\u202e\u200d", "\u200d\u202e"}
    monkeypatch.setattr(jobs, "EXAMPLES", 20)
    assert jobs.run(Job("hypothesis", SEED, 1)).texts["by Hypothesis"] >= 20
    monkeypatch.setattr(jobs, "check_texts", lambda processor, texts: processor(5))
    assert "TypeError" in jobs.run(Job("hypothesis", SEED, 1)).findings[0].error


def test_a_batch_that_fails_only_as_a_whole_is_kept_whole(monkeypatch):
    def check(processor, texts):
        assert len(texts) == 1

    monkeypatch.setattr(jobs, "check_texts", check)
    (finding,) = jobs.run(Job("batches", SEED, 1)).findings
    assert finding.inputs == [text for _, text in batch(SEED, 1)]


class Greedy:
    """In place of a pipeline: its processor takes quadratic time or memory."""

    def __init__(self, what):
        self.what = what

    def processor(self, text):
        if self.what == "time":
            sum(range(len(text) ** 2 // 4))
        return bytearray(b"\1") * (len(text) ** 2 // 4) if self.what == "memory" else None


@pytest.mark.parametrize("what", ["time", "memory"])
def test_quadratic_time_or_memory_is_noticed(monkeypatch, what):
    monkeypatch.setitem(LONG, "a test", ("a", 4_000 if what == "time" else 48_000))
    monkeypatch.setattr(jobs, "check_long", lambda *arguments: None)
    monkeypatch.setattr(jobs, "NOISE", 0.02)
    monkeypatch.setattr(jobs, "pipeline", lambda kind: Greedy(what))
    findings = jobs.run(Job("long", kind="checkpoint", name="a test")).findings
    assert any(finding.error.startswith(f"checkpoint: {what} is not") for finding in findings)
    monkeypatch.setattr(jobs, "pipeline", lambda kind: Greedy(None))
    assert not jobs.run(Job("long", kind="checkpoint", name="a test")).findings


def test_a_job_that_hangs_or_kills_its_process_is_named():
    worker = Worker(fuzz_faults.run)
    fine, hangs, dies = (Job("batches", SEED, number, limit=2 if number == 1 else 60) for number in range(3))
    assert worker.do(fine).texts == Counter(done=1)
    for job, message in ((hangs, "no end after 2 s"), (dies, "died (exit code -11)")):
        (finding,) = worker.do(job).findings
        assert finding.inputs == [text for _, text in batch(SEED, job.number)]
        assert message in finding.error
        assert worker.do(fine).texts == Counter(done=1) and not worker.do(fine).findings
    worker.stop()


def test_a_finding_can_be_read_back_from_its_file(tmp_path):
    text = "a\ud800\x00\U0010ffff"
    file = write(Finding("batches", "what was wrong", [text, b"\xff"], "planes"), tmp_path / "fuzz", 3)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["error"] == "what was wrong" and content["category"] == "planes"
    first, second = (base64.b64decode(entry["base64"]) for entry in content["inputs"])
    assert first.decode("utf-8", "surrogatepass") == text and second == b"\xff"
    assert content["inputs"][0]["repr"] == repr(text)


def test_every_long_text_is_planned_for_each_tokenizer_and_the_model():
    planned = plan.long_jobs()
    assert len(planned) == len(set(planned)) == len(LONG) * (len(KINDS) + 1)
    assert max(job.size for job in planned) == 5_000_000
    million = next(job for job in planned if job.name == "a million tiny words")
    assert len(words(million.texts()[0][1][:2000])) * 1000 == 1_000_000


@pytest.mark.slow
def test_a_whole_run_checks_inputs_of_every_part(tmp_path):
    pytest.importorskip("atheris", reason="make fuzz installs it")
    command = [sys.executable, "-m", "fuzz", "--seconds", "30", "--seed", "1", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 findings" in done.stdout and not list(tmp_path.iterdir())
    table = done.stdout[done.stdout.index("part  ") :]
    inputs = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in table.splitlines()[1:7]}
    assert set(inputs) == {"long", "batches", "hypothesis", *targets.TARGETS} and min(inputs.values()) > 0
