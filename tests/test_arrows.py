"""Imports go down only, file by file; ORDER is the order, from the ground up."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ORDER = (
    "version",
    "units",
    "errors",
    "text",
    "torch_release",
    "results",
    "models.formats",
    "models.vision_towers",
    "models.architecture",
    "models.attention_blocks",
    "models.mlp_blocks",
    "models.quantization",
    "models.transformers_blocks",
    "models.huggingface_defaults",
    "models.huggingface_keys",
    "models.huggingface_towers",
    "models.family_parts",
    "models.attention_families",
    "models.latent_families",
    "models.hybrid_families",
    "models.huggingface_families",
    "models.huggingface",
    "config",
    "models",
    "allocator",
    "recordings",
    "devices",
    "planner",
    "simulation",
    "measure",
    "oom",
    "profiling",
    "check",
    "evidence",
    "report",
    "pytest_plugin",
    "cli",
    "__main__",
)
"""Packages, and files. Each imports those above it in this list; a package its own files too."""

ROOT = Path(__file__).parent.parent
FACADE = "tritter_mem"


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


TOOL = {module_of(path, ROOT): path for path in sorted((ROOT / "tritter_mem").rglob("*.py"))}
MODEL = {module_of(path, ROOT / "model"): path for path in sorted((ROOT / "model").rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at any depth of its code and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = submodules & (TOOL.keys() | MODEL.keys())
            found |= modules if len(modules) == len(node.names) else modules | {str(node.module)}
    return found


ARROWS = {name: imports(path) & TOOL.keys() - {name} for name, path in TOOL.items()}


def place_of(module: str) -> int:
    """Where a file stands in the order: by its own entry, else by that of its package."""
    name = module.removeprefix(f"{FACADE}.")
    return ORDER.index(name if name in ORDER else name.split(".")[0])


@pytest.mark.parametrize("module", [name for name in TOOL if name != FACADE])
def test_a_file_imports_only_what_is_below_it(module: str) -> None:
    assert FACADE not in ARROWS[module], "the facade is for users"
    above = {name for name in ARROWS[module] if place_of(name) > place_of(module)}
    assert above == KNOWN.get(module, set())


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {name: found for name, found in ARROWS.items() if name != FACADE}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", MODEL)
def test_the_model_knows_nothing_of_the_tool(module: str) -> None:
    assert not {name for name in imports(MODEL[module]) if name.split(".")[0] == FACADE}


KNOWN = {
    "tritter_mem.check.budget": {"tritter_mem.report.budget_report"},
    "tritter_mem.devices.cuda": {"tritter_mem.oom.components"},
    "tritter_mem.results.replay": {"tritter_mem.allocator.caching_allocator"},
}
"""Arrows up that are still there."""
