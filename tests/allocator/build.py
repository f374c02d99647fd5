"""Snapshots made by hand: the dicts that PyTorch dumps, as short as they can be written."""

import pickle
from pathlib import Path
from typing import Any

from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.snapshot import (
    RecordingAllocator,
    devices_of,
    save_snapshot,
    snapshot_of,
)
from tritter_mem.recordings.memory_history import History, make_history
from tritter_mem.units import MiB

BASE = 0x7000_0000_0000

Dict = dict[str, Any]


def event(action: str, address: int, size: int, stream: int = 0, **more: Any) -> Dict:
    key = "device_free" if action == "oom" else "addr"
    return {"action": action, key: address, "size": size, "stream": stream, **more}


def alloc(address: int, size: int, stream: int = 0) -> Dict:
    return event("alloc", address, size, stream)


def free(address: int, size: int, stream: int = 0) -> list[Dict]:
    """Both events of a free that does not wait."""
    return [event(f"free_{part}", address, size, stream) for part in ("requested", "completed")]


def live(size: int, requested: int | None = None) -> Dict:
    wanted = size if requested is None else requested
    return {"size": size, "requested_size": wanted, "state": "active_allocated"}


def unused(size: int) -> Dict:
    return {"size": size, "state": "inactive"}


def segment(address: int, *blocks: Dict, stream: int = 0, device: int = 0, **more: Any) -> Dict:
    size = sum(block["size"] for block in blocks)
    return {
        "device": device,
        "address": address,
        "total_size": size,
        "stream": stream,
        "segment_type": "small" if size == 2 * MiB else "large",
        "blocks": list(blocks),
        **more,
    }


def snapshot(segments: list[Dict], *traces: list[Dict], conf: str | None = "") -> Dict:
    settings = {} if conf is None else {"allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": conf}}
    return {"segments": segments, "device_traces": list(traces), **settings}


def history_of(made: Dict) -> History:
    """The only device's history."""
    (device,) = devices_of(made)
    return make_history(device)


def fragmenting(run: RecordingAllocator) -> None:
    """Three segments of 60 MiB, each then split in 50 and 10; 40 MiB more fit into no gap."""
    for block in [run.malloc(60 * MiB) for _ in range(3)]:
        run.free(block)
    for _ in range(3):
        run.malloc(30 * MiB)
        run.malloc(20 * MiB)
    run.malloc(40 * MiB)


def fragmented_snapshot(path: Path) -> Path:
    """220 MiB reserved for 190 MiB; 200 MiB with expandable segments."""
    recorder = RecordingAllocator(CachingAllocator())
    fragmenting(recorder)
    save_snapshot(path, snapshot_of(recorder))
    return path


def dump(path: Path, made: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(made, protocol=protocol))
    return path
