"""What only a measured run tells: its table, and the sentences about what is missing."""

from dataclasses import replace
from typing import Any

from tests.report.records import TRADE_OFF, planned_7b, training_1b
from tritter_mem.report.html import render_html
from tritter_mem.report.table import Table
from tritter_mem.report.tables import budget_table, measured_table
from tritter_mem.report.trade_offs import checkpointing_table
from tritter_mem.report.words import notes
from tritter_mem.results.run import (
    AllocatorStats,
    Components,
    DeviceRun,
    MemoryUse,
    OutOfMemory,
    Result,
    RunFigures,
    Spread,
)
from tritter_mem.results.verdict import compare, judge
from tritter_mem.units import GiB, MiB

STATS = AllocatorStats(
    requested_peak_bytes=3 * GiB, active_peak_bytes=4 * GiB, inactive_split_peak_bytes=5 * MiB,
    retries=2, segment_allocations=1234, segment_releases=7,
)  # fmt: skip
RUN = DeviceRun(allocator=STATS, total_bytes=80 * GiB, other_processes_bytes=9 * GiB)
REFUSED = OutOfMemory(
    operator="mlp.py:7", module="Transformer.layers.3", phase="decode", requested_bytes=GiB,
    allocated_bytes=13 * GiB, reserved_bytes=14 * GiB, limit_bytes=14 * GiB + 1,
)  # fmt: skip


def figures(seconds: float, reserved: int) -> RunFigures:
    return RunFigures(allocated_peak_bytes=GiB, reserved_peak_bytes=reserved, seconds=seconds)


SPREAD = Spread(
    runs=5, minimum=figures(1, GiB), median=figures(2, GiB), maximum=figures(3, 2 * GiB)
)


def measured(**changed: Any) -> Result:
    result = training_1b()
    assert result.measured is not None
    return replace(result, measured=replace(result.measured, **changed))


def values(table: Table | None) -> dict[str, str]:
    assert table is not None
    return {row.cells[0].text: row.cells[1].text for row in table.rows}


def test_figures_that_were_read_have_a_row_each() -> None:
    rows = values(measured_table(measured(run=RUN), "GiB"))
    assert rows["Requested peak, before rounding"] == "3.00 GiB"
    assert rows["Other processes before, not counted"] == "9.00 GiB"
    assert rows["Allocations that needed a retry"] == "2"
    assert rows["Segments allocated from the driver"] == "1,234"
    assert "Limit of what PyTorch may reserve" not in rows


def test_spread_shows_least_median_and_most() -> None:
    rows = values(measured_table(measured(spread=SPREAD), "GiB"))
    over = "over 5 runs (minimum, median, maximum)"
    assert rows[f"Allocated peak {over}"] == "1.00 GiB each"
    assert rows[f"Reserved peak {over}"] == "1.00 GiB, 1.00 GiB, 2.00 GiB"
    assert rows[f"Seconds {over}"] == "1, 2, 3"


def test_there_is_no_table_without_anything_to_say() -> None:
    assert measured_table(planned_7b(), "GiB") is None
    assert measured_table(measured(), "GiB") is None


def test_page_has_the_table() -> None:
    assert "Allocations that needed a retry" in render_html([measured(run=RUN)])


def test_out_of_memory_is_said_with_its_place() -> None:
    [line] = [note for note in notes(measured(out_of_memory=REFUSED)) if "out of memory" in note]
    assert line == (
        "measured: out of memory in decode, Transformer.layers.3 (mlp.py:7): asked for 1.00 GiB "
        "with 14.00 GiB of 14.00 GiB reserved; its figures end there"
    )


def test_headroom_of_a_run_out_of_memory_is_the_verdict_s() -> None:
    """Its figures are those up to there, so the budget less them would be room to spare."""
    result = measured(out_of_memory=REFUSED)
    judged = replace(result, verdict=judge(result.by_kind(), 1000 * GiB))
    assert judged.verdict is not None
    assert not judged.verdict.fits
    assert result.measured is not None
    needs = result.measured.footprint_bytes + REFUSED.requested_bytes
    assert budget_table(judged, "GiB").rows[-1].cells[3].value == 1000 * GiB - needs


def test_what_could_not_be_read_has_its_reason() -> None:
    found = notes(measured(run=replace(RUN, unread=("NVML is not there",), components_reason="x")))
    assert "NVML is not there" in found
    assert "components are not measured: x" in found


def test_fragmentation_says_which_run_it_is_of_or_why_it_is_missing() -> None:
    there = notes(measured(run=replace(RUN, fragmentation_source="the recorded run")))
    assert "fragmentation is that of the recorded run" in there
    missing = notes(measured(run=replace(RUN, fragmentation_reason="too long")))
    assert "fragmentation is not measured: too long" in missing


def test_unknown_components_are_dashes_and_no_difference() -> None:
    result = measured(components=Components())
    found = compare(result.by_kind())
    weights = next(row for row in found if row.name == "weights")
    assert (weights.measured_bytes, weights.simulated_vs_measured) == (None, None)
    table = budget_table(replace(result, differences=found), "GiB")
    assert table.rows[0].cells[3].text == "–"  # noqa: RUF001  (the table's dash)


def test_reserved_peak_is_compared_where_two_kinds_know_it() -> None:
    def use(reserved: int | None) -> MemoryUse:
        return MemoryUse(device="x", components=Components(weights_bytes=1), phases=(),
                        allocated_peak_bytes=1, reserved_peak_bytes=reserved)  # fmt: skip

    names = [row.name for row in compare({"simulated": use(100), "measured": use(101)})]
    assert names == ["weights", "allocated_peak", "reserved_peak"]
    names = [row.name for row in compare({"planned": use(None), "simulated": use(101)})]
    assert names == ["weights", "allocated_peak"]


def test_measured_policies_stand_beside_simulated_ones() -> None:
    ran = replace(TRADE_OFF[0], measured_allocated_peak_bytes=GiB, measured_seconds=1.5)
    refused = replace(TRADE_OFF[1], measured_allocated_peak_bytes=GiB, measured_reason="out")
    table = checkpointing_table(replace(training_1b(), checkpointing=(ran, refused)), "GiB")
    assert table is not None
    assert table.caption.endswith("simulated and measured")
    labels = [column.label for column in table.columns]
    first, second = (
        dict(zip(labels, (cell.text for cell in row.cells), strict=True)) for row in table.rows
    )
    assert (first["Measured"], first["Seconds"]) == ("1.00 GiB", "1.5")
    assert second["Seconds"] == "–"  # noqa: RUF001  (the table's dash)
