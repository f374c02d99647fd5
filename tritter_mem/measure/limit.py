"""How a large card stands for a small one: what PyTorch may reserve under a budget.

`torch.cuda.set_per_process_memory_fraction` caps what PyTorch's allocator takes from the driver.
The CUDA context and loaded modules are outside of it, so the cap is the budget less what they take.
"""

from __future__ import annotations

import math

from tritter_mem.errors import MeasureError
from tritter_mem.units import format_bytes


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
            f"budget: found {format_bytes(budget_bytes)}, of which the CUDA context alone takes "
            f"{format_bytes(context_bytes)} on this device; give it more (--budget)"
        )
    return min(left, total_bytes)


def memory_fraction(limit_bytes: int, total_bytes: int) -> float:
    """The fraction of a device's memory by which PyTorch comes to a limit, to the byte.

    PyTorch truncates `fraction * total` (`setMemoryFraction` in `CUDACachingAllocator.cpp`), so the
    plain quotient may come out one byte short.
    """
    fraction = limit_bytes / total_bytes
    while int(fraction * total_bytes) < limit_bytes:
        fraction = math.nextafter(fraction, math.inf)
    return min(fraction, 1.0)
