"""The peak of a CUDA device's memory, for several who follow it at once.

PyTorch keeps one peak a device, and a reset ends it for all. So whoever begins a new one here lets
the others keep what they saw. A reset by other code cannot be seen: what was before it, and was not
read, is lost.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_LOCK = threading.Lock()
_FOLLOWING: weakref.WeakSet[CudaPeak] = weakref.WeakSet()


class CudaPeak:
    """The most that was allocated on a device since the last reset of this very object.

    Args:
        device: a CUDA device with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._seen_bytes = device, 0
        with _LOCK:
            _FOLLOWING.add(self)

    def reset(self) -> None:
        """Begin at what is allocated now."""
        from torch import cuda

        with _LOCK:
            for other in _FOLLOWING:
                if other._device == self._device:
                    other._look()
            cuda.reset_peak_memory_stats(self._device)
            self._seen_bytes = 0

    def read_bytes(self) -> int:
        """The peak so far."""
        with _LOCK:
            return self._look()

    def _look(self) -> int:
        from torch import cuda

        self._seen_bytes = max(self._seen_bytes, cuda.max_memory_allocated(self._device))
        return self._seen_bytes
