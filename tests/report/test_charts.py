"""Charts: the numbers they draw are the record's, and Plotly knows every attribute."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.report.records import hostile, many, planned_7b, record, tiny_on_cpu, training_1b
from tritter_mem.report.charts.axes import Chart, Scale, plotly_text
from tritter_mem.report.charts.budget_chart import (
    budget_chart,
    comparison_chart,
    parts_of,
    waterfall_chart,
)
from tritter_mem.report.charts.timeline_chart import timeline_chart
from tritter_mem.results.run import Result, Timeline
from tritter_mem.results.verdict import on_the_card
from tritter_mem.units import GiB, MiB

ALL = [planned_7b(), tiny_on_cpu(), training_1b()]


def charts_of(result: Result) -> list[Chart]:
    charts = [waterfall_chart(result, "GiB"), timeline_chart(result, "GiB")]
    return [budget_chart(result, "GiB"), *(chart for chart in charts if chart)]


def with_colors(value: Any) -> Any:
    """The figure as the page draws it: a colour for each name of one."""
    if isinstance(value, dict):
        return {key: with_colors(part) for key, part in value.items()}
    if isinstance(value, list):
        return [with_colors(part) for part in value]
    return "#123456" if isinstance(value, str) and value.startswith("--") else value


@pytest.mark.parametrize("result", [*ALL, hostile("<b>")], ids=lambda r: r.name)
def test_plotly_knows_every_attribute(result: Result) -> None:
    from plotly.graph_objects import Figure

    for chart in [*charts_of(result), comparison_chart([result] * 2, "GB")]:
        Figure(with_colors(chart.figure))


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.name)
def test_parts_sum_to_what_the_card_must_hold(result: Result) -> None:
    for use in result.by_kind().values():
        assert sum(parts_of(use).values()) == use.footprint_bytes


def test_what_only_the_device_sees_is_a_part_of_its_own() -> None:
    use = training_1b().by_kind()["measured"]
    seen = replace(use, device_peak_bytes=use.footprint_bytes + MiB)
    assert parts_of(seen)["other"] == MiB


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.name)
def test_budget_bars_are_as_long_as_the_footprint(result: Result) -> None:
    chart = budget_chart(result, "GiB")
    needs = [use.footprint_bytes for use in on_the_card(result).values()]
    scale = Scale.of(max(needs), "GiB")
    lengths = [sum(trace["x"][bar] for trace in chart.figure["data"]) for bar in range(len(needs))]
    for length, need in zip(lengths, needs, strict=True):
        assert math.isclose(length, need / scale.unit_bytes, abs_tol=1e-3)


def test_each_step_of_the_waterfall_begins_where_the_last_ended() -> None:
    chart = waterfall_chart(training_1b(), "GiB")
    assert chart
    (steps,) = chart.figure["data"]
    ends = [base + x for base, x in zip(steps["base"], steps["x"], strict=True)]
    assert steps["base"][0] == 0
    for end, start in zip(ends[:-1], steps["base"][1:], strict=True):
        assert math.isclose(end, start, abs_tol=1e-4)
    assert math.isclose(ends[-1], 12_967_395_623 / GiB, abs_tol=1e-4)


def limit_of(chart: Chart) -> list[float]:
    return [shape["x0"] for shape in chart.figure["layout"]["shapes"]]


def test_the_limit_is_drawn_at_the_budget() -> None:
    assert limit_of(budget_chart(planned_7b(), "GiB")) == [15.0]
    assert limit_of(budget_chart(replace(planned_7b(), verdict=None), "GiB")) == []


def test_a_budget_far_off_the_scale_is_named_and_not_drawn() -> None:
    layout = budget_chart(tiny_on_cpu(), "GiB").figure["layout"]
    assert layout["shapes"] == []
    assert [note["text"] for note in layout["annotations"]] == ["budget 15.00 GiB →"]
    assert layout["xaxis"]["title"]["text"] == "MiB"


def test_profiles_with_budgets_of_their_own_get_a_limit_each() -> None:
    small, large = planned_7b("small"), planned_7b("large")
    verdict = large.verdict
    assert verdict
    large = replace(large, verdict=replace(verdict, budget_bytes=24 * GiB))
    chart = comparison_chart([small, large], "GiB")
    assert limit_of(chart) == [15.0, 24.0]
    assert chart.figure["layout"]["annotations"] == []


def test_equal_names_keep_bars_of_their_own() -> None:
    chart = comparison_chart([planned_7b("same"), planned_7b("same")], "GiB")
    assert chart.figure["data"][0]["y"] == [0, 1]


def test_a_profile_without_numbers_has_no_bar() -> None:
    chart = comparison_chart([planned_7b(), record("empty")], "GiB")
    assert chart.figure["layout"]["yaxis"]["ticktext"] == ["7b-128k"]
    assert waterfall_chart(record(), "GiB") is None


@pytest.mark.parametrize("result", ALL, ids=lambda r: r.name)
def test_every_chart_says_in_words_and_numbers_what_it_shows(result: Result) -> None:
    for chart in charts_of(result):
        assert chart.description.endswith(".")
        assert chart.table.rows
        assert {len(row.cells) for row in chart.table.rows} == {len(chart.table.columns)}
        json.dumps(chart.figure, allow_nan=False)


def test_legends_name_every_part_that_is_drawn() -> None:
    chart = comparison_chart(many(5), "GiB")
    assert [text for _, text in chart.legend] == [trace["name"] for trace in chart.figure["data"]]


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
    assert [t["name"] for t in chart.figure["data"] if "stackgroup" not in t] == ["Reserved"]


def test_the_timeline_marks_where_each_phase_begins() -> None:
    chart = timeline_chart(training_1b(), "GiB")
    assert chart
    notes = {note["text"]: note["x"] for note in chart.figure["layout"]["annotations"]}
    assert notes == {"Forward": 0.0, "Backward": 0.4, "Optimizer": 0.8}


def test_a_timeline_without_categories_shows_what_is_allocated() -> None:
    result = training_1b()
    plain = Timeline(columns=("event", "allocated_bytes"), rows=((0, 5.0), (1, 7.0)))
    measured = replace(result.by_kind()["measured"], timeline=plain)
    chart = timeline_chart(replace(result, measured=measured, verdict=None), "GiB")
    assert chart
    assert [trace["name"] for trace in chart.figure["data"]] == ["Allocated"]
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
