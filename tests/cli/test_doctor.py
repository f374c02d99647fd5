"""`tritter-mem doctor` names what is there and what is missing, and never fails."""

import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tritter_mem.cli import doctor
from tritter_mem.cli.main import app
from tritter_mem.results.run import Environment


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *arguments])


def checks() -> dict[str, Any]:
    done = run("--json")
    assert done.exit_code == 0, done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)}


@pytest.fixture
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(doctor, "_cuda_works", lambda: False)


@pytest.mark.usefixtures("_no_card")
def test_without_a_gpu_it_says_what_still_works() -> None:
    found = checks()
    assert found["python"]["ok"]
    assert found["torch"]["ok"]
    assert found["GPU"] == {
        "name": "GPU",
        "ok": False,
        "found": "no NVIDIA GPU is visible",
        "advice": "name the card to plan for with --gpu; tritter-mem gpus lists them",
    }
    assert found["profile on the CPU"]["ok"]
    assert not found["profile on a GPU"]["ok"]


@pytest.mark.usefixtures("_no_card")
def test_every_line_says_ok_or_missing_and_what_to_do() -> None:
    lines = run().stdout.splitlines()
    starts = {line[:8].strip() for line in lines}
    assert starts == {"ok", "missing", ""}
    at = next(i for i, line in enumerate(lines) if line.startswith("missing GPU"))
    assert (
        lines[at + 1].strip() == "name the card to plan for with --gpu; tritter-mem gpus lists them"
    )


def test_without_pytorch_planning_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = checks()
    assert not found["torch"]["ok"]
    assert "pip install 'torch>=2.10'" in found["torch"]["advice"]
    assert found["plan, audit, replay"]["ok"]
    assert not found["profile on the CPU"]["ok"]


def test_a_gpu_that_pytorch_cannot_use_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Environment(python="3.11", gpu="NVIDIA H200", total_bytes=143771 << 20)
    monkeypatch.setattr("tritter_mem.devices.environment.collect_environment", lambda: card)
    monkeypatch.setattr(doctor, "_cuda_works", lambda: False)
    assert checks()["GPU"]["found"] == "NVIDIA H200, 140.40 GiB; PyTorch cannot use it"
    monkeypatch.setattr(doctor, "_cuda_works", lambda: True)
    assert checks()["GPU"]["found"] == "NVIDIA H200, 140.40 GiB"
    assert checks()["profile on a GPU"]["ok"]


def test_allocator_settings_of_the_environment_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in doctor.CONF_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert checks()["allocator"]["found"] == "PyTorch's defaults"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    assert checks()["allocator"]["found"] == "PYTORCH_CUDA_ALLOC_CONF=backend:native"
