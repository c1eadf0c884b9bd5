"""The learning curve: its samples, the fields that its runs read, and the whole command on a toy task."""

import json

import pytest
from benchmarks import learning_curve
from hypothesis import given
from hypothesis import strategies as st
from support.toy import LABELS, ROOT, python, toy_folder, training_arguments, write_jsonl

from training.corpus.data import Document, parse_record
from training.fitting.fields import FieldError, parse_fields


FIELDS = ["--backbone", "bert", "--dev_file", "dev.jsonl", "--output_dir", "out"]


@given(st.data())
def test_a_document_is_written_as_it_was_read(data):
    text = data.draw(st.one_of(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1)))
    solid = [i for i, letter in enumerate(text) if letter.strip()]
    entities = data.draw(st.lists(st.tuples(st.sampled_from(solid), st.sampled_from(solid), st.text(min_size=1)))) \
        if solid else []  # fmt: skip
    entities = tuple(dict.fromkeys((min(a, b), max(a, b) + 1, label) for a, b, label in entities))
    document = Document("7", text, entities)
    assert parse_record(json.loads(learning_curve.data_line(document)), "here") == document


def test_a_larger_sample_holds_the_smaller_ones_and_all_files_are_drawn_from(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / name, [{"id": f"{name}{i}", "text": "x y", "entities": []} for i in range(200)])
    files = ["--train_file", str(tmp_path / "a"), str(tmp_path / "b")]
    draws = {}
    for seed in ("1", "2"):
        fields = parse_fields([*FIELDS, *files, "--seed", seed])
        draws[seed] = [
            [document.id for document in learning_curve.draw_documents(fields, counts)[:40]]
            for counts in ([40], [40, 300], [3, 400, 40])
        ]
        assert draws[seed][0] == draws[seed][1] == draws[seed][2]
        assert len({document.id for document in learning_curve.draw_documents(fields, [400])}) == 400
    assert draws["1"][0] != draws["2"][0]
    with pytest.raises(FieldError, match="--documents 401: expected 1 to 400"):
        learning_curve.draw_documents(fields, [5, 401])


def test_a_run_reads_the_fields_that_were_written(tmp_path):
    fields = parse_fields([*FIELDS, "--train_file", "t", "--span_window", "9", "--triangles", "both", "--seed", "5"])
    fields.labels = ["NO", "a, b", "1", "on", "药物"]
    learning_curve.write_config(tmp_path, fields)
    assert parse_fields(["--config", str(tmp_path / "config.yaml")]) == fields


@pytest.mark.slow
def test_models_of_each_size_are_trained_scored_and_drawn_and_a_second_call_trains_none(tmp_path):
    toy = toy_folder(tmp_path)
    given_fields = training_arguments(
        toy, tmp_path / "out", "--num_epochs", "2", "--report_to", "none", "--lora_rank", "0"
    )
    command = ["-m", "benchmarks.learning_curve", *given_fields, "--documents", "4", "2", "--tagger_backbone",
               toy / "bert"]  # fmt: skip
    done = python(*command, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines()[2:]]
    assert rows == [["2", "SeNER"], ["2", "plain tagger"], ["4", "SeNER"], ["4", "plain tagger"]]
    written = json.loads((tmp_path / "out" / "learning_curve.json").read_text())
    for name, points in written.items():
        for point in points:
            folder = learning_curve.place(tmp_path / "out", name, point["documents"])
            report = json.loads((folder / "report.json").read_text())
            assert report["f1"] == point["f1"] and report["minutes"] == point["minutes"]
            assert len((folder / "train.jsonl").read_text().splitlines()) == point["documents"]
            assert set(report["per_label"]) <= set(LABELS)
    again = python(*command, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}")
    assert again.returncode == 0 and again.stdout == done.stdout and "epoch 1" not in again.stderr
