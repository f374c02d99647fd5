"""Differences: which are shown, how they are said, and their tones."""

from dataclasses import replace

import pytest

from tests.report.records import record, tiny_on_cpu, training_1b
from tritter_mem.report.differences import (
    compared_pairs,
    difference_cell,
    notable_differences,
    tone_of,
)
from tritter_mem.results.run import Components, Kind, MemoryUse
from tritter_mem.results.verdict import TOLERANCES, compare


def use(**parts: int) -> MemoryUse:
    components = Components(**{f"{name}_bytes": size for name, size in parts.items()})
    return MemoryUse(
        device="cpu", components=components, phases=(), allocated_peak_bytes=components.total_bytes
    )


def compared(planned: MemoryUse, measured: MemoryUse) -> list[str]:
    uses: dict[Kind, MemoryUse] = {"planned": planned, "measured": measured}
    both = record(planned=planned, measured=measured, differences=compare(uses))
    return notable_differences(both, "GiB")


def test_each_kind_is_compared_with_the_next_better() -> None:
    assert compared_pairs(["planned", "simulated", "measured"]) == [
        ("planned", "simulated"), ("simulated", "measured")
    ]  # fmt: skip
    assert compared_pairs(["planned", "measured"]) == [("planned", "measured")]
    assert compared_pairs(["planned"]) == []


def test_differences_up_to_two_percent_are_not_notable() -> None:
    assert compared(use(weights=10_000), use(weights=10_199)) == []
    assert compared(use(weights=10_000), use(weights=10_201)) == [
        "Weights: planned 9.8 KiB, measured 10.0 KiB (+2.0%)",
        "Allocated peak: planned 9.8 KiB, measured 10.0 KiB (+2.0%)",
    ]


def test_what_was_planned_as_nothing_is_notable() -> None:
    lines = compared(use(weights=10**6), use(weights=10**6, workspace=512))
    assert lines == ["Workspace: planned 0 B, measured 512 B (+512 B)"]


def test_the_component_that_differs_is_named() -> None:
    assert notable_differences(tiny_on_cpu(), "GiB") == [
        "Activations: planned 1.2 MiB, measured 1.3 MiB (+5.0%)"
    ]
    assert notable_differences(training_1b(), "GiB") == [
        "Workspace: simulated 16.2 MiB, measured 64.0 MiB (+293.8%)"
    ]


@pytest.mark.parametrize(
    ("ratio", "tone"),
    [(0, "good"), (-0.02, "good"), (0.021, "warn"), (-0.1, "warn"), (0.11, "bad")],
)
def test_tones_follow_the_tolerance(ratio: float, tone: str) -> None:
    assert tone_of(ratio, 0.02) == tone


def test_simulation_is_held_to_a_closer_tolerance_than_planning() -> None:
    assert TOLERANCES["simulated", "measured"] < TOLERANCES["planned", "simulated"]


def test_a_difference_that_cannot_be_told_is_blank() -> None:
    assert difference_cell(None, ("planned", "measured")).text == ""
    row = replace(tiny_on_cpu().differences[0], measured_bytes=None)
    assert difference_cell(row, ("planned", "measured")).text == ""


def test_what_a_comparison_leaves_out_is_no_difference() -> None:
    row = next(row for row in tiny_on_cpu().differences if row.name == "workspace")
    assert (row.planned_bytes, row.planned_vs_measured) == (8_519_680, None)
    assert difference_cell(row, ("planned", "measured")).text == ""


def test_nothing_beside_nothing_is_equal_and_something_is_new() -> None:
    row = tiny_on_cpu().differences[0]
    nothing = replace(row, planned_bytes=0, measured_bytes=0, planned_vs_measured=None)
    something = replace(nothing, measured_bytes=1)
    assert difference_cell(nothing, ("planned", "measured")).text == "equal"
    assert difference_cell(something, ("planned", "measured")).text == "new"


def test_a_ratio_to_nothing_in_a_file_is_none() -> None:
    row = replace(tiny_on_cpu().differences[0], planned_bytes=0, planned_vs_measured=0.5)
    assert row.ratio(("planned", "measured")) is None
    assert difference_cell(row, ("planned", "measured")).text == "new"


def test_that_the_allocator_rounds_is_no_difference_from_a_plan() -> None:
    planned, simulated = use(weights=10_000), use(weights=10_000, rounding=190)
    uses: dict[Kind, MemoryUse] = {"planned": planned, "simulated": simulated}
    rows = {row.name: row for row in compare(uses)}
    both = record(planned=planned, simulated=simulated, differences=tuple(rows.values()))
    assert notable_differences(both, "GiB") == []
    assert difference_cell(rows["rounding"], ("planned", "simulated")).text == ""
    assert difference_cell(rows["allocated_peak"], ("planned", "simulated")).text == "+1.9%"


def test_against_the_cpu_rounding_is_left_out() -> None:
    simulated, on_cpu = use(weights=10_000, rounding=900), use(weights=10_000)
    uses: dict[Kind, MemoryUse] = {"simulated": simulated, "measured": on_cpu}
    rows = compare(uses)
    both = record(simulated=simulated, measured=on_cpu, differences=rows)
    assert notable_differences(both, "GiB") == []
    assert next(row for row in rows if row.name == "allocated_peak").simulated_vs_measured == 0
