"""`tritter-mem profile --ladder`: the rung on which a profile ends, on the terminal and as JSON."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_OK, EXIT_USAGE

OPTIONS = (
    "--config", "tiny", "--mode", "training", "--batch", "4", "--device", "none",
    "--set", "training.checkpointing.policy=none", "--budget", "500 MiB", "--ladder",
)  # fmt: skip


def test_terminal_shows_each_rung_to_the_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    done = CliRunner().invoke(app, ["profile", *OPTIONS])
    assert done.exit_code in (EXIT_OK, EXIT_DOES_NOT_FIT), done.stderr
    assert "Out-of-memory ladder, simulated" in done.stdout
    assert "checkpoint every 2nd layer" in done.stdout
    assert "checkpoint every layer" not in done.stdout


def test_json_has_each_rung_in_bytes() -> None:
    done = CliRunner().invoke(app, ["profile", *OPTIONS, "--json"])
    assert done.exit_code in (EXIT_OK, EXIT_DOES_NOT_FIT), done.stderr
    [ladder] = json.loads(done.stdout)["ladders"]
    assert (ladder["kind"], ladder["budget_bytes"]) == ("simulated", 500 * 2**20)
    assert [(step["rung"], step["ended"]) for step in ladder["steps"]] == [
        ("as it is", "does not fit"),
        ("checkpoint every 2nd layer", "fits"),
    ]
    assert ladder["steps"][1]["settings"] == {"checkpoint_every": 2}


def test_third_party_code_is_pointed_to_the_manager(tmp_path: Path) -> None:
    (code := tmp_path / "a.py").write_text("def build(): ...")
    done = CliRunner().invoke(app, ["profile", "--module", f"{code}:build", "--ladder"])
    assert done.exit_code == EXIT_USAGE
    assert "use MemoryManager" in done.stderr
