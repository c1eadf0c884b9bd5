"""
Measure one point and print the result as one line of JSON: `python -m benchmarks.child '{"what": "forward", ...}'`.

Run in a process of its own, so that the peak memory is the point's.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext

import references
import torch
from transformers import AutoConfig, DebertaV2Model

from modeling_sener import SenerConfig, SenerModel, SenerPipeline, SenerProcessor
from modeling_sener.band import band_labels
from modeling_sener.decoding import span_probabilities

from . import flops
from .measure import PeakMemory, median_seconds, pick_device, product_rate
from .points import MODELS, Point
from .text import BACKBONE, LABELS, WORDS_PER_SPAN, make_tokenizer, make_words


SHORT = 64  # pieces of the warm-up
Prepare = Callable[[int], Callable[[], object]]  # length -> what is timed


def main():
    point, device = Point(**json.loads(sys.argv[1])), pick_device()
    result = {"bias": calibrated_bias(point, device)} if point.what == "bias" else measured(point, device)
    print(json.dumps({**result, "device": device_name(device)}))


def measured(point: Point, device: torch.device) -> dict:
    rate = product_rate(device, getattr(torch, point.precision), point.runs)
    torch.manual_seed(0)
    prepare = SUBJECTS[point.what](point, device)
    with autocast(point, device):
        prepare(SHORT)()
        memory = PeakMemory(device)
        run = prepare(point.length)
        time, runs, found = median_seconds(run, device, point.runs)
    result = {"seconds": time, "runs": runs, "added_bytes": memory.added(), "product_flops_per_second": rate,
              "threads": torch.get_num_threads()}  # fmt: skip
    if point.what == "entities":
        result["entities"] = len(found)
    if point.what == "forward":
        result["flops"] = flops.needed(make_config(point), point.length)
    return result


def autocast(point: Point, device: torch.device):
    if point.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, point.precision))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


def make_config(point: Point) -> SenerConfig:
    return SenerConfig(dict(BACKBONE), id2label=dict(enumerate(LABELS)), **MODELS[point.model])


def make_model(point: Point, device: torch.device) -> SenerModel:
    model = SenerModel(make_config(point)).to(device).eval()
    torch.nn.init.constant_(model.classifier.bias, point.bias)
    return model


def make_inputs(model: SenerModel, pieces: int) -> dict[str, torch.Tensor]:
    """[CLS], a piece a word, [SEP]: `pieces` in all."""
    processor = SenerProcessor(make_tokenizer(), model.config)
    return dict(processor(" ".join(make_words(pieces - 2))).to(model.device))


def forward(point: Point, device: torch.device) -> Prepare:
    model = make_model(point, device)

    def prepare(length: int):
        inputs = make_inputs(model, length)
        return torch.no_grad()(lambda: model(**inputs))

    return prepare


def training(point: Point, device: torch.device) -> Prepare:
    model = make_model(point, device).train()
    if point.checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def prepare(length: int):
        inputs, words = make_inputs(model, length), length - 2
        spans = [(start, start + 3, start % len(LABELS)) for start in range(0, words - 3, WORDS_PER_SPAN)]
        labels = band_labels(spans, words, model.config.span_window, len(LABELS))[None].to(device)

        def step():
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return prepare


def entities(point: Point, device: torch.device) -> Prepare:
    model = make_model(point, device)
    extract = SenerPipeline(model=model, processor=SenerProcessor(make_tokenizer(), model.config), device=device)

    def prepare(length: int):
        text = " ".join(make_words(length))
        return lambda: extract(text)

    return prepare


def encoder(point: Point, device: torch.device) -> Prepare:
    model = make_model(point, device)

    def prepare(length: int):
        inputs = make_inputs(model, length)
        return torch.no_grad()(lambda: model.encode(**inputs))

    return prepare


def transformers_encoder(point: Point, device: torch.device) -> Prepare:
    fields = dict(BACKBONE)
    encoder = DebertaV2Model(AutoConfig.for_model(fields.pop("model_type"), **fields)).to(device).eval()

    def prepare(length: int):
        ids = torch.randint(BACKBONE["vocab_size"], (1, length), device=device)
        return torch.no_grad()(lambda: encoder(ids, torch.ones_like(ids)))

    return prepare


def dense_reference(point: Point, device: torch.device) -> Prepare:
    model = make_model(point, device)
    config, state = model.config, model.state_dict()

    @torch.no_grad()
    def run(inputs: dict[str, torch.Tensor]):
        with torch.device(device):
            states = references.deberta_encoder(
                model.backbone.state_dict(), config.backbone_config, inputs["input_ids"], inputs["attention_mask"],
                config.attention, config.attention_window, config.log_n_scaling,
            )  # fmt: skip
            return references.logits_square(state, states[0, 1:-1], config.span_window)

    def prepare(length: int):
        inputs = make_inputs(model, length)
        return lambda: run(inputs)

    return prepare


SUBJECTS = {
    "forward": forward,
    "training": training,
    "entities": entities,
    "encoder": encoder,
    "transformers encoder": transformers_encoder,
    "dense reference": dense_reference,
}


@torch.no_grad()
def calibrated_bias(point: Point, device: torch.device) -> float:
    """
    The classifier's bias with which about one span in `WORDS_PER_SPAN` words passes the threshold 0.5: random weights
    without it pass half of all cells, which no trained model does.
    """
    torch.manual_seed(0)
    model = make_model(point, device)
    logits = model(**make_inputs(model, point.length)).logits
    best = span_probabilities(logits, model.config.triangle_mean).amax(dim=-1).flatten()
    rows = logits.shape[1] - model.config.span_window
    lowest = best.topk(max(1, rows // WORDS_PER_SPAN)).values[-1]
    return -float(torch.logit(lowest.double()))


if __name__ == "__main__":
    main()
