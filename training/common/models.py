"""The models that come with the code, by short name."""

from pathlib import Path

from training.common.files import BUNDLED


CHECKPOINTS = BUNDLED.parent / "checkpoints"
MODELS = {"papers": BUNDLED, "contracts": CHECKPOINTS / "contracts", "biomedical": CHECKPOINTS / "biomedical"}


def find_model(name: str) -> str:
    """
    Resolve a model's name: a bundled model's short name to its folder; a folder or a Hub name (`user/name`) stays as
    it is. A folder with the name of a bundled model is reached as `./papers`.

    Raises:
        ValueError: none of these, or a bundled model that is not in this checkout; names those that are.
    """
    there = ", ".join(short for short, folder in MODELS.items() if has_config(folder))
    if name in MODELS:
        if not has_config(MODELS[name]):
            raise ValueError(
                f"--model {name}: not in this checkout ({MODELS[name]} has no config.json). Choose of: {there}"
            )
        return str(MODELS[name])
    if "/" not in name and not Path(name).exists():
        raise ValueError(f"--model {name}: no such model. Give a folder, user/name on the Hub, or one of: {there}")
    return name


def has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()
