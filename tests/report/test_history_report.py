"""The history's page: every run in its profile's chart, lines by kind and card, text stays text."""

import json
from dataclasses import asdict

from tests.report.test_html import Page
from tritter_mem.report.history_report import history_chart, render_history_html
from tritter_mem.report.words import MINUS, MISSING
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


def test_runs_stand_in_their_order_and_each_kind_and_card_has_its_line() -> None:
    runs = [run(1, 3 * GiB), run(1, 4 * GiB, gpu="a100"), run(2, 2 * GiB), run(3, GiB, "planned")]
    chart = history_chart(runs, "GiB")
    lines = {line["name"]: (line["x"], line["y"]) for line in chart.figure["data"]}
    assert lines == {
        "simulated, h100": ([0, 1], [3.0, 2.0]),
        "simulated, a100": ([0], [4.0]),
        "planned, h100": ([2], [1.0]),
    }


def test_the_sentence_says_what_changed_since_the_first_run() -> None:
    chart = history_chart([run(1, 3 * GiB), run(2, 2 * GiB)], "GiB")
    assert (
        f"over 2 runs. Simulated now 2.00 GiB, {MINUS}1.00 GiB since the first."
        in chart.description
    )


def test_commits_are_short_and_a_changed_tree_is_marked() -> None:
    runs = [run(1, 1, commit="0123456789abcdef-dirty"), run(2, 1, commit=None)]
    axis = history_chart(runs, "GiB").figure["layout"]["xaxis"]
    assert axis["ticktext"] == ["0123456789+", MISSING]


def test_a_long_history_names_few_commits() -> None:
    axis = history_chart([run(d, d) for d in range(1, 29)], "GiB").figure["layout"]["xaxis"]
    assert len(axis["tickvals"]) <= 8


def test_the_page_holds_every_record_and_the_newest_stands_first_in_the_table() -> None:
    history = [run(1, GiB), run(2, GiB, profile="tiny"), run(3, GiB)]
    page = Page(render_history_html(history, plotlyjs="directory").replace('src="plotly', 'x="'))
    assert page.data("history-json") == json.loads(json.dumps([asdict(one) for one in history]))
    text = " ".join(page.text.split())
    assert "3 runs" in text
    assert text.index("2026-01-03T12") < text.index("2026-01-01T12")


def test_a_hostile_profile_stays_text() -> None:
    page = render_history_html([run(1, GiB, profile="</script><b>\u202e")], plotlyjs="directory")
    assert "<b>" not in page
    assert "\u202e" not in page


def test_an_empty_history_is_a_page_too() -> None:
    assert "0 runs" in render_history_html([], plotlyjs="directory")
