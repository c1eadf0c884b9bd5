"""
Convert a checkpoint of the authors' released code to a folder that `AutoModel` loads, with the same scores.

    python training/convert_official.py --checkpoint official.pth --backbone microsoft/deberta-v3-large \
        --labels Material,Method,Metric,Task --output converted

Give the labels in the order of the checkpoint's outputs. Sizes are read from its tensors, except for the two windows.
If `--backbone` is a config file (JSON), no tokenizer is written.
"""

from training.common.start import run


# isort: split
import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from modeling_sener import SenerConfig, SenerModel, SenerProcessor
from training.common.cli import first_line
from training.common.files import nearest, unreadable, writing


LORA_ALPHA = 16  # of the released recipe; unlike the rank, it cannot be read from the tensors
# Prefixes that DeepSpeed, DDP and PEFT add to names, outermost first.
WRAPPERS = re.compile(r"^(?:_forward_module\.|module\.|base_model\.model\.|base_model\.)+")
NAMES = [
    (r"pretrain_model\.", "backbone."),
    (r"head_mlp\.1\.", "biaffine.start."),
    (r"tail_mlp\.1\.", "biaffine.end."),
    (r"U$", "biaffine.bilinear.weight"),
    (r"W$", "biaffine.linear.weight"),
    (r"cross_layers\.(\d+)\.pos_embed\.", r"blocks.\1.triangle."),
    (r"cross_layers\.(\d+)\.h_qkv\.", r"blocks.\1.horizontal."),
    (r"cross_layers\.(\d+)\.v_qkv\.", r"blocks.\1.vertical."),
    (r"cross_layers\.(\d+)\.dense\.", r"blocks.\1.dense."),
    (r"cross_layers\.(\d+)\.LayerNorm\.", r"blocks.\1.norm."),
    (r"cross_layers\.(\d+)\.conv([12])\.conv2d\.", r"blocks.\1.conv\2."),
    (r"cross_layers\.(\d+)\.LayerNorm2\.", r"blocks.\1.conv_norm."),
    (r"down_fc\.", "classifier."),
]
# Tables that this project computes: rotary positions of the blocks, position numbers of the encoder.
COMPUTED = re.compile(r"(cross_layers\.\d+\.embed_positions\.weight|.*\bposition_ids)$")


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message names the tensor."""


def official_to_sener(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Rename released parameters to this project's names: strip wrappers' prefixes, merge LoRA (W + alpha / r * B A), and
    skip computed tables.

    Raises:
        ConversionError: a name has no counterpart, or occurs twice.
    """
    plain = {}
    for name, tensor in state.items():
        own = WRAPPERS.sub("", name)
        if own in plain:
            raise ConversionError(f"{name}: twice in the checkpoint, with different prefixes")
        plain[own] = tensor
    ours = {}
    for name, tensor in merge_lora(plain).items():
        if COMPUTED.match(name):
            continue
        for pattern, replacement in NAMES:
            new, count = re.subn("^" + pattern, replacement, name)
            if count:
                ours[new] = tensor
                break
        else:
            raise ConversionError(f"{name}: not a parameter of the released model")
    return ours


def merge_lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """
    Merge PEFT's adapters into their layers, in float32; the layers' biases are kept.

    Raises:
        ConversionError: an adapter is incomplete, is no plain LoRA, or does not fit its layer.
    """
    left = {name for name in state if ".lora_" in name}
    merged = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    for name, down in state.items():
        layer, found, rest = name.partition(".lora_A.")
        if not found:
            continue
        up_name = f"{layer}.lora_B.{rest}"
        for needed, holder in ((up_name, state), (f"{layer}.weight", merged)):
            if needed not in holder:
                raise ConversionError(f"{needed}: missing from the checkpoint, but {name} is there")
        up, weight = state[up_name], merged[f"{layer}.weight"]
        rank = down.shape[0]
        if (up.shape, down.shape) != ((weight.shape[0], rank), (rank, weight.shape[-1])):
            raise ConversionError(f"{layer}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} do not fit the "
                                  f"weight {tuple(weight.shape)}")  # fmt: skip
        merged[f"{layer}.weight"] = weight.float() + up.float() @ down.float() * (LORA_ALPHA / rank)
        left -= {name, up_name}
    if left:
        raise ConversionError(f"{min(left)}: an adapter's part that cannot be merged: expected pairs lora_A, lora_B")
    return merged


