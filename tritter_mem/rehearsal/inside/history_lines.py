"""What the allocator's history lacks: the lines that started a backward pass.

Autograd runs in threads of its own, where there is no line of Python; the line that is waiting for
it stands for what is asked for there. Requests are told apart by their number.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
MOST_PASSES = 10_000
"""Backward passes that are remembered, the latest."""
Frames = list[dict[str, Any]]


class Requests:
    """How many requests for memory each device has served."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._before: dict[int, int] = {}

    def install(self) -> None:
        """See that PyTorch is told to count anew."""
        plain = self._torch._C._cuda_resetAccumulatedMemoryStats

        def reset(device: int) -> None:
            self._before[device] = self.served(device)
            plain(device)

        self._torch._C._cuda_resetAccumulatedMemoryStats = reset

    def served(self, device: int) -> int:
        """So far, by a device of this process."""
        stats = self._torch._C._cuda_memoryStats(device)
        counted = stats["allocation"]["all"]["allocated"] if stats else 0
        return int(counted) + self._before.get(device, 0)

    def numbered(self, snapshot: dict[str, Any], device: int) -> tuple[int, Frames]:
        """The requests that a history holds, and the number of the first, from 0."""
        events = [one for one in snapshot["device_traces"][device] if one["action"] == "alloc"]
        return self.served(device) - len(events), events


class BackwardPasses:
    """From which lines backward passes were started, and which requests they made.

    Args:
        torch: the module.
        requests: counts them.
        first: called before each pass.
        then: called behind each pass.
    """

    def __init__(
        self, torch: Any, requests: Requests, first: Callable[[], None], then: Callable[[], None]
    ) -> None:
        self._torch = torch
        self._requests = requests
        self._first = first
        self._then = then
        self._passes: deque[tuple[dict[int, int], dict[int, int], Frames]] = deque(
            maxlen=MOST_PASSES
        )
        self._thread = threading.local()

    def install(self) -> None:
        """See passes that `backward` and `torch.autograd.grad` start."""
        torch = self._torch
        plain = torch.autograd.graph._engine_run_backward

        def run_backward(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or getattr(self._thread, "within", False):
                return plain(*args, **kwargs)
            self._thread.within = True
            self._first()
            first = self._served()
            try:
                return plain(*args, **kwargs)
            finally:
                self._thread.within = False
                self._passes.append((first, self._served(), _frames(sys._getframe(1))))
                self._then()

        torch.autograd.graph._engine_run_backward = run_backward
        torch.autograd._engine_run_backward = run_backward

    def _served(self) -> dict[int, int]:
        count = self._torch.cuda.device_count()
        return {device: self._requests.served(device) for device in range(count)}

    def write_into(self, snapshot: dict[str, Any]) -> None:
        """Give requests without a line the one that started their backward pass."""
        for device in range(self._torch.cuda.device_count()):
            start, events = self._requests.numbered(snapshot, device)
            for first, last, frames in self._passes:
                since, until = first.get(device, 0) - start, last.get(device, 0) - start
                for event in events[max(since, 0) : max(until, 0)]:
                    if not event.get("frames"):
                        event["frames"] = frames


def _frames(frame: Any) -> Frames:
    """As PyTorch dumps them, innermost first."""
    found = []
    while frame is not None:
        code = frame.f_code
        found.append({"name": code.co_name, "filename": code.co_filename, "line": frame.f_lineno})
        frame = frame.f_back
    return found


def leave_out_own_frames(snapshot: dict[str, Any]) -> None:
    """The lines of this folder, between PyTorch's call and its kernel, are nobody's."""
    own: dict[int, bool] = {}

    def is_own(frame: dict[str, Any]) -> bool:
        found = own.get(id(frame))
        if found is None:
            found = own[id(frame)] = frame["filename"].startswith(_HERE)
        return found

    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    for trace in (*snapshot["device_traces"], blocks):
        for entry in trace:
            frames = entry.get("frames")
            if frames and any(map(is_own, frames)):
                entry["frames"] = [frame for frame in frames if not is_own(frame)]
