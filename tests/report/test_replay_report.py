"""A replay drawn: sentences, tables and the page, and text from files stays text."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.allocator.build import fragmented_snapshot
from tests.recordings.test_held_at_peak import write_named_snapshot
from tests.report.test_html import Page
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.report.charts.replay_charts import MAP_COLUMNS, MAP_ROWS, segment_map
from tritter_mem.report.page import plotly_source
from tritter_mem.report.replay_report import (
    fidelity_sentence,
    notes,
    render_replay,
    render_replay_html,
)
from tritter_mem.report.terminal import make_console
from tritter_mem.results.allocations import Frame
from tritter_mem.results.replay import Replay
from tritter_mem.units import MiB

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fragmented_snapshot(tmp_path_factory.mktemp("replay") / "run.pickle")


@pytest.fixture(scope="module")
def snapshot_with_stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_named_snapshot(tmp_path_factory.mktemp("named") / "run.pickle")


@pytest.fixture(scope="module")
def found(snapshot: Path) -> Replay:
    return replay(snapshot, segment_maps=True)


@pytest.fixture(scope="module")
def limited(snapshot: Path) -> Replay:
    """Held against 210 MiB: the last request fails, but not with expandable segments."""
    return replay(snapshot, capacity_bytes=210 * MiB, segment_maps=True)


def drawn(found: Replay, width: int) -> str:
    out = io.StringIO()
    console = make_console(out)
    console.width = width
    render_replay(found, console)
    return out.getvalue()


def hostile(found: Replay) -> Replay:
    """Every text that comes from a file or an option, replaced."""
    (device,) = found.devices
    scenarios = tuple(replace(s, name=HOSTILE, conf=HOSTILE) for s in device.scenarios)
    named = replace(device, scenarios=scenarios, recorded_conf=HOSTILE, warnings=(HOSTILE,))
    return replace(found, snapshot=f"/x/{HOSTILE.replace('/', '')}", devices=(named,))


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(found: Replay, width: int) -> None:
    assert max(map(len, drawn(found, width).splitlines())) <= width


def test_wide_columns_are_shown_where_there_is_room(found: Replay) -> None:
    assert "Largest free" not in drawn(found, 80)
    assert "Largest free" in drawn(found, 120)


def test_the_fidelity_sentence_tells_what_differs(found: Replay) -> None:
    (device,) = found.devices
    assert fidelity_sentence(device) == (
        "Replayed with its own settings: 4 of 4 segment allocations as recorded, 0 extra; "
        "10 of 10 addresses as recorded; reserved peak equal."
    )
    fidelity = replace(device.fidelity, segments_missed=2, segments_matched=2, segments_extra=1)
    lower = replace(device.replayed, reserved_peak_bytes=200 * MiB)
    assert fidelity_sentence(replace(device, fidelity=fidelity, replayed=lower)) == (
        "Replayed with its own settings: 2 of 4 segment allocations as recorded, 1 extra; "
        "10 of 10 addresses as recorded; reserved peak 200.0 MiB instead of 220.0 MiB."
    )


def test_notes_name_the_failing_request_once_for_all_settings(limited: Replay) -> None:
    (device,) = limited.devices
    same = "(180.0 MiB reserved, 150.0 MiB allocated)"
    assert notes(device) == [
        "Out of memory at event 20 of 20, a request for 40.0 MiB on stream 0: "
        f"as recorded {same}; max_split_size_mb:64 {same}; max_split_size_mb:128 {same}; "
        f"max_split_size_mb:256 {same}; "
        "roundup_power2_divisions:4 (192.0 MiB reserved, 156.0 MiB allocated); "
        f"garbage_collection_threshold:0.8 {same}.",
        "The peaks of these rows end there.",
    ]


def test_hostile_text_cannot_steer_a_terminal(found: Replay) -> None:
    text = drawn(hostile(found), 120)
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_the_page_is_whole_and_holds_one_chart_library(found: Replay) -> None:
    page = render_replay_html(found)
    parsed = Page(page)
    assert parsed.open == []
    assert page.count(plotly_source()[:200]) == 1
    links = [attributes.get(key) for _, attributes in parsed.tags for key in ("src", "href")]
    assert all(link.startswith(("data:", "#")) for link in links if link)


def test_every_chart_has_a_name_and_its_numbers(found: Replay) -> None:
    parsed = Page(render_replay_html(found))
    plots = [attributes for _, attributes in parsed.tags if attributes.get("role") == "img"]
    (device,) = found.devices
    assert len(plots) == 2 * len(device.scenarios)
    assert all(plot["aria-label"] for plot in plots)
    assert parsed.text.count("The numbers behind this chart") == len(plots)


def test_the_record_is_in_the_page(found: Replay) -> None:
    assert Page(render_replay_html(found)).data("replay-json") == json.loads(
        json.dumps(found.to_dict())
    )


def test_hostile_text_stays_text(found: Replay) -> None:
    page = render_replay_html(hostile(found))
    assert "<script>alert" not in page
    scripts = [tag for tag, _ in Page(page).tags if tag == "script"]
    assert len(scripts) == len(
        [t for t, _ in Page(render_replay_html(found)).tags if t == "script"]
    )


def rows_of(page: str) -> dict[str, str]:
    """The rows of the table of settings, by name."""
    body = page.partition("Allocator settings compared")[2].partition("</tbody>")[0]
    rows = re.findall(r'<tr[^>]*>\n<th scope="row">.*?</tr>', body, re.DOTALL)
    return {re.sub("<[^>]+>", "", row.split("</th>")[0]).strip(): row for row in rows}


def test_peaks_are_drawn_to_scale(found: Replay) -> None:
    row = rows_of(render_replay_html(found, plotlyjs="directory"))["as recorded"]
    used, unused = (float(width) for width in re.findall(r"width:([\d.]+)%", row))
    assert used / unused == pytest.approx(190 / 30, abs=0.01)
    assert "--limit-at" not in row


def test_the_capacity_is_a_line(limited: Replay) -> None:
    row = rows_of(render_replay_html(limited, plotlyjs="directory"))["as recorded"]
    assert "--limit-at: 100.00%" in row


def test_the_headline_is_the_advice_and_its_row_stands_out(limited: Replay, found: Replay) -> None:
    for one in (limited, found):
        page = render_replay_html(one, plotlyjs="directory").replace("<wbr>", "")
        assert '<p class="number">Use expandable_segments:True</p>' in page
        assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True" in page
        best = [name for name, row in rows_of(page).items() if row.startswith('<tr class="best"')]
        assert best == ["expandable_segments:True best"]
        assert 'class="verdict good"' in page


def test_where_nothing_helps_the_headline_says_so(snapshot: Path) -> None:
    page = render_replay_html(replay(snapshot, capacity_bytes=90 * MiB), plotlyjs="directory")
    assert '<p class="number">No setting is enough</p>' in page
    assert 'class="verdict bad"' in page
    assert "best</span>" not in page


def test_columns_that_say_nothing_are_left_out(found: Replay, limited: Replay) -> None:
    assert "Retries" not in render_replay_html(found, plotlyjs="directory")
    assert "Retries" in render_replay_html(limited, plotlyjs="directory")


def test_who_holds_most_is_drawn_where_call_stacks_are_recorded(
    found: Replay, snapshot_with_stacks: Path
) -> None:
    assert "Who holds most" not in render_replay_html(found, plotlyjs="directory")
    named = replay(snapshot_with_stacks)
    page = render_replay_html(named, plotlyjs="directory")
    assert page.index("Allocator settings compared") < page.index("Who holds most")
    assert "by call stack" in page
    assert "Who holds most" in drawn(named, 80)
    assert "backward (me/train.py:30)" in drawn(named, 80)


def test_the_note_of_a_failure_names_the_line_that_asked(limited: Replay) -> None:
    (device,) = limited.devices
    path = (Frame(name="step", file="/home/me/train.py", line=7),)
    failed = [
        replace(s, out_of_memory=s.out_of_memory and replace(s.out_of_memory, path=path))
        for s in device.scenarios
    ]
    first, *_ = notes(replace(device, scenarios=tuple(failed)))
    assert "on stream 0, called from step (me/train.py:7): as recorded" in first


def test_the_segment_map_shows_how_full_each_stretch_is(found: Replay) -> None:
    (device,) = found.devices
    for scenario in device.scenarios:
        lines = segment_map(scenario).figure["data"][0]["z"]
        assert len(lines) <= MAP_ROWS + 1
        assert all(len(line) <= MAP_COLUMNS for line in lines)
        cells = [cell for line in lines for cell in line]
        assert set(cells) <= set(range(101))
        segments = scenario.segments_at_peak
        total = sum(s.size for s in segments)
        share = sum(s.allocated_bytes for s in segments) / total
        assert sum(cells) / len(cells) == pytest.approx(100 * share, abs=0.5)


def test_a_page_of_nothing_reserved_can_be_drawn(found: Replay, tmp_path: Path) -> None:
    (device,) = found.devices
    empty = [replace(s, segments_at_peak=()) for s in device.scenarios]
    page = render_replay_html(replace(found, devices=(replace(device, scenarios=tuple(empty)),)))
    assert "0 segments of 0 B" in page
