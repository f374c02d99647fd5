"""`tritter-mem gpus`: the table of cards."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tritter_mem.cli.main import app
from tritter_mem.config import cards as gpus
from tritter_mem.config.cards import card_names
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.units import GiB, MiB


def test_the_table_has_every_card_smallest_first_within_80_columns() -> None:
    done = CliRunner().invoke(app, ["gpus"])
    assert done.exit_code == 0, done.stderr
    table, _, note = done.stdout.partition("\n\n")
    assert note.startswith("* measured")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert sorted(row[0] for row in rows) == sorted(card_names())
    sizes = [int(row[1]) for row in rows]
    assert sizes == sorted(sizes)
    assert max(map(len, done.stdout.splitlines())) <= 80
    [card] = [row for row in rows if row[0] == "rtx-5080"]
    assert card == ["rtx-5080", "16303", "15.00", "GiB", "384", "960", "84", "12.0"]


def test_a_context_that_was_measured_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = replace(find_gpu("h100"), context_source="measured: torch 2.11.0, driver 1, 2026-01-05")
    monkeypatch.setattr(gpus, "read_card", {"h100": card, "t4": find_gpu("t4")}.get)
    monkeypatch.setattr(gpus, "card_names", lambda: ("h100", "t4"))
    first, second, _, note = CliRunner().invoke(app, ["gpus"]).stdout.splitlines()[2:]
    assert first.split()[4].isdecimal()
    assert second.split()[4] == f"{card.context_bytes // MiB}*"
    assert note.startswith("* measured")


def test_json_gives_bytes_and_sources() -> None:
    done = CliRunner().invoke(app, ["gpus", "--json"])
    cards = {card["name"]: card for card in json.loads(done.stdout)}
    assert set(cards) == set(card_names())
    card = cards["rtx-5080"]
    assert card["total_bytes"] == 16303 * MiB
    assert card["default_budget_bytes"] == 15 * GiB
    assert card["compute_capability"] == [12, 0]
    assert card["cublas_workspace_bytes"] == 33_554_432
    assert card["source"] == find_gpu("rtx-5080").source
