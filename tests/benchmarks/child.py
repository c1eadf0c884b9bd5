"""
Measure one point and print the result as one line of JSON: `python -m benchmarks.child '{"what": "forward", ...}'`.

Each point runs in a process of its own, so that the peak memory belongs to it.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch
from support import references
from transformers import AutoConfig, DebertaV2Model

from modeling_sener import SenerConfig, SenerModel, SenerPipeline, SenerProcessor
from modeling_sener.band import band_labels
from modeling_sener.decoding import span_probabilities

from . import flops
from .measure import PeakMemory, median_seconds, pick_device, product_rate
from .points import MODELS, Point
from .text import BACKBONES, LABELS, WORDS_PER_SPAN, make_tokenizer, make_words


SHORT = 64  # tokens of the warm-up
Prepare = Callable[[int], Callable[[], object]]  # length -> the function to time


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
    fields = dict(MODELS[point.model])
    return SenerConfig(dict(BACKBONES[fields.pop("encoder")]), id2label=dict(enumerate(LABELS)), **fields)


def span_window(config: SenerConfig, words: int) -> int:
    return words - 1 if config.span_window is None else config.span_window


def make_model(point: Point, device: torch.device) -> SenerModel:
    model = SenerModel(make_config(point)).to(device).eval()
    torch.nn.init.constant_(model.classifier.bias, point.bias)
    return model


def make_inputs(model: SenerModel, tokens: int) -> dict[str, torch.Tensor]:
    """Inputs of `tokens` tokens: [CLS], words of one token each, [SEP]."""
    processor = SenerProcessor(make_tokenizer(), model.config)
    return dict(processor(" ".join(make_words(tokens - 2))).to(model.device))


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
        window, triangles = span_window(model.config, words), model.config.triangles
        spans = [(start, start + 3, start % len(LABELS)) for start in range(0, words - 3, WORDS_PER_SPAN)]
        labels = band_labels(spans, words, window, triangles, len(LABELS))[None].to(device)

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
    config = AutoConfig.for_model(**BACKBONES["DeBERTa"])
    encoder = DebertaV2Model(config).to(device).eval()

    def prepare(length: int):
        ids = torch.randint(config.vocab_size, (1, length), device=device)
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
            how = config.span_interaction, config.vertical_readout, config.triangles
            return references.logits_square(state, states[0, 1:-1], config.span_window, *how)

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
    The classifier's bias with which about one span per `WORDS_PER_SPAN` words passes the threshold 0.5. With random
    weights and no bias half of all cells would pass, unlike with a trained model.
    """
    torch.manual_seed(0)
    model = make_model(point, device)
    config, logits = model.config, model(**make_inputs(model, point.length)).logits
    rows = logits.shape[1] - config.span_window  # in these rows every cell is a pair of words
    best = span_probabilities(logits, config.triangles, config.triangle_mean)[:, :rows].amax(dim=-1).flatten()
    lowest = best.topk(max(1, rows // WORDS_PER_SPAN)).values[-1]
    return -float(torch.logit(lowest.double()))


if __name__ == "__main__":
    main()
