"""`tritter-mem audit`: the formulas by default, the simulated column where it is asked for."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import app
from tritter_mem.planner import answers


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas stand for the simulation, which takes a minute."""
    monkeypatch.setattr(answers, "Simulated", lambda progress: answers.Planned())


def shown(*arguments: str, columns: int = 80) -> str:
    done = CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_by_default_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "Simulated", None)
    assert "simulated" not in shown()
    assert all(row["simulated"] is None for row in json.loads(shown("--json"))["rows"])


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("columns", [80, 140])
def test_simulated_column(columns: int) -> None:
    lines = shown("--simulate", columns=columns).splitlines()
    assert "simulated" in lines[0]
    [row] = [line for line in lines if " 134x too high" in line]
    assert row.count("253.2 MB") == 2
    assert max(map(len, lines[:32])) <= columns


@pytest.mark.usefixtures("_quick")
def test_simulated_figures_in_json() -> None:
    rows = json.loads(shown("--simulate", "--json"))["rows"]
    assert all(row["simulated"] == row["computed"] for row in rows if row["unit"] == "bytes")
    assert sum(row["simulated"] is not None for row in rows) >= 25
