"""
Write a checkpoint as one that comes with this repository: weights in half precision, and no copy of the code.

    python training/bundle.py my-model checkpoints/contracts

The package `modeling_sener` loads such a folder; `training/publish.py` makes a complete Hub folder of it. A model card
that is in the folder stays there. The short names are in training/common/models.py.
"""

from training.common.start import run


# isort: split
import argparse
import json
from pathlib import Path

from training.common.files import write_text
from training.fitting.checkpoint import load_checkpoint, save_checkpoint


def bundle(model: str | Path, folder: Path) -> None:
    """
    Write `config.json`, `model.safetensors`, tokenizer and processor file, which name no code.

    Raises:
        CheckpointError: `model` is no SeNER checkpoint.
        ValueError: `folder` holds code, which would be removed.
        WriteError: a file cannot be written.
    """
    if any(folder.glob("*.py")):
        raise ValueError(f"{folder} holds code: give a folder of its own")
    save_checkpoint(*load_checkpoint(model), folder, "float16")
    (folder / "checkpoints").rmdir()  # where files are written aside
    for file in folder.glob("*.py"):
        file.unlink()
    for name in ("config.json", "processor_config.json"):
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        kept = {field: value for field, value in fields.items() if field not in ("auto_map", "custom_pipelines")}
        write_text(folder / name, json.dumps(kept, indent=2, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="the checkpoint, as training or training/soup.py wrote it")
    parser.add_argument("folder", type=Path, help="the folder to write")
    options = parser.parse_args(arguments)
    bundle(options.model, options.folder)
    print(f"{options.folder}: {sum(file.stat().st_size for file in options.folder.iterdir()):,} bytes")


if __name__ == "__main__":
    run(main)
