"""
A checkpoint as one program for serving, which runs without this project's code: `torch.export`.

    python training/export.py --model my-model --output sener.pt2

    program = torch.export.load("sener.pt2").module(check_guards=False)
    inputs = processor(texts)
    entities = processor.post_process(SimpleNamespace(logits=program(**inputs)), inputs)

It takes texts of any number and length. What the model itself computes in parts the program computes at once, so that
its memory grows with the text. Its guards note how tracing went where a size may be 1; the result is the same.
"""

from training.common.start import run


# isort: split
import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from training.fitting.checkpoint import load_checkpoint


INPUTS = ("input_ids", "attention_mask", "word_index")


class Logits(nn.Module):
    """The model with a plain tensor as its output: a class of its own would have to be there where it is loaded."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_index: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, word_index).logits


def export(model: nn.Module) -> torch.export.ExportedProgram:
    """
    The program of a `SenerModel` in evaluation mode.

    Its inputs are the processor's, each *Shape:* (B, T), any B and T from 1; its output is the model's logits with a
    row for every token, *Shape:* (B, T, W, R): rows past the words of a text hold no meaning.

    Raises:
        ValueError: the model scores all pairs of a text: its band would be as wide as the text is long.
    """
    if model.config.span_window is None:
        raise ValueError("span_window is None: a program has a fixed width of the band: train with a span_window")
    example = {name: torch.ones(2, 256, dtype=torch.int64) for name in INPUTS}
    shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in INPUTS}
    # Or else the program would be for two texts and 65 tokens at least: tracing takes a size of 1 for a constant.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True), warnings.catch_warnings():
        # What the encoder notes down while it runs, nothing that a result depends on.
        warnings.filterwarnings("ignore", message="While compiling, we found certain side effects")
        return torch.export.export(Logits(model).eval(), (), example, dynamic_shapes=shapes, strict=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a SeNER checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE.pt2", help="the file to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    output = Path(options.output)
    if output.suffix != ".pt2" or not output.parent.is_dir():
        raise ValueError(f"--output {output}: expected a .pt2 file in a folder that is there")
    model, _ = load_checkpoint(options.model)
    torch.export.save(export(model), output)
    print(f"{output}: {output.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    run(main)
