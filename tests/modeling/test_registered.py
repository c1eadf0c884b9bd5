"""A checkpoint without a copy of the code: transformers loads it by the imported package."""

import os
from pathlib import Path

import pytest
from support.toy import LABELS, ROOT, python, toy_backbone

from modeling_sener import SenerModel, SenerProcessor
from training.bundle import bundle
from training.fitting.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder of a checkpoint without code: weights, tokenizer and settings, which name no code."""
    folder = tmp_path_factory.mktemp("bare")
    model = SenerModel.from_backbone(str(toy_backbone(folder / "bert")), LABELS, span_window=4)
    save_checkpoint(model, SenerProcessor.from_backbone(str(folder / "bert"), model.config), folder / "model")
    bundle(folder / "model", folder / "bare")
    return folder / "bare"


def test_of_a_saved_checkpoint_the_weights_come_last(bare, tmp_path, monkeypatch):
    """Killed in between, older weights must not stand beside new code unnoticed."""
    moved, replace = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (moved.append(Path(target).name), replace(source, target))
    )
    save_checkpoint(*load_checkpoint(bare), tmp_path / "model")
    assert moved[-1] == "model.safetensors" and "modeling_sener.py" in moved


LOAD = """
import sys
sys.path.insert(0, {root!r})
{before}
from transformers import AutoModel, AutoProcessor, pipeline
extract = pipeline("entity-extraction", model={folder!r})
model, processor = AutoModel.from_pretrained({folder!r}), AutoProcessor.from_pretrained({folder!r})
print(type(extract).__module__, type(model).__module__, type(processor).__module__)
extract("We train ResNet-50.", threshold=0)
"""


def load(folder, before):
    return python("-c", LOAD.format(root=str(ROOT), folder=str(folder), before=before))


def test_with_the_package_imported_auto_classes_and_pipeline_load_it(bare):
    done = load(bare, "import modeling_sener")
    assert done.returncode == 0, done.stderr
    modules = ["modeling_sener.pipeline_sener", "modeling_sener.modeling_sener", "modeling_sener.processing_sener"]
    assert done.stdout.split() == modules


def test_without_the_package_transformers_does_not_know_the_model(bare):
    done = load(bare, "")
    assert done.returncode == 1 and "sener" in done.stderr
