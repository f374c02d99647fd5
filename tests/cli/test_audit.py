"""`tritter-mem audit`: the formulas by default, the simulated column where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.evidence.test_audit import run_of
from tritter_mem.cli.main import app
from tritter_mem.evidence import audit


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas stand for the simulation, which takes a minute."""
    monkeypatch.setattr(audit, "Simulated", lambda progress: audit.Planned())


def shown(*arguments: str, columns: int = 80) -> str:
    done = CliRunner().invoke(app, ["audit", *arguments], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_by_default_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "Simulated", None)
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `validate` leaves one: a finished case, and a document that is no result."""
    (tmp_path / "cases").mkdir()
    (tmp_path / "validation.json").write_text('{"schema": "tritter-mem.validation/1"}')
    (tmp_path / "cases" / "a.json").write_text(json.dumps(run_of("7b").to_dict()))
    return tmp_path


@pytest.mark.parametrize("columns", [80, 140])
def test_measured_column_is_of_the_runs_that_are_given(folder: Path, columns: int) -> None:
    lines = shown("--measured", str(folder), columns=columns).splitlines()
    assert "measured" in lines[0]
    [row] = [line for line in lines if " 134x too high" in line]
    assert row.count("253.2 MB") == 2
    assert max(map(len, lines[:32])) <= columns
    assert (
        shown("--measured", str(folder / "cases" / "a.json"), columns=columns).splitlines() == lines
    )


@pytest.mark.usefixtures("_quick")
def test_simulated_and_measured_beside_each_other(folder: Path) -> None:
    lines = shown("--simulate", "--measured", str(folder), columns=140).splitlines()
    assert lines[0].index("simulated") < lines[0].index("measured") < lines[0].index("verdict")


def test_without_runs_there_is_no_measured_column(tmp_path: Path) -> None:
    assert "measured" not in shown().splitlines()[0]
    done = CliRunner().invoke(app, ["audit", "--measured", str(tmp_path)])
    assert done.exit_code == 2
    assert "holds no result" in done.stderr
    done = CliRunner().invoke(app, ["audit", "--measured", str(tmp_path / "none.json")])
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr
