"""Tables: which rows there are, their order, and the numbers behind the text."""

from dataclasses import replace

import pytest

from tests.report.records import many, planned_7b, record, tiny_on_cpu, training_1b
from tritter_mem.report.table import Row, Table
from tritter_mem.report.tables import (
    budget_table,
    comparison_table,
    environment_facts,
    phase_table,
    profile_table,
)
from tritter_mem.results.run import COMPONENTS, Kind, MemoryUse, Result
from tritter_mem.results.verdict import basis_of, judge
from tritter_mem.units import GiB

ALL = [planned_7b(), tiny_on_cpu(), training_1b(), record()]


def texts(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


def row_of(table: Table, name: str) -> Row:
    return next(row for row in table.rows if row.cells[0].text == name)


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.name)
def test_every_row_has_a_cell_for_each_column(result: Result) -> None:
    tables = [budget_table(result, "GiB"), comparison_table([result], "GiB"), profile_table(result)]
    phases = phase_table(result, "GiB")
    for table in [*tables, *([phases] if phases else [])]:
        assert {len(row.cells) for row in table.rows} <= {len(table.columns)}


@pytest.mark.parametrize("result", ALL[:3], ids=lambda r: r.name)
def test_components_sum_to_the_allocated_peak_in_every_column(result: Result) -> None:
    table = budget_table(result, "GiB")
    for column in range(1, 1 + len(result.by_kind())):
        parts = sum(row.cells[column].value or 0 for row in table.rows if not row.total)
        assert parts == row_of(table, "Allocated peak").cells[column].value


def test_components_come_in_the_record_s_order_and_empty_ones_not_at_all() -> None:
    table = budget_table(training_1b(), "GiB")
    names = [row.cells[0].text.lower().replace(" ", "_") for row in table.rows if not row.total]
    assert names == [name for name in COMPONENTS if name in names]
    assert "Vision tower" not in [row.cells[0].text for row in table.rows]


def test_totals_end_with_budget_and_headroom() -> None:
    totals = [row.cells[0].text for row in budget_table(training_1b(), "GiB").rows if row.total]
    assert totals == [
        "Allocated peak", "Reserved peak", "CUDA context", "Device peak", "Budget", "Headroom"
    ]  # fmt: skip


def test_headroom_is_that_of_each_kind() -> None:
    result = training_1b()
    cells = row_of(budget_table(result, "GiB"), "Headroom").cells
    needs = [use.footprint_bytes for use in result.by_kind().values()]
    assert [cell.value for cell in cells[1:4]] == [15 * GiB - need for need in needs]


def test_without_a_verdict_there_is_no_budget_row() -> None:
    table = budget_table(replace(planned_7b(), verdict=None), "GiB")
    assert not {"Budget", "Headroom"} & {row.cells[0].text for row in table.rows}
    assert table.bars
    assert table.bars.limit_bytes is None


def test_a_number_that_is_not_known_is_a_dash() -> None:
    row = row_of(budget_table(training_1b(), "GiB"), "Reserved peak")
    assert texts(row)[1] == "–"  # noqa: RUF001
    assert row.cells[1].value is None


def test_a_budget_that_dwarfs_the_bars_is_not_their_scale() -> None:
    bars = budget_table(tiny_on_cpu(), "GiB").bars
    assert bars
    assert bars.limit_bytes is None
    assert bars.full_bytes == tiny_on_cpu().planned.footprint_bytes  # type: ignore[union-attr]


def test_a_run_on_the_cpu_is_not_held_against_the_card() -> None:
    table = budget_table(tiny_on_cpu(), "GiB")
    assert texts(row_of(table, "Device peak"))[1:3] == ["395.8 MiB", "–"]  # noqa: RUF001
    assert texts(row_of(table, "Headroom"))[1:3] == ["14.61 GiB", "–"]  # noqa: RUF001
    assert row_of(table, "Resident peak").bar_bytes is None
    labels = [column.label for column in comparison_table([tiny_on_cpu()], "GiB").columns]
    assert "Measured" not in labels


def test_a_verdict_on_a_run_on_the_cpu_shows_what_it_stands_on() -> None:
    result = tiny_on_cpu()
    alone: dict[Kind, MemoryUse] = {"measured": result.by_kind()["measured"]}
    judged = replace(result, planned=None, verdict=judge(alone, 15 * GiB))
    assert basis_of(judged) == "measured"
    assert texts(row_of(budget_table(judged, "GiB"), "Headroom"))[1] == "15.00 GiB"


def test_device_peak_is_the_footprint_where_its_parts_are_known() -> None:
    use = replace(planned_7b().by_kind()["planned"], device_peak_bytes=None)
    assert use.totals()["device_peak"] == use.footprint_bytes
    assert replace(use, context_bytes=None).totals()["device_peak"] is None


def test_the_verdict_s_basis_leads() -> None:
    result = training_1b()
    assert basis_of(result) == "measured"
    assert basis_of(replace(result, measured=None)) == "simulated"
    assert basis_of(record()) is None


def test_phases_take_reserved_and_seconds_from_the_best_kind() -> None:
    table = phase_table(training_1b(), "GiB")
    assert table
    assert [column.label for column in table.columns] == [
        "Phase", "Planned", "Simulated", "Measured", "Reserved", "Seconds", "Tokens/s"
    ]  # fmt: skip
    assert texts(table.rows[0]) == [
        "Forward", "9.32 GiB", "9.34 GiB", "9.39 GiB", "9.57 GiB", "0.21", "78,019"
    ]  # fmt: skip


def test_phases_of_one_kind_only_are_kept() -> None:
    result = tiny_on_cpu()
    measured = result.by_kind()["measured"]
    table = phase_table(replace(result, measured=replace(measured, phases=())), "GiB")
    assert table
    assert [texts(row)[2] for row in table.rows] == ["–"] * 3  # noqa: RUF001
    assert phase_table(record(), "GiB") is None


def test_comparison_has_a_row_for_each_profile_in_order() -> None:
    results = many(6)
    table = comparison_table(results, "GiB")
    assert [row.cells[0].text for row in table.rows] == [result.name for result in results]
    assert table.rows[0].cells[-1].text == "−5.33 GiB"  # noqa: RUF001


def test_comparison_leaves_out_kinds_that_nobody_has() -> None:
    labels = [column.label for column in comparison_table([planned_7b()] * 2, "GiB").columns]
    assert "Planned" in labels
    assert "Measured" not in labels


def test_environment_leaves_out_what_is_not_known() -> None:
    assert environment_facts(planned_7b().environment, "GiB") == [("Python", "3.11.2")]
    assert ("GPU memory", "79.65 GiB") in environment_facts(training_1b().environment, "GiB")


def test_the_profile_is_listed_key_by_key() -> None:
    rows = [texts(row) for row in profile_table(planned_7b()).rows]
    assert ["model.num_key_value_heads", "32"] in rows
    assert ["model.sliding_window", "null"] in rows
