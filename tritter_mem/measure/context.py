"""What the CUDA context takes of a device, beside what PyTorch's allocator reserves.

The driver's own count (NVML) tells it. Without NVML, CUDA says what the whole device has free, and
that only once there is a context: where nobody else is on the device, the rest is the context.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.measure.driver import Usage
from tritter_mem.units import format_bytes

_AT_MOST = 1.5
"""A new context by what is assumed for the card. Another process has one of its own beside it."""


def context_bytes(before: Usage, now: Usage, reserved_bytes: int) -> int | None:
    """What a process takes of a device beside what its allocator reserves, by NVML.

    By the process's own count where the driver gives one, else by what the device has in use more
    than before; what other processes take or give back meanwhile then counts, too.
    """
    if now.process_bytes is not None:
        return max(now.process_bytes - reserved_bytes, 0)
    if now.device_bytes is None or before.device_bytes is None:
        return None
    return max(now.device_bytes - before.device_bytes - reserved_bytes, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByFreeMemory:
    """The second way: by what the device has in use as CUDA counts it, all processes together.

    Attributes:
        created_bytes: in use when the context was new, and nothing reserved.
        assumed_bytes: what is assumed for a context on the card.
    """

    created_bytes: int
    assumed_bytes: int

    @property
    def alone(self) -> bool:
        """Whether what was in use can be one context."""
        return self.created_bytes <= _AT_MOST * self.assumed_bytes

    def context_bytes(self, used_bytes: int, reserved_bytes: int) -> int | None:
        """The context now; None where other processes' memory cannot be told from it."""
        return max(used_bytes - reserved_bytes, 0) if self.alone else None

    def note(self) -> str:
        """How the context's figure was come by, in words."""
        if self.alone:
            return (
                "CUDA context: by what the device has free, as NVML does not say; what other "
                "processes take meanwhile counts, too"
            )
        return (
            f"CUDA context: not measured, {format_bytes(self.assumed_bytes)} assumed: the device "
            f"had {format_bytes(self.created_bytes)} in use when it was made, other processes' "
            "memory among it, which only NVML tells apart"
        )
