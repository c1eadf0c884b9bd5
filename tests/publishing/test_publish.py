"""publish.py: the folder, its model card, and the upload to a local fake of the Hub."""

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, SpaceCard
from safetensors.torch import load as torch_load
from safetensors.torch import load_file
from support import golden_checkpoints
from support.demo_server import tiny_checkpoint
from support.hub_server import TOKEN, Hub
from support.toy import LABELS, ROOT, python

from modeling_sener import SenerModel
from training import publish
from training.bundle import bundle
from training.evaluation.breakdown import by_depth
from training.evaluation.overlap import match_overlap
from training.evaluation.scoring import Grouping, match, summarise
from training.fitting import checkpoint
from training.fitting.checkpoint import load_checkpoint
from training.publishing import check_published
from training.publishing.card import group_table


CARD = ["--license", "apache-2.0", "--language", "en", "--dataset", "someone/papers", "--base_model", "someone/bert"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("publish"), threshold=0.4)


@pytest.fixture
def hub(monkeypatch):
    """A fake of the Hub; this process is logged in to it."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the fake does not speak its protocol
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(publish, "HfApi", lambda: HfApi(endpoint=hub.url))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield hub
    hub.stop()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder. Publishing checks files only; test_check_published.py tests the other checks."""

    def check_files_only(folder):
        return check_published.Result(failures=check_published.file_faults(folder))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(publish, "check_published_folder", check_files_only)
    return tmp_path


def report(**changes):
    """A report like that of score.py, on four entities. One is nested and was missed."""
    gold = [[(0, 3, "Method"), (1, 2, "Task")], [(5, 6, "Person"), (7, 8, "Person")]]
    found = [[(0, 3, "Method")], [(5, 6, "Person"), (7, 9, "Person")]]
    outcomes = match(gold, found)
    by_overlap = match_overlap(outcomes, outcomes.start, outcomes.end)
    short = Grouping(np.zeros_like(outcomes.label), ["1-3"])
    return summarise(outcomes, {"by_length": short, "by_depth": by_depth(outcomes)}) | {
        "overlap": summarise(by_overlap, {}), "overlap_curve": {"area": 0.456, "precision_at_80_recall": None},
        "thresholds": dict.fromkeys(LABELS, 0.4), "data": ["/somewhere/dev.jsonl"], "texts": 2,
        "words": 1234, "entities": 4, "wider_than_window": 1,
    } | changes  # fmt: skip


