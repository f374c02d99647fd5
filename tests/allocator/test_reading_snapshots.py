"""Reading snapshots: what PyTorch 2.1 to 2.13 write, and what else people hand over."""

import gzip
import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest

from tests.allocator.build import (
    BASE,
    Dict,
    alloc,
    dump,
    event,
    free,
    live,
    segment,
    snapshot,
    unused,
)
from tritter_mem.allocator.settings import AllocatorSettings
from tritter_mem.allocator.snapshot import DeviceSnapshot, devices_of
from tritter_mem.allocator.snapshot_file import load_snapshot, read_pickle
from tritter_mem.errors import InputError
from tritter_mem.results.segments import FREE, WAITING, PrivateStream
from tritter_mem.units import MiB

SMALL = snapshot(
    [segment(BASE, live(512, 100), unused(2 * MiB - 512))],
    [event("segment_alloc", BASE, 2 * MiB), alloc(BASE, 100)],
)


def problem(path: Path, **limits: int) -> str:
    """The one problem found, without the path that it begins with."""
    with pytest.raises(InputError) as caught:
        load_snapshot(path, **limits)
    (line,) = caught.value.problems
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def only(made: Dict) -> DeviceSnapshot:
    (device,) = devices_of(made)
    return device


# What PyTorch writes


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_any_binary_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    (device,) = load_snapshot(dump(tmp_path / "s.pickle", SMALL, protocol))
    (found,) = device.segments
    assert (found.address, found.size, found.small) == (BASE, 2 * MiB, True)
    assert [(b.address, b.size, b.requested) for b in found.blocks] == [
        (BASE, 512, 100),
        (BASE + 512, 2 * MiB - 512, 0),
    ]
    assert len(device.trace) == 2


def test_what_newer_versions_add_is_understood_or_ignored() -> None:
    made = snapshot(
        [
            segment(
                BASE,
                {**live(512), "address": BASE, "frames": [{"name": "f", "line": 1}]},
                unused(2 * MiB - 512),
                is_expandable=True,
                segment_pool_id=(0, 2),
                registration_counter=-1,
                frames=[],
            )
        ],
        [
            event("snapshot", 0, 0, time_us=1),
            event("alloc", BASE, 512, time_us=2, compile_context="N/A", user_metadata="",
                  segment_pool_id=(0, 2)),
        ],
    )  # fmt: skip
    made["external_annotations"] = [{"device": 0, "time_us": 3}]
    device = only(made)
    assert device.segments[0].stream == PrivateStream(0, (0, 2))
    assert device.segments[0].expandable
    assert device.trace.stream(0) == PrivateStream(0, (0, 2))
    assert (len(device.trace), device.warnings) == (1, ())


def test_older_versions_tell_a_private_pool_by_address_alone() -> None:
    made = snapshot(
        [
            segment(BASE, live(512), unused(2 * MiB - 512), segment_pool_id=(1, 0)),
            segment(BASE + 4 * MiB, live(512), unused(2 * MiB - 512), segment_pool_id=(0, 0)),
        ],
        [alloc(BASE, 512), alloc(BASE + 4 * MiB, 512)],
    )
    trace = only(made).trace
    assert [trace.stream(i) for i in (0, 1)] == [PrivateStream(0, (1, 0)), 0]


@pytest.mark.parametrize("key", ["segment_pool_id", "pool_id"])
def test_an_event_that_names_the_default_pool_is_of_it(key: str) -> None:
    """A private pool may have got addresses that another segment had before."""
    made = snapshot(
        [segment(BASE, live(512), unused(2 * MiB - 512), segment_pool_id=(1, 0))],
        [
            event("segment_alloc", BASE, 2 * MiB, **{key: (0, 0)}),
            event("segment_free", BASE, 2 * MiB, **{key: (0, 0)}),
            event("segment_alloc", BASE, 2 * MiB, **{key: (1, 0)}),
        ],
    )
    trace = only(made).trace
    assert [trace.stream(i) for i in range(3)] == [0, 0, PrivateStream(0, (1, 0))]


def test_version_2_1_records_no_settings_and_calls_waiting_blocks_otherwise() -> None:
    block = {"size": 512, "requested_size": 8, "state": "active_pending_free"}
    device = only(snapshot([segment(BASE, block, unused(2 * MiB - 512))], [], conf=None))
    assert device.settings == AllocatorSettings()
    assert device.warnings == ("no allocator settings recorded: PyTorch's defaults assumed",)
    assert [b.state for b in device.segments[0].blocks] == [WAITING, FREE]


