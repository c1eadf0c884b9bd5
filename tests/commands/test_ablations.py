"""ablations.py: the rows of its table, skipped runs, killed commands; scores by length of text."""

import json
import shutil
import signal
import statistics
import subprocess
import sys

import psutil
import pytest
import torch
import yaml
from matplotlib.image import imread
from support.hostile import MINUTE, wait_for
from support.tiny import tiny_tokenizer
from support.toy import (
    LABELS,
    ROOT,
    as_raw,
    fails,
    python,
    toy_backbone,
    toy_folder,
    toy_records,
    training_arguments,
    write_jsonl,
)

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training import ablations
from training.corpus.data import read_documents
from training.evaluation.scoring import as_spans, score
from training.fitting.checkpoint import load_checkpoint
from training.fitting.fields import FieldError, parse_fields
from training.inference.extraction import extract


SCRIPT = ROOT / "training" / "ablations.py"
GIVEN = ["--backbone", "bert", "--train_file", "train.jsonl", "--dev_file", "dev.jsonl"]


def fields_of(tmp_path, **fields):
    return parse_fields(
        [*GIVEN, "--output_dir", str(tmp_path)]
        + [part for name, value in fields.items() for part in (f"--{name}", ablations.as_text(value))]
    )


def test_every_row_differs_from_the_base_in_one_field_and_train_takes_it(tmp_path):
    """The paper's rows and two more, whichever value of a field the base has."""
    shared = ["base", "attention=sliding_window", "attention=full", "log_n_scaling=false", "span_interaction=cnn",
              "span_interaction=none", "lora_rank=0", "mask_share=0.0"]  # fmt: skip
    base = ablations.base_values(fields_of(tmp_path))
    rows = ablations.rows_of(base, ablations.ROWS)
    assert list(rows) == [*shared, "triangles=both"], "a new model has the upper triangle, with one read-out"
    base = ablations.base_values(fields_of(tmp_path, triangles="both", vertical_readout="mirrored"))
    rows = ablations.rows_of(base, ablations.ROWS)
    assert list(rows) == [*shared, "triangles=upper", "vertical_readout=transposed", "triangle_mean=probability"]
    assert rows["triangles=upper"] == {"triangles": "upper", "vertical_readout": "transposed"}
    for row, changes in rows.items():
        changed = ablations.base_values(
            fields_of(tmp_path, **{"triangles": "both", "vertical_readout": "mirrored", **changes})
        )
        assert {name: value for name, value in changed.items() if value != base[name]} == changes, row
        assert all(type(changed[name]) is type(base[name]) for name in base), row
    other = {"attention": "full", "log_n_scaling": False, "span_interaction": "none", "lora_rank": 0, "mask_share": 0,
             "triangles": "both", "vertical_readout": "transposed", "triangle_mean": "probability"}  # fmt: skip
    base = ablations.base_values(fields_of(tmp_path, **other))
    assert base == other
    assert list(ablations.rows_of(base, ["lora_rank", "log_n_scaling", "mask_share", "attention"])) == [
        "base", "lora_rank=8", "log_n_scaling=true", "mask_share=0.15", "attention=arrow", "attention=sliding_window"
    ]  # fmt: skip


def test_a_row_that_the_base_does_not_allow_is_refused_before_the_first_one(tmp_path):
    fields = {"backbone": "encoder", "train_file": "t.jsonl", "dev_file": "d.jsonl", "output_dir": tmp_path / "out",
              "masked_words_weight": "0.1"}  # fmt: skip
    given = [str(part) for name, value in fields.items() for part in (f"--{name}", value)]
    with pytest.raises(FieldError, match=r"^row mask_share=0.0: masked_words_weight is 0.1: .*--rows without it$"):
        ablations.main([*given, "--rows", "lora_rank", "mask_share"])
    assert not (tmp_path / "out").exists()


def write_reports(folder, f1s):
    for (row, seed), f1 in f1s.items():
        place = folder / row / f"seed_{seed}"
        place.mkdir(parents=True)
        (place / "report.json").write_text(json.dumps({"precision": f1 / 2, "recall": f1 / 4, "f1": f1}))


