"""Who asked for what was live at the peak of a recording: call stacks of PyTorch's own format."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.allocator.build import BASE, alloc, dump, event, free, live, segment, snapshot
from tests.allocator.workloads import WORKLOADS, Run, Step
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.snapshot import RecordingAllocator, devices_of, snapshot_of
from tritter_mem.errors import InputError
from tritter_mem.recordings.replay_snapshot import MOST_ALLOCATIONS, replay
from tritter_mem.results.allocations import Allocations
from tritter_mem.results.replay import DeviceReplay
from tritter_mem.units import MiB

Dict = dict[str, Any]


def frame(name: str, line: int = 1, file: str = "/home/me/train.py") -> Dict:
    return {"name": name, "filename": file, "line": line}


def called_from(entry: Dict, *outermost_first: Dict) -> Dict:
    """PyTorch dumps the innermost frame first."""
    return {**entry, "frames": list(reversed(outermost_first))}


def device_of(path: Path, **options: Any) -> DeviceReplay:
    (device,) = replay(path, **options).devices
    return device


def names(found: Allocations | None) -> dict[tuple[str, ...], tuple[int, int]]:
    assert found
    return {
        tuple(frame.name for frame in one.path): (one.allocated_bytes, one.count)
        for one in found.allocations
    }


MAIN = frame("main", 9)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return write_named_snapshot(tmp_path / "run.pickle")


def write_named_snapshot(path: Path) -> Path:
    """Weights from before the recording; then activations, of which one is freed after the peak."""
    step, back = frame("step", 20), frame("backward", 30)
    first, second = BASE + 30 * MiB, BASE + 50 * MiB
    made = snapshot(
        [segment(BASE, called_from(live(30 * MiB), MAIN, frame("build", 4)), live(20 * MiB),
                 {"size": 50 * MiB, "state": "inactive"})],
        [
            called_from(alloc(first, 20 * MiB), MAIN, step),
            called_from(alloc(second, 40 * MiB), MAIN, back),
            *free(second, 40 * MiB),
            called_from(alloc(second, 1 * MiB), MAIN, step),
            *free(second, 1 * MiB),
        ],
    )  # fmt: skip
    return dump(path, made)


def test_live_blocks_of_the_peak_are_named_by_their_stacks(recorded: Path) -> None:
    device = device_of(recorded)
    assert device.scenarios[0].allocated_peak_bytes == 90 * MiB
    assert names(device.held_at_peak) == {
        ("main", "backward"): (40 * MiB, 1),
        ("main", "build"): (30 * MiB, 1),
        ("main", "step"): (20 * MiB, 1),
    }


def test_they_are_in_the_record(recorded: Path) -> None:
    (device,) = json.loads(json.dumps(replay(recorded).to_dict()))["devices"]
    first = device["held_at_peak"]["allocations"][0]
    assert first["allocated_bytes"] == 40 * MiB
    assert first["path"][-1] == {"name": "backward", "file": "/home/me/train.py", "line": 30}


def test_a_block_from_before_that_is_freed_has_no_stack(tmp_path: Path) -> None:
    # A free may carry the stack of the free itself.
    freed = [called_from(e, MAIN, frame("gc")) for e in free(BASE, 30 * MiB)]
    later = called_from(alloc(BASE, 1 * MiB), MAIN)
    made = snapshot(
        [segment(BASE, live(1 * MiB), {"size": 31 * MiB, "state": "inactive"})], [*freed, later]
    )
    device = device_of(dump(tmp_path / "run.pickle", made))
    assert names(device.held_at_peak) == {(): (30 * MiB, 1)}


def test_a_recording_without_stacks_names_nobody(tmp_path: Path) -> None:
    made = snapshot([segment(BASE, live(30 * MiB))], [alloc(BASE, 30 * MiB)])
    assert device_of(dump(tmp_path / "run.pickle", made)).held_at_peak is None


def named_by_size(recorder: RecordingAllocator) -> Dict:
    """A snapshot whose requests are called from a function for each size."""
    made = snapshot_of(recorder)
    for entry in made["device_traces"][0]:
        entry["frames"] = [frame(f"ask for {entry['size']}"), MAIN]
    return made


@pytest.mark.parametrize("capacity", [None, 120 * MiB])
@given(steps=WORKLOADS)
@settings(max_examples=30, deadline=None)
def test_stacks_sum_to_the_allocated_peak(
    steps: list[Step], capacity: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recorder = RecordingAllocator(CachingAllocator())
    run = Run(recorder)
    for step in steps:
        run.do(step)
    if not len(recorder.trace):
        return
    path = dump(tmp_path_factory.mktemp("run") / "run.pickle", named_by_size(recorder))
    device = device_of(path, capacity_bytes=capacity)
    found, peak = device.held_at_peak, device.scenarios[0].allocated_peak_bytes
    assert (found.total_bytes if found else 0) == peak


def out_of_memory(tmp_path: Path) -> Path:
    recorder = RecordingAllocator(CachingAllocator(capacity_bytes=64 * MiB))
    for size in (30, 20):
        recorder.malloc(size * MiB)
    with pytest.raises(OutOfMemoryError):
        recorder.malloc(40 * MiB)
    return dump(tmp_path / "oom.pickle", named_by_size(recorder))


def test_the_request_that_ran_out_of_memory_has_its_stack(tmp_path: Path) -> None:
    device = device_of(out_of_memory(tmp_path))
    failure = device.scenarios[0].out_of_memory
    assert failure
    assert [frame.name for frame in failure.path] == ["main", f"ask for {40 * MiB}"]
    assert len(names(device.held_at_peak)) == 2


def test_a_request_that_failed_and_is_now_served_counts_at_the_peak(tmp_path: Path) -> None:
    device = device_of(out_of_memory(tmp_path), capacity_bytes=512 * MiB)
    assert device.scenarios[0].allocated_peak_bytes == 90 * MiB
    assert names(device.held_at_peak) == {
        ("main", f"ask for {size * MiB}"): (size * MiB, 1) for size in (20, 30, 40)
    }


def test_frames_of_c_plus_plus_count_only_where_there_are_no_others(tmp_path: Path) -> None:
    inner = frame("at::empty", 7, "/pytorch/aten/src/ATen/Functions.cpp")
    thread = frame("Engine::thread_main", 8, "/pytorch/torch/csrc/autograd/engine.cpp")
    unknown = frame("_start", 0, "??")
    made = snapshot(
        [segment(BASE, live(30 * MiB), live(40 * MiB))],
        [
            called_from(alloc(BASE, 30 * MiB), unknown, MAIN, inner),
            called_from(alloc(BASE + 30 * MiB, 40 * MiB), unknown, thread, inner),
        ],
    )
    device = device_of(dump(tmp_path / "run.pickle", made))
    assert names(device.held_at_peak) == {
        ("main",): (30 * MiB, 1),
        ("Engine::thread_main", "at::empty"): (40 * MiB, 1),
    }


def test_a_record_has_so_many_stacks_and_all_the_bytes(tmp_path: Path) -> None:
    count = 3 * MOST_ALLOCATIONS
    blocks = [live(MiB) for _ in range(count)]
    asked = [
        called_from(alloc(BASE + n * MiB, MiB), MAIN, frame(f"f{n % 9}"), frame(f"g{n}"))
        for n in range(count)
    ]
    device = device_of(dump(tmp_path / "run.pickle", snapshot([segment(BASE, *blocks)], asked)))
    found = device.held_at_peak
    assert found
    assert len(found.allocations) <= MOST_ALLOCATIONS
    assert found.total_bytes == count * MiB


@pytest.mark.parametrize("broken", [7, ["x"], {"a": 1}])
def test_wrong_frames_are_named(broken: object) -> None:
    trace = [event("alloc", BASE, 1, frames=broken)]
    with pytest.raises(InputError, match=r"device_traces\[0\]\[0\]"):
        devices_of(snapshot([], trace))
    with pytest.raises(InputError, match=r"segments\[0\]"):
        devices_of(snapshot([segment(BASE, {**live(MiB), "frames": broken})], []))


def test_frames_of_odd_types_are_text(tmp_path: Path) -> None:
    odd = {"name": None, "filename": "x" * 9000 + ".py", "line": -3}
    made = snapshot([segment(BASE, live(MiB))], [called_from(alloc(BASE, MiB), odd)])
    found = device_of(dump(tmp_path / "run.pickle", made)).held_at_peak
    assert found
    (only,) = found.allocations[0].path
    assert (only.name, len(only.file), only.line) == ("None", 500, 0)
