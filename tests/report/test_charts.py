"""Charts: the numbers they draw are the record's, and Plotly knows every attribute."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import hostile, many, planned_7b, record, tiny_on_cpu, training_1b
from tritter_mem.report.charts.axes import Chart, Scale, plotly_text
from tritter_mem.report.charts.segment_map import segment_map
from tritter_mem.report.charts.timeline_chart import (
    LETTER_WIDTH,
    PHONE_WIDTH,
    Axis,
    Limit,
    draw_timeline,
    timeline_chart,
)
from tritter_mem.report.tables import comparison_parts_table, comparison_table, parts_of
from tritter_mem.results.run import IN_WARM_UP, OUTSIDE_PHASES, Phase, Result, Timeline
from tritter_mem.units import GiB, MiB, format_bytes

ALL = [planned_7b(), tiny_on_cpu(), training_1b()]


def charts_of(result: Result) -> list[Chart]:
    charts = [timeline_chart(result, "GiB"), segment_map(result, "GiB", result)]
    return [chart for chart in charts if chart]


def with_colors(value: Any) -> Any:
    """The figure as the page draws it: a colour for each name of one."""
    if isinstance(value, dict):
        return {key: with_colors(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_colors(part) for part in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


@pytest.mark.parametrize("result", [training_1b(), hostile("<b>")], ids=lambda r: r.name)
def test_plotly_knows_every_attribute(result: Result) -> None:
    from plotly.graph_objects import Figure

    for chart in charts_of(result):
        Figure(with_colors(chart.figure))


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.name)
def test_parts_sum_to_what_the_card_must_hold(result: Result) -> None:
    for use in result.by_kind().values():
        assert sum(parts_of(use).values()) == use.footprint_bytes


def test_what_only_the_device_sees_is_a_part_of_its_own() -> None:
    use = training_1b().by_kind()["measured"]
    seen = replace(use, device_peak_bytes=use.footprint_bytes + MiB)
    assert parts_of(seen)["other"] == MiB


def test_each_profile_has_its_own_limit_and_its_parts_as_a_bar() -> None:
    small, large = planned_7b("same"), planned_7b("same")
    assert large.verdict
    large = replace(large, verdict=replace(large.verdict, budget_bytes=24 * GiB))
    table = comparison_table([small, large, record("empty")], "GiB")
    assert [row.limit_bytes for row in table.rows] == [15 * GiB, 24 * GiB, None]
    assert table.bars
    assert table.bars.page_bytes == 24 * GiB
    for row in table.rows[:2]:
        assert sum(piece.size_bytes for piece in row.pieces) == row.bar_bytes
    assert table.rows[2].pieces == ()


def test_a_limit_far_beyond_the_needs_does_not_dwarf_them() -> None:
    table = comparison_table([tiny_on_cpu()], "GiB")
    assert table.bars
    assert table.bars.page_bytes == table.bars.full_bytes


def test_the_components_of_each_profile_are_in_a_table() -> None:
    results = [*many(5), record("empty")]
    table = comparison_parts_table(results, "GiB")
    assert [row.cells[0].text for row in table.rows] == [r.name for r in results[:5]]
    bars = comparison_table(results, "GiB").bars
    assert bars
    assert [text for _, text in bars.legend] == [column.label for column in table.columns[1:]]


@pytest.mark.parametrize("result", [training_1b()], ids=lambda r: r.name)
def test_every_chart_says_in_words_and_numbers_what_it_shows(result: Result) -> None:
    for chart in charts_of(result):
        assert chart.description.endswith(".")
        assert chart.table.rows
        assert {len(row.cells) for row in chart.table.rows} == {len(chart.table.columns)}
        json.dumps(chart.figure, allow_nan=False)


def test_markup_in_a_label_is_escaped() -> None:
    assert plotly_text("<a href='x'>&") == "&lt;a href='x'&gt;&amp;"


@pytest.mark.parametrize(
    ("most", "units", "unit"),
    [
        (0, "GiB", "B"),
        (1023, "GiB", "B"),
        (1024, "GiB", "KiB"),
        (GiB, "GiB", "GiB"),
        (10**12, "GB", "GB"),
    ],
)
def test_the_axis_has_a_unit_that_suits_its_numbers(most: int, units: str, unit: str) -> None:
    assert Scale.of(most, units).unit == unit


def test_the_timeline_stacks_categories_up_to_what_is_allocated() -> None:
    result = training_1b()
    chart = timeline_chart(result, "GiB")
    measured = result.by_kind()["measured"]
    assert chart
    assert measured.timeline
    areas = [trace for trace in chart.figure["data"] if "stackgroup" in trace]
    peak = max(sum(column) for column in zip(*(area["y"] for area in areas), strict=True))
    allocated = max(row[2] for row in measured.timeline.rows)
    assert math.isclose(peak, allocated / GiB, abs_tol=1e-3)
    rest = [t["name"] for t in chart.figure["data"] if "stackgroup" not in t]
    assert rest == ["Reserved", "Allocated peak"]


def timeline_of(*rows: tuple[float, ...], phase: bool = False) -> Timeline:
    columns = ("event", *(["phase"] if phase else []), "allocated_bytes", "reserved_bytes")
    return Timeline(columns=columns, rows=rows)


def drawn(timeline: Timeline, budget: int | None = None, *names: str) -> Chart:
    return draw_timeline(
        timeline,
        title="t",
        name="n",
        phases=[Phase(name=name, allocated_peak_bytes=0) for name in names],
        limit=None if budget is None else Limit(words="budget", size_bytes=budget),
    )


def labels(chart: Chart) -> dict[str, float]:
    return {note["text"]: note["x"] for note in chart.figure["layout"]["annotations"]}


def test_the_timeline_says_where_each_phase_begins_and_where_the_peak_is() -> None:
    chart = timeline_chart(training_1b(), "GiB")
    assert chart
    assert labels(chart) == {
        "Forward": 0.0,
        "Backward": 0.4,
        "Optimizer": 0.8,
        "allocated peak 11.34 GiB": 0.4,
    }


def test_the_warm_up_is_called_so_and_its_peak_does_not_count() -> None:
    rows = ((0, 0, 1, 9), (1, IN_WARM_UP, 8, 9), (2, 1, 5, 9), (3, OUTSIDE_PHASES, 4, 9))
    chart = drawn(timeline_of(*rows, phase=True), None, "load", "prefill")
    assert labels(chart) == {"Load": 0, "Warm-up": 1, "Prefill": 2, "allocated peak 5 B": 2}
    (peak,) = (t for t in chart.figure["data"] if t["name"] == "Allocated peak")
    assert (peak["x"], peak["y"]) == ([2], [5])


@pytest.mark.parametrize(
    ("budget", "near"), [(110, True), (134, True), (136, False), (9000, False)]
)
def test_the_axis_fits_the_data_and_a_far_limit_is_pointed_at(budget: int, near: bool) -> None:
    chart = drawn(timeline_of((0, 50, 80), (9, 90, 100)), budget)
    layout = chart.figure["layout"]
    top = layout["yaxis"]["range"][1]
    lines = [s["y0"] for s in layout["shapes"] if s["y0"] == s.get("y1") == budget]
    assert lines == ([budget] if near else [])
    assert max(100, budget if near else 0) < top < 150
    beyond = f"budget {format_bytes(budget)} ↑"
    assert (beyond in labels(chart)) is not near
    assert (("--limit", f"Budget {budget} B") in chart.legend) is near


def test_labels_above_the_plot_do_not_cover_each_other() -> None:
    rows = tuple((n, n // 2, n, n) for n in range(12))
    chart = drawn(timeline_of(*rows, phase=True), 999, *"abcdef")
    rows_used = {note["yshift"] for note in chart.figure["layout"]["annotations"]}
    spans: dict[float, list[tuple[float, float]]] = {}
    for note in chart.figure["layout"]["annotations"]:
        width = (len(note["text"]) + 1) * LETTER_WIDTH / PHONE_WIDTH
        at = note["x"] / 11
        span = (at, at + width) if note["xanchor"] == "left" else (at - width, at)
        spans.setdefault(note["yshift"], []).append(span)
    assert len(rows_used) > 1
    for same in spans.values():
        for (_, end), (start, _) in pairwise(sorted(same)):
            assert end <= start + 1e-9


def test_a_timeline_without_categories_shows_what_is_allocated() -> None:
    result = training_1b()
    plain = Timeline(columns=("event", "allocated_bytes"), rows=((0, 5.0), (1, 7.0)))
    measured = replace(result.by_kind()["measured"], timeline=plain)
    chart = timeline_chart(replace(result, measured=measured, verdict=None), "GiB")
    assert chart
    assert [trace["name"] for trace in chart.figure["data"]] == ["Allocated", "Allocated peak"]
    assert (
        chart.description == "Memory of 1b-training over 2 points in time; allocated peaks at 7 B."
    )


@pytest.mark.parametrize("columns", [("event",), ("event", "phase")])
def test_a_timeline_of_nothing_is_drawn_empty(columns: tuple[str, ...]) -> None:
    result = training_1b()
    timeline = Timeline(columns=columns, rows=((0.0,) * len(columns),))
    measured = replace(result.by_kind()["measured"], timeline=timeline)
    chart = timeline_chart(replace(result, measured=measured), "GiB")
    assert chart
    assert chart.figure["data"] == []


def test_no_timeline_is_no_chart() -> None:
    assert timeline_chart(planned_7b(), "GiB") is None


def rows_of(*lengths: int) -> list[tuple[float, ...]]:
    """Rows of phases that take so many events."""
    phases = [phase for phase, length in enumerate(lengths) for _ in range(length)]
    return [(event, phase, 5, 9) for event, phase in enumerate(phases)]


def test_short_phases_are_drawn_wider_beside_one_that_has_nearly_all_events() -> None:
    chart = drawn(timeline_of(*rows_of(5, 45, 950), phase=True), None, "load", "prefill", "decode")
    axis = chart.figure["layout"]["xaxis"]
    assert axis["tickvals"] == pytest.approx([0, 0.169, 0.358], abs=1e-3)
    assert axis["ticktext"] == ["0", "5", "50"]
    assert axis["title"]["text"] == "999 allocations and frees, stretched"
    assert labels(chart)["Decode"] == axis["tickvals"][2]


def test_an_axis_of_seconds_or_of_even_phases_stays_linear() -> None:
    even = drawn(timeline_of(*rows_of(300, 700), phase=True), None, "a", "b")
    assert even.figure["layout"]["xaxis"]["range"] == [0, 999]
    timeline = timeline_of(*rows_of(5, 995), phase=True)
    seconds = replace(timeline, columns=("seconds", *timeline.columns[1:]))
    assert drawn(seconds, None, "a", "b").figure["layout"]["xaxis"]["range"] == [0, 999]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.data())
def test_moments_keep_their_order_on_the_axis(lengths: list[int], data: st.DataObject) -> None:
    axis = Axis.of(timeline_of(*rows_of(*lengths), phase=True))
    a, b = sorted(data.draw(st.lists(st.integers(0, sum(lengths) - 1), min_size=2, max_size=2)))
    assert 0 <= axis.along(a) <= axis.along(b) <= 1
    assert a == b or axis.at(a) < axis.at(b)
