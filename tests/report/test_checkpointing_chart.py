"""The trade-off's chart: memory against work, or against seconds where every policy has them."""

from dataclasses import replace

from tests.report.records import TRADE_OFF, training_1b
from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.checkpointing_chart import checkpointing_chart
from tritter_mem.report.trade_offs import checkpointing_table
from tritter_mem.results.run import CheckpointCase


def chart_of(*cases: CheckpointCase) -> Chart:
    result = replace(training_1b(), checkpointing=cases)
    table = checkpointing_table(result, "GiB")
    assert table
    return checkpointing_chart(result, table, "GiB")


def test_the_front_is_a_line_by_cost_and_the_rest_stands_apart() -> None:
    front, beaten = chart_of(*TRADE_OFF).figure["data"]
    assert front["text"] == ["none", "every-nth:4", "every-layer"]
    assert front["x"] == sorted(front["x"])
    assert beaten["text"] == ["segments:4"]
    assert "none beats none, every-nth:4, every-layer." in chart_of(*TRADE_OFF).description


def test_seconds_are_drawn_only_where_every_policy_was_measured() -> None:
    timed = [
        replace(case, measured_seconds=1.0 + i, measured_allocated_peak_bytes=2**30 * (5 - i))
        for i, case in enumerate(TRADE_OFF)
    ]
    chart = chart_of(*timed)
    assert "seconds" in chart.title
    assert chart.figure["data"][0]["x"] == [1.0, 2.0, 4.0]
    assert chart.figure["data"][0]["y"] == [5.0, 4.0, 2.0]
    assert "work" in chart_of(TRADE_OFF[0], *timed[1:]).title


def test_a_policy_of_a_strangers_record_stays_text() -> None:
    hostile = replace(TRADE_OFF[0], policy="<b>\u202e")
    assert chart_of(hostile).figure["data"][0]["text"] == ["&lt;b&gt;\\u202e"]
