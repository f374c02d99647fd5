"""This process on a device: what its CUDA context takes, and the cap on PyTorch's allocator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tritter_mem.devices.device import Device
from tritter_mem.devices.nvml import ASSUMED_CONTEXT_BYTES, Usage
from tritter_mem.errors import MeasureError
from tritter_mem.units import format_bytes

_ALONE_AT_MOST = 1.5
"""A new context by what is assumed for the card. Another process has another one beside it."""


class CreatedContext(NamedTuple):
    """What the context took before the run: as it was made, and after a first kernel."""

    created_bytes: int | None
    first_kernel_bytes: int | None


class DeviceSession:
    """This process on a device, from before its context is made.

    Args:
        open_device: makes the context.
        usage: what the driver counts now.
        budget_bytes: for the whole process, context included; None: all that there is.
        assumed_context_bytes: what the context takes, where it cannot be read.

    Attributes:
        before: what the driver counted before the context was made.
        device: the device.
        context: what the context took before the run.
        limit_bytes: the cap now; None: there is none.

    Raises:
        MeasureError: the device cannot be used, or the context leaves nothing of the budget.
    """

    def __init__(
        self,
        open_device: Callable[[], Device],
        usage: Callable[[], Usage],
        *,
        budget_bytes: int | None = None,
        assumed_context_bytes: int = ASSUMED_CONTEXT_BYTES,
    ) -> None:
        self._budget_bytes, self._assumed_bytes = budget_bytes, assumed_context_bytes
        self.usage = usage
        self.before = usage()
        self.device = open_device()
        self._by_free_memory = ContextByFreeMemory(
            created_bytes=self.device.used_bytes(), assumed_bytes=assumed_context_bytes
        )
        created = self.context_bytes()
        self.device.first_kernel()
        self.context = CreatedContext(created, self.context_bytes())
        self.limit_bytes: int | None = None
        self.set_limit()

    def context_bytes(self) -> int | None:
        """What the process takes beside PyTorch's allocator; None where it cannot be read."""
        reserved = self.device.stats()["reserved_bytes.all.current"]
        found = context_by_nvml(self.before, self.usage(), reserved)
        if found is not None:
            return found
        return self._by_free_memory.context_bytes(self.device.used_bytes(), reserved)

    def counted_context_bytes(self) -> int:
        """What the process takes, or else what is assumed for the card."""
        found = self.context_bytes()
        return self._assumed_bytes if found is None else found

    def unread(self) -> tuple[str, ...]:
        """Why the driver's figures are missing, and how the context's was obtained without them."""
        usage = self.usage()
        by_nvml = context_by_nvml(self.before, usage, 0) is not None
        return usage.unread if by_nvml else (*usage.unread, self._by_free_memory.note())

    def set_limit(self) -> None:
        """Cap what PyTorch may reserve at the budget less the context as it is now."""
        if self._budget_bytes is None:
            return
        context, total = self.counted_context_bytes(), self.device.total_bytes
        self.limit_bytes = allocator_limit_bytes(self._budget_bytes, context, total)
        self.device.limit(self.limit_bytes)


def allocator_limit_bytes(budget_bytes: int, context_bytes: int, total_bytes: int) -> int:
    """What PyTorch may reserve, so that it and the context stay within a budget.

    Args:
        budget_bytes: for the whole process.
        context_bytes: what the context takes of it.
        total_bytes: the device's memory, which is the most there can be.

    Raises:
        MeasureError: the context leaves nothing.
    """
    left = budget_bytes - context_bytes
    if left <= 0:
        raise MeasureError(
            f"budget: got {format_bytes(budget_bytes)}, of which the CUDA context alone takes "
            f"{format_bytes(context_bytes)} on this device; give it more (--budget)"
        )
    return min(left, total_bytes)


def context_by_nvml(before: Usage, now: Usage, reserved_bytes: int) -> int | None:
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
class ContextByFreeMemory:
    """The context by what the device has in use as CUDA counts it, all processes together.

    Attributes:
        created_bytes: in use when the context was new, and nothing reserved.
        assumed_bytes: what is assumed for a context on the card.
    """

    created_bytes: int
    assumed_bytes: int

    @property
    def alone(self) -> bool:
        """Whether what was in use can be one context."""
        return self.created_bytes <= _ALONE_AT_MOST * self.assumed_bytes

    def context_bytes(self, used_bytes: int, reserved_bytes: int) -> int | None:
        """The context now; None where other processes' memory cannot be told from it."""
        return max(used_bytes - reserved_bytes, 0) if self.alone else None

    def note(self) -> str:
        """How the context's figure was obtained, in words."""
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
