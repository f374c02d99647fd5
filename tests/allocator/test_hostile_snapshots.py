"""Snapshot files made to take all memory or time, to crash Python, or to be taken for others."""

import os
import struct
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.allocator.build import BASE, alloc, dump, event, live, segment, snapshot, unused
from tritter_mem.allocator.snapshot import MAX_BYTES, devices_of
from tritter_mem.allocator.snapshot_file import load_snapshot
from tritter_mem.errors import InputError
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.results.segments import PrivateStream
from tritter_mem.units import GiB, MiB

DOUBLED = b"N\x940" + b"".join(b"h%ch%c\x86\x940" % (i, i) for i in range(90)) + b"hZ"
"""A pair of a pair of …, 90 times, each of one object twice: whoever walks it never ends."""


def nested(depth: int) -> bytes:
    return b"N" + b"\x85" * depth


SEGMENT = (
    b"}(\x8c\x07addressK\x00\x8c\x0atotal_sizeK\x01\x8c\x0csegment_type%s"
    b"\x8c\x06blocks](}(\x8c\x04sizeK\x01\x8c\x05state%sueu"
)
EVENT = b"}(\x8c\x06action%s\x8c\x04addrK\x00\x8c\x04sizeK\x01\x8c\x06stream%su"


def root(segments: bytes = b"", events: bytes = b"") -> bytes:
    return (
        b"\x80\x04}(\x8c\x08segments](" + segments
        + b"e\x8c\x0ddevice_traces](](" + events + b"eeu."
    )  # fmt: skip


TRAPS = {
    "memo": b"\x80\x04Nr\xff\xff\xff\xff.",
    "memo of 2 GiB": b"\x80\x04Nr" + struct.pack("<I", 1 << 27) + b".",
    "string of 8 EiB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"abc.",
    "bytes of 1 GiB": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 30) + b"abc.",
    "frame of 8 EiB": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"abc.",
    "digits": b"\x80\x04I" + b"9" * 200_000 + b"\n.",
    "dicts": b"\x80\x04" + b"}" * 20_000_000 + b".",
    "shared key": b"\x80\x04}" + DOUBLED + b"Ns.",
    "nested key": b"\x80\x04}" + nested(200_000) + b"Ns.",
    "nested root": b"\x80\x04" + nested(200_000) + b".",
    "shared action": root(events=EVENT % (DOUBLED, b"K\x00")),
    "nested action": root(events=EVENT % (nested(200_000), b"K\x00")),
    "shared stream": root(events=EVENT % (b"\x8c\x05alloc", DOUBLED)),
    "nested stream": root(events=EVENT % (b"\x8c\x05alloc", nested(200_000))),
    "shared state": root(SEGMENT % (b"\x8c\x05small", DOUBLED)),
    "shared type": root(SEGMENT % (DOUBLED, b"\x8c\x08inactive")),
    "nested type": root(SEGMENT % (nested(200_000), b"\x8c\x08inactive")),
    "keys": b"\x80\x04}(" + b"\x8c\x01aN" + b"K\x01" + DOUBLED + b"K\x02" + nested(200_000) + b"u.",
}


REASONS = {
    **dict.fromkeys(
        ("memo", "memo of 2 GiB", "string of 8 EiB", "bytes of 1 GiB", "frame of 8 EiB", "dicts"),
        "it takes more memory than",
    ),
    "shared key": "it takes more time than",
    **dict.fromkeys(("digits", "nested key"), "no pickle, or a damaged one"),
}  # fmt: skip
"""What is said, where it is not which entry is wrong."""


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_is_refused_in_one_line(tmp_path: Path, trap: str) -> None:
    path = tmp_path / "s.pickle"
    path.write_bytes(TRAPS[trap])
    with pytest.raises(InputError) as caught:
        load_snapshot(path)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    assert REASONS.get(trap, "") in line
    assert line.isprintable()
    assert len(line) < 400


MEASURED = """
import resource, sys
from pathlib import Path
from tritter_mem.allocator.snapshot_file import load_snapshot
from tritter_mem.errors import InputError
try:
    load_snapshot(Path(sys.argv[1]))
except InputError as error:
    print(error.problems[0])
for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
    used = resource.getrusage(who)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
"""


