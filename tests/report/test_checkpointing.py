"""The checkpointing trade-off as a table: a row a policy, with the front and the profile's own."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from tests.report.records import TRADE_OFF, planned_7b, training_1b
from tritter_mem.report.html import render_html
from tritter_mem.report.table import Table
from tritter_mem.report.terminal import make_console, render_results
from tritter_mem.report.trade_offs import checkpointing_table
from tritter_mem.results.run import CheckpointCase


def table_of(*cases: CheckpointCase, **checkpointing: Any) -> Table:
    result = training_1b()
    training = {"optimizer": "adamw", "checkpointing": checkpointing}
    profile = {**result.profile, "training": training}
    table = checkpointing_table(replace(result, profile=profile, checkpointing=cases), "GiB")
    assert table is not None
    return table


def column(table: Table, label: str) -> list[str]:
    index = [column.label for column in table.columns].index(label)
    return [row.cells[index].text for row in table.rows]


def test_policies_are_written_as_the_option_takes_them() -> None:
    table = table_of(*TRADE_OFF, policy="every-nth", n=4)
    names = ["none", "every-nth:4 (this profile)", "segments:4", "every-layer"]
    assert column(table, "Policy") == names


def test_the_number_of_a_policy_that_takes_none_does_not_matter() -> None:
    table = table_of(*TRADE_OFF, policy="every-layer", n=4)
    assert column(table, "Policy")[-1] == "every-layer (this profile)"


def test_front_and_work_are_shown() -> None:
    table = table_of(*TRADE_OFF, policy="none", n=1)
    assert column(table, "Pareto front") == ["yes", "yes", "", "yes"]
    assert column(table, "Work") == ["+0.0%", "+8.3%", "+33.2%", "+33.2%"]


@pytest.mark.parametrize(
    ("flops", "shown"),
    [
        (0, "0 FLOP"),
        (999_999, "999999 FLOP"),
        (1_500_000, "1.5 MFLOP"),
        (34_500_000_000_000, "34.5 TFLOP"),
        (1_240_000_000_000_000, "1.24 PFLOP"),
    ],
)
def test_operations_have_a_unit(flops: int, shown: str) -> None:
    case = replace(TRADE_OFF[0], flops=flops, recomputed_flops=flops)
    assert column(table_of(case), "Recomputed") == [shown]


def test_there_is_no_table_where_it_was_not_asked_for() -> None:
    assert checkpointing_table(planned_7b(), "GiB") is None


@pytest.mark.parametrize("several", [False, True])
def test_terminal_and_page_show_it(several: bool) -> None:
    results = [training_1b(), planned_7b()] if several else [training_1b()]
    out = io.StringIO()
    render_results(results, make_console(out))
    page = render_html(results, plotlyjs="directory")
    for shown in (out.getvalue(), page):
        assert "Checkpointing trade-off, simulated" in shown
        assert "every-nth:4" in shown
