"""`tritter-mem models`: the list, one profile or model, and the schema."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tritter_mem.cli.main import app
from tritter_mem.config.bundled_files import bundled_profiles, find_released, released_names
from tritter_mem.config.json_schema import profile_json_schema
from tritter_mem.config.loading import load_profile, profile_hash


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


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
    assert [entry["name"] for entry in listed] == [*bundled_profiles(), *released_names()]
    [seven] = [entry for entry in listed if entry["name"] == "7b"]
    assert seven["profile"] == load_profile("7b").model_dump()
    assert seven["profile_hash"] == profile_hash(load_profile("7b"))


def test_the_list_has_every_released_model_with_its_memory() -> None:
    lines = {line.split()[0]: line for line in run().stdout.splitlines() if line.strip()}
    assert set(released_names()) <= set(lines)
    assert "61.02 GiB" in lines["qwen3-32b"]
    assert "8.00 GiB" in lines["qwen3-32b"]


def test_the_list_as_json_has_the_figures_of_each_released_model() -> None:
    [model] = [entry for entry in run_json("--json") if entry["name"] == "qwen3-32b"]
    assert model["parameters"] == model["stated_parameters"]["stated"] == 32_762_123_264
    assert model["active_parameters"] == 32_762_123_264
    assert model["weight_bytes"] == model["bfloat16_weight_bytes"] == 2 * 32_762_123_264
    assert model["kv_bytes_per_token"] == 64 * 2 * 8 * 128 * 2
    assert model["model"]["num_hidden_layers"] == 64
    assert model["source"]["version"]
    assert run_json("--show", "Qwen3-32B", "--json") == model


def test_a_released_model_is_shown_as_its_file_has_it() -> None:
    path = find_released("qwen3-32b")
    assert path is not None
    assert run("--show", "qwen3-32b").stdout == path.read_text()


def test_profiles_is_another_name() -> None:
    other = CliRunner().invoke(app, ["profiles", "--show", "tiny"])
    assert other.exit_code == 0
    assert other.stdout == run("--show", "tiny").stdout


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
    message = "error: 7b-128k: no bundled model and no file of this name; did you mean "
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
