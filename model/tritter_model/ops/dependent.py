"""Kernels that start before the one ahead of them has ended: programmatic dependent launch.

A decode step is hundreds of launches of a few microseconds each, and a kernel that waits for the
one ahead of it to end pays for the start of its programs every time. From compute capability 9.0 on
its programs may start early, load what no kernel of the step writes, and then wait. Where every
kernel waits before it reads or writes anything else, a step computes the same.

What is loaded before the wait must not have been written by the kernel just ahead. Weights are not
written in a decode step, so only that step asks for it (`Tuning.dependent_launch`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_model.ops.jit import capability, jit
from tritter_model.ops.tuning import tuning

if TYPE_CHECKING:
    import triton.language as tl

FIRST_CAPABILITY = 90


def dependent() -> dict[str, bool]:
    """How to launch a kernel that calls `wait_for_the_launch_ahead`."""
    early = tuning().dependent_launch and capability() >= FIRST_CAPABILITY
    return {"DEPENDENT": early, "launch_pdl": early}


@jit
def wait_for_the_launch_ahead(DEPENDENT: tl.constexpr):
    """Let the next kernel start, and wait until the one ahead has ended and written all."""
    if DEPENDENT:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
