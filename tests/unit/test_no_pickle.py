"""Nothing here reads or writes pickles: loading one runs whatever it says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for part in ("worker", "operator") for path in (ROOT / part / "src").rglob("*.py")
)
MODULES = {
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve"),
    *("marshal", "multiprocessing", "jsonpickle", "hickle"),
}
EXCEPTIONS = {
    "compile_ahead.py": [
        "multiprocessing", "multiprocessing.connection", "multiprocessing.process"
    ]
}  # fmt: skip
"""It forks children, which inherit what they do, and waits for their ends."""
CALLS = {"torch.load", "torch.save", "torch.jit.load", "numpy.load", "np.load", "np.fromfile"}


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
    return "?"


def uses(source: str) -> list[str]:
    """Every mention of a module that pickles, and every call that would."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [each.name for each in names if each.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.append(module)
            case ast.Call(func=function, keywords=keywords):
                if dotted(function) in CALLS:
                    found.append(dotted(function))
                found += [each.arg for each in keywords if each.arg == "allow_pickle"]
                is_import = dotted(function) in ("__import__", "importlib.import_module")
                if is_import and isinstance(node.args[0], ast.Constant):
                    name = str(node.args[0].value)
                    found += [name] if name.split(".")[0] in MODULES else []
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_nothing_to_do_with_pickles(path: Path) -> None:
    assert uses(path.read_text()) == EXCEPTIONS.get(path.name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "from multiprocessing import Queue",
        "__import__('dill')",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert uses(source)
