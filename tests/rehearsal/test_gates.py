"""Rehearsed commands and tests as gates: `check --rehearse` and `memory_budget(rehearse=True)`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rehearsal.environment import SCRIPTS
from tests.rehearsal.test_launch import rehearsal
from tritter_mem.check.rehearsed import _refuse
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.results.rehearsal import Trust
from tritter_mem.units import MiB

pytestmark = pytest.mark.timeout(900)
COMMAND = f"python {SCRIPTS / 'grows.py'}"
TESTS = """
import pytest

@pytest.fixture(autouse=True)
def model():
    import torch
    return torch.nn.Linear(1024, 4096, device="cuda")

@pytest.mark.memory_budget("20 GiB", rehearse=True)
def test_fits(model):
    import torch
    model(torch.ones(64, 1024, device="cuda")).sum().backward()

@pytest.mark.parametrize("gib", [30])
@pytest.mark.memory_budget("20 GiB", rehearse=True, gpu="rtx-4090")
def test_over(model, gib):
    import torch
    torch.empty(gib << 30, dtype=torch.uint8, device="cuda")

@pytest.mark.skip(reason="not now")
@pytest.mark.memory_budget("20 GiB", rehearse=True)
def test_skipped():
    pass
"""


@pytest.fixture
def made(environment: Path, tmp_path: Path) -> dict[str, str]:
    """Variables with which the environment is where `rehearse --setup` makes one."""
    folder = tmp_path / "data" / "tritter-mem"
    folder.mkdir(parents=True)
    (folder / "rehearsal").symlink_to(environment)
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"XDG_DATA_HOME": str(tmp_path / "data"), "PATH": path}


def run(folder: Path, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=variables, check=False,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_marked_test_is_rehearsed_in_its_own_process(
    tmp_path: Path, made: dict[str, str]
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ("--memory-report=it.json", "--memory-baseline=base.json", "--memory-update-baseline")
    found = run(tmp_path, made, "pytest", "--rootdir=.", *options)
    assert "1 failed, 1 passed, 1 skipped" in found.stdout, found.stdout + found.stderr
    assert "memory_budget: does not fit: needs 30.33 GiB (rehearsed), 10.33 GiB" in found.stdout
    assert "out of memory: 30.00 GiB more at" in found.stdout
    assert "base.json: 1 of 1 entries written again" in found.stdout
    [record] = [one for one in json.loads((tmp_path / "it.json").read_text())
                if one["profile"]["name"] == "test_it.py::test_fits"]  # fmt: skip
    use = record["rehearsed"]
    assert use["device"] == "h100"
    assert use["components"]["weights_bytes"] == 4 * 4096 * 1025
    assert use["device_peak_bytes"] == use["reserved_peak_bytes"] + use["context_bytes"]
    assert sum(use["components"].values()) == use["allocated_peak_bytes"]
    [entry] = json.loads((tmp_path / "base.json").read_text())["entries"]
    assert (entry["kind"], entry["torch"]) == ("rehearsed", "2.14.0")


def test_a_command_that_grows_is_a_regression_that_names_what_grew(
    tmp_path: Path, made: dict[str, str]
) -> None:
    name = ("--rehearse", COMMAND, "--gpu", "4090")
    added = run(tmp_path, made, "tritter_mem", "check", "--update-baseline", *name)
    assert added.returncode == 0, added.stdout + added.stderr
    [entry] = json.loads((tmp_path / "reports/baseline.json").read_text())["entries"]
    assert entry["command"] == COMMAND.split()
    assert (entry["kind"], entry["gpu"], entry["torch"]) == ("rehearsed", "rtx-4090", "2.14.0")
    assert not {"config", "gpus", "settings"} & entry.keys()
    unnamed = run(tmp_path, made, "tritter_mem", "check")
    assert unnamed.returncode == 2
    assert "a command has to be named: --rehearse" in unnamed.stderr
    wide = made | {"WIDTH": "8192"}
    found = run(tmp_path, wide, "tritter_mem", "check", *name, "--json")
    assert found.returncode == 1, found.stdout + found.stderr
    [outcome] = json.loads(found.stdout)["outcomes"]
    assert outcome["status"] == "regression"
    grown = {(one["component"], one["name"]): one["change"] for one in outcome["reasons"]
             if one["group"] == "module"}  # fmt: skip
    change = grown["weights", "Sequential.*"]
    assert change["now_bytes"] - change["baseline_bytes"] == 16 * MiB + 16384


def test_a_command_that_cannot_be_trusted_writes_no_baseline(
    tmp_path: Path, made: dict[str, str]
) -> None:
    words = ("check", "--update-baseline", "--rehearse", COMMAND, "--gpu", "4090", "--json")
    found = run(tmp_path, made | {"DECIDES": "1"}, "tritter_mem", *words)
    assert found.returncode == 3, found.stdout + found.stderr
    [outcome] = json.loads(found.stdout)["outcomes"]
    assert "grows.py:10" in outcome["message"]
    assert not (tmp_path / "reports/baseline.json").exists()


def test_only_a_run_with_figures_that_can_be_trusted_is_compared() -> None:
    done = rehearsal()
    _refuse(done, "it")
    with pytest.raises(UsageError, match="it failed with exit code 7"):
        _refuse(rehearsal(7), "it")
    with pytest.raises(MeasureError, match="it did not use a GPU"):
        _refuse(replace(done, rehearsed=None), "it")
    with pytest.raises(MeasureError, match=r"(?s)cannot be trusted.*at a\.py:3"):
        _refuse(replace(done, trust=Trust(values_decided_shapes=("a.py:3",))), "it")
    with pytest.raises(MeasureError, match="cannot be trusted"):
        _refuse(replace(done, accepted=True, trust=Trust(problems=("old",))), "it")
    with pytest.raises(KeyboardInterrupt):
        _refuse(replace(done, interrupted=True), "it")
