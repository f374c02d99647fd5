"""The history's page: every run in its profile's chart, lines by kind and card, text stays text."""

import json
from dataclasses import asdict

from tests.report.test_html import Page
from tritter_mem.report.history_report import history_chart, render_history_html
from tritter_mem.report.words import MINUS
from tritter_mem.results.history import Remembered
from tritter_mem.units import GiB


def run(day: int, size: int, kind: str = "simulated", profile: str = "7b", gpu: str = "h100",
        commit: str | None = "0123456789abcdef") -> Remembered:  # fmt: skip
    return Remembered(
        created=f"2026-01-{day:02}T12:00:00+00:00",
        commit=commit,
        profile=profile,
        profile_hash="8de56cb3a385e139",
        kind=kind,
        gpu=gpu,
        torch="2.13.0",
        allocated_peak_bytes=size,
        reserved_peak_bytes=size + GiB,
    )


def commit(day: int) -> str:
    return f"{day:02}" * 20


def test_one_profile_is_drawn_in_bytes_a_line_for_each_kind_and_card() -> None:
    runs = [
        run(1, 3 * GiB, commit=commit(1)),
        run(1, 4 * GiB, gpu="a100", commit=commit(1)),
        run(2, 2 * GiB, commit=commit(2)),
        run(3, GiB, "planned", commit=commit(3)),
    ]
    chart = history_chart(runs, "GiB")
    lines = {line["name"]: (line["x"], line["y"]) for line in chart.figure["data"]}
    assert lines == {
        "7b, simulated, h100": ([0, 1], [3.0, 2.0]),
        "7b, simulated, a100": ([0], [4.0]),
        "7b, planned, h100": ([2], [1.0]),
    }
    assert len({line["line"]["dash"] for line in chart.figure["data"]}) == 3
    assert len({line["line"]["color"] for line in chart.figure["data"]}) == 1


def test_several_profiles_share_a_chart_by_what_each_changed() -> None:
    runs = [
        run(day, size, profile=profile, commit=commit(day))
        for day, sizes in ((1, (8 * GiB, 1000)), (2, (10 * GiB, 1000)), (3, (10 * GiB, 900)))
        for profile, size in zip(("7b", "tiny"), sizes, strict=True)
    ]
    chart = history_chart(runs, "GiB")
    assert {line["name"]: line["y"] for line in chart.figure["data"]} == {
        "7b, simulated, h100": [1.0, 1.25, 1.25],
        "tiny, simulated, h100": [1.0, 1.0, 0.9],
    }
    assert len({line["line"]["color"] for line in chart.figure["data"]}) == 2
    assert [text for _, text in chart.legend] == ["7b", "tiny"]
    low, high = chart.figure["layout"]["yaxis"]["range"]
    assert low < 0.9
    assert high > 1.25
    assert [row.cells[-1].text for row in chart.table.rows] == ["+25.0%", f"{MINUS}10.0%"]


def test_the_axis_has_a_place_for_each_commit_and_its_last_run_counts() -> None:
    runs = [run(1, GiB, commit=commit(1)), run(2, 3 * GiB, commit=commit(1)),
            run(3, 2 * GiB, commit=commit(2))]  # fmt: skip
    (line,) = history_chart(runs, "GiB").figure["data"]
    assert (line["x"], line["y"]) == ([0, 1], [3.0, 2.0])


def test_of_very_many_profiles_those_that_changed_most_have_colours() -> None:
    runs = [
        run(day, 1000 + 10 * number * day, profile=f"p{number}", commit=commit(day))
        for number in range(12)
        for day in (1, 2)
    ]
    chart = history_chart(runs, "GiB")
    assert chart.legend[-1] == ("--c-cached", "4 that changed less")
    assert [text for _, text in chart.legend[:-1]] == [f"p{n}" for n in range(4, 12)]


def test_the_headline_is_the_largest_change() -> None:
    runs = [run(1, 3 * GiB), run(2, 2 * GiB), run(1, GiB, profile="a"), run(2, GiB, profile="a")]
    assert f"7b: {MINUS}33.3%" in render_history_html(runs, plotlyjs="directory")
    assert "no change" in render_history_html(runs[2:], plotlyjs="directory")


def test_commits_are_short_a_changed_tree_is_marked_and_none_is_its_time() -> None:
    runs = [run(1, 1, commit="0123456789abcdef-dirty"), run(2, 1, commit=None)]
    axis = history_chart(runs, "GiB").figure["layout"]["xaxis"]
    assert axis["ticktext"] == ["01234567+", "01-02 12:00"]


def test_a_long_history_names_few_commits() -> None:
    runs = [run(day, day, commit=commit(day)) for day in range(1, 29)]
    axis = history_chart(runs, "GiB").figure["layout"]["xaxis"]
    assert len(axis["tickvals"]) <= 4


def test_the_page_holds_every_record_and_the_newest_stands_first_in_the_table() -> None:
    history = [run(1, GiB), run(2, GiB, profile="tiny"), run(3, GiB)]
    page = Page(render_history_html(history, plotlyjs="directory").replace('src="plotly', 'x="'))
    assert page.data("history-json") == json.loads(json.dumps([asdict(one) for one in history]))
    text = " ".join(page.text.split())
    assert "3 runs" in text
    assert text.index("2026-01-03 12") < text.index("2026-01-01 12")


def test_a_hostile_profile_stays_text() -> None:
    page = render_history_html([run(1, GiB, profile="</script><b>\u202e")], plotlyjs="directory")
    assert "<b>" not in page
    assert "\u202e" not in page


def test_an_empty_history_is_a_page_too() -> None:
    assert "0 runs" in render_history_html([], plotlyjs="directory")


def test_a_page_without_charts_does_not_have_the_chart_library() -> None:
    assert len(render_history_html([])) < 100_000
    assert len(render_history_html([run(1, GiB)])) > 1_000_000
