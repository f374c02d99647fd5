"""Imports go one way: units, errors, results, then config, planner, trace, and so on up to cli."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"units", "errors", "results", "differences", "history", "validation"},
    {"config"},
    {"planner", "trace", "allocator"},
    {"measure"},
    {"report", "check"},
    {"cli", "__main__"},
]


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(package: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if package in layer)


TOOL_FILES = sorted(
    p
    for p in (ROOT / "tritter_mem").rglob("*.py")
    if p.parent.name != "tritter_mem" or p.stem != "__init__"
)
MODEL_FILES = sorted((ROOT / "model").rglob("*.py"))


@pytest.mark.parametrize("path", TOOL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tool_imports_no_later_layer(path: Path) -> None:
    own = path.relative_to(ROOT / "tritter_mem").parts[0].removesuffix(".py")
    for name in imports(path):
        parts = name.split(".")
        # `from tritter_mem import x` names the facade; only submodules carry arrows.
        if parts[0] == "tritter_mem" and len(parts) > 1 and not parts[1].startswith("_"):
            assert layer_of(parts[1]) <= layer_of(own), f"{own} must not import {name}"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_model_knows_nothing_of_the_tool(path: Path) -> None:
    assert not {name for name in imports(path) if name.split(".")[0] == "tritter_mem"}
