"""What the page on CI shows is as the tool has it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tritter_mem.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text()
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


def blocks(language: str) -> list[Any]:
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [yaml.safe_load(text) for text in found]


def commands() -> list[tuple[str, list[str]]]:
    """Every call of the tool, with the options that it names."""
    text = PAGE + "".join(hook["entry"] + "\n" for hook in HOOKS)
    calls = re.findall(r"tritter-mem (\w+)([^\n`#>]*)", text)
    return [(name, re.findall(r"--[\w-]+", rest)) for name, rest in calls if name in COMMANDS]


@pytest.mark.parametrize("name", sorted({name for name, _ in commands()}))
def test_every_option_that_is_shown_exists(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"]).output
    wanted = {option for called, options in commands() if called == name for option in options}
    assert not {option for option in wanted if f"{option} " not in shown}


def test_the_workflow_needs_no_rights_and_runs_the_check() -> None:
    workflow, _, _ = blocks("yaml")
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["memory"]["steps"]
    assert steps[-1] == {"run": "tritter-mem check --format github"}
    pinned = re.findall(r"torch==([\d.]+)", (ROOT / "constraints.txt").read_text())
    assert any(f"torch=={pinned[0]} " in step.get("run", "") for step in steps)


def test_the_action_takes_what_the_page_gives_it() -> None:
    _, action, _ = blocks("yaml")
    inputs = yaml.safe_load((ROOT / "action.yml").read_text())["inputs"]
    assert action["steps"][-1]["with"].keys() <= inputs.keys()


def test_the_hook_of_the_page_is_the_one_that_is_defined() -> None:
    _, _, config = blocks("yaml")
    assert [hook["id"] for hook in config["repos"][0]["hooks"]] == [hook["id"] for hook in HOOKS]
    assert {"id", "name", "entry", "language"} <= set(HOOKS[0])


def test_the_example_of_settings_is_one() -> None:
    from tritter_mem.results.baseline import Tolerance
    from tritter_mem.results.from_json import from_plain

    (settings,) = blocks("json")
    assert settings["gate"] in ("allocated", "reserved")
    assert from_plain(Tolerance, settings["tolerance"]).relative == 0.005
