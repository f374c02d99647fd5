"""Snapshots out: what PyTorch's own tools read, and nothing half-written."""

import base64
import json
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.allocator.workloads import CONFS, WORKLOADS, Run, Step
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.settings import parse_alloc_conf
from tritter_mem.allocator.snapshot import (
    RecordingAllocator,
    devices_of,
    save_snapshot,
    snapshot_of,
)
from tritter_mem.allocator.snapshot_file import load_snapshot
from tritter_mem.errors import OutputError
from tritter_mem.results.segments import PrivateStream
from tritter_mem.units import MiB


def recorder(conf: str = "", capacity: int | None = None) -> RecordingAllocator:
    return RecordingAllocator(CachingAllocator(parse_alloc_conf(conf), capacity))


def actions(made: dict[str, Any]) -> list[str]:
    return [entry["action"] for entry in made["device_traces"][-1]]


def a_run() -> RecordingAllocator:
    """One of everything: two pools, a private one, a waiting block, an out-of-memory event."""
    run = recorder(capacity=100 * MiB)
    run.free(run.malloc(30 * MiB, stream=7))
    run.malloc(4 * MiB)
    run.malloc(600, PrivateStream(0, (0, 1)))
    run.request_free(run.malloc(5 * MiB))
    with pytest.raises(OutOfMemoryError):
        run.malloc(90 * MiB)
    return run


def test_events_come_in_pytorchs_order() -> None:
    run = recorder()
    run.free(run.malloc(100))
    ticket = run.request_free(run.malloc(200))
    run.complete_free(ticket)
    run.empty_cache()
    assert actions(snapshot_of(run)) == [
        "segment_alloc", "alloc", "free_requested", "free_completed",
        "alloc", "free_requested", "free_completed", "segment_free",
    ]  # fmt: skip


def test_a_retry_completes_frees_and_then_releases() -> None:
    made = snapshot_of(a_run())
    assert actions(made)[-3:] == ["free_completed", "segment_free", "oom"]
    last = made["device_traces"][0][-1]
    assert (last["size"], last["device_free"]) == (90 * MiB, 78 * MiB)


def test_segments_hold_what_pytorch_writes() -> None:
    run = recorder()
    run.malloc(1000)
    (segment,) = snapshot_of(run, device=1)["segments"]
    blocks = segment.pop("blocks")
    assert segment == {
        "device": 1,
        "address": blocks[0]["address"],
        "total_size": 2 * MiB,
        "allocated_size": 1024,
        "active_size": 1024,
        "requested_size": 1000,
        "stream": 0,
        "segment_type": "small",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
    }
    assert [(b["size"], b["requested_size"], b["state"]) for b in blocks] == [
        (1024, 1000, "active_allocated"),
        (2 * MiB - 1024, 0, "inactive"),
    ]


def test_settings_are_recorded_by_text_and_value() -> None:
    run = recorder("max_split_size_mb:64,roundup_power2_divisions:4")
    found = snapshot_of(run)["allocator_settings"]
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "max_split_size_mb:64,roundup_power2_divisions:4"
    assert found["max_split_size"] == 64 * MiB
    assert found["roundup_power2_divisions"]["32768"] == 4
    assert snapshot_of(recorder())["allocator_settings"]["max_split_size"] == -1


def test_pytorchs_viewer_takes_it(tmp_path: Path) -> None:
    """`segment_plot` and `trace_plot` embed the snapshot; `trace` and `segsum` read its fields."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    path = tmp_path / "s.pickle"
    save_snapshot(path, snapshot_of(a_run()))
    made = pickle.loads(path.read_bytes())  # noqa: S301  (our own)
    for plot in (viz.segment_plot, viz.trace_plot):
        page = plot(made)
        (embedded,) = re.findall(r"local_files = (\[.*?\])\n", page)
        files = json.loads(embedded)
        assert pickle.loads(base64.b64decode(files[0]["base64"])) == made  # noqa: S301
    printed = viz.trace(made)
    assert "raise OutOfMemoryError # 90.0MiB requested, 78.0MiB free in CUDA" in printed
    assert "total_reserved: 22.0MiB" in viz.segsum(made)
    assert viz.trace_plot(made, filter_freed=True)


def test_the_file_is_protocol_4_without_globals(tmp_path: Path) -> None:
    path = tmp_path / "s.pickle"
    save_snapshot(path, snapshot_of(a_run()))
    opcodes = list(pickletools.genops(path.read_bytes()))
    assert opcodes[0][1] == 4
    assert not {opcode.name for opcode, *_ in opcodes} & {"GLOBAL", "STACK_GLOBAL", "REDUCE"}


@settings(max_examples=100, deadline=None)
@given(conf=st.sampled_from(CONFS), steps=WORKLOADS)
def test_segments_come_back_as_they_were(conf: str, steps: list[Step]) -> None:
    run = recorder(conf)
    Run(run).do_all(steps)
    found = [s for device in devices_of(snapshot_of(run)) for s in device.segments]
    assert found == run.allocator.segments()


def test_a_long_history_loses_small_requests_that_were_freed_first() -> None:
    run = recorder()
    kept = run.malloc(100)
    for size in (5 * MiB, 1000, 3 * MiB, 2000):
        run.free(run.malloc(size))
    whole = snapshot_of(run)
    assert len(actions(whole)) == 2 + 4 * 3 + 1
    thinned = snapshot_of(run, max_events=11)
    sizes = [e["size"] for e in thinned["device_traces"][0] if e["action"] == "alloc"]
    assert sizes == [100, 5 * MiB, 3 * MiB]
    assert len(actions(thinned)) == 9
    times = [e["time_us"] for e in thinned["device_traces"][0]]
    assert times == sorted(times)
    run.free(kept)


def test_what_cannot_be_thinned_keeps_the_newest() -> None:
    run = recorder()
    for size in range(1, 11):
        run.malloc(size)
    made = snapshot_of(run, max_events=4)
    assert [e["size"] for e in made["device_traces"][0]] == [7, 8, 9, 10]


def test_other_devices_come_before_it_empty() -> None:
    run = recorder()
    run.malloc(1)
    assert [len(trace) for trace in snapshot_of(run, device=2)["device_traces"]] == [0, 0, 2]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_snapshot(tmp_path / "file" / "s.pickle", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        save_snapshot(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "no" / "s.pickle", snapshot_of(a_run()))
    assert len(load_snapshot(tmp_path / "no" / "s.pickle")) == 1


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "s.pickle"
    path.write_text("old")
    save_snapshot(path, snapshot_of(a_run()))
    assert len(load_snapshot(path)) == 1
    assert list(tmp_path.iterdir()) == [path]
