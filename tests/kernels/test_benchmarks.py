"""The scripts that need a GPU: what they say without one, and how parts run and end."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu() -> ModuleType:
    """`benchmarks.gpu`, which is no part of the installed package."""
    spec = importlib.util.spec_from_file_location("gpu_script", ROOT / "benchmarks/gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["gpu", "kernels", "attention"])
def test_without_a_gpu_it_is_said_and_the_exit_code_is_3(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(tmp_path / "figures")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.startswith("found no CUDA device")
    assert not any(tmp_path.iterdir())


def test_an_unknown_part_is_named(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.parse(["kernel"])
    assert ended.value.code == 2
    assert "found part kernel; allowed: tests, measuring, kernels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "passed", "note"),
    [
        ("print('figures')", True, ""),
        ("print('figures'); raise SystemExit(4)", False, "exit 4"),
        ("import time; print('figures', flush=True); time.sleep(60)", False, "ended after 3 s"),
    ],
)
def test_a_part_leaves_its_log_however_it_ends(
    gpu: ModuleType, tmp_path: Path, code: str, passed: bool, note: str
) -> None:
    gpu.PARTS["part"] = lambda _: [sys.executable, "-c", code]
    outcome = gpu.run("part", tmp_path, 3.0)
    assert (outcome.passed, outcome.note) == (passed, note)
    assert (tmp_path / "part.log").read_text() == "figures\n"
    assert gpu.summary([outcome], tmp_path)[0].startswith("part ")


def test_tests_of_a_gpu_are_all_named(gpu: ModuleType) -> None:
    """Every file with a test that is marked `gpu` is among those that the script runs."""
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    named = [ROOT / name for name in gpu.TESTS + gpu.MEASURING]
    for path in marked:
        if path != Path(__file__):
            assert any(path == name or name in path.parents for name in named), path


def test_evidence_lies_by_the_name_of_the_card(gpu: ModuleType) -> None:
    assert gpu.folder_of("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"
