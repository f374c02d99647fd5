"""Sees every operator that runs, with what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tritter_mem.trace.accumulation import as_outside_of_a_recording, sole_holders

# Operators that return an input whose memory no operator has returned before.
_FRESH = {
    torch.ops.aten.lift_fresh.default,  # torch.tensor, torch.from_numpy
    torch.ops.aten.set_.source_Storage,  # torch.load, copy.deepcopy
    torch.ops.aten.set_.source_Storage_storage_offset,
}
_ALLOCATED = {
    torch.ops.aten.native_dropout.default: (1, 0),
    torch.ops.aten._scaled_dot_product_efficient_attention.default: (0, 1),
}
"""Results that CUDA's kernel allocates on the device, in its order, where those are not all in
theirs: the mask of dropout comes before the result, the seed of attention is on the host."""
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_CPU = torch._C.DispatchKey.CPU


class Operator(NamedTuple):
    """What is known of an operator.

    Attributes:
        name: such as `aten.mm.default`.
        is_composite: whether it is made of others, whose results are what counts.
        returns_input: whether it may return memory that an input has brought.
        allocated: which of its results CUDA allocates, in order; empty: all in theirs.
    """

    name: str
    is_composite: bool
    returns_input: bool
    allocated: tuple[int, ...] = ()


class OperatorMode(TorchDispatchMode):
    """Calls `saw(operator, inputs, result)` after each operator while it is entered.

    In inference mode PyTorch hands out composite operators whole (`aten.linear`), elsewhere in
    parts; here they come in parts always.
    """

    def __init__(self, saw: Callable[[Operator, Any, Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saw = saw
        self._known: dict[Any, Operator] = {}
        self._sole = sole_holders()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch else wraps `__torch_dispatch__` for torch.compile, which costs the import of
        # torch._dynamo (over a second) and several microseconds an operator.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, or what it is made of."""
        kwargs = kwargs or {}
        func = as_outside_of_a_recording(func, args, self._sole)
        operator = self._known.get(func) or self._learn(func)
        if operator.is_composite:
            # Not `func.decompose`: that prefers decompositions for the compiler, which may copy.
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        allocated = operator.allocated
        seen = tuple(result[place] for place in allocated) if allocated else result
        self._saw(operator, (args, kwargs), seen)
        return result

    def _learn(self, func: Any) -> Operator:
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        # Some have kernels of their own as well, such as silu_backward, and run whole.
        composite = has_kernel(func.name(), _COMPOSITE) and not has_kernel(func.name(), _CPU)
        returns_input = any(value.alias_info for value in func._schema.returns)
        known = Operator(
            name=str(func),
            is_composite=composite,
            returns_input=returns_input and func not in _FRESH,
            allocated=_ALLOCATED.get(func, ()),
        )
        self._known[func] = known
        return known


def dispatches_itself(tensor: torch.Tensor) -> bool:
    """Whether the tensor is of a class that brings its own operators (a wrapper around others)."""
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an operator's inputs or result, which are nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