def test_recorded_settings_are_read() -> None:
    device = only(snapshot([], [alloc(BASE, 1)], conf="expandable_segments:True"))
    assert device.settings == AllocatorSettings(expandable_segments=True)


def test_settings_of_another_version_are_read_by_value() -> None:
    made = snapshot([], [alloc(BASE, 1)])
    made["allocator_settings"] = {
        "PYTORCH_CUDA_ALLOC_CONF": "from_the_future:3",
        "max_split_size": 64 * MiB,
        "expandable_segments": True,
        "garbage_collection_threshold": 0.5,
        "roundup_power2_divisions": {str(1 << i): 4 for i in range(16)},
    }
    device = only(made)
    assert device.settings == AllocatorSettings(
        expandable_segments=True,
        max_split_bytes=64 * MiB,
        garbage_collection_threshold=0.5,
        roundup_power2_divisions=(4,) * 16,
    )
    (warning,) = device.warnings
    assert "unknown key 'from_the_future'" in warning


@pytest.mark.parametrize(
    ("steps", "found"), [(2, 2), (1 << 29, 1 << 29), (1 << 30, None), (6, None), (-2, None)]
)
def test_divisions_read_by_value_are_those_that_the_text_may_hold(
    steps: int, found: int | None
) -> None:
    made = snapshot([], [alloc(BASE, 1)])
    made["allocator_settings"] = {
        "PYTORCH_CUDA_ALLOC_CONF": "from_the_future:3",
        "roundup_power2_divisions": {str(1 << i): steps for i in range(16)},
    }
    assert only(made).settings.roundup_power2_divisions == (found and (found,) * 16)


def test_unlimited_split_size_is_recorded_as_minus_one() -> None:
    made = snapshot([], [alloc(BASE, 1)])
    made["allocator_settings"] |= {"PYTORCH_CUDA_ALLOC_CONF": "what", "max_split_size": -1}
    assert only(made).settings.max_split_bytes is None


def test_each_device_has_its_own_segments_and_history() -> None:
    made = snapshot(
        [
            segment(BASE, unused(2 * MiB), device=2),
            segment(BASE, live(512), unused(2 * MiB - 512), device=0),
        ],
        [alloc(BASE, 512)],
        [],
        [alloc(BASE, 1), *free(BASE, 1)],
    )
    found = devices_of(made)
    assert [(d.device, len(d.segments), len(d.trace)) for d in found] == [(0, 1, 1), (2, 1, 3)]


def test_a_file_of_ones_own_is_read_from_its_start(tmp_path: Path) -> None:
    assert read_pickle(dump(tmp_path / "s.pickle", SMALL)) == SMALL


def test_a_device_with_segments_behind_those_with_histories_is_read() -> None:
    for device in (0, 1, 2, 9):
        made = snapshot([segment(BASE, live(2 * MiB), device=device)], [], [alloc(BASE, 1)])
        assert [found.device for found in devices_of(made)] == sorted({1, device})


def test_a_snapshot_without_history_is_read() -> None:
    made = {"segments": [segment(BASE, unused(2 * MiB))]}
    assert len(only(made).trace) == 0


def test_events_of_an_unknown_kind_are_counted() -> None:
    device = only(snapshot([], [event("teleport", 1, 2), event("teleport", 3, 4), alloc(BASE, 1)]))
    (warning,) = device.warnings
    assert warning == "device_traces[0]: events of unknown kind 'teleport', left out: 2"
    assert len(device.trace) == 1


# What is no snapshot


def test_a_global_is_refused_and_not_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    said = problem(dump(tmp_path / "s.pickle", {"segments": [Attack()], "device_traces": []}))
    assert "the pickle asks for" in said
    assert "refused" in said
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "torch._utils._rebuild", "collections.OrderedDict"]
)
def test_every_global_is_named(tmp_path: Path, name: str) -> None:
    module, _, function = name.rpartition(".")
    data = f"c{module}\n{function}\n.".encode()
    assert f"'{name}'" in problem(write(tmp_path / "s.pickle", data))


def test_a_name_that_steers_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    assert "\x1b" not in problem(write(tmp_path / "s.pickle", b"cos\x1b[31m\nsystem\n."))


