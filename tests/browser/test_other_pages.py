"""Replays and the history in a real browser, offline."""

from pathlib import Path
from typing import Any

from tests.allocator.build import fragmented_snapshot
from tests.browser.actions import assert_fits_a_desk_and_a_phone, show
from tests.report.test_history_report import run
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.report.history_report import render_history_html
from tritter_mem.report.replay_report import render_replay_html
from tritter_mem.units import GiB


def test_a_replay_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    found = replay(fragmented_snapshot(tmp_path / "run.pickle"), segment_maps=True)
    page = tmp_path / "page.html"
    page.write_text(render_replay_html(found))
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "replay")


def test_the_history_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    history = [
        run(day, size * GiB, profile=profile, commit=f"{day:040x}")
        for day in range(1, 25)
        for profile, size in (("7b", 6 + day % 3), ("tiny", 1))
    ]
    page = tmp_path / "page.html"
    page.write_text(render_history_html(history))
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "history")
