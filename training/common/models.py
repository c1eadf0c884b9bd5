"""Names of models: the short ones of those that come with the code, and which are checkpoints of SeNER."""

from pathlib import Path

from modeling_sener import SenerConfig
from training.common.files import BUNDLED


CHECKPOINTS = BUNDLED.parent / "checkpoints"
MODELS = {"papers": BUNDLED, "contracts": CHECKPOINTS / "contracts", "biomedical": CHECKPOINTS / "biomedical"}
MODEL_HELP = f"a bundled model ({', '.join(MODELS)}), a folder, or user/name on the Hub"


def resolve(name: str) -> str:
    """
    Resolve a bundled model's short name to its folder; any other name stays as it is. A folder with the name of a
    bundled model is reached as `./papers`.

    Raises:
        ValueError: a bundled model that is not in this checkout; names those that are.
    """
    if name in MODELS and not has_config(MODELS[name]):
        raise ValueError(f"{name}: not in this checkout ({MODELS[name]} has no config.json); use one of: {_there()}")
    return str(MODELS.get(name, name))


def find_model(name: str) -> str:
    """As `resolve`; raises `ValueError` as well if it can be no folder and no Hub name (`user/name`)."""
    if name not in MODELS and "/" not in name and not Path(name).exists():
        raise ValueError(f"--model {name}: no such model. Give a folder, user/name on the Hub, or one of: {_there()}")
    return resolve(name)


def is_checkpoint(name: str | Path) -> bool:
    """Whether the `config.json` of a folder or Hub repository is that of a SeNER checkpoint."""
    try:
        fields, _ = SenerConfig.get_config_dict(name)
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("model_type") == SenerConfig.model_type


def has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _there() -> str:
    return ", ".join(short for short, folder in MODELS.items() if has_config(folder))
