"""`train.py` without a GPU: its storages on PyTorch's `meta` device, each with its call stack.

What a page about a snapshot is drawn from in tests and pictures. It is no measurement.
"""

import sys
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.browser import train
from tritter_mem.allocator.blocks import Block
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.snapshot import (
    ALLOC,
    OOM,
    RecordingAllocator,
    save_snapshot,
    snapshot_of,
)

# This file, and by what `meta` finds shapes, which no GPU runs.
_NOT_ON_A_GPU = ("rehearse_train.py", "/torch/utils/_", "/torch/_prims", "/torch/_refs/",
                 "/torch/_decomp/", "/torch/_meta", "/torch/_dynamo/",
                 "/torch/_compile")  # fmt: skip


class Recorder(TorchDispatchMode):
    """Asks an allocator for every new storage, and keeps who asked."""

    def __init__(self, capacity_bytes: int | None) -> None:
        super().__init__()
        self.recording = RecordingAllocator(CachingAllocator(capacity_bytes=capacity_bytes))
        self.stacks: dict[int, list[dict[str, Any]]] = {}
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "meta":
                self._hold(leaf.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen or not storage.nbytes():
            return
        frames = frames_of(sys._getframe(2))
        first = len(self.recording.trace)
        try:
            block = self.recording.malloc(storage.nbytes())
        finally:
            for event in range(first, len(self.recording.trace)):
                if self.recording.trace.actions[event] in (ALLOC, OOM):
                    self.stacks[event] = frames
        self._seen.add(key)
        weakref.finalize(storage, self._free, key, block)

    def _free(self, key: int, block: Block) -> None:
        self._seen.discard(key)
        self.recording.free(block)


def frames_of(frame: FrameType | None) -> list[dict[str, Any]]:
    """As PyTorch dumps them, innermost first, up to the script's own first one."""
    found = []
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in _NOT_ON_A_GPU):
            shown = f"/home/me/{Path(file).name}" if file == train.__file__ else file
            found.append({"name": frame.f_code.co_name, "filename": shown, "line": frame.f_lineno})
        if frame.f_code is train.main.__code__:
            break
        frame = frame.f_back
    return found


def snapshot_of_training(path: Path, *, capacity_bytes: int | None, steps: int = 3) -> Path:
    """Write the snapshot of a few training steps, up to where memory ends."""
    recorder = Recorder(capacity_bytes)
    try:
        with recorder:
            train.main("meta", context=512, steps=steps)
    except OutOfMemoryError:
        pass
    made = snapshot_of(recorder.recording)
    for event, frames in recorder.stacks.items():
        made["device_traces"][0][event]["frames"] = frames
    save_snapshot(path, made)
    return path
