"""Peaks over time: what is comparable in one table, and only runs that changed something."""

from dataclasses import replace

import pytest

from tests.report.records import HOSTILE_NAMES
from tritter_mem.report.history_report import history_tables, render_history, series_of
from tritter_mem.report.terminal import make_console
from tritter_mem.results.history import Remembered
from tritter_mem.units import GiB, MiB

FIRST = Remembered(
    created="2026-01-05T09:30:00+00:00",
    commit="a" * 40,
    profile="7b",
    profile_hash="0123456789abcdef",
    kind="simulated",
    gpu="rtx-5080",
    torch="2.13.0+cpu",
    allocated_peak_bytes=8 * GiB,
    reserved_peak_bytes=9 * GiB,
)
LATER = replace(
    FIRST,
    created="2026-01-06T09:30:00+00:00",
    commit="b" * 40 + "-dirty",
    allocated_peak_bytes=8 * GiB + 512 * MiB,
)


def test_a_run_that_changed_nothing_is_left_out() -> None:
    again = replace(FIRST, created="2026-01-05T10:00:00+00:00")
    assert list(series_of([FIRST, again, LATER]).values()) == [[FIRST, LATER]]


def test_another_kind_card_or_content_is_another_table() -> None:
    others = [
        replace(FIRST, kind="measured"),
        replace(FIRST, gpu="l4"),
        replace(FIRST, profile_hash="f" * 16),
    ]
    captions = [table.caption for table in history_tables([FIRST, *others], "GiB")]
    assert captions == [
        "7b (measured, rtx-5080)",
        "7b (simulated, l4)",
        "7b (simulated, rtx-5080, content 01234567)",
        "7b (simulated, rtx-5080, content ffffffff)",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_says_when_at_which_commit_and_by_how_much(
    width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    console = make_console()
    console.width = width
    render_history([FIRST, LATER], console)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    first, later = lines[-2].split(), lines[-1].split()
    assert first[:3] == ["2026-01-05", "09:30", "a" * 10]
    assert later[:3] == ["2026-01-06", "09:30", "b" * 10 + "+"]
    assert " ".join(later).replace("2.13.0+cpu ", "").split(" ")[3:7] == [
        "8.50", "GiB", "+512.0", "MiB",
    ]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_cannot_steer_a_terminal(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    evil = replace(FIRST, profile=name, commit=name, created=name, gpu=name, torch=name)
    render_history([evil], make_console())
    assert not {"\x1b", "\x00", "\u202e", "\u2028"} & set(capsys.readouterr().out)