def write_report(folder, **changes):
    (folder / "report.json").write_text(json.dumps(report(**changes)))
    return str(folder / "report.json")


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_dry_run_writes_the_whole_repository_and_uploads_nothing(model, here, hub, capsys):
    publish.main(
        ["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD, "--dry-run"]
    )
    folder = here / "published" / "someone" / "sener"
    assert capsys.readouterr().out.strip() == "published/someone/sener"
    code = {file.name: file.read_bytes() for file in (ROOT / "modeling_sener").glob("[!_]*.py")}
    written = contents(folder)
    assert code.items() <= written.items()
    assert set(written) - set(code) == {
        "README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads(written["config.json"])
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoProcessor"}
    assert "entity-extraction" in config["custom_pipelines"] and config["threshold"] == 0.4
    stored, ours = load_file(folder / "model.safetensors"), load_file(model / "model.safetensors")
    assert stored.keys() == ours.keys() and all(torch.equal(stored[name], ours[name]) for name in ours)
    private = str(model.parent).encode()
    assert not [name for name, content in written.items() if private in content], "a path of this machine"
    assert not hub.commits and not hub.repos


def test_weights_keep_their_precision_and_are_sharded_when_large(model, here, monkeypatch):
    folder = here / "half"
    loaded, processor = load_checkpoint(model)
    loaded.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    monkeypatch.setattr(checkpoint, "SHARD_SIZE", "20KB")
    scores = ["--scores", write_report(here), *CARD, "--dry-run"]
    publish.main(["--model", str(folder), "--repo", "someone/sener", *scores])
    published = here / "published" / "someone" / "sener"
    shards = sorted(published.glob("*.safetensors"))
    assert len(shards) > 1 and not check_published.file_faults(published)
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    again = SenerModel.from_pretrained(published)
    assert all(torch.equal(p.half(), loaded.state_dict()[name]) for name, p in again.state_dict().items())
    # A sharded folder can be published again, onto itself.
    publish.main(["--model", str(published), "--repo", "someone/sener", "--dry-run"])
    assert sorted(published.glob("*.safetensors")) == shards
    shards[0].unlink()
    assert check_published.file_faults(published) == [f"{shards[0].name} is missing"]


def test_a_checkpoint_without_code_becomes_the_same_repository(model, here):
    bare, whole = here / "bare", shutil.copytree(model, here / "whole")
    bundle(model, bare)
    published = []
    for folder in (bare, whole):
        (folder / "README.md").write_text(golden_checkpoints.CARD)
        publish.main(["--model", str(folder), "--repo", "someone/sener", "--dry-run"])
        published.append(contents(here / "published" / "someone" / "sener"))
    stored, ours = (torch_load(files.pop("model.safetensors")) for files in published)
    assert published[0] == published[1] and "modeling_sener.py" in published[0]
    assert stored.keys() == ours.keys() and all(torch.equal(stored[name], ours[name].half()) for name in ours)


def test_the_card_has_the_measured_scores(model, here):
    arguments = ["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD, "--dry-run"]
    publish.main(arguments)
    card = ModelCard.load(here / "published" / "someone" / "sener" / "README.md")
    data = card.data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en"], "transformers")
    assert (data.pipeline_tag, data.datasets) == ("token-classification", ["someone/papers"])
    assert data.base_model == "someone/bert" and "sener" in data.tags
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"precision": round(2 / 3, 4), "recall": 0.5, "f1": round(4 / 7, 4)}
    assert {result.dataset_type for result in data.eval_results} == {"someone/papers"}
    text = card.text
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert rows["1-3"].startswith("| 1-3 | 4 | 66.7 (") and rows["1"].startswith("| 1 | 1 | 0.0 (")  # words, depth
    assert "area under the precision-recall curve is 45.6, recall of 80 % is not reached" in text
    assert "`triangles:\nupper`, `span_window: 5`" in text
    assert rows["Task"].startswith("| Task | 1 | 0.0 (") and rows["Person"].startswith("| Person | 2 | 50.0 (")
    low, high = report()["interval"]["f1"]
    assert f"57.1 ({100 * low:.1f}–{100 * high:.1f})" in rows["all (micro)"]
    exact_and_overlap = [cell.split(" (")[0] for cell in rows["Person"].split(" | ")[4:]]
    assert exact_and_overlap == ["50.0", "100.0"]  # half of a span's words are the other's
    assert "dev.jsonl: 1,234 words, 4 entities" in text and "/somewhere" not in text
    assert "more than 6 words" in text and "entities 1 are" in text
    assert "Of 1 entities inside another one it finds 0.0 %" in text
    assert "Learned positions end after about 128" in text and "fitted" not in text
    assert 'model="someone/sener"' in text and "chen2025sener" in text


def test_the_card_says_if_thresholds_were_fitted_or_nesting_not_measured(model, here):
    scores = write_report(here, before_fitting={"f1": 0.123}, by_depth={"0": report()["by_depth"]["0"]})
    publish.main(["--model", str(model), "--repo", "someone/sener", "--scores", scores, *CARD, "--dry-run"])
    text = (here / "published" / "someone" / "sener" / "README.md").read_text()
    assert "fitted on these very texts" in text and "12.3" in text and "no nested entities" in text


@pytest.mark.parametrize("name", ["a|b", "<img src=x>", "*x* [y](z)", "two\nlines"])
def test_names_are_escaped_in_the_card(name, model):
    loaded, _ = load_checkpoint(model)
    loaded.config.id2label = {0: name}
    entry = {name: report()["per_label"]["Task"]}
    scores = report(per_label=entry, overlap=report()["overlap"] | {"per_label": entry})
    card = publish.build_card("someone/sener", loaded, scores, "mit", ["en"], [name], "someone/bert")
    assert ModelCard(str(card)).data.datasets == [name]
    row, _ = [line for line in card.text.splitlines() if "| 1 | 0.0 (" in line]  # two rows: length 1 and depth 1
    assert row.count("|") - row.count(r"\|") == 7
    assert "<img" not in card.text and "[y](z)" not in card.text and "*x*" not in card.text.replace(r"\*x\*", "")


def test_one_commit_has_every_file_byte_for_byte_and_removes_old_ones(model, here, hub, capsys):
    hub.repos["models/someone/sener"] = {
        ".gitattributes": b"", "picture.png": b"", "old_code.py": b"", "model-00001-of-00002.safetensors": b"",
        "model.safetensors.index.json": b"", "config.json": b"old",
    }  # fmt: skip
    publish.main(["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD])
    written = contents(here / "published" / "someone" / "sener")
    assert hub.repos["models/someone/sener"] == {".gitattributes": b"", "picture.png": b""} | written
    (commit,) = hub.commits
    old = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "old_code.py"]
    assert commit == ("models/someone/sener", "Publish", sorted(written), old)
    assert hub.large, "no file was uploaded as a large one"
    assert hub.cards == [written["README.md"].decode()]
    assert capsys.readouterr().out.strip() == f"{hub.url}/someone/sener/tree/{1:040x}"


def test_a_space_is_the_demo_with_this_commit_of_the_model(model, here, hub, capsys):
    scores = ["--scores", write_report(here), *CARD]
    publish.main(["--model", str(model), "--repo", "someone/sener", "--space", "someone/demo", *scores])
    assert [commit[0] for commit in hub.commits] == ["models/someone/sener", "spaces/someone/demo"]
    assert hub.variables == {"spaces/someone/demo": {"SENER_MODEL": f"someone/sener@{1:040x}"}}
    sent = hub.repos["spaces/someone/demo"]
    source = {name: content for name, content in contents(ROOT / "space").items() if "__pycache__" not in name}
    different = {name for name in {*source, *sent} if source.get(name) != sent.get(name)}
    assert different == {".gitattributes", "README.md"}
    ours, theirs = SpaceCard.load(ROOT / "space" / "README.md"), SpaceCard(sent["README.md"].decode())
    assert theirs.text.strip() == ours.text.strip()
    assert theirs.data.to_dict() == ours.data.to_dict() | {"models": ["someone/sener"]}
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/spaces/someone/demo"


def test_publishing_again_changes_no_file(model, here, hub):
    arguments = ["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD]
    publish.main(arguments)
    before = copy.deepcopy(hub.repos)
    publish.main(arguments)
    assert hub.repos == before and len(hub.commits) == 2


def test_a_license_of_the_folder_is_published(model, here):
    (here / "LICENSE").write_text("Do what you like.")
    own = shutil.copytree(model, here / "own")
    shutil.move(here / "LICENSE", own)
    publish.main(["--model", str(own), "--repo", "someone/sener", "--scores", write_report(here), *CARD, "--dry-run"])
    assert (here / "published" / "someone" / "sener" / "LICENSE").read_text() == "Do what you like."


MALFORMED = [
    {"per_label": {"Task": {"f1": 1}}}, {"per_label": [1]}, {"macro": 3}, {"interval": {}}, {"by_depth": {"1": None}},
    {"thresholds": LABELS}, {"thresholds": dict.fromkeys(LABELS, "high")}, {"data": "dev.jsonl"}, {"texts": "two"},
    {"before_fitting": {}}, {"f1": "good"},
]  # fmt: skip


@pytest.mark.parametrize("changes", MALFORMED, ids=str)
def test_a_report_of_another_kind_is_named(changes, model, here):
    loaded, _ = load_checkpoint(model)
    with pytest.raises(ValueError, match="report.json: not what training/score.py --output writes"):
        publish.read_scores(write_report(here, **changes), loaded.config)


def test_the_command_in_the_card_is_quoted_for_a_shell(model):
    loaded, _ = load_checkpoint(model)
    scores = report(data=["dev_set.jsonl", "/other/a, b & c.jsonl"])
    card = publish.build_card("someone/sener", loaded, scores, "mit", ["en"], ["data"], "someone/bert")
    (command,) = [line for line in card.text.splitlines() if line.startswith("accelerate launch training/score.py")]
    assert shlex.split(command)[-2:] == ["dev_set.jsonl", "a, b & c.jsonl"]


BAD = {
    "no folder": (["--model", "nowhere"], "--model nowhere: no such folder"),
    "no model": (["--model", "empty"], "empty: not a SeNER checkpoint"),
    "no user": (["--repo", "sener"], "--repo 'sener': expected USER/NAME"),
    "bad name": (["--repo", "some one/sener"], "--repo 'some one/sener'"),
    "bad space": (["--space", "a/b/c"], "--space 'a/b/c'"),
    "no license": (["--license", None], "--license"),
    "no scores": (["--scores", None], "--scores"),
    "no report": (["--scores", "nowhere.json"], "nowhere.json"),
    "no JSON": (["--scores", "text.json"], "text.json: not JSON"),
    "no object": (["--scores", "list.json"], "list.json: expected"),
    "no field": (["--scores", "short.json"], "short.json: no field 'precision'"),
    "other labels": (["--scores", "labels.json"], "labels.json: the report of a model with other labels: Food"),
    "other threshold": (["--scores", "threshold.json"], "threshold 0.7 for Task, the model has 0.4"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_fault_is_named_and_nothing_is_sent(case, model, here, hub):
    (here / "empty").mkdir()
    (here / "empty" / "README.md").write_text("a card")
    (here / "text.json").write_text("{")
    (here / "list.json").write_text("[]")
    (here / "short.json").write_text("{}")
    (here / "labels.json").write_text(json.dumps(report(thresholds={"Food": 0.4})))
    (here / "threshold.json").write_text(json.dumps(report(thresholds=dict.fromkeys(LABELS, 0.4) | {"Task": 0.7})))
    options = {"--model": [str(model)], "--repo": ["someone/sener"], "--scores": [write_report(here)]}
    options |= {name: [value] for name, value in zip(CARD[::2], CARD[1::2], strict=True)}
    (name, value), message = BAD[case]
    options[name] = [value]
    with pytest.raises((ValueError, OSError)) as error:
        publish.main([part for name, values in options.items() if values != [None] for part in (name, *values)])
    assert message in str(error.value) and not hub.repos and not hub.commits


def test_a_folder_without_card_and_scores_is_not_published(model, here, hub):
    with pytest.raises(ValueError, match="no README.md: give --scores"):
        publish.main(["--model", str(model), "--repo", "someone/sener"])
    assert not hub.repos


def test_without_a_token_nothing_is_written_or_sent(model, here, hub, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    with pytest.raises(ValueError, match="no token for the Hub: .*HF_TOKEN"):
        publish.main(["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD])
    assert not (here / "published").exists() and not hub.repos


def test_a_refused_token_and_an_unreachable_hub_are_named(model, here, hub, monkeypatch):
    arguments = ["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD]
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(ValueError, match="someone/sener: the upload to http.* failed: .*401"):
        publish.main(arguments)
    assert not hub.commits
    monkeypatch.setattr(publish, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match="someone/sener: the upload to http://127.0.0.1:9 failed: ") as error:
        publish.main(arguments)
    assert "\n" not in str(error.value)


def test_a_folder_that_fails_the_check_is_not_sent(model, here, hub, monkeypatch):
    monkeypatch.setattr(
        publish, "check_published_folder", lambda folder: check_published.Result(failures=["scores differ"])
    )
    with pytest.raises(ValueError, match="not fit to be published:\n  scores differ"):
        publish.main(["--model", str(model), "--repo", "someone/sener", "--scores", write_report(here), *CARD])
    assert not hub.repos


def test_the_command_ends_with_one_message(model):
    done = python("training/publish.py", "--model", model, "--repo", "sener", "--dry-run")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: --repo 'sener': expected USER/NAME\n"


@pytest.mark.slow
def test_the_command_checks_and_uploads(model, tmp_path):
    hub = Hub()
    command = [sys.executable, ROOT / "training" / "publish.py", "--model", model, "--repo", "someone/sener",
               "--scores", write_report(tmp_path), *CARD]  # fmt: skip
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
    hub.stop()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{hub.url}/someone/sener/tree/{1:040x}\n" and "checks passed" in done.stderr
    assert len(hub.commits) == 1
    assert hub.repos["models/someone/sener"] == {".gitattributes": b""} | contents(
        tmp_path / "published/someone/sener"
    )


@pytest.mark.slow
def test_the_command_prepares_the_bundled_model_and_its_demo(tmp_path):
    command = [sys.executable, ROOT / "training" / "publish.py", "--model", ROOT / "modeling_sener", "--repo",
               "someone/sener", "--space", "someone/demo", "--dry-run"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["published/someone/sener", "published/spaces/someone/demo"]
    # The demo runs from the published Space's folder alone.
    model = str(tmp_path / "published" / "someone" / "sener")
    page = f"import app; models = app.Models(app.on_offer({model!r}), 60); models.get(); app.build(models)"
    done = subprocess.run([sys.executable, "-c", page], cwd=tmp_path / "published" / "spaces" / "someone" / "demo",
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_card_leaves_out_groups_without_an_entity():
    empty = {"tp": 0, "fp": 0, "fn": 0, **{name: 0.0 for name in ("precision", "recall", "f1")},
             "interval": dict.fromkeys(("precision", "recall", "f1"), (0.0, 0.0))}  # fmt: skip
    scores = {"by_length": {"1": empty | {"tp": 1}, "2": empty, "3": empty | {"fp": 1}, "4": empty | {"fn": 1}}}
    assert [row.split(" | ")[0] for row in group_table(scores, "by_length").splitlines()[2:]] == ["| 1", "| 3", "| 4"]
