"""--model with the short names of the bundled models."""

import json
import re

import pytest
from support.toy import ROOT, fails, python, toy_backbone

from modeling_sener import SenerModel, SenerProcessor
from training import extract
from training.common import models
from training.common.models import find_model


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
        ValueError, match=rf"--model biomedical: not in this checkout \({where}.* of: papers, contracts$"
    ):
        find_model("biomedical")


def test_extract_takes_the_name(bundled, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Ada Lovelace")
    for name, label in (([], "Method"), (["--model", "contracts"], "Governing Law")):
        extract.main([str(tmp_path / "a.txt"), *name, "--threshold", "0", "--format", "json"])
        assert {entity["label"] for entity in json.loads(capsys.readouterr().out)} == {label}


def test_the_command_refuses_an_unknown_name_in_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("Ada Lovelace")
    done = python(ROOT / "training" / "extract.py", tmp_path / "a.txt", "--model", "proteins")
    fails(done, "--model proteins: no such model. Give a folder, user/name on the Hub, or one of: papers")
