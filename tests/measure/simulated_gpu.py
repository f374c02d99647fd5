"""A GPU for tests: a simulated device with a context, other processes and libraries.

A run on it goes the whole way that a run on CUDA goes, the driver's count (NVML) included.
"""

from collections.abc import Callable
from typing import Any

from tritter_mem.allocator.snapshot import ALLOC
from tritter_mem.devices.nvml import Usage
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.simulation.operators import Operator
from tritter_mem.units import MiB

CREATED, FIRST_KERNEL, LOADED = 300 * MiB, 310 * MiB, 400 * MiB
"""What the context takes when it is made, after the first kernel, and after the warm-up."""
OTHERS = 100 * MiB


class SimulatedGpu(SimulatedDevice):
    """`inside` is called at each operator, and may allocate as a library would."""

    def __init__(
        self,
        total_bytes: int,
        inside: Callable[["SimulatedGpu", str], None] = lambda gpu, operator: None,
    ) -> None:
        super().__init__(total_bytes)
        self._inside_operator = inside
        self.context_bytes = CREATED
        self.others_bytes = OTHERS
        self.limits: list[int] = []

    def used_bytes(self) -> int:
        return self.others_bytes + self.context_bytes + super().used_bytes()

    def first_kernel(self) -> None:
        self.context_bytes = FIRST_KERNEL

    def limit(self, limit_bytes: int) -> None:
        self.limits.append(limit_bytes)
        super().limit(limit_bytes)

    def allocate_inside(self, nbytes: int) -> None:
        """What a library takes in an operator, which no tensor holds; it is kept."""
        block = self._allocator.malloc(nbytes)
        self._note(ALLOC, block.address, nbytes)

    def usage(self) -> Usage:
        """What the driver would count."""
        used = self.context_bytes + super().used_bytes()
        return Usage(device_bytes=OTHERS + used, process_bytes=used)

    def _ran(self, operator: Operator, inputs: Any, result: Any) -> None:
        super()._ran(operator, inputs, result)
        self._inside_operator(self, operator.name)


class SimulatedDriver:
    """NVML's count of the simulated GPU; before there is one, what others hold."""

    def __init__(self) -> None:
        self.gpu: SimulatedGpu | None = None

    def usage(self) -> Usage:
        return Usage(device_bytes=OTHERS) if self.gpu is None else self.gpu.usage()
