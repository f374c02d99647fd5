"""The device whose memory is managed: CUDA's, or a simulated one that runs on the CPU."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.results import Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_NAMES = re.compile(r"cuda(:\d{1,3})?")
RandomState = tuple["Tensor", ...]


class Reading(NamedTuple):
    """A device's memory now, in bytes.

    Attributes:
        allocated_bytes: live tensors.
        reserved_bytes: what PyTorch's allocator holds for them.
        free_bytes: what it could still get of the device.
    """

    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int

    def holds(self, size_bytes: int) -> bool:
        """Whether there is room for so much more, in the cache or on the device."""
        return size_bytes <= self.reserved_bytes - self.allocated_bytes + self.free_bytes


class Device(Protocol):
    """What a manager asks of a device."""

    kind: Kind
    """What its figures are: measured, or simulated."""

    def read(self) -> Reading:
        """The memory now."""

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""

    def empty_cache(self) -> None:
        """Give unused memory back to the driver."""

    def components(self) -> dict[str, int]:
        """What is alive now: component to bytes."""

    def random_state(self) -> RandomState:
        """The state of PyTorch's generators that work here may draw from."""

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""


def cuda_device(name: str, instead: str) -> torch.device:
    """A CUDA device with its index: `cuda` is the current one, and stays so.

    Args:
        name: `cuda` or `cuda:1`.
        instead: what to use where there is no CUDA device.

    Raises:
        MeasureError: there is no CUDA device, or none of that number.
        UsageError: it is no such name.
    """
    import torch

    if not _NAMES.fullmatch(name):
        raise UsageError(f"device: found {name!r}; allowed: cuda, cuda:1, and so on")
    if not torch.cuda.is_available():
        raise MeasureError(f"no CUDA device was found: {instead}")
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise MeasureError(f"device: found {name}; there is {there}")
    return torch.device("cuda", index)


class CudaDevice:
    """One CUDA device, as PyTorch sees it in this process.

    Args:
        name: `cuda` or `cuda:1`.

    Raises:
        MeasureError: there is no CUDA device, or none of that number.
        UsageError: it is no such name.
    """

    kind: Kind = "measured"

    def __init__(self, name: str = "cuda") -> None:
        self._device = cuda_device(
            name, "hand over SimulatedDevice(capacity_bytes) to try the ladder on the CPU"
        )

    def read(self) -> Reading:
        """The memory now; `free_bytes` is below the process's cap, where there is one."""
        from torch import cuda

        free, total = cuda.mem_get_info(self._device)
        reserved = cuda.memory_reserved(self._device)
        cap = int(cuda.get_per_process_memory_fraction(self._device) * total)
        return Reading(
            cuda.memory_allocated(self._device), reserved, max(0, min(free, cap - reserved))
        )

    def synchronize(self) -> None:
        """Wait for all that was begun, on every stream."""
        import torch

        torch.cuda.synchronize(self._device)

    def empty_cache(self) -> None:
        """Give unused segments back to the driver."""
        import torch

        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()

    def components(self) -> dict[str, int]:
        """What Python's objects show to be alive; the rest of what is allocated is activations.

        The backward pass keeps its tensors where Python does not see them.
        """
        found = known_components(self._device)
        rest = self.read().allocated_bytes - sum(found.values())
        found["activations"] = found.get("activations", 0) + max(rest, 0)
        return found

    def random_state(self) -> RandomState:
        """Of the CPU's generator and the device's."""
        import torch

        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)

    def set_random_state(self, state: RandomState) -> None:
        """Go back to a state."""
        import torch

        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state(state[1], self._device)


def known_components(device: torch.device) -> dict[str, int]:
    """Weights, embeddings, gradients and optimizer state of all modules that are alive, in bytes.

    Each storage counts once, as what it was first seen to be. Tensors without a storage of their
    own, such as sparse ones and parameters that are yet to get their shape, do not count.
    """
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for component, tensor in _named_tensors():
        if tensor.device != device or not _has_storage(tensor):
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found[component] += storage.nbytes()
    return dict(found)


def _has_storage(tensor: Tensor) -> bool:
    import torch
    from torch.nn.parameter import is_lazy

    from tritter_mem.trace.operators import dispatches_itself

    return not is_lazy(tensor) and tensor.layout is torch.strided and not dispatches_itself(tensor)


def _named_tensors() -> Iterator[tuple[str, Tensor]]:
    from torch import nn
    from torch.optim import Optimizer

    from tritter_mem.trace.operators import tensors
    from tritter_model.optim import SGD

    alive = gc.get_objects()
    # By type: isinstance() would ask proxies for their class, and dead ones raise.
    modules = [found for found in alive if issubclass(type(found), nn.Module)]
    for module in sorted(modules, key=lambda module: not isinstance(module, nn.Embedding)):
        yield from _of_module(module)
    for optimizer in alive:
        if issubclass(type(optimizer), (Optimizer, SGD)):
            state = list(getattr(optimizer, "state", {}).values())
            states = [list(s.values()) if isinstance(s, dict) else s for s in state]
            yield from (("optimizer_state", tensor) for tensor in tensors(states))


def _of_module(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Copies of what it holds: another thread may be building it, or not have begun."""
    from torch import nn

    kind = "embeddings" if isinstance(module, nn.Embedding) else "weights"
    parameters = [p for p in list(getattr(module, "_parameters", {}).values()) if p is not None]
    yield from ((kind, parameter) for parameter in parameters)
    yield from (("gradients", p.grad) for p in parameters if p.grad is not None)
    buffers = list(getattr(module, "_buffers", {}).values())
    yield from (("weights", buffer) for buffer in buffers if buffer is not None)