F1S = {("base", 1): 0.5, ("base", 2): 0.7, ("base", 3): 0.65, ("attention=full", 1): 0.4,
       ("attention=full", 2): 0.75, ("attention=full", 3): 0.61, ("attention=sliding_window", 1): 0.1,
       ("attention=sliding_window", 2): 0.2, ("attention=sliding_window", 3): 0.6}  # fmt: skip


def test_rows_with_a_report_are_not_run_again_and_the_table_is_right(tmp_path, capsys):
    """The data files do not exist: any run would fail."""
    write_reports(tmp_path, F1S)
    given = [*GIVEN, "--output_dir", str(tmp_path), "--rows", "attention", "--num_epochs", "4", "--span_window", "9"]
    ablations.main([*given, "--seeds", "1", "2", "3"])
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "ablations.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "ablations.json").read_text())
    assert written["base"]["num_epochs"] == 4 and written["base"]["model"] == {"span_window": 9}
    lines = printed.splitlines()
    for fact in ("dev.jsonl", "num_epochs 4", "span_window 9", "attention arrow", "lora_rank 8", "mask_share 0.15"):
        assert fact in lines[0]
    for entry, line in zip(written["rows"], lines[4:], strict=True):
        row = entry["row"]
        values = [F1S[row, seed] for seed in (1, 2, 3)]
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        difference = statistics.mean(F1S[row, seed] - F1S["base", seed] for seed in (1, 2, 3))
        assert entry["f1"]["values"] == values and entry["seeds"] == [1, 2, 3]
        assert entry["f1"]["mean"] == pytest.approx(mean) and entry["f1"]["deviation"] == pytest.approx(deviation)
        assert entry["difference"] == pytest.approx(difference)
        shown = "" if row == "base" else f"{100 * difference:+.2f}"
        assert line == (f"| {row} | 1, 2, 3 | {50 * mean:.2f} ± {50 * deviation:.2f} | {25 * mean:.2f} ± "
                        f"{25 * deviation:.2f} | {100 * mean:.2f} ± {100 * deviation:.2f} | {shown} |")  # fmt: skip
    ablations.main([*given, "--seeds", "2"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "| attention=full | 2 | 37.50 | 18.75 | 75.00 | +5.00 |"


def test_rows_that_lack_a_seed_are_compared_with_the_same_seeds_of_the_base(tmp_path):
    reports = {place: f1 for place, f1 in F1S.items() if place != ("attention=full", 2)}
    write_reports(tmp_path, reports)
    rows = {"base": {}, "attention=full": {"attention": "full"}, "attention=sliding_window": {}, "none": {}}
    entries = {entry["row"]: entry for entry in ablations.summarise_rows(tmp_path, rows, [1, 2, 3])}
    assert set(entries) == set(rows) - {"none"} and entries["attention=full"]["seeds"] == [1, 3]
    assert entries["attention=full"]["difference"] == pytest.approx((0.4 - 0.5 + 0.61 - 0.65) / 2)
    assert entries["attention=full"]["f1"]["deviation"] == pytest.approx(statistics.stdev([0.4, 0.61]))


def test_reports_of_another_base_are_not_mixed_in(tmp_path):
    write_reports(tmp_path, F1S)
    given = [*GIVEN, "--output_dir", str(tmp_path), "--rows", "attention"]
    ablations.main([*given, "--seeds", "1"])
    with pytest.raises(ValueError, match="num_epochs was 30 for the rows that are there and is 2 now"):
        ablations.main([*given, "--seeds", "1", "--num_epochs", "2"])
    ablations.main([*given, "--seeds", "2", "--save_steps", "5", "--seed", "9", "--report_to", "none"])


def test_every_row_has_its_first_seed_before_any_has_its_second(tmp_path, monkeypatch):
    """So that a command that is stopped early leaves a complete table. `run_row` is replaced: it writes a report."""
    order = []

    def run_row(folder, base, changes, seed, *others):
        assert base == tmp_path / "base" / f"seed_{seed}"
        order.append((seed, folder.parent.name, changes))
        write_reports(tmp_path, {(folder.parent.name, seed): 0.5})

    monkeypatch.setattr(ablations, "run_row", run_row)
    ablations.main([*GIVEN, "--output_dir", str(tmp_path), "--rows", "lora_rank", "--seeds", "4", "2", "4"])
    assert order == [(4, "base", {}), (4, "lora_rank=0", {"lora_rank": 0}), (2, "base", {}),
                     (2, "lora_rank=0", {"lora_rank": 0})]  # fmt: skip


def test_a_data_set_without_a_split_is_scored_on_its_validation_split(tmp_path):
    (tmp_path / "plain").write_text("")
    files = [str(tmp_path / "plain"), "a.jsonl", "b.jsonl.gz", "name:test"]
    assert ablations.dev_sources([*files, "name"]) == [*files, "name:validation"]


@pytest.mark.parametrize("more, message", [
    (["--attention", "dense"], "SenerConfig.attention is 'dense'"),
    (["--num_epochs", "0"], "num_epochs is 0"),
])  # fmt: skip
def test_a_wrong_field_is_named_before_anything_runs(tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        ablations.main([*GIVEN, "--output_dir", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, message", [
    (["--rows", "span_window"], "invalid choice: 'span_window'"),
    (["--seed_list", "1"], "unrecognized arguments: --seed_list"),
    (["--by_length", "m", "--dev_file", "d", "--output_dir", "o", "--seed", "1"], "unrecognized arguments: --seed 1"),
])  # fmt: skip
def test_unknown_options_end_with_exit_code_2(tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as error:
        ablations.main(more if "--by_length" in more else [*GIVEN, "--output_dir", str(tmp_path), *more])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_run_that_fails_says_why_and_where(tmp_path):
    """The error contains the run's own message, and names the log with the rest of its output."""
    done = python(SCRIPT, *GIVEN[:4], "--dev_file", tmp_path / "none.jsonl", "--output_dir", tmp_path / "out",
                  "--rows", "attention", "--report_to", "none", "--seeds", "5")  # fmt: skip
    log = tmp_path / "out" / "base" / "seed_5" / "log.txt"
    fails(done, f"train.py failed: {tmp_path / 'none.jsonl'}: no such file", f"({log})")
    assert "no such file" in log.read_text() and not (log.parent / "report.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_training_ends_with_the_command(tmp_path, number):
    """
    Otherwise a second command could not use the folder. The training is in an epoch that takes minutes without output.
    """
    write_jsonl(tmp_path / "long.jsonl", toy_records(8) * 500)
    given = training_arguments(toy_folder(tmp_path), tmp_path / "out", "--train_file", str(tmp_path / "long.jsonl"),
                               "--report_to", "none", "--seeds", "3")  # fmt: skip
    command = subprocess.Popen([sys.executable, SCRIPT, *given], stderr=subprocess.PIPE, text=True)
    log, training = tmp_path / "out" / "base" / "seed_3" / "log.txt", []
    try:
        wait_for(lambda: log.exists() and "parameters: " in log.read_text())
        training = [child for child in psutil.Process(command.pid).children() if "train.py" in str(child.cmdline())]
        assert len(training) == 1
        command.send_signal(number)
        printed = command.communicate(timeout=MINUTE / 2)[1]
        assert psutil.wait_procs(training, timeout=MINUTE / 2)[1] == []
    finally:
        command.kill()
        for process in training:
            if process.is_running():
                process.kill()
    if number == signal.SIGTERM:
        assert command.returncode == 143 and printed.splitlines()[-1] == "terminated; the same command goes on"


def test_the_error_of_an_earlier_run_is_not_reported_again(tmp_path, monkeypatch):
    (tmp_path / "log.txt").write_text("error: an old fault\n")
    (tmp_path / "killed.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(ablations, "HERE", tmp_path)
    with pytest.raises(ValueError, match="killed.py failed: exit code -9 "):
        ablations.run_command("killed.py", [], tmp_path / "log.txt", print)


@pytest.mark.slow
def test_rows_are_trained_and_scored_and_a_killed_command_goes_on(tmp_path):
    """
    Two rows are trained and one is only scored, by the real commands. Then one report is deleted, and the command runs
    again: it makes that report alone.
    """
    toy = toy_folder(tmp_path)
    given = training_arguments(toy, tmp_path / "out", "--num_epochs", "2", "--lora_rank", "0", "--threshold", "0.02",
                               "--report_to", "none")  # fmt: skip
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump({"span_dropout": 0.0, "num_epochs": 9, "triangles": "both"}))
    command = [SCRIPT, "--config", config, *given, "--seeds", "3", "--rows", "vertical_readout", "triangle_mean"]
    done = python(*command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = ["base", "vertical_readout=transposed", "triangle_mean=probability"]
    assert [line.split(" | ")[0][2:] for line in done.stdout.splitlines()[4:]] == rows
    assert "base, seed 3: epoch 2: loss" in done.stderr and "3/3" in done.stderr
    folders = {row: tmp_path / "out" / row / "seed_3" for row in rows}
    configs = {row: SenerConfig.from_pretrained(folder / "model") for row, folder in folders.items()}
    assert [(config.vertical_readout, config.triangle_mean) for config in configs.values()] == [
        ("mirrored", "logit"), ("transposed", "logit"), ("mirrored", "probability")
    ]  # fmt: skip
    assert all(config.span_dropout == 0.0 and config.span_window == 8 for config in configs.values())
    weights = {row: (folder / "model" / "model.safetensors").read_bytes() for row, folder in folders.items()}
    assert weights[rows[0]] == weights[rows[2]] != weights[rows[1]]
    documents = read_documents(toy / "both.jsonl")
    gold = [document.entities for document in documents]
    written = json.loads((tmp_path / "out" / "ablations.json").read_text())
    for entry in written["rows"]:
        model, processor = load_checkpoint(folders[entry["row"]] / "model")
        found = extract(model, processor, [document.text for document in documents])
        assert entry["f1"]["values"] == [score(gold, [as_spans(entities) for entities in found])["f1"]]
        assert not list((folders[entry["row"]] / "model" / "checkpoints").glob("state_*"))

    times = {row: (folder / "report.json").stat().st_mtime_ns for row, folder in folders.items()}
    (folders[rows[2]] / "report.json").unlink()
    again = python(*command, OMP_NUM_THREADS="1")
    assert again.returncode == 0 and again.stdout == done.stdout
    after = {row: (folder / "report.json").stat().st_mtime_ns for row, folder in folders.items()}
    assert after[rows[0]] == times[rows[0]] and after[rows[1]] == times[rows[1]] and after[rows[2]] > times[rows[2]]


@pytest.fixture(scope="module")
def by_length(tmp_path_factory):
    """An untrained checkpoint that finds many spans; texts of 45 to 300 tokens, words and raw text."""
    folder = tmp_path_factory.mktemp("by_length")
    toy_backbone(folder / "bert")
    torch.manual_seed(0)
    model = SenerModel.from_backbone(str(folder / "bert"), LABELS, span_window=4, biaffine_size=8, span_channels=4,
                                     span_layers=1, attention_window=8)  # fmt: skip
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    torch.nn.init.zeros_(model.classifier.bias)
    model.save_pretrained(folder / "model")
    SenerProcessor(tiny_tokenizer("wordpiece"), model.config).save_pretrained(folder / "model")
    records = toy_records(9)
    long = {"doc_id": "long", "text": ["\x00"], "entity": []}
    for record in records[:6]:
        shift = len(long["text"])
        long["text"] = long["text"] + record["text"]
        long["entity"] = long["entity"] + [[a + shift, b + shift, name, label] for a, b, name, label in
                                           record["entity"]]  # fmt: skip
    write_jsonl(folder / "dev.jsonl", [long, as_raw(long), *records[6:], {"text": " ", "entities": []}])
    return folder


def test_chunks_of_whole_words_hold_the_text_within_the_limit_of_tokens(by_length):
    _, processor = load_checkpoint(by_length / "model")
    for document in read_documents(by_length / "dev.jsonl"):
        places = processor([document.text], is_split_into_words=document.is_split).word_offsets[0]
        ends = {start: end for start, end in places}
        for tokens in (8, 20, 64, 1000):
            chunks, cut = ablations.document_chunks(processor, document, tokens)
            words, seams = [], []
            for start, text in chunks:
                inputs = processor([text], is_split_into_words=document.is_split)
                assert inputs["input_ids"].shape[1] <= tokens
                words += [(a + start, b + start) for a, b in inputs.word_offsets[0]]
                seams.append(start)
                assert text == document.text[start : start + len(text)]
            assert words == places and set(seams) <= set(ends)
            # Greedy: no chunk could have taken the first word of the next one.
            for (start, _), (following, _) in zip(chunks, chunks[1:], strict=False):
                longer = document.text[start : ends[following]]
                inputs = processor([longer], is_split_into_words=document.is_split)
                assert inputs["input_ids"].shape[1] > tokens
            expected = [span for span in document.entities if any(span[0] < seam < span[1] for seam in seams)]
            assert cut == len(expected)
        assert ablations.document_chunks(processor, document, None) == ([(0, document.text)], 0)


def test_scores_by_length_are_those_of_the_chunks(by_length, tmp_path, capsys, monkeypatch):
    """The lengths are shorter than the command's, as the texts are short."""
    monkeypatch.setattr(ablations, "LENGTHS", (16, 64, 1024))
    model, processor = load_checkpoint(by_length / "model")
    documents = read_documents(by_length / "dev.jsonl")
    ablations.main(["--by_length", str(by_length / "model"), "--dev_file", str(by_length / "dev.jsonl"),
                    "--output_dir", str(tmp_path)])  # fmt: skip
    points = {point["tokens"]: point for point in json.loads((tmp_path / "by_length.json").read_text())["points"]}
    assert list(points) == [16, 64, 1024, None]
    for tokens in (16, 64):
        found = []
        for document in documents:
            found.append([])
            for start, text in ablations.document_chunks(processor, document, tokens)[0]:
                for entity in extract(model, processor, [text])[0]:
                    place = entity["start"] + start, entity["end"] + start
                    quote = document.text[place[0] : place[1]]
                    assert entity["text"] == (" ".join(quote) if document.is_split else quote)
                    found[-1].append((*place, entity["label"]))
        expected = score([document.entities for document in documents], found)
        assert expected["tp"] and points[tokens]["f1"] == expected["f1"]
        assert points[tokens]["precision"] == expected["precision"] and points[tokens]["recall"] == expected["recall"]
    found = extract(model, processor, [document.text for document in documents])
    whole = score([document.entities for document in documents], [as_spans(entities) for entities in found])
    assert whole["f1"] == points[None]["f1"] == points[1024]["f1"] != points[16]["f1"]
    assert points[16]["cut_entities"] > points[64]["cut_entities"] > points[None]["cut_entities"] == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "by_length.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in printed.splitlines()[2:]] == ["| 16", "| 64", "| 1,024", "| whole"]
    assert f"| {100 * whole['f1']:.2f} | " in printed.splitlines()[-1]
    image = imread(tmp_path / "by_length.png")
    assert image.shape[0] > 500 and image[..., :3].std() > 0.02


def test_lengths_go_on_where_they_were_interrupted_with_the_same_model(by_length, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "LENGTHS", (64, 1024))
    model, output = shutil.copytree(by_length / "model", tmp_path / "model"), tmp_path / "out"
    scored, score_by_length = [], ablations.score_by_length

    def score_two(*arguments):
        if len(scored) == 2:
            raise RuntimeError
        scored.append(arguments[-1])
        return score_by_length(*arguments)

    monkeypatch.setattr(ablations, "score_by_length", score_two)
    arguments = ["--by_length", str(model), "--dev_file", str(by_length / "dev.jsonl"), "--output_dir", str(output)]
    with pytest.raises(RuntimeError):
        ablations.main(arguments)
    assert scored == [64, 1024] and not (output / "by_length.md").exists()
    scored.clear()
    ablations.main(arguments)
    assert scored == [None]
    table = (output / "by_length.md").read_text()
    monkeypatch.setattr(ablations, "score_by_length", score_by_length)
    ablations.main([*arguments[:-1], str(tmp_path / "anew")])
    assert (tmp_path / "anew" / "by_length.md").read_text() == table
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"threshold": 0.9}))
    ablations.main(arguments)
    assert (output / "by_length.md").read_text() != table


def test_by_length_refuses_a_folder_without_a_model(tmp_path):
    with pytest.raises(ValueError, match="not a SeNER checkpoint"):
        ablations.main(["--by_length", str(tmp_path), "--dev_file", "d", "--output_dir", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()


def test_the_lengths_are_those_of_the_paper():
    assert ablations.LENGTHS == (256, 512, 1024, 2048, 4096, 8192)
