"""
Imports point one way: commands -> fitting, evaluation, publishing -> inference -> corpus -> common -> the model. They
are few, files are short, and no name has two meanings.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports


ROOT = Path(__file__).parent.parent
MOST_IMPORTS = 70  # between rooms
MOST_LINES = 400  # of a file
OF_EACH_COMMAND = {"main", "parse_arguments"}
BELOW = {  # the rooms that the files of each room may import
    "modeling_sener": set(),
    "common": {"modeling_sener"},
    "corpus": {"common", "modeling_sener"},
    "importing": {"inference", "corpus", "common", "modeling_sener"},
    "inference": {"corpus", "common", "modeling_sener"},
    "evaluation": {"inference", "corpus", "common", "modeling_sener"},
    "fitting": {"inference", "evaluation", "corpus", "common", "modeling_sener"},
    "publishing": {"fitting", "inference", "evaluation", "corpus", "common", "modeling_sener"},
    "commands": {
        "publishing",
        "importing",
        "fitting",
        "evaluation",
        "inference",
        "corpus",
        "common",
        "modeling_sener",
    },
    "space": {"modeling_sener", "space"},
}


def room(module: str) -> str | None:
    """The room of a module's dotted name; `None` for modules of other packages."""
    first, *rest = module.split(".")
    if first == "training":
        return rest[0] if rest and rest[0] in BELOW else "commands"
    return first if first in BELOW else None


def narrow_room(module: str) -> str | None:
    """As `room`, with each file directly in training/ as a room of its own; `None` also outside of that folder."""
    first, *rest = module.split(".")
    if first == "training":
        return rest[0] if rest else None
    return first if first == "modeling_sener" else None


def imported(source: str) -> set[str]:
    """The dotted names that a file imports anywhere, without relative imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def files() -> list[Path]:
    return [path for folder in ("modeling_sener", "training", "space") for path in (ROOT / folder).rglob("*.py")]


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    here = room(module_of(path))
    rooms = {room(name) for name in imported(path.read_text(encoding="utf-8"))} - {None, here}
    assert rooms <= BELOW[here], f"{here} may import {sorted(BELOW[here])} alone"


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_no_command_imports_a_command(path):
    commands = {f"training.{other.stem}" for other in (ROOT / "training").glob("*.py") if other.stem != "__init__"}
    assert not imported(path.read_text(encoding="utf-8")) & commands


def test_few_imports_lead_from_room_to_room():
    """A room that imports another counts once, however many of its files import how many of the other's."""
    edges = {
        (narrow_room(module_of(path)), narrow_room(name))
        for path in (ROOT / "training").rglob("*.py")
        for name in imported(path.read_text(encoding="utf-8"))
    }
    edges = {(here, there) for here, there in edges if there not in (None, here)}
    assert ("train", "fitting") in edges and ("fitting", "modeling_sener") in edges
    assert len(edges) <= MOST_IMPORTS, sorted(edges)


@pytest.mark.parametrize("folder", ["modeling_sener", "training"])
def test_files_are_short(folder):
    lines = {module_of(path): path.read_text(encoding="utf-8").count("\n") for path in (ROOT / folder).rglob("*.py")}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def defined(source: str) -> set[str]:
    """The names of the functions and classes of a file, without those within others."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.parse(source).body if isinstance(node, kinds)}


@pytest.mark.parametrize("name", ["configuration_sener", "modeling_sener", "processing_sener", "pipeline_sener"])
def test_a_file_that_is_loaded_by_name_imports_all_that_its_imports_need(name):
    """transformers 5.0 copies the files that it imports, not theirs."""
    path = ROOT / "modeling_sener" / f"{name}.py"
    needed = {Path(file).stem for file in get_relative_import_files(path)}
    assert needed <= {*get_relative_imports(path), name}
    assert name == "configuration_sener" or len(needed) > 2


def test_loading_the_model_fetches_every_file_of_the_folder():
    folder = ROOT / "modeling_sener"
    fetched = {*get_relative_imports(folder / "modeling_sener.py"), "modeling_sener", "__init__"}
    assert fetched == {path.stem for path in folder.glob("*.py")}


def test_no_two_files_define_the_same_name():
    where = defaultdict(list)
    for path in files():
        for name in defined(path.read_text(encoding="utf-8")) - OF_EACH_COMMAND:
            where[name].append(module_of(path))
    assert where["SenerModel"] == ["modeling_sener.modeling_sener"]
    assert {name: modules for name, modules in where.items() if len(modules) > 1} == {}


def test_an_arrow_upwards_is_seen():
    assert room("training.train") == "commands" and room("training.fitting.run") == "fitting"
    assert imported("def f():\n    from training.fitting import run") >= {"training.fitting.run"}
    assert defined("class A:\n    def f(self): pass\nasync def g(): pass") == {"A", "g"}
    assert room("modeling_sener.band") == "modeling_sener" and room("torch.nn") is None
