"""PyTorch's allocator, driven by operations. Runs where the stand-in is."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import torch

from benchmarks.standin.allocator.operations import SIDE_STREAMS, STREAMS, Operation, Sequence
from benchmarks.standin.allocator.state import Answer, SeenBlock, SeenSegment, flat
from tritter_mem.allocator.addresses import REGION_BYTES

Result = TypeVar("Result")

_STATES = {
    "active_allocated": "allocated",
    "active_awaiting_free": "waiting",
    "active_pending_free": "waiting",
    "inactive": "free",
}


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function returns in a fork of this process, which has not used CUDA."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


class RealAllocator:
    """The CUDA caching allocator of this process, which must be empty.

    PyTorch never gives back the addresses that a failed request reserved in a private pool, so run
    each sequence in its own process (`in_own_process`).
    """

    def __init__(self, sequence: Sequence) -> None:
        self._driver = _Driver()
        probe = self._driver.take(1)
        self.base = probe + REGION_BYTES  # where the highest region ends
        self._driver.give_back(probe)
        if sequence.held_bytes:
            self._driver.take(sequence.held_bytes)
        torch.cuda.set_per_process_memory_fraction(sequence.fraction)
        self._tensors: dict[int, torch.Tensor] = {}
        self._pools: dict[int, torch.cuda.MemPool] = {}
        self._inside: Any = None
        torch.cuda.reset_accumulated_memory_stats()
        torch.cuda.reset_peak_memory_stats()

    def do(self, operation: Operation) -> Answer:
        """Do it, and look."""
        result = getattr(self, f"_{operation.what}")(operation)
        return Answer(result, statistics(), self._segments())

    def _alloc(self, operation: Operation) -> int | str:
        with torch.cuda.stream(_streams()[operation.stream]):
            try:
                tensor = torch.empty(operation.size, dtype=torch.uint8, device="cuda")
            except torch.OutOfMemoryError:
                return "out of memory"
        self._tensors[operation.slot] = tensor
        return tensor.data_ptr() - self.base

    def _free(self, operation: Operation) -> None:
        self._tensors.pop(operation.slot, None)

    def _record(self, operation: Operation) -> None:
        if operation.slot in self._tensors:
            self._tensors[operation.slot].record_stream(_streams()[operation.stream])

    def _finish(self, operation: Operation) -> None:
        self._driver.finish(_streams()[operation.stream].cuda_stream)

    def _empty(self, operation: Operation) -> None:
        torch.cuda.empty_cache()

    def _enter(self, operation: Operation) -> None:
        if self._inside is None:
            if operation.slot not in self._pools:
                self._pools[operation.slot] = torch.cuda.MemPool()
            self._inside = torch.cuda.use_mem_pool(self._pools[operation.slot])
            self._inside.__enter__()

    def _leave(self, operation: Operation) -> None:
        if self._inside is not None:
            self._inside.__exit__(None, None, None)
            self._inside = None

    def _segments(self) -> tuple[SeenSegment, ...]:
        found = torch._C._cuda_memorySnapshot(None)["segments"]
        found = [segment for segment in found if segment["total_size"]]
        return tuple(sorted(self._segment(segment) for segment in found))

    def _segment(self, segment: dict[str, Any]) -> SeenSegment:
        pools = {pool.id: number for number, pool in self._pools.items()} | {(0, 0): 0}
        handles = [stream.cuda_stream for stream in _streams()]
        return SeenSegment(
            segment["address"] - self.base,
            handles.index(segment["stream"]),
            pools[tuple(segment["segment_pool_id"])],
            segment["segment_type"] == "small",
            segment["is_expandable"],
            tuple(_block(block) for block in segment["blocks"]),
        )

    def close(self) -> None:
        """Give everything back: PyTorch aborts at the end of a process that is inside a pool."""
        self._leave(Operation("leave"))
        self._tensors.clear()
        for stream in _streams():
            self._driver.finish(stream.cuda_stream)
        torch.cuda.empty_cache()
        self._pools.clear()


def _block(block: dict[str, Any]) -> SeenBlock:
    state = _STATES[block["state"]]
    return SeenBlock(block["size"], 0 if state == "free" else block["requested_size"], state)


_OF_LATER_RELEASES = ("reserved_bytes_by_private_pools",)
"""From 2.13 on; what they count is not simulated."""


def statistics() -> dict[str, int]:
    """What PyTorch counts."""
    counted = torch._C._cuda_memoryStats(0)
    return flat({name: of for name, of in counted.items() if name not in _OF_LATER_RELEASES})


_STREAM_LIST: list[torch.cuda.Stream] = []


def _streams() -> list[torch.cuda.Stream]:
    """The streams by number; numbers and handles have the same order."""
    if not _STREAM_LIST:
        others = [torch.cuda.Stream() for _ in range(STREAMS + SIDE_STREAMS - 1)]
        others.sort(key=lambda stream: stream.cuda_stream)
        _STREAM_LIST.extend([torch.cuda.default_stream(), *others])
    return _STREAM_LIST


class _Driver:
    """Calls beside PyTorch: another holder of memory, and the progress of streams."""

    def __init__(self) -> None:
        self._runtime = ctypes.CDLL("libcudart.so.13")
        self._events = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def take(self, size: int) -> int:
        address = ctypes.c_void_p()
        if self._runtime.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(size)):
            raise MemoryError(f"the stand-in has no {size:,} bytes left")
        return address.value or 0

    def give_back(self, address: int) -> None:
        self._runtime.cudaFree(ctypes.c_void_p(address))

    def finish(self, stream: int) -> None:
        self._events.stream_finish(ctypes.c_void_p(stream))
