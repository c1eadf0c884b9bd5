"""
Measure GLiNER2 on the same text as SeNER, with an encoder of the same size, random weights and as many labels.

The package holds two architectures: "span" (GLiNER2; spans of at most 8 words) and "boundary" (GLiNER2.5; any span of
a window). Both read long texts with `extract_entities_long` and its defaults: windows of 384 words that overlap by 64.

Runs in an environment of its own (`make bench-gliner2`): `python -m benchmarks.gliner2_peer '{"length": 4096, ...}'`
prints one line of JSON.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch
from gliner2 import AutoExtractor
from gliner2.configuration import ExtractorConfig
from transformers import AutoConfig

from .measure import PeakMemory, median_seconds, pick_device, product_rate
from .text import BACKBONES, LABELS, WORDS_PER_SPAN, make_tokenizer, make_words


WINDOW, OVERLAP = 384, 64
ARCHITECTURES = {"GLiNER2": "span", "GLiNER2.5": "boundary"}


def main():
    point = json.loads(sys.argv[1])
    device = pick_device()
    rate = product_rate(device, torch.float32, point["runs"])
    torch.manual_seed(0)
    model = make_model(ARCHITECTURES[point["model"]], device)
    threshold = calibrated_threshold(model)
    memory = PeakMemory(device)
    run = prepare(model, point["length"], point["batch_size"], threshold)
    time, runs, found = median_seconds(run, device, point["runs"])
    result = {"seconds": time, "runs": runs, "added_bytes": memory.added(), "product_flops_per_second": rate}
    spans = sum(map(len, found["entities"].values()))
    own = {"entities": spans, "version": version("gliner2"), "threads": torch.get_num_threads()}
    print(json.dumps({**result, **own}))


def make_model(architecture: str, device: torch.device):
    """GLiNER2 with its defaults; encoder and tokenizer are passed, so that nothing is downloaded."""
    config = ExtractorConfig(model_name="random weights", architecture=architecture)
    encoder = AutoConfig.for_model(**BACKBONES["DeBERTa"])
    return AutoExtractor.from_config(config, encoder_config=encoder, tokenizer=make_tokenizer()).to(device).eval()


def prepare(model, length: int, batch_size: int, threshold: float) -> Callable[[], dict]:
    text = " ".join(make_words(length))
    how = {"chunk_size": WINDOW, "chunk_overlap": OVERLAP, "batch_size": batch_size, "include_spans": True}
    return lambda: model.extract_entities_long(text, LABELS, threshold=threshold, **how)


def calibrated_threshold(model) -> float:
    """A threshold that about one span per `WORDS_PER_SPAN` words passes, as for SeNER."""
    found = model.extract_entities(" ".join(make_words(WINDOW)), LABELS, threshold=0.0, include_confidence=True)
    scores = sorted((span["confidence"] for spans in found["entities"].values() for span in spans), reverse=True)
    return scores[min(WINDOW // WORDS_PER_SPAN, len(scores)) - 1]


if __name__ == "__main__":
    main()