def test_objects_outside_of_the_pickle_are_refused(tmp_path: Path) -> None:
    assert "outside of it" in problem(write(tmp_path / "s.pickle", b"P7\n."))


def test_a_truncated_pickle(tmp_path: Path) -> None:
    whole = pickle.dumps(SMALL, protocol=4)
    for length in (3, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        assert "truncated" in problem(write(tmp_path / "s.pickle", whole[:length]))


def test_damaged_bytes_never_give_a_traceback(tmp_path: Path) -> None:
    """Read in this process: one for each byte would take minutes."""
    whole = pickle.dumps(SMALL, protocol=4)
    refused = []
    for at in range(0, len(whole), 3):
        path = write(tmp_path / "s.pickle", whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            devices_of(read_pickle(path))
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(map(str.isprintable, refused))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the file is empty"),
        (json.dumps(SMALL, default=str).encode(), "this is JSON"),
        (b"[1, 2]", "this is JSON"),
        (b"<!doctype html>", "this is HTML"),
        (b"PK\x03\x04rest", "zip archive, such as torch.save writes"),
        (gzip.compress(b"x", mtime=0), "unpack it first"),
        (b"hello", "no pickle"),
        (pickle.dumps([{"address": 1}]), "list of segments without history"),
        (pickle.dumps("text"), "got text"),
        (pickle.dumps(None), "got nothing"),
        (pickle.dumps({"weights": 1, 2: 3}), "no 'segments' (found: 'weights', 2)"),
        (pickle.dumps({}), "no 'segments' (found: nothing)"),
        (pickle.dumps({"segments": {}}), "'segments': got a dict, expected a list"),
        (pickle.dumps({"segments": [], "device_traces": 3}), "'device_traces': got 3"),
        (
            pickle.dumps({"segments": [], "device_traces": [None]}),
            "device_traces[0]: got nothing",
        ),
    ],
)
def test_what_is_no_snapshot_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in problem(write(tmp_path / "s.pickle", data))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problem(tmp_path / "none.pickle") == "cannot be read: No such file or directory"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = dump(tmp_path / "s.pickle", SMALL)
    assert problem(path, max_bytes=100).startswith("too large: ")


BLOCK = live(2 * MiB)
GOOD = segment(BASE, BLOCK)


@pytest.mark.parametrize(
    "broken",
    [
        3,
        {},
        {**GOOD, "address": "x"},
        {**GOOD, "address": -1},
        {**GOOD, "address": 1 << 63},
        {**GOOD, "blocks": None},
        {**GOOD, "blocks": [{}]},
        {**GOOD, "blocks": [{**BLOCK, "state": "gone"}]},
        {**GOOD, "blocks": [{**BLOCK, "size": 1.5}]},
        {**GOOD, "blocks": [{**BLOCK, "size": 5}]},
        {**GOOD, "stream": "x"},
        {**GOOD, "device": 5000},
        {**GOOD, "segment_pool_id": 7},
        {**GOOD, "segment_pool_id": (1, 2, 3)},
        {**GOOD, "segment_pool_id": (1,)},
    ],
)
def test_a_wrong_segment_is_named(broken: object) -> None:
    with pytest.raises(InputError, match=r"segments\[1\]: "):
        devices_of(snapshot([GOOD, broken], []))  # type: ignore[list-item]


@pytest.mark.parametrize(
    "broken",
    [
        3,
        None,
        {},
        {"action": "alloc"},
        alloc(BASE, 1) | {"addr": "x"},
        alloc(-1, 1),
        alloc(1 << 63, 1),
        alloc(BASE, -1),
        alloc(BASE, 1 << 70),
        alloc(BASE, 1) | {"stream": []},
        {"action": "oom", "addr": 1, "size": 1, "stream": 0},
    ],
)
def test_a_wrong_event_is_named(broken: object) -> None:
    with pytest.raises(InputError, match=r"device_traces\[0\]\[1\]: not an event"):
        devices_of(snapshot([], [alloc(BASE, 1), broken]))  # type: ignore[list-item]


def test_the_tests_snapshot_holds_no_global() -> None:
    opcodes = {opcode.name for opcode, *_ in pickletools.genops(pickle.dumps(SMALL, protocol=4))}
    assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "REDUCE"}
