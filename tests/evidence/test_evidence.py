"""What a run on a GPU leaves as evidence: stripped snapshots, and its last lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import fragmentation_lines, validation_lines
from benchmarks.snapshots import CASES, keep, simulated_case, stripped
from tests.report.records import record, tiny_on_cpu
from tests.results.test_validation import validated, validation
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.snapshot import RecordingAllocator, save_snapshot, snapshot_of
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import OutputError
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.results.run import MemoryUse
from tritter_mem.units import GiB, MiB

FRAMES = [{"filename": "secret/path.py", "line": 1, "name": "build"}] * 50


def recorded(path: Path) -> dict[str, Any]:
    """A snapshot as PyTorch writes it, frames and all."""
    recorder = RecordingAllocator(CachingAllocator())
    blocks = [recorder.malloc(size) for size in (3 * MiB, 512, 30 * MiB)]
    recorder.free(blocks[0])
    recorder.malloc(2 * MiB)
    snapshot = snapshot_of(recorder)
    for entry in (*snapshot["segments"], *snapshot["device_traces"][0]):
        entry["frames"] = FRAMES
    snapshot["external_annotations"] = [{"name": "secret"}]
    save_snapshot(path, snapshot)
    return snapshot


def test_a_stripped_snapshot_replays_as_the_whole_one(tmp_path: Path) -> None:
    whole, small = tmp_path / "whole.pickle", tmp_path / "small.pickle"
    recorded(whole)
    keep(whole, small)
    first, second = replay(whole).devices[0], replay(small).devices[0]
    assert second.recorded == first.recorded
    assert second.scenarios == first.scenarios
    assert second.fidelity == first.fidelity
    assert second.fidelity.addresses_matched == second.fidelity.addresses_total == 4
    assert b"secret" not in small.read_bytes()


def test_stripping_keeps_the_allocator_s_settings_whole(tmp_path: Path) -> None:
    snapshot = recorded(tmp_path / "a.pickle")
    assert stripped(snapshot)["allocator_settings"] == snapshot["allocator_settings"]


def test_a_snapshot_too_large_to_keep_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.snapshots.MOST_BYTES", 100)
    recorded(tmp_path / "whole.pickle")
    with pytest.raises(OutputError, match="at most 100"):
        keep(tmp_path / "whole.pickle", tmp_path / "small.pickle")
    assert [path.name for path in tmp_path.iterdir()] == ["whole.pickle"]


def test_the_known_runs_differ_and_the_one_made_to_fragment_does() -> None:
    found: dict[str, MemoryUse] = {c.name: simulated_case(c, find_gpu("h100")) for c in CASES}
    assert {p.name for p in found["training"].phases} >= {"forward", "backward", "optimizer"}
    assert {p.name for p in found["inference"].phases} >= {"prefill", "decode"}
    growing, expandable = found["growing-cache"], found["growing-cache-expandable"]
    assert growing.allocated_peak_bytes == expandable.allocated_peak_bytes
    assert growing.reserved_peak_bytes is not None
    assert expandable.reserved_peak_bytes is not None
    assert growing.reserved_peak_bytes > 1.3 * expandable.reserved_peak_bytes


def test_last_lines_of_a_validation_have_its_largest_errors() -> None:
    cases = (validated(), validated(measured=GiB - GiB // 100), validated(measured=None))
    assert validation_lines(validation(*cases).to_dict()) == [
        "validated    1 of 3 cases within the tolerances",
        "planned against measured, allocated: 1.000% at most",
        "simulated against measured, allocated: 1.000% at most",
        "simulated against measured, reserved: 0.000% at most",
    ]


def test_last_lines_of_the_case_that_fragments_leave_out_what_was_not_measured() -> None:
    simulated = validated().result
    assert simulated is not None
    without = record("a", profile={"name": "a", "allocator": {"conf": ""}}).to_dict()
    whole = tiny_on_cpu().to_dict()
    assert fragmentation_lines([without]) == ["fragmentation, default: no figures"]
    assert len(fragmentation_lines([without, whole])) == 2
