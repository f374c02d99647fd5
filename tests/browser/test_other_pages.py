"""Replays and the history in a real browser, offline."""

import pickle
from pathlib import Path
from typing import Any

from tests.allocator.build import fragmented_snapshot
from tests.browser.actions import assert_fits_a_desk_and_a_phone, run, show, wait_until
from tests.browser.rehearse_train import snapshot_of_training
from tests.rehearsal.test_launch import rehearsal, use
from tests.report.test_history_report import run as remembered
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.report.history_report import render_history_html
from tritter_mem.report.rehearsal_report import render_rehearsal_html
from tritter_mem.report.replay_report import render_replay_html
from tritter_mem.results.rehearsal import EngineFigures, Trust
from tritter_mem.units import GiB


def test_a_replay_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    found = replay(fragmented_snapshot(tmp_path / "run.pickle"), segment_maps=True)
    page = tmp_path / "page.html"
    page.write_text(render_replay_html(found))
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "replay")


def test_who_allocated_what_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    snapshot = snapshot_of_training(tmp_path / "oom.pickle", capacity_bytes=8 * GiB)
    page = tmp_path / "page.html"
    page.write_text(render_replay_html(replay(snapshot, segment_maps=True)))
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "replay-out-of-memory")
    labels = run(browser, "[...document.querySelectorAll('.slice text')].map((t) => t.textContent)")
    # The heaviest lines can be read, on a phone too.
    assert {"main:72", "train_step:58"} <= set(labels)


def test_a_frame_is_as_wide_as_the_chart_when_it_is_clicked(browser: Any, tmp_path: Path) -> None:
    snapshot = snapshot_of_training(tmp_path / "oom.pickle", capacity_bytes=8 * GiB)
    page = tmp_path / "page.html"
    page.write_text(render_replay_html(replay(snapshot)))
    show(browser, page)
    slices = "[...document.querySelectorAll('.slice')]"
    mlp = f"{slices}.find((s) => s.textContent === 'forward:53')"
    run(browser, "document.querySelector('figure .drawing').scrollIntoView()")
    wait_until(lambda: bool(run(browser, f"{mlp} !== undefined")))
    before = run(browser, f"{mlp}.getBoundingClientRect().width")
    browser.execute_script(
        f"{mlp}.dispatchEvent(new MouseEvent('click', {{ bubbles: true, view: window }}))"
    )
    wait_until(lambda: run(browser, f"{mlp}.getBoundingClientRect().width") > before + 10)


def test_a_rehearsal_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    snapshot = snapshot_of_training(tmp_path / "rank-0.pickle", capacity_bytes=80 * GiB)
    _name_modules(snapshot)
    done = rehearsal(
        ranks=(use(0, 6 * GiB), use(1, 5 * GiB)), rehearsed=use(0, 6 * GiB), devices=2,
        total_bytes=80 * GiB,
        trust=Trust(values_decided_shapes=("/home/me/train.py:12 in main, " * 8,)),
        engine=EngineFigures(name="vllm", weights_bytes=15 * GiB, kv_cache_tokens=391_216),
        versions={"torch": "2.14.0+cu130"},
    )  # fmt: skip
    replays = [(f"Rank {rank}", replay(snapshot, segment_maps=True)) for rank in (0, 1)]
    page = tmp_path / "page.html"
    page.write_text(render_rehearsal_html(done, replays))
    assert page.stat().st_size < 8 << 20
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "rehearsal")
    labels = run(browser, "[...document.querySelectorAll('.slice text')].map((t) => t.textContent)")
    assert {"train_step:58", "layers.*"} <= set(labels)
    assert "391,216" in run(browser, "document.body.textContent")


def _name_modules(snapshot: Path) -> None:
    """As a rehearsal names them."""
    found = pickle.loads(snapshot.read_bytes())  # noqa: S301  (made here)
    for at, event in enumerate(found["device_traces"][0]):
        component = ("weights", "activations", "optimizer_state")[at % 3]
        event["user_metadata"] = f"{component}: Transformer.layers.{at % 4}.mlp"
    snapshot.write_bytes(pickle.dumps(found, protocol=4))


def test_the_history_is_drawn(browser: Any, tmp_path: Path, screenshots: Path) -> None:
    history = [
        remembered(day, size * GiB, profile=profile, commit=f"{day:08x}" * 5)
        for day in range(1, 25)
        for profile, size in (("7b", 6 + day % 3), ("tiny", 1))
    ]
    page = tmp_path / "page.html"
    page.write_text(render_history_html(history))
    show(browser, page)
    assert_fits_a_desk_and_a_phone(browser, screenshots, "history")
