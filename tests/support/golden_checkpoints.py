"""Two checkpoints, one per kind of tokenizer, whose token ids and entities are recorded in tests/data/golden/."""

import json
from pathlib import Path

from support.tiny import sentencepiece_folder
from support.tiny_models import BACKBONES, tiny_model
from support.toy import ROOT

from modeling_sener import SenerProcessor
from training.fitting.checkpoint import save_checkpoint


GOLDEN = ROOT / "tests" / "data" / "golden"
RECORDED = ("texts", "labels", "input_ids", "word_index", "entities")
CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: token-classification
tags: [sener]
---
Random weights, for tests.
"""


def wordpiece(folder: Path) -> Path:
    """The bundled checkpoint: BERT's tokenizer, lower case."""
    return ROOT / "modeling_sener"


def sentencepiece(folder: Path) -> Path:
    """Make a checkpoint in `folder`: a random DeBERTa-v3 encoder, and its kind of tokenizer (SentencePiece, NFKC)."""
    backbone = {**BACKBONES["deberta-v3"], "vocab_size": 128}
    model = tiny_model(backbone, labels_per_span="best", vertical_readout="transposed")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    processor = SenerProcessor.from_backbone(sentencepiece_folder(tokenizer), model.config)
    save_checkpoint(model, processor, folder / "model")
    (folder / "model" / "README.md").write_text(CARD)
    return folder / "model"


CHECKPOINTS = {"wordpiece": wordpiece, "sentencepiece": sentencepiece}


def golden(kind: str) -> dict:
    return json.loads((GOLDEN / f"{kind}.json").read_text(encoding="utf-8"))


def write_golden(kind: str, recorded: dict) -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: recorded[name] for name in RECORDED}, ensure_ascii=False)
    (GOLDEN / f"{kind}.json").write_text(text + "\n", encoding="utf-8")
