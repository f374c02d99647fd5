"""Memory against context: the curves' own figures, the budget, and where they meet."""

from dataclasses import replace

from tests.report.records import planned_7b
from tritter_mem.config.loading import load_any, load_profile
from tritter_mem.planner.result import planned_result
from tritter_mem.planner.solve import context_curves
from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.context_chart import context_chart


def chart_of(name: str) -> Chart:
    profile = load_any(name)
    result = replace(planned_result(profile), context_curves=context_curves(profile))
    chart = context_chart(result, "GiB")
    assert chart
    return chart


def test_each_kind_of_cache_has_a_curve_and_the_profiles_own_stands_out() -> None:
    *lines, crossings = chart_of("7b").figure["data"]
    assert [line["name"] for line in lines if line["line"]["width"] > 2] == ["int4, 32 KV heads"]
    assert len(lines) == 8
    assert crossings["mode"] == "markers"


def test_a_curve_meets_the_budget_where_the_solver_says() -> None:
    found = {c.largest_context for c in context_curves(load_profile("7b"))}
    crossings = chart_of("7b").figure["data"][-1]
    assert set(crossings["x"]) <= found
    assert set(crossings["y"]) == {15.0}
    assert 89_092 in crossings["x"]


def test_the_sentence_and_the_table_say_how_long_a_context_fits() -> None:
    chart = chart_of("7b")
    assert "Its own fits up to 89,092 tokens." in chart.description
    own = next(row for row in chart.table.rows if "this profile" in row.cells[0].text)
    assert own.cells[1].text == "up to 89,092 tokens"


def test_a_budget_that_dwarfs_every_curve_is_left_out() -> None:
    layout = chart_of("tiny").figure["layout"]
    assert "shapes" not in layout
    assert layout["yaxis"]["title"]["text"] == "MiB"


def test_records_without_curves_or_a_verdict_have_no_chart() -> None:
    assert context_chart(planned_7b(), "GiB") is None
    curves = context_curves(load_profile("7b"))
    judged = replace(planned_7b(), context_curves=curves)
    assert context_chart(judged, "GiB") is not None
    assert context_chart(replace(judged, verdict=None), "GiB") is None


def test_a_named_model_is_drawn_to_where_it_meets_the_budget() -> None:
    chart = chart_of("qwen3-0.6b")
    line, crossings = chart.figure["data"]
    [largest] = crossings["x"]
    assert line["x"][0] < largest < line["x"][-1]
    assert "KV heads" not in chart.table.caption