def cost(path: Path) -> tuple[str, float, float]:
    """What is said of a file, and the processor seconds and memory that it took."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, path], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    said, *used = done.stdout.splitlines()
    seconds, memory = zip(*(map(float, line.split()) for line in used), strict=True)
    return said, sum(seconds), sum(memory)


@pytest.mark.parametrize("trap", ["memo", "memo of 2 GiB", "dicts", "shared key", "shared action"])
def test_a_trap_takes_less_than_10_seconds_and_2_gib(tmp_path: Path, trap: str) -> None:
    path = tmp_path / "s.pickle"
    path.write_bytes(TRAPS[trap])
    _, seconds, memory = cost(path)
    assert seconds < 10
    assert memory < 2 * GiB


def test_a_trap_at_the_start_of_a_large_file_costs_no_more(tmp_path: Path) -> None:
    """What may be used follows from how much was read, not from how much there is."""
    path = tmp_path / "s.pickle"
    path.write_bytes(b"\x80\x04}" + DOUBLED + b"Ns" + b"N" * 1000)
    os.truncate(path, 3 * GiB)
    said, seconds, memory = cost(path)
    assert "takes more time than a snapshot of its size does" in said
    assert seconds < 10
    assert memory < GiB


def test_a_reader_that_is_interrupted_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **more: Any) -> "subprocess.Popen[bytes]":
        started.append(popen(*arguments, **more))
        return started[-1]

    def interrupted(answer: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "s.pickle"
    path.write_bytes(TRAPS["shared key"])
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("tritter_mem.allocator.snapshot_file._decoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_snapshot(path)
    assert [process.returncode for process in started] == [-9]


def stack(depth: int) -> list[Any]:
    return [{"name": f"f{i}", "filename": f"é{i}.py", "line": i} for i in range(depth)]


def test_what_the_child_answers_is_what_this_process_reads(tmp_path: Path) -> None:
    made = snapshot(
        [
            segment(BASE, {**live(512, 100), "frames": stack(3)}, unused(2 * MiB - 512)),
            segment(BASE + 4 * MiB, {**live(MiB), "state": "active_awaiting_free"},
                    unused(19 * MiB), is_expandable=True, segment_pool_id=(7, 8), stream=3),
            segment(BASE, live(2 * MiB), device=2),
        ],
        [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 100, 3) | {"frames": stack(5)},
         event("teleport", 1, 1),
         event("oom", 5, 1 << 61), {**alloc(BASE, 9), "segment_pool_id": (7, 8)}],
        [],
        [alloc(BASE, 1)],
        conf="expandable_segments:True,roundup_power2_divisions:8,backend:native",
    )  # fmt: skip
    read = load_snapshot(dump(tmp_path / "s.pickle", made))
    here = devices_of(deepcopy(made))
    assert len(read) == len(here) == 2
    for one, other in zip(read, here, strict=True):
        assert one.segments == other.segments
        assert (one.device, one.warnings) == (other.device, other.warnings)
        assert one.settings == other.settings
        assert one.settings.conf == other.settings.conf
        assert one.settings.without_effect == other.settings.without_effect
        assert one.stacks == other.stacks
        assert one.block_stacks == other.block_stacks
        for name in ("actions", "addresses", "sizes", "stream_numbers", "streams",
                     "stack_numbers"):  # fmt: skip
            assert getattr(one.trace, name) == getattr(other.trace, name)
    assert len(read[0].stacks) == 3
    assert PrivateStream(0, (7, 8)) in read[0].trace.streams


# Numbers and types that no snapshot has


@pytest.mark.parametrize(
    "broken",
    [
        alloc(BASE, 1 << 62),
        alloc(BASE, MAX_BYTES),
        alloc(1 << 57, 1),
        alloc(BASE, 1) | {"stream": "default"},
        alloc(BASE, 1) | {"stream": 1 << 64},
        alloc(BASE, 1) | {"stream": 1.0},
        alloc(BASE, 1) | {"addr": 1.0},
        alloc(BASE, 1) | {"size": True},
        alloc(BASE, 1) | {"action": ("alloc",)},
        alloc(BASE, 1) | {"segment_pool_id": "ab"},
        alloc(BASE, 1) | {"segment_pool_id": (1, "2")},
        alloc(BASE, 1) | {"segment_pool_id": (1, 2, 3)},
        event("oom", 0, 1 << 62),
    ],
)
def test_a_number_that_no_device_has_is_refused(broken: object) -> None:
    with pytest.raises(InputError, match=r"device_traces\[0\]\[1\]: not an event"):
        devices_of(snapshot([], [alloc(BASE, 1), broken]))  # type: ignore[list-item]


@pytest.mark.parametrize(
    "broken",
    [
        segment(1 << 57, live(2 * MiB)),
        segment(BASE, live(1 << 47)),
        segment(BASE, live(2 * MiB, 1 << 62)),
        segment(BASE, live(2 * MiB)) | {"segment_type": ["small"]},
        segment(BASE, live(2 * MiB)) | {"stream": 1 << 70},
    ],
)
def test_a_segment_that_no_device_has_is_refused(broken: Any) -> None:
    with pytest.raises(InputError, match=r"segments\[0\]: not a segment"):
        devices_of(snapshot([broken], []))


def test_the_largest_numbers_that_are_read_can_be_replayed(tmp_path: Path) -> None:
    most = MAX_BYTES - 1
    events = [
        event("segment_alloc", (1 << 57) - 1, most),
        alloc((1 << 57) - 1, most),
        *(event("oom", 0, (1 << 62) - 1) for _ in range(8)),
        *(alloc(i << 40, most, stream=(1 << 64) - 1) for i in range(200)),
    ]
    replay(dump(tmp_path / "s.pickle", snapshot([], events)))


def test_unknown_kinds_of_event_are_listed_up_to_a_limit() -> None:
    made = snapshot([], [alloc(BASE, 1), *(event(f"kind {i}", 1, 2) for i in range(1000))])
    (device,) = devices_of(made)
    assert len(device.warnings) < 40


def test_a_setting_of_thousands_of_keys_gives_few_short_warnings() -> None:
    made = snapshot([], [alloc(BASE, 1)], conf=",".join(f"k{i}:1" for i in range(600)))
    (device,) = devices_of(made)
    assert len(device.warnings) < 40
    assert all(len(warning) < 300 for warning in device.warnings)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.pickle")
    with pytest.raises(InputError, match="not a regular file"):
        load_snapshot(tmp_path / "s.pickle")
