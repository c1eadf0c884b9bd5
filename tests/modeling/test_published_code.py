"""The code that `trust_remote_code=True` runs: importing it only defines names, and nothing runs code from data."""

import ast

import pytest
from support.toy import ROOT


FILES = sorted((ROOT / "modeling_sener").glob("*.py"))
# torch and transformers require numpy, tokenizers and safetensors themselves.
IMPORTED = {"bisect", "collections", "contextlib", "copy", "dataclasses", "functools", "itertools", "json", "math",
            "numbers", "numpy", "pathlib", "re", "safetensors", "shutil", "tokenizers", "torch", "transformers",
            "types", "typing"}  # fmt: skip
CALLED_AT_IMPORT = {
    "AutoConfig.register", "AutoModel.register", "AutoProcessor.register", "PIPELINE_REGISTRY.register_pipeline",
    "AttentionInterface.register", "AttentionMaskInterface.register", "require_version", "re.compile", "dataclass",
    "field", "torch.no_grad",
}  # fmt: skip
# Ways to run code from data, to read the environment or to open a connection, with modules that may be imported.
NEVER = {"eval", "exec", "compile", "__import__", "globals", "locals", "vars", "input", "breakpoint"}
NEVER_OF_TORCH = {"load", "hub", "jit", "package", "classes", "ops", "distributed"}
NEVER_OF_A_MODULE = {"environ", "getenv", "system", "popen", "urlopen", "download_url_to_file"}


def faults(source: str) -> list[str]:
    """List the forbidden imports and calls of the code, a line each."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        found += [f"{line}: imports {name}" for name in names if name.split(".")[0] not in IMPORTED]
        found += [f"{line}: imports {name}" for name in names if set(name.split(".")) & NEVER_OF_A_MODULE]
        found += [f"{line}: imports {name}" for name in names
                  if name.startswith("torch.") and name.split(".")[1] in NEVER_OF_TORCH]  # fmt: skip
        if isinstance(node, ast.Name) and node.id in NEVER:
            found.append(f"{line}: {node.id}")
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr in NEVER_OF_A_MODULE or (owner == "torch" and node.attr in NEVER_OF_TORCH):
                found.append(f"{line}: {owner}.{node.attr}")
    return found + [f"{node.lineno}: runs at import: {ast.unparse(node)}" for node in run_at_import(tree.body)]


def run_at_import(body: list[ast.stmt]) -> list[ast.AST]:
    """List statements and calls of a module or class that do more than define something."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            evaluated = [*node.bases, *node.keywords, *node.decorator_list]
            found += run_at_import(node.body)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            evaluated = [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.decorator_list]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            evaluated = []
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr)):
            evaluated = [node]
        else:
            found.append(node)
            continue
        calls = [part for each in evaluated for part in ast.walk(each) if isinstance(part, ast.Call)]
        found += [call for call in calls if ast.unparse(call.func) not in CALLED_AT_IMPORT]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_importing_does_nothing_but_register_names_and_nothing_runs_data_or_opens_a_connection(file):
    assert faults(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "code",
    [
        "import os",
        "import socket",
        "from urllib import request",
        "from torch import hub",
        "import torch.hub",
        "print(1)",
        "if True:\n    x = 1",
        "for x in y: pass",
        "x = torch.zeros(3)",
        "class A:\n    x = print(1)",
        "def f(x=print(1)): pass",
        "@print(1)\ndef f(): pass",
        "def f(x): return eval(x)",
        "def f(x): return torch.load(x)",
        "def f(x): return torch.ops.load_library(x)",
        "def f(): return pathlib.os.environ['A']",
        "def f(): __import__('os')",
    ],
)
def test_forbidden_code_is_found(code):
    assert faults(code) != []
