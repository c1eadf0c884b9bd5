"""Imports point one way: commands -> fitting, evaluation, publishing -> inference -> corpus -> common -> the model."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
BELOW = {  # what the files of each room may import, of this project
    "modeling_sener": set(),
    "common": {"modeling_sener"},
    "corpus": {"common", "modeling_sener"},
    "inference": {"corpus", "common", "modeling_sener"},
    "evaluation": {"inference", "corpus", "common", "modeling_sener"},
    "fitting": {"inference", "evaluation", "corpus", "common", "modeling_sener"},
    "publishing": {"fitting", "inference", "evaluation", "corpus", "common", "modeling_sener"},
    "commands": {"publishing", "fitting", "evaluation", "inference", "corpus", "common", "modeling_sener"},
    "space": {"modeling_sener", "space"},
}


def room(module: str) -> str | None:
    """The room of a module's dotted name; `None` for other packages'."""
    first, *rest = module.split(".")
    if first == "training":
        return rest[0] if rest and rest[0] in BELOW else "commands"
    return first if first in BELOW else None


def imported(source: str) -> set[str]:
    """The dotted names that a file imports anywhere, relative ones left out."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def files() -> list[Path]:
    return [path for folder in ("modeling_sener", "training", "space") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    rooms = {room(name) for name in imported(path.read_text(encoding="utf-8"))} - {None, here}
    assert rooms <= BELOW[here], f"{here} may import {sorted(BELOW[here])} alone"


def test_an_arrow_upwards_is_seen():
    assert room("training.train") == "commands" and room("training.fitting.run") == "fitting"
    assert imported("def f():\n    from training.fitting import run") >= {"training.fitting.run"}
    assert room("modeling_sener.band") == "modeling_sener" and room("torch.nn") is None
