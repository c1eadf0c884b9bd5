"""
Average the weights of several checkpoints into one model, which is often better than each of them (Wortsman et al.
2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
time").

    python training/soup.py --models my-first-model my-second-model --output_dir my-model

The runs of the checkpoints must have the same encoder, fields of the model and seed, so that their heads began with
the same weights. Learning rates, masking, epochs and the like may differ.
"""

from training.common.start import run


# isort: split
import argparse
import zlib
from pathlib import Path

import torch

from training.fitting.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints, two or more")
    parser.add_argument("--output_dir", required=True, help="the Hub folder to write")
    parser.add_argument("--save_dtype", default="float32", choices=("float32", "float16", "bfloat16"),
                        help="of the weights (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)
    if len(options.models) < 2:
        parser.error("--models: expected two checkpoints or more")
    if Path(options.output_dir).resolve() in [Path(model).resolve() for model in options.models]:
        parser.error(f"--output_dir is {options.output_dir}, one of the --models: it would be replaced")
    average(options.models, options.output_dir, options.save_dtype)
    print(f"the mean of {len(options.models)} checkpoints, saved in {options.output_dir}; its thresholds are 0.5")


@torch.no_grad()
def average(models: list[str], output_dir: str, save_dtype: str) -> None:
    """
    Save the mean of `models`, computed in float64. Thresholds are reset to 0.5, as fitted ones belong to other scores.

    Raises:
        CheckpointError: two models differ in more than their thresholds.
    """
    mean, processor = load_checkpoint(models[0])
    fields = fields_of(mean, processor)
    total = {name: tensor.double() for name, tensor in mean.state_dict().items()}
    for folder in models[1:]:
        model, own_processor = load_checkpoint(folder)
        for name, value in fields_of(model, own_processor).items():
            if value != fields.get(name):
                raise CheckpointError(f"{folder}: {name} is {value!r}, in {models[0]} {fields.get(name)!r}: only "
                                      "checkpoints of the same model have a mean")  # fmt: skip
        for name, tensor in model.state_dict().items():
            total[name] += tensor.double()
    mean.load_state_dict({name: tensor / len(models) for name, tensor in total.items()})
    mean.config.threshold = processor.config.threshold = 0.5
    save_checkpoint(mean, processor, output_dir, save_dtype)


def fields_of(model: torch.nn.Module, processor) -> dict:
    """All that the meaning of a model's weights depends on: fields of its config, words, tokens."""
    fields = {name: value for name, value in model.config.to_dict().items()
              if name not in ("threshold", "dtype", "transformers_version", "_name_or_path", "auto_map",
                              "custom_pipelines")}  # fmt: skip
    tokenizer = zlib.crc32(processor.tokenizer.backend_tokenizer.to_str().encode())
    return fields | {"word_pattern": processor.word_pattern, "checksum of the tokenizer": tokenizer}


if __name__ == "__main__":
    run(main)
