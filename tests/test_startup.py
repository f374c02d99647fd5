"""Start-up stays quick because what is heavy is imported by the commands that need it alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tritter_mem.cli.main import COMMANDS
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK

ROOT = Path(__file__).parent.parent
HEAVY = {
    "IPython",
    "jinja2",
    "numpy",
    "pandas",
    "plotly",
    "pydantic",
    "pygments",
    "pynvml",
    "rich.live",
    "rich.markdown",
    "rich.progress",
    "rich.syntax",
    "rich.traceback",
    "torch",
    "triton",
}
# What the interpreter has imported by the time it ends goes behind this line.
LIST_AT_EXIT = """
import atexit, sys
atexit.register(lambda: print("modules", *sys.modules, sep="\\n"))
"""
RUN_MAIN = """
from tritter_mem.cli.main import main
sys.argv[0] = "tritter-mem"
main()
"""


def imported_by(code: str, *arguments: str) -> set[str]:
    """Every module that a fresh interpreter has imported when it has run some code."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_AT_EXIT + code, *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (EXIT_OK, EXIT_DOES_NOT_FIT), done.stderr
    return set(f"\n{done.stdout}".rpartition("\nmodules\n")[2].split())


def heavy(modules: set[str]) -> set[str]:
    """The heavy ones, and everything that belongs to them."""
    return {name for name in modules for part in HEAVY if f"{name}.".startswith(f"{part}.")}


def test_importing_the_library_imports_next_to_nothing() -> None:
    modules = imported_by("import tritter_mem")
    assert {name for name in modules if name.startswith("tritter_mem")} == {
        "tritter_mem",
        "tritter_mem._version",
        "tritter_mem.version",
    }
    assert not heavy(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["models", "--schema"],
        ["models", "--show", "7b"],
        ["models", "--show", "qwen3-32b"],
        ["models", "--json"],
        ["plan", "qwen3-0.6b"],
        ["plan", "--config", "7b-128k-gqa"],
    ],
    ids=" ".join,
)
def test_commands_that_need_no_heavy_module_import_none(arguments: list[str]) -> None:
    modules = imported_by(RUN_MAIN, *arguments)
    assert "tritter_mem.cli.main" in modules
    assert not heavy(modules)


def test_the_help_of_the_group_imports_no_command() -> None:
    modules = imported_by(RUN_MAIN, "--help")
    assert not {f"tritter_mem.cli.{name}" for name in COMMANDS} & modules
    assert "yaml" not in modules


def test_a_command_imports_no_other_command() -> None:
    modules = imported_by(RUN_MAIN, "profiles", "--show", "7b")
    assert {name for name in COMMANDS if f"tritter_mem.cli.{name}" in modules} == {"models"}


@pytest.mark.parametrize(
    ("model", "read", "left_out"),
    [
        ("7b", "bundled", {"huggingface", "attention_families"}),
        ("qwen3-8b", "attention_families", {"latent_families", "gated_delta_blocks"}),
        ("deepseek-v3", "latent_families", {"hybrid_families", "selective_scan_blocks"}),
    ],
)
def test_a_plan_imports_no_other_families(model: str, read: str, left_out: set[str]) -> None:
    modules = imported_by(RUN_MAIN, "plan", model, "--gpu", "rtx-4060")  # on which none fits
    assert f"tritter_mem.models.{read}" in modules
    assert not {f"tritter_mem.models.{name}" for name in left_out} & modules
    assert not heavy(modules)


def test_loading_a_profile_and_its_card_needs_no_table_and_no_console() -> None:
    modules = imported_by(
        "from tritter_mem.config.loading import load_profile\n"
        "from tritter_mem.config.cards import find_card\n"
        "find_card(load_profile('7b').gpu.name)"
    )
    assert "tritter_mem.config.cards" in modules
    assert not heavy(modules)
    assert not {name for name in modules if name.split(".")[0] in ("rich", "typer")}
