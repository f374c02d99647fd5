"""`tritter-mem validate`: from a list of profiles to a table, files and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.results.test_validation import validated
from tritter_mem.cli.main import app
from tritter_mem.config.profile import Profile
from tritter_mem.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_INTERRUPTED,
    EXIT_NOT_MEASURED,
    EXIT_OK,
    EXIT_USAGE,
)
from tritter_mem.evidence import validate
from tritter_mem.profiling.profiler import ProfileInterrupted
from tritter_mem.results import run as results
from tritter_mem.results.record_file import read_results

SHORT = """
extends: tiny
gpu: {budget: 256MiB}  # curves of contexts end there, and each context has its chunks counted
model: {num_hidden_layers: 1}
workload: {context: 48, prefill_chunk: 32, new_tokens: 2}
"""
GRAPH = SHORT.replace("new_tokens: 2", "new_tokens: 2, cuda_graph: true")


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def run(folder: Path, *arguments: str | Path) -> Result:
    device = [] if "--device" in arguments else ["--device", "cpu"]
    words = ["validate", *device, "--output", folder, *arguments]
    return CliRunner().invoke(app, list(map(str, words)))


def profiles(folder: Path, **texts: str) -> list[str]:
    """Files of profiles, as `--config` takes them."""
    options = []
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        options += ["--config", str(folder / f"{name}.yaml")]
    return options


def finished(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in (folder / "cases").glob("*.json"))


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], Any]) -> None:
    """Let cases come to what a test says."""

    def profile(case: Profile, **how: Any) -> results.Result:
        found: results.Result = answer(case.name)
        return found

    monkeypatch.setattr(validate, "profile", profile)


def test_runs_on_the_cpu_are_held_against_the_plan_and_kept(tmp_path: Path) -> None:
    """One case cannot be measured on a CPU; the other is, and is there when it is run again."""
    out, configs = tmp_path / "out", profiles(tmp_path, graph=GRAPH, short=SHORT)
    done = run(out, *configs, "--html", out / "page.html")
    assert done.exit_code == EXIT_NOT_MEASURED, done.output
    assert "graph: not measured: workload.cuda_graph: got true" in done.stdout
    assert "1 of 2 within" in done.stdout
    assert finished(out) == ["short"]
    (kept,) = read_results(next((out / "cases").iterdir()))
    assert kept.measured is not None
    assert "<html" in (out / "page.html").read_text()

    again = run(out, *configs, "--json")
    assert again.exit_code == EXIT_NOT_MEASURED
    assert "short: within, kept from before" in again.stderr
    document = json.loads(again.stdout)
    assert document == json.loads((out / "validation.json").read_text())
    assert [case["status"] for case in document["cases"]] == ["not measured", "within"]


def test_without_profiles_the_list_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda name: validated(name=name).result)
    done = run(tmp_path)
    assert done.exit_code == EXIT_OK, done.output
    assert "tiny-int2" in done.stdout
    assert "tiny-fp8" in finished(tmp_path)


def test_beyond_a_tolerance_exits_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda name: validated(name=name, simulated=2**29).result)
    done = run(tmp_path, "--config", "tiny")
    assert done.exit_code == EXIT_DOES_NOT_FIT
    assert "beyond 0.5%" in done.stdout
    assert finished(tmp_path) == ["tiny"]  # beyond is an answer


def test_finished_cases_are_run_again_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(name: str) -> results.Result | None:
        asked.append(name)
        return validated(name=name).result

    answering(monkeypatch, answer)
    for more in ([], [], ["--again"]):
        assert run(tmp_path, "--config", "tiny", *more).exit_code == EXIT_OK
    assert asked == ["tiny", "tiny"]


def test_an_interruption_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(name: str) -> results.Result | None:
        found = validated(name=name).result
        assert found is not None
        if name == "125m":
            raise ProfileInterrupted(found)
        return found

    answering(monkeypatch, answer)
    configs = [word for name in ("tiny", "125m", "1b") for word in ("--config", name)]
    done = run(tmp_path, *configs)
    assert done.exit_code == EXIT_INTERRUPTED
    assert finished(tmp_path) == ["tiny"]
    document = json.loads((tmp_path / "validation.json").read_text())
    assert document["interrupted"] is True
    assert [case["name"] for case in document["cases"]] == ["tiny"]


def test_a_full_disk_ends_it_with_the_tables_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    def answer(name: str) -> results.Result | None:
        monkeypatch.setattr(Path, "replace", full)
        return validated(name=name).result

    answering(monkeypatch, answer)
    done = run(tmp_path, "--config", "tiny")
    assert done.exit_code == EXIT_USAGE
    assert "No space left on device" in done.stderr
    assert "1 of 1 within" in done.stdout
    assert not list(tmp_path.rglob("*.json"))


def test_without_a_gpu_it_says_what_can_be_done(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["validate", "--output", str(tmp_path)])
    assert done.exit_code == EXIT_NOT_MEASURED
    assert "--device cpu" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "none"], "--device: got none"),
        (["--device", "tpu"], "got 'tpu'"),
        (["--time-limit", "0"], "time limit: got 0 s"),
        (["--budget", "much"], "--budget: "),
        (["--config", "nonesuch"], "nonesuch"),
        (["--html", "/dev/null"], "cannot be written"),
    ],
)
def test_wrong_options_end_it_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(validate, "profile", None)
    done = run(tmp_path, *options)
    assert done.exit_code == EXIT_USAGE, done.output
    assert said in done.stderr
    assert not list(tmp_path.iterdir())
