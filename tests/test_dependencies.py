"""pyproject.toml declares every package that the code imports, rather than rely on another package to install it."""

import ast
import importlib.metadata
import re
import sys

import pytest
from support.toy import ROOT


if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OWN = {"modeling_sener", "training"} | {
    path.stem for folder in ("space", "tests") for path in (ROOT / folder).iterdir()
}
# The demo does without `spaces` if it is missing; peers of the benchmarks run in environments of their own.
LEFT_OUT = {"spaces", "gliner", "gliner2"}
# Every release of transformers 5 requires these itself.
OF_TRANSFORMERS = {"huggingface-hub", "numpy", "packaging", "pyyaml", "safetensors", "tokenizers", "tqdm"}


def names(requirements):
    return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in requirements}


def declared(*extras):
    """The packages of these extras and of the extras that they name, and the plain dependencies."""
    every = set()
    for extra in extras:
        lines = PROJECT["optional-dependencies"][extra]
        every |= names(line for line in lines if not line.startswith("sener["))
        inner = [name for line in lines if line.startswith("sener[") for name in line[6:].split("]")[0].split(",")]
        every |= declared(*inner)
    return every | names(PROJECT["dependencies"])


def imported(folder):
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []  # fmt: skip
            for module in modules:
                found.setdefault(module.split(".")[0], f"{path.relative_to(ROOT)}:{node.lineno}")
    return {name: place for name, place in found.items() if name not in {*sys.stdlib_module_names, *OWN, *LEFT_OUT}}


PACKAGES = importlib.metadata.packages_distributions()
EXTRAS = {
    "modeling_sener": [],
    "training": ["train", "cluster", "serve", "spacy"],
    "space": ["demo"],
    "tests": ["test", "fuzz", "serve", "cluster"],
}


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder):
    known, missing = declared(*EXTRAS[folder]) | OF_TRANSFORMERS, {}
    for name, place in imported(folder).items():
        packages = {each.lower().replace("_", "-") for each in PACKAGES.get(name, [name])}
        if not packages & known:
            missing[name] = place
    assert missing == {}
