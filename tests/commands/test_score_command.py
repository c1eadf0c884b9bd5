"""score.py as a user runs it: the pipeline's entities, fitted thresholds, several processes, the metric."""

import json

import evaluate
import pytest
from support.predictions import toy_checkpoint
from support.toy import ROOT, TWO_PROCESSES, as_raw, launch, toy_records, write_jsonl
from transformers import pipeline

from training import score
from training.corpus.data import read_documents
from training.evaluation.candidates import CURVE_FLOOR, score_spans
from training.evaluation.scoring import as_spans
from training.evaluation.scoring import score as score_entities
from training.evaluation.thresholds import fit_thresholds, store_thresholds
from training.fitting.checkpoint import load_checkpoint
from training.inference.extraction import extract


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An untrained checkpoint and toy data, words and raw text in one file."""
    folder = tmp_path_factory.mktemp("score")
    toy_checkpoint(folder, bias=0)  # scores spread over 0..1
    records = toy_records(5)
    write_jsonl(folder / "data.jsonl", records[:3] + [as_raw(record) for record in records[3:]])
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """The data and a copy of the checkpoint, which fitting thresholds changes."""
    for name in ("model", "data.jsonl"):
        (tmp_path / name).symlink_to(made / name)
    (tmp_path / "model").unlink()
    (tmp_path / "model").mkdir()
    for file in (made / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path


def run_score(folder, capsys, *arguments):
    score.main(["--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), *map(str, arguments)])
    printed = capsys.readouterr()
    return json.loads(printed.out.splitlines()[-1]), printed.err


@pytest.mark.parametrize("threshold", [None, 0.0, 0.45, 0.52, {"Task": 0.4, "Method": 0.6}])
@pytest.mark.parametrize(
    "fields", [{}, {"allow_nested": False}, {"labels_per_span": "best"}, {"cross_blank_lines": False}]
)
def test_choosing_among_scored_spans_gives_the_pipelines_entities(folder, threshold, fields):
    model, processor = load_checkpoint(folder / "model")
    for name, value in fields.items():
        setattr(processor.config, name, value)
    texts = [document.text for document in read_documents(folder / "data.jsonl")]
    texts += ["", "\x00", "Ada Lovelace\n\nin London\n\nImageNet"]
    expected = [as_spans(entities) for entities in extract(model, processor, texts, threshold=threshold)]
    thresholds = processor.thresholds(threshold)
    scored = score_spans(model, processor, texts, thresholds, batch_size=2)
    chosen = scored.choose(thresholds.numpy(), processor.config)
    assert scored.entities(chosen, processor.config.labels) == expected
    assert any(expected)


def test_a_score_that_equals_the_threshold_is_enough(folder):
    model, processor = load_checkpoint(folder / "model")
    texts = [document.text for document in read_documents(folder / "data.jsonl")]
    scores = sorted(entity["score"] for entities in extract(model, processor, texts) for entity in entities)
    middle = scores[len(scores) // 2]
    expected = [as_spans(entities) for entities in extract(model, processor, texts, threshold=middle)]
    thresholds = processor.thresholds(middle)
    scored = score_spans(model, processor, texts, thresholds)
    chosen = scored.choose(thresholds.numpy(), processor.config)
    assert middle in chosen.score and scored.entities(chosen, processor.config.labels) == expected


def test_fitted_thresholds_are_stored_and_used_by_the_pipeline(folder, capsys):
    plain, _ = run_score(folder, capsys)
    result, log = run_score(folder, capsys, "--fit_thresholds", "--report", folder / "report.html")
    assert result["before_fitting"]["f1"] == plain["f1"] <= result["f1"]
    assert f"{plain['f1']:.4f} -> {result['f1']:.4f}" in log and "fitted on this very data" in log
    assert "fitted on these very documents" in (folder / "report.html").read_text(encoding="utf-8")
    stored = json.loads((folder / "model" / "config.json").read_text())["threshold"]
    assert stored == result["thresholds"] != plain["thresholds"]
    again, _ = run_score(folder, capsys)
    result.pop("before_fitting")
    assert again == result
    documents = [document for document in read_documents(folder / "data.jsonl") if not document.is_split]
    finder = pipeline("entity-extraction", model=str(folder / "model"), trust_remote_code=True)
    found = [as_spans(entities) for entities in finder([document.text for document in documents])]
    assert found == [as_spans(entities) for entities in extract(*load_checkpoint(folder / "model"), [
        document.text for document in documents], threshold=stored)]  # fmt: skip
    assert found != [
        as_spans(entities) for entities in finder([document.text for document in documents], threshold=0.5)
    ]


def test_a_fit_does_not_depend_on_the_thresholds_that_the_model_has(folder, capsys):
    """Not even on those of its own for each label, which are better on these texts than the shared ones of a fit."""
    result, _ = run_score(folder, capsys, "--fit_thresholds")
    model, processor = load_checkpoint(folder / "model")
    documents = list(read_documents(folder / "data.jsonl"))
    start = processor.thresholds(0.5)
    scored = score_spans(model, processor, [document.text for document in documents], start)
    own = fit_thresholds(scored, documents, start.numpy(), model.config, own_entities=0)
    store_thresholds(folder / "model", dict(zip(model.config.labels, own.tolist(), strict=True)))
    again, _ = run_score(folder, capsys, "--fit_thresholds")
    assert again.pop("before_fitting")["f1"] > result["f1"]
    result.pop("before_fitting")
    assert again == result


def test_json_file_and_last_line_are_the_same_object(folder, capsys):
    result, _ = run_score(folder, capsys, "--output", folder / "out.json")
    assert json.loads((folder / "out.json").read_text()) == result
    assert {"precision", "recall", "f1", "per_label", "macro", "interval", "by_length", "by_depth", "by_position",
            "confusion", "calibration", "errors", "worst_documents", "thresholds", "overlap", "overlap_curve",
            } <= result.keys()  # fmt: skip
    assert sum(entry["fn"] + entry["tp"] for entry in result["by_depth"].values()) == result["entities"]


@pytest.mark.parametrize("arguments, message", [
    (["--output", "/nowhere/at/all.json"], "--output /nowhere/at/all.json: expected a file in a folder that exists"),
    (["--batch_size", "0"], "--batch_size 0: expected a number from 1"),
    (["--report", "."], "--report .: expected a file in a folder that exists"),
    (["--fit_thresholds", "--model", "user/name"], "user/name is not a local folder"),
    (["--data", "user/name"], r"--data user/name: no such file \(of a data set name the split as well, user/name:t"),
    (["--data", "gold.jsonl", "--output", "./gold.jsonl"], "--output ./gold.jsonl would overwrite --data"),
    (["--output", "a.json", "--report", "a.json"], "--report a.json would overwrite --output"),
])  # fmt: skip
def test_arguments_that_would_fail_at_the_end_are_refused_at_the_start(folder, arguments, message):
    given = ["--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), *arguments]
    with pytest.raises(ValueError, match=message):
        score.main(given)


def test_a_threshold_cannot_be_given_and_fitted(capsys):
    with pytest.raises(SystemExit) as error:
        score.main(["--model", "m", "--data", "d", "--threshold", "0.3", "--fit_thresholds"])
    assert error.value.code == 2 and "not allowed with" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_score_and_fit_as_one(folder, capsys):
    """Even if one of them has no texts."""
    model = (folder / "model" / "config.json").read_text()
    alone, _ = run_score(folder, capsys, "--fit_thresholds")
    (folder / "model" / "config.json").write_text(model)
    given = ["--model", folder / "model", "--data", folder / "data.jsonl", "--fit_thresholds"]
    done = launch("score.py", *given, options=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == alone
    assert json.loads((folder / "model" / "config.json").read_text())["threshold"] == alone["thresholds"]
    first = (folder / "data.jsonl").read_text().splitlines()[0]
    (folder / "one.jsonl").write_text(first + "\n")
    done = launch("score.py", "--model", folder / "model", "--data", folder / "one.jsonl", options=TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["texts"] == 1


def test_the_metric_module_gives_the_numbers_of_score(folder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    result, _ = run_score(folder, capsys)
    model, processor = load_checkpoint(folder / "model")
    documents = read_documents(folder / "data.jsonl")
    found = extract(model, processor, [document.text for document in documents])
    gold = [[{"start": start, "end": end, "label": label} for start, end, label in document.entities]
            for document in documents]  # fmt: skip
    metric = evaluate.load(str(ROOT / "training" / "evaluation" / "metric"), cache_dir=str(tmp_path))
    words = [[(i, i + 1) for i in range(len(document.text))] if document.is_split
             else processor.split_words(document.text) for document in documents]  # fmt: skip
    computed = metric.compute(predictions=found, references=gold, words=words)
    curve = computed.pop("overlap_curve")
    assert computed == {name: result[name] for name in computed} and computed["tp"] + computed["fn"] > 0
    assert computed["overlap"]["tp"] > computed["tp"]
    for entities, expected in zip(found, gold, strict=True):
        metric.add(prediction=entities, reference=expected)
    assert metric.compute(words=words) == {**computed, "overlap_curve": curve}
    low = extract(model, processor, [document.text for document in documents], threshold=CURVE_FLOOR)
    curve = metric.compute(predictions=low, references=gold, words=words)["overlap_curve"]
    assert {**curve, "floor": CURVE_FLOOR} == result["overlap_curve"] and curve["highest_recall"] > 0


def test_the_metric_works_without_words_or_scores(monkeypatch, tmp_path):
    """
    Without words, overlap counts units of the offsets. Without scores, there is no curve. Of equal entities, the one
    with the highest score counts.
    """
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(ROOT / "training" / "evaluation" / "metric"), cache_dir=str(tmp_path))
    gold = [[{"start": 0, "end": 9, "label": "A"}]]
    bare = [[{"start": 0, "end": 5, "label": "A"}, {"start": 6, "end": 9, "label": "A"}]]
    computed = metric.compute(predictions=bare, references=gold)
    assert computed == {**score_entities([[(0, 9, "A")]], [[(0, 5, "A"), (6, 9, "A")]]),
                        "overlap": computed["overlap"]}  # fmt: skip
    assert [computed["overlap"][name] for name in ("tp", "fp", "fn")] == [1, 1, 0]
    second = {"predictions": [bare[0][1:]], "references": gold}  # a third of the characters, half of the words
    assert metric.compute(**second)["overlap"]["tp"] == 0
    assert metric.compute(**second, words=[[(0, 4), (5, 9)]])["overlap"]["tp"] == 1
    one_scored = [[bare[0][0] | {"score": 0.5}, bare[0][1]]]
    assert metric.compute(predictions=one_scored, references=gold) == computed
    twice = [[entity | {"score": score} for score in (0.25, 0.75, 0.5) for entity in bare[0]]]
    curve = metric.compute(predictions=twice, references=gold)["overlap_curve"]
    assert [point["threshold"] for point in curve["points"]] == [0.75]
    nothing = metric.compute(predictions=[[]], references=[[]])
    assert nothing.pop("overlap_curve")["points"] == []
    assert nothing == {**score_entities([[]], [[]]), "overlap": score_entities([[]], [[]])}


def test_white_space_around_gold_does_not_lower_the_score(folder, capsys, monkeypatch, tmp_path):
    """The gold entities are those that the model finds, with the white space of the text around them."""
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    model, processor = load_checkpoint(folder / "model")
    texts = [f"\n {text} \n" for text in ("Ada  Lovelace in London", "ResNet-50 on\nImageNet")]
    found = extract(model, processor, texts)
    gold = []
    for text, entities in zip(texts, found, strict=True):
        gold.append([])
        for entity in entities:
            start, end = entity["start"], entity["end"]
            start -= text[start - 1].isspace()
            end += text[end].isspace()
            gold[-1].append({"start": start, "end": end, "label": entity["label"]})
    write_jsonl(
        tmp_path / "data.jsonl", [{"text": text, "entities": own} for text, own in zip(texts, gold, strict=True)]
    )
    as_they_are = zip([e for own in gold for e in own], [e for own in found for e in own], strict=True)
    count = sum((a["start"], a["end"]) != (b["start"], b["end"]) for a, b in as_they_are)
    result, errors = run_score(folder, capsys, "--data", str(tmp_path / "data.jsonl"))
    assert (result["f1"], result["trimmed"]) == (1.0, count) and count > 9
    assert f"note: {count:,} entities had white space around them, which was trimmed" in errors

    metric = evaluate.load(str(ROOT / "training" / "evaluation" / "metric"), cache_dir=str(tmp_path))
    computed = metric.compute(predictions=found, references=gold, texts=texts)
    assert (computed["f1"], computed["trimmed"]) == (1.0, count)
    assert metric.compute(predictions=found, references=gold)["f1"] < 0.5
    blank = [[{"start": 0, "end": 2, "label": "A"}], []]
    with pytest.raises(ValueError, match=r"references\[0\]: \[0, 2\) of the text is white space alone"):
        metric.compute(predictions=found, references=blank, texts=texts)
    with pytest.raises(ValueError, match="texts has 1 documents, references 2"):
        metric.compute(predictions=found, references=gold, texts=texts[:1])
