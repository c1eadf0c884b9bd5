"""The Python of README.md, run as written by someone who has a model's folder and no checkout."""

import re

import pytest
from support.fresh import run_fresh
from support.tiny import tiny_tokenizer
from support.tiny_models import BACKBONES, tiny_config
from support.toy import ROOT

from modeling_sener import SenerModel, SenerProcessor


LABELS = ["Material", "Method", "Metric", "Task"]  # of the bundled model, which README's first examples name
THEN = """
from transformers import AutoConfig

before, after = (AutoConfig.from_pretrained(name, trust_remote_code=True) for name in ("modeling_sener", "my-model"))
assert len(before.label2id) == 4 and list(after.label2id) == ["Dose", "Drug"], after.label2id
extract = pipeline("entity-extraction", model="my-model", trust_remote_code=True)
found = extract(texts[0], threshold=0)
assert {entity["label"] for entity in found} == {"Dose", "Drug"} and entities
assert trainer.state.global_step == 20
steps = [entry for entry in trainer.state.log_history if "train_loss" in entry]
assert steps[0]["train_loss"] > model.eval()(**processor(texts, entities=gold)).loss.item()
"""


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.mark.slow
def test_python_runs_as_written(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = python_blocks(text)
    assert len(blocks) == 3 and "Trainer(" in blocks[-1] and blocks[-1].count("\n") <= 20
    tokenizer = tiny_tokenizer("wordpiece")
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    model = SenerModel(tiny_config({**BACKBONES["bert"], "vocab_size": len(tokenizer)}, **names))
    folder = tmp_path / "modeling_sener"
    model.save_pretrained(folder)
    SenerProcessor(tokenizer, model.config).save_pretrained(folder)
    run_fresh("\n".join([f"import os; os.chdir({str(tmp_path)!r})", *blocks, "gold = entities", THEN]), tmp_path)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8")) <= 9_000
