"""
Measure GLiNER on the same text as SeNER, with an encoder of the same size, random weights and as many labels. It reads
windows of 384 words.

Runs in an environment of its own (`make bench-gliner`): `python -m benchmarks.gliner_peer '{"length": 4096, ...}'`
prints one line of JSON.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version

import torch
from gliner import GLiNER
from transformers import AutoConfig

from .measure import PeakMemory, median_seconds, pick_device, product_rate
from .text import BACKBONES, LABELS, WORDS_PER_SPAN, make_tokenizer, make_words


WINDOW = 384
WIDTH = 12  # words of the longest span


def main():
    point = json.loads(sys.argv[1])
    device = pick_device()
    rate = product_rate(device, torch.float32, point["runs"])
    torch.manual_seed(0)
    model = make_model(device)
    threshold = calibrated_threshold(model)
    memory = PeakMemory(device)
    run = prepare(model, point["length"], point["batch_size"], threshold)
    time, runs, found = median_seconds(run, device, point["runs"])
    result = {"seconds": time, "runs": runs, "added_bytes": memory.added(), "product_flops_per_second": rate}
    own = {"entities": sum(map(len, found)), "version": version("gliner"), "threads": torch.get_num_threads()}
    print(json.dumps({**result, **own}))


def make_model(device: torch.device) -> GLiNER:
    """GLiNER with its defaults, from a folder with the tokenizer and the encoder's configuration."""
    with tempfile.TemporaryDirectory() as folder:
        AutoConfig.for_model(**BACKBONES["DeBERTa"]).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        config = {"model_name": folder, "max_len": WINDOW, "max_width": WIDTH}
        return GLiNER.from_config(config, backbone_from_pretrained=False, map_location=str(device))


def prepare(model, length: int, batch_size: int, threshold: float) -> Callable[[], list]:
    words = make_words(length)
    windows = [" ".join(words[first : first + WINDOW]) for first in range(0, length, WINDOW)]
    return lambda: model.inference(windows, LABELS, threshold=threshold, batch_size=batch_size)


def calibrated_threshold(model) -> float:
    """A threshold that about one span per `WORDS_PER_SPAN` words passes, as for SeNER."""
    prepared = model.prepare_batch([" ".join(make_words(WINDOW))], LABELS)
    batch = model.collate_batch(prepared["input_x"], prepared["entity_types"])
    logits = model.run_batch(batch)[0]
    logits = logits.masked_fill(~batch["span_mask"].view(1, WINDOW, WIDTH, 1).bool().to(logits.device), -torch.inf)
    best = logits.sigmoid().amax(dim=-1).flatten()
    return float(best.topk(WINDOW // WORDS_PER_SPAN).values[-1])


if __name__ == "__main__":
    main()