def sizes_of(state: dict[str, Tensor]) -> dict:
    """Read config fields from the shapes of tensors (this project's names)."""
    for name in ("biaffine.bilinear.weight", "classifier.weight"):
        if name not in state:
            raise ConversionError(f"{name}: missing from the checkpoint")
    bilinear = state["biaffine.bilinear.weight"]
    if bilinear.dim() != 3 or bilinear.shape[1] != bilinear.shape[2]:
        raise ConversionError(f"U: shape {tuple(bilinear.shape)}, expected (channels, size, size)")
    channels, size = bilinear.shape[:2]
    blocks = {int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    return {"span_channels": channels, "biaffine_size": size - 1, "span_layers": len(blocks)}


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """Read a state dict of tensors, without running code from the file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConversionError(unreadable(path, error)) from error
    except Exception as error:  # torch raises what the pickle machinery raises, and that can be anything
        raise ConversionError(f"{path}: not a file of weights alone: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ConversionError(f"{path}: expected a state dict of tensors")
    return state


def read_backbone(name: str) -> dict:
    """Read the encoder's config from a JSON file (deberta-v2 if it has no `model_type`), a folder or the Hub."""
    if not Path(name).is_file():
        try:
            return AutoConfig.from_pretrained(name).to_dict()
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise ConversionError(f"{name}: no configuration of an encoder: {reason}{nearest(name)}") from error
    try:
        config = json.loads(Path(name).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{name}: expected a JSON object")
    return {"model_type": "deberta-v2", **config}


def converted_model(state: dict[str, Tensor], backbone: dict, labels: list[str], **windows: int) -> SenerModel:
    """Build a model with the released code's conventions and the weights `state` (this project's names)."""
    sizes = sizes_of(state)
    outputs = len(state["classifier.weight"])
    if len(labels) != outputs:
        raise ConversionError(f"labels: {len(labels)} given, but the checkpoint has {outputs} outputs")
    config = SenerConfig(
        backbone_config=backbone, id2label=dict(enumerate(labels)),
        vertical_readout="mirrored", triangle_mean="probability", labels_per_span="best", **sizes, **windows,
    )  # fmt: skip
    model = SenerModel(config)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise ConversionError(f"{name}: missing from the checkpoint")
        if state[name].shape != tensor.shape:
            raise ConversionError(f"{name}: shape {tuple(state[name].shape)} in the checkpoint, but the backbone's "
                                  f"config asks for {tuple(tensor.shape)}")  # fmt: skip
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise ConversionError(f"{unknown[0]}: in the checkpoint, but not in the model that the config describes")
    model.load_state_dict(state)
    return model.eval()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="the .pth file")
    parser.add_argument("--backbone", required=True, help="Hub name, folder or config file (JSON) of the encoder")
    parser.add_argument("--labels", required=True, help="a,b,c in the order of the checkpoint's outputs")
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--span_window", type=int, default=128, help="of the checkpoint (default: %(default)s)")
    parser.add_argument("--attention_window", type=int, default=128, help="of the checkpoint (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    labels = [label.strip() for label in options.labels.split(",")]
    state = official_to_sener(read_checkpoint(options.checkpoint))
    model = converted_model(state, read_backbone(options.backbone), labels, span_window=options.span_window,
                        attention_window=options.attention_window)  # fmt: skip
    has_tokenizer = not Path(options.backbone).is_file()
    processor = SenerProcessor.from_backbone(options.backbone, model.config) if has_tokenizer else None
    with writing(options.output):
        model.save_pretrained(options.output)
        if processor is not None:
            processor.save_pretrained(options.output)
    print(f"converted {len(state)} tensors into {options.output}" + ("" if has_tokenizer else " (no tokenizer)"))


if __name__ == "__main__":
    run(main)
