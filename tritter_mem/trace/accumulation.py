"""Sums of gradients that autograd makes in place, and that a recording would make anew.

Where a tensor was used more than once, autograd adds its gradients up. Outside of a recording it
adds into the first one, if nothing else holds that (`can_accumulate_inplace` in PyTorch's
`input_buffer.cpp`). While any dispatch mode is on, it takes every tensor for one of a class of its
own and makes a new one: a recorded run would show memory that no other run takes. So a recording
adds in place where autograd would have. Likewise gradients of what was selected: they are put into
zeros in place, but not while a dispatch mode is on (`areAnyTensorSubclassLike`).
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ADD = torch.ops.aten.add.Tensor
_ADD_IN_PLACE = torch.ops.aten.add_.Tensor
_ENGINE = torch.autograd.graph._engine_run_backward.__code__


_SELECTING = ("MaxBackward0", "MinBackward0", "TopkBackward0", "SortBackward0", "SortBackward1",
              "KthvalueBackward0", "MedianBackward1", "ModeBackward0")  # fmt: skip
_INTO_ZEROS = {
    torch.ops.aten.index_put.default: (torch.ops.aten.index_put_.default, ("IndexBackward0",)),
    torch.ops.aten.scatter_add.default: (torch.ops.aten.scatter_add_.default, ("GatherBackward0",)),
    torch.ops.aten.index_add.default: (
        torch.ops.aten.index_add_.default,
        ("IndexSelectBackward0",),
    ),
    torch.ops.aten.put.default: (torch.ops.aten.put_.default, ("TakeBackward0",)),
    torch.ops.aten.scatter.src: (torch.ops.aten.scatter_.src, _SELECTING),
}
"""Operators that put gradients into fresh zeros: in place, and autograd's nodes that do so."""


class Holders(NamedTuple):
    """References to a tensor and to its storage, those of a call through a mode among them."""

    of_tensor: int
    of_storage: int


def as_outside_of_a_recording(func: Any, args: tuple[Any, ...], sole: Holders) -> Any:
    """The operator that runs outside of a recording where a dispatch mode gets `func`.

    To be called from `__torch_dispatch__` itself, by whose caller autograd is known.

    Args:
        func: the operator.
        args: its positional arguments.
        sole: what `sole_holders` returns.
    """
    if func in _INTO_ZEROS:
        return _into_zeros(func)
    if func is not _ADD or torch.is_grad_enabled() or torch._C._current_graph_task_id() < 0:
        return func
    held, added = args
    may = isinstance(added, torch.Tensor) and held.shape == added.shape
    may = may and held.dtype == added.dtype and _asked_by_autograd()
    return _ADD_IN_PLACE if may and _dense(held) and _holders(held) == sole else func


def _into_zeros(func: Any) -> Any:
    in_place, nodes = _INTO_ZEROS[func]
    node = torch._C._current_autograd_node()
    return in_place if node is not None and node.name() in nodes else func


def _asked_by_autograd() -> bool:
    """Whether autograd itself adds, not Python code of a backward pass, which gets what it wants.

    In autograd's own threads nothing stands below the dispatch mode.
    """
    try:
        return sys._getframe(3).f_code is _ENGINE
    except ValueError:
        return True


@cache
def sole_holders() -> Holders:
    """What is found of a gradient that the engine alone holds: looked at once, not assumed."""
    probe = _Probe()
    leaf = torch.ones(2, requires_grad=True)
    twice = leaf * 1.0
    total = (twice * 2.0).sum() + (twice * 3.0).sum()
    with probe:
        total.backward()
    return probe.found[0]


class _Probe(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[Holders] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `operators.OperatorMode`

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _ADD:
            self.found.append(_holders(args[0]))
        return func(*args, **(kwargs or {}))


def _holders(tensor: torch.Tensor) -> Holders:
    storage = tensor.untyped_storage()
    of_tensor: int = tensor._use_count()  # type: ignore[attr-defined]
    return Holders(of_tensor, torch._C._storage_Use_Count(storage._cdata))


def _dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie side by side, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
