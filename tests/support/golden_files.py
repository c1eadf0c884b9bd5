"""Read golden files: numbers recorded from the published implementation. Map its parameter names to this project's."""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import safe_open


COPY = Path(__file__).parents[1] / "data" / "reference"
FOLDER = Path(os.environ.get("SENER_REFERENCE_DIR") or COPY)

NAMES = (
    (r"^pretrain_model\.", "backbone."),
    (r"^head_mlp\.1\.", "biaffine.start."),
    (r"^tail_mlp\.1\.", "biaffine.end."),
    (r"^U$", "biaffine.bilinear.weight"),
    (r"^W$", "biaffine.linear.weight"),
    (r"^down_fc\.", "classifier."),
    (r"^cross_layers\.(\d+)\.pos_embed\.", r"blocks.\1.triangle."),
    (r"^cross_layers\.(\d+)\.h_qkv\.", r"blocks.\1.horizontal."),
    (r"^cross_layers\.(\d+)\.v_qkv\.", r"blocks.\1.vertical."),
    (r"^cross_layers\.(\d+)\.dense\.", r"blocks.\1.dense."),
    (r"^cross_layers\.(\d+)\.LayerNorm\.", r"blocks.\1.norm."),
    (r"^cross_layers\.(\d+)\.conv([12])\.conv2d\.", r"blocks.\1.conv\2."),
    (r"^cross_layers\.(\d+)\.LayerNorm2\.", r"blocks.\1.conv_norm."),
)


def our_name(name):
    """This project's name of a parameter of the published implementation; KeyError if there is none."""
    for pattern, replacement in NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


def golden_files(pattern, folder=FOLDER):
    """The golden files whose name matches `pattern`, sorted."""
    return sorted(folder.glob(pattern))


def parsed(value):
    """A value of the metadata: JSON, or else the string itself."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


class Golden:
    """One golden file: `weights`, `inputs`, `outputs`, `grads` (dicts by name) and `sizes` (its metadata, parsed)."""

    def __init__(self, path):
        with safe_open(path, "pt") as file:
            self.sizes = {name: parsed(value) for name, value in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for group in ("weights", "inputs", "outputs", "grads"):
            found = {n[len(group) + 1 :]: t for n, t in tensors.items() if n.startswith(group + ".")}
            setattr(self, group, {n: t.long() if t.dtype == torch.int32 else t for n, t in found.items()})

    def our_weights(self):
        return {our_name(name): tensor for name, tensor in self.weights.items()}
