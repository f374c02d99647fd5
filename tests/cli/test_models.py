"""`tritter-mem profiles`: the list, one profile resolved, and the schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tritter_mem.cli.main import app
from tritter_mem.config.bundled_files import bundled_profiles
from tritter_mem.config.json_schema import profile_json_schema
from tritter_mem.config.loading import load_profile, profile_hash


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["profiles", *arguments])


def run_json(*arguments: str) -> Any:
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list_has_every_bundled_profile_and_what_it_runs() -> None:
    done = run()
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert set(bundled_profiles()) <= set(lines)
    assert "training 32K x 4" in lines["spec-train-efficient"]


def test_the_list_as_json_has_each_profile_resolved() -> None:
    listed = run_json("--json")
    assert [entry["name"] for entry in listed] == list(bundled_profiles())
    [seven] = [entry for entry in listed if entry["name"] == "7b"]
    assert seven["profile"] == load_profile("7b").model_dump()
    assert seven["profile_hash"] == profile_hash(load_profile("7b"))


def test_one_profile_is_shown_as_yaml_that_loads_as_the_same(tmp_path: Path) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(run("--show", "7b-128k-hybrid").stdout)
    assert load_profile(str(path)) == load_profile("7b-128k-hybrid")
    assert yaml.safe_load(path.read_text())["workload"]["context"] == 131072


def test_one_profile_is_shown_as_json() -> None:
    assert run_json("--show", "tiny", "--json") == load_profile("tiny").model_dump()


@pytest.mark.parametrize("arguments", [["--schema"], ["--schema", "--json"]])
def test_the_schema_is_one_json_document(arguments: list[str]) -> None:
    assert run_json(*arguments) == profile_json_schema()


def test_an_unknown_profile_is_one_line_and_exit_code_2() -> None:
    done = run("--show", "7b-128k")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: 7b-128k: no such file or bundled profile; did you mean ")
    assert done.stderr.count("\n") == 1
