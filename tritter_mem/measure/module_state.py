"""A module while jobs run it: one at a time, and its buffers put back after a failed try."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tritter_mem.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

_LOCK = threading.Lock()
_IN_USE: set[nn.Module] = set()


@contextmanager
def claimed(model: nn.Module) -> Iterator[None]:
    """Keep a module, and all modules in it, to one run: two would share gradients and buffers.

    Raises:
        UsageError: another run has it, or a part of it.
    """
    parts = set(model.modules())
    with _LOCK:
        if not parts.isdisjoint(_IN_USE):
            raise UsageError(
                f"{type(model).__name__}: runs in another ladder now, another thread's or an outer "
                "one, whole or in part; allowed: in one at a time; let that one end first, or run "
                "a copy (copy.deepcopy)"
            )
        _IN_USE.update(parts)
    try:
        yield
    finally:
        with _LOCK:
            _IN_USE.difference_update(parts)


def buffers_undo(model: nn.Module) -> Callable[[], None]:
    """What makes a module's buffers those of now again: the same tensors with the same values.

    The values are copied, to where the buffers are.
    """
    import torch

    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    registered = [(module._buffers, dict(module._buffers)) for module in model.modules()]

    def undo() -> None:
        with torch.no_grad():
            for buffer, before in values:
                buffer.copy_(before)
        for now, earlier in registered:
            now.clear()
            now.update(earlier)

    return undo
