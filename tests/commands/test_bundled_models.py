"""--model with the short names of the bundled models."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from support.toy import ROOT, fails, python, toy_backbone

from modeling_sener import SenerModel, SenerProcessor
from training import bundle, extract, predict, score
from training.common import models
from training.common.models import find_model
from training.fitting.checkpoint import load_checkpoint, save_checkpoint
from training.fitting.fields import FieldError, TrainingFields
from training.publishing.check_published import FILES, HEADER


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """
    Bundled models with different labels; the third one is missing. The working folder has a folder with the same name
    as one of them.
    """
    backbone = toy_backbone(tmp_path / "backbone")
    folders = {name: tmp_path / "there" / name for name in models.MODELS}
    for name, labels in (("papers", ["Method"]), ("contracts", ["Governing Law"])):
        sizes = {"span_window": 4, "biaffine_size": 8, "span_channels": 4, "span_layers": 1}
        model = SenerModel.from_backbone(str(backbone), labels, **sizes)
        model.save_pretrained(folders[name])
        SenerProcessor.from_backbone(str(backbone), model.config).save_pretrained(folders[name])
    monkeypatch.setattr(models, "MODELS", folders)
    (tmp_path / "contracts").mkdir()
    monkeypatch.chdir(tmp_path)
    return folders


def test_a_short_name_is_the_bundled_folder(bundled, tmp_path):
    assert find_model("contracts") == str(bundled["contracts"])
    for name in ("./contracts", str(tmp_path), "user/name", "backbone", "none/at/all"):
        assert find_model(name) == name


def test_an_unknown_name_is_an_error_that_lists_the_names(bundled):
    with pytest.raises(ValueError, match="--model contract: no such model.*or one of: papers, contracts$"):
        find_model("contract")
    where = re.escape(str(bundled["biomedical"]))
    with pytest.raises(
        ValueError, match=rf"^biomedical: not in this checkout \({where}.*; use one of: papers, contracts$"
    ):
        find_model("biomedical")


def test_training_from_a_model_that_is_not_there_names_the_field(bundled):
    with pytest.raises(FieldError, match="^backbone is biomedical: not in this checkout"):
        TrainingFields("biomedical", ["train.jsonl"], ["dev.jsonl"], "out")


def test_extract_takes_the_name(bundled, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Ada Lovelace")
    for name, label in (([], "Method"), (["--model", "contracts"], "Governing Law")):
        extract.main([str(tmp_path / "a.txt"), *name, "--threshold", "0", "--format", "json"])
        assert {entity["label"] for entity in json.loads(capsys.readouterr().out)} == {label}


def test_score_and_predict_take_the_name(bundled, tmp_path, capsys):
    (tmp_path / "gold.jsonl").write_text('{"text": "Ada", "entities": [{"start": 0, "end": 3, "label": "Method"}]}\n')
    score.main(["--model", "papers", "--data", str(tmp_path / "gold.jsonl"), "--threshold", "0"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["model"] == str(bundled["papers"]) and list(result["thresholds"]) == ["Method"]
    found = tmp_path / "found.jsonl"
    predict.main(["--model", "contracts", "--input", str(tmp_path / "gold.jsonl"), "--output", str(found),
                  "--threshold", "0"])  # fmt: skip
    assert {entity["label"] for entity in json.loads(found.read_text())["entities"]} == {"Governing Law"}


def test_the_command_refuses_an_unknown_name_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("Ada Lovelace")
    done = python(ROOT / "training" / "extract.py", tmp_path / "a.txt", "--model", "proteins")
    fails(done, "--model proteins: no such model. Give a folder, user/name on the Hub, or one of: papers")


def check_bundled(folder):
    """A folder of checkpoints/ has the files of a checkpoint without code, small enough for a clone, and loads."""
    assert {file.name for file in folder.iterdir()} <= {*FILES, "model.safetensors", "LICENSE"}
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 50_000_000
    fields = [json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES if name.endswith(".json")]
    assert not [name for each in fields for name in ("auto_map", "custom_pipelines") if name in each]
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    load_checkpoint(folder)


def test_a_bundled_checkpoint_has_no_code_and_the_weights_of_its_training(tmp_path):
    backbone = toy_backbone(tmp_path / "backbone")
    model = SenerModel.from_backbone(str(backbone), ["Method"], span_window=4, biaffine_size=8, span_channels=4)
    save_checkpoint(model, SenerProcessor.from_backbone(str(backbone), model.config), tmp_path / "trained")
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "README.md").write_text("the card")
    for _ in range(2):  # a later training replaces it
        bundle.main([str(tmp_path / "trained"), str(tmp_path / "bundled")])
        check_bundled(tmp_path / "bundled")
    assert (tmp_path / "bundled" / "README.md").read_text() == "the card"
    (trained, _), (bundled, _) = load_checkpoint(tmp_path / "trained"), load_checkpoint(tmp_path / "bundled")
    for name, weight in trained.state_dict().items():
        assert torch.equal(bundled.state_dict()[name], weight.half().float())
    with pytest.raises(ValueError, match="trained holds code: give a folder of its own"):
        bundle.main([str(tmp_path / "bundled"), str(tmp_path / "trained")])
    assert (tmp_path / "trained" / "modeling_sener.py").is_file()


@pytest.mark.parametrize(
    "folder",
    [folder for folder in models.MODELS.values() if folder != models.BUNDLED],
    ids=lambda path: path.name,
)
def test_the_checkpoints_of_this_checkout(folder):
    check_bundled(folder)
    assert ModelCard.load(folder / "README.md").data.to_dict().keys() >= set(HEADER)


EXAMPLES = {"papers": ("paper", "Method"), "contracts": ("contract", "Governing Law"),
            "biomedical": ("article", "Protein")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_each_model_finds_what_its_example_has(name):
    example, label = EXAMPLES[name]
    done = python(ROOT / "training" / "extract.py", ROOT / f"space/examples/{example}.txt", "--model", name)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"(?m)^\S.* {label} +0\.\d\d +\d+-\d+$", done.stdout), done.stdout
