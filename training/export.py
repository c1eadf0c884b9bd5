"""
Export a checkpoint with `torch.export`, as a program for serving that runs without this project's code.

    python training/export.py --model my-model --output sener.pt2

    program = torch.export.load("sener.pt2").module(check_guards=False)
    inputs = processor(texts)
    entities = processor.post_process(SimpleNamespace(logits=program(**inputs)), inputs)

The program takes any number of texts of any length. The model computes long texts in chunks; the program computes them
at once, so its memory grows with the length. `check_guards=False` skips the guards that tracing adds for sizes of 1;
the result is the same.
"""

from training.common.start import run


# isort: split
import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from training.common.files import writing
from training.common.models import MODEL_HELP, resolve
from training.fitting.checkpoint import load_checkpoint


INPUTS = ("input_ids", "attention_mask", "word_index")


class Logits(nn.Module):
    """Returns the logits as a plain tensor: the class `SenerOutput` may be missing where the program is loaded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_index: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, word_index).logits


def export(model: nn.Module) -> torch.export.ExportedProgram:
    """
    Export a `SenerModel` in evaluation mode.

    The program's inputs are the processor's, each *Shape:* (B, T), for any B and T from 1. Its output is the logits
    with a row for every token, *Shape:* (B, T, W, R); rows past the last word of a text are meaningless.

    Raises:
        ValueError: the model has no span window: the width of its band would depend on the text.
    """
    if model.config.span_window is None:
        raise ValueError("span_window is None: a program has a fixed width of the band: train with a span_window")
    example = {name: torch.ones(2, 256, dtype=torch.int64) for name in INPUTS}
    shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in INPUTS}
    # Tracing treats a size of 1 as a constant: without this the program would need two texts and 65 tokens at least.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True), warnings.catch_warnings():
        # The encoder caches values while it runs; no result depends on them.
        warnings.filterwarnings("ignore", message="While compiling, we found certain side effects")
        return torch.export.export(Logits(model).eval(), (), example, dynamic_shapes=shapes, strict=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help=MODEL_HELP)
    parser.add_argument("--output", required=True, metavar="FILE.pt2", help="the file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    output = Path(options.output)
    if output.suffix != ".pt2" or not output.parent.is_dir():
        raise ValueError(f"--output {output}: expected a .pt2 file in a folder that is there")
    model, _ = load_checkpoint(resolve(options.model))
    program, aside = export(model), output.with_suffix(".partial.pt2")
    try:
        with writing(output):
            torch.export.save(program, aside)
            aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
    print(f"{output}: {output.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    run(main)
