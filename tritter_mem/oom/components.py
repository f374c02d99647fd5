"""What the tensors that are alive are for, as far as Python's objects show it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tritter_mem.devices.device import Device
from tritter_mem.oom.simulated_device import SimulatedDevice

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def live_components(device: Device) -> dict[str, int]:
    """What is alive on a device now: component to bytes.

    A simulated device has recorded what each storage is for. On another one Python's objects show
    it, and the rest of what is allocated counts as activations: the backward pass keeps its tensors
    where Python does not see them.
    """
    import torch

    if isinstance(device, SimulatedDevice):
        return device.recorded_components()
    found = known_components(torch.device(device.name))
    rest = device.memory().allocated_bytes - sum(found.values())
    found["activations"] = found.get("activations", 0) + max(rest, 0)
    return found


def known_components(device: torch.device) -> dict[str, int]:
    """Weights, embeddings, gradients and optimizer state of all modules that are alive, in bytes.

    Each storage counts once, as what it was first seen to be. Tensors without a separate storage,
    such as sparse ones and parameters that are yet to get their shape, do not count.
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

    from tritter_mem.simulation.operators import dispatches_itself

    return not is_lazy(tensor) and tensor.layout is torch.strided and not dispatches_itself(tensor)


def _named_tensors() -> Iterator[tuple[str, Tensor]]:
    from torch import nn
    from torch.optim import Optimizer

    from tritter_mem.simulation.operators import tensors
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
