"""The steps of `action.yml`, run as they are written there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STEPS = {
    step["name"]: step
    for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    if "run" in step
}


def run_step(name: str, folder: Path, programs: Path, **values: str) -> Any:
    """A step in bash as GitHub calls it, with what its inputs come to."""
    assert values.keys() == STEPS[name]["env"].keys()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | values | {"PATH": path, "TRITTER_MEM_HISTORY": "off"}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]],
        cwd=folder, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip


def test_a_peak_that_grew_fails_the_check_and_is_annotated(tmp_path: Path) -> None:
    baseline = json.loads((ROOT / "reports" / "baseline.json").read_text())
    [entry] = [one for one in baseline["entries"] if one["config"] == "125m"]
    (tmp_path / "same.json").write_text(json.dumps(baseline))
    entry["figures"]["allocated_peak_bytes"] //= 2
    (tmp_path / "less.json").write_text(json.dumps(baseline))
    programs = Path(sys.executable).parent
    found = [
        run_step("Check", tmp_path, programs, BASELINE=name, ARGUMENTS="--config 125m")
        for name in ("same.json", "less.json")
    ]
    assert [done.returncode for done in found] == [0, 1], found
    assert "::error" not in found[0].stdout
    assert "::error" in found[1].stdout
    assert "125m" in found[1].stdout


@pytest.mark.parametrize(
    ("torch", "package", "installed"),
    [
        ("", "", ("2.13.0", "/the/action")),
        ("2.14.0", "tritter-mem==1.2.3", ("2.14.0", "tritter-mem==1.2.3")),
    ],
)
def test_the_version_of_pytorch_is_that_of_the_baseline(
    tmp_path: Path, torch: str, package: str, installed: tuple[str, str]
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$@" >> {tmp_path}/calls\n'
    )
    python.chmod(0o755)
    baseline = str(ROOT / "reports" / "baseline.json")
    done = run_step(
        "Install", tmp_path, tmp_path,
        BASELINE=baseline, PACKAGE=package, TORCH=torch, HERE="/the/action",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / "calls").read_text().splitlines()
    assert f"torch=={installed[0]} " in first
    assert first.endswith("/whl/cpu")
    assert second.endswith(f"torch=={installed[0]} {installed[1]}")


def test_a_baseline_that_is_not_there_fails(tmp_path: Path) -> None:
    done = run_step(
        "Install", tmp_path, Path(sys.executable).parent,
        BASELINE="nowhere.json", PACKAGE="", TORCH="", HERE=".",
    )  # fmt: skip
    assert done.returncode != 0
    assert "nowhere.json" in done.stderr
