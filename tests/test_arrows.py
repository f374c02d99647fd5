"""Imports go down only, file by file; ORDER is the order, from the ground up."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ORDER = (
    "version",
    "units",
    "text",
    "errors",
    "torch_release",
    "child_process",
    "input_files",
    "temporary",
    "ending",
    "results",
    "report",  # draws finished data, and so imports nothing but what is above this line
    "models.byte_source",
    "models.remote_file",
    "models.json_objects",
    "models.safetensors_header",
    "models.model_files",
    "models.gguf",
    "models.hub",
    "models.formats",
    "models.vision_towers",
    "models.architecture",
    "models.attention_blocks",
    "models.mlp_blocks",
    "models.huggingface_defaults",
    "models.huggingface_keys",
    "models.quantization",
    "models.cuda_reductions",
    "models.cudnn_attention",
    "models.cuda_attention",
    "models.cuda_indexing",
    "models.shape_tensors",
    "models.mxfp4_experts",
    "models.quantised_products",
    "models.transformers_caches",
    "models.quantised_caches",
    "models.layer_run",
    "models.layer_repeats",
    "models.hyper_connections",
    "models.recurrent_parts",
    "models.layer_orders",
    "models.transformers_blocks",
    "models.expert_blocks",
    "models.step_blocks",
    "models.longcat_blocks",
    "models.block_attention_blocks",
    "models.gemma4_blocks",
    "models.gemma3n_blocks",
    "models.indexed_attention_blocks",
    "models.gated_delta_blocks",
    "models.delta_attention_blocks",
    "models.state_space_blocks",
    "models.selective_scan_blocks",
    "models.convolution_blocks",
    "models.lightning_blocks",
    "models.relative_attention_blocks",
    "models.zamba2_blocks",
    "models.huggingface_towers",
    "models.deepseek_v4_blocks",
    "models.family_parts",
    "models.attention_families",
    "models.gemma_families",
    "models.latent_families",
    "models.hybrid_families",
    "models.huggingface_families",
    "models.huggingface",
    "config.fields",
    "config.reading",
    "config.bundled_files",
    "models.released",
    "models.named_model",
    "config",
    "models",
    "allocator",
    "recordings",
    "devices",
    "planner",
    "simulation",
    "measure",
    "oom",
    "rehearsal",
    "profiling",
    "api",
    "check",
    "evidence",
    "pytest_plugin",
    "cli",
    "__main__",
)
"""Packages, and files. Each imports those above it in this list; a package its own files too."""

ROOT = Path(__file__).parent.parent
FACADE = "tritter_mem"


def module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


WRITTEN_BY_THE_BUILD = ROOT / "tritter_mem" / "_version.py"
FILES = sorted(set((ROOT / "tritter_mem").rglob("*.py")) - {WRITTEN_BY_THE_BUILD})
TOOL = {module_of(path, ROOT): path for path in FILES}
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
    assert not above


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {name: found for name, found in ARROWS.items() if name != FACADE}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    "module", [name for name in TOOL if name.startswith("tritter_mem.report.")]
)
def test_a_renderer_draws_finished_data_alone(module: str) -> None:
    drawn = {name.split(".")[1] for name in ARROWS[module]}
    assert drawn <= {"report", "results", "units", "text", "errors"}


def test_only_those_who_speak_to_people_import_a_renderer() -> None:
    importing = {
        name.split(".")[1]
        for name, found in ARROWS.items()
        if name != FACADE and any(other.split(".")[1] == "report" for other in found)
    }
    assert importing == {"report", "cli", "pytest_plugin"}


@pytest.mark.parametrize("module", MODEL)
def test_the_model_knows_nothing_of_the_tool(module: str) -> None:
    assert not {name for name in imports(MODEL[module]) if name.split(".")[0] == FACADE}


def test_a_file_s_name_says_where_it_is() -> None:
    """A command's file may be called as what it calls is."""
    names = Counter(
        path.stem
        for path in TOOL.values()
        if path.stem not in ("__init__", "__main__") and path.parent.name != "cli"
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_a_small_file_has_several_importers_or_a_reason() -> None:
    """A file of one importer and few lines belongs into its importer."""
    importers = Counter(
        other for name, found in ARROWS.items() if name != FACADE for other in found
    )
    small = {
        name
        for name, path in TOOL.items()
        if path.stem not in ("__init__", "__main__")
        and importers[name] < 2
        and len(path.read_text().splitlines()) < 40
    }
    assert small == SMALL_FILES.keys()


SMALL_FILES = {
    "tritter_mem.rehearsal.inside.run_test": "a program that runs in the user's environment",
    "tritter_mem.simulation.cuda.scratch.products": "each file beside it is a family of operators",
}
"""Files under 40 lines with a single importer, each with its reason."""
