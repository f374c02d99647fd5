"""Sees every operator that runs, with what it returns."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Operators that return an input whose memory no operator has returned before.
_FRESH = {
    torch.ops.aten.lift_fresh.default,  # torch.tensor, torch.from_numpy
    torch.ops.aten.set_.source_Storage,  # torch.load, copy.deepcopy
    torch.ops.aten.set_.source_Storage_storage_offset,
}
_ALLOCATED = {
    torch.ops.aten.native_dropout.default: (1, 0),
    torch.ops.aten._scaled_dot_product_efficient_attention.default: (0, 1),
    torch.ops.aten._scaled_dot_product_cudnn_attention.default: (6, 7, 0, 1),
}
"""Results that CUDA's kernel allocates on the device, in its order, where those are not all in
theirs: the mask of dropout comes before the result, as do seed and offset of cuDNN's attention;
those of efficient attention are on the host."""
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_CPU = torch._C.DispatchKey.CPU

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
        self._shapes = MetaResults()
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
        result = self._shapes.run(func, args, kwargs)
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


class MetaResults:
    """Runs operators, on `meta` each once for arguments of the same shapes, strides and types.

    PyTorch works out a result's shape in Python, in some hundred microseconds, and a model's layers
    ask the same again and again. Only operators that return new tensors and write into none are
    remembered, and only results that are what `empty_strided` makes. Where another dispatch mode
    follows the run, it sees every call.
    """

    def __init__(self) -> None:
        self._results: dict[Any, tuple[Any, ...]] = {}
        self._is_pure: dict[Any, bool] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `func(*args, **kwargs)` returns."""
        if not self._pure(func) or torch._C._len_torch_dispatch_stack():
            return func(*args, **kwargs)
        try:
            key = func, _described(args), _described(tuple(kwargs.items()))
            found = self._results.get(key)
        except TypeError:  # an argument that is not hashable, or no plain tensor on `meta`
            return func(*args, **kwargs)
        if found is not None:
            return _EMPTY(*found[:2], dtype=found[2], device=_META)
        result = func(*args, **kwargs)
        if _is_fresh(result, args, kwargs):
            self._results[key] = (list(result.shape), list(result.stride()), result.dtype)
        return result

    def _pure(self, func: Any) -> bool:
        pure = self._is_pure.get(func)
        if pure is None:
            schema = func._schema
            pure = len(schema.returns) == 1 and not any(
                value.alias_info for value in (*schema.arguments, *schema.returns)
            )
            self._is_pure[func] = pure
        return pure


_EMPTY = torch.ops.aten.empty_strided.default
_META = torch.device("meta")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _described(values: tuple[Any, ...] | list[Any]) -> tuple[Any, ...]:
    """Arguments as a key: the types of numbers count, too.

    Raises:
        TypeError: a tensor is not a plain one on `meta`.
    """
    found: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta or type(value) not in _PLAIN:
                raise TypeError(type(value))
            found.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, tuple | list):
            found.append(_described(value))
        else:
            found.append((type(value), value))
    return tuple(found)


def _is_fresh(result: Any, *inputs: Any) -> bool:
    """Whether a result is a tensor on `meta` as `empty_strided` makes it, of memory of its own."""
    if type(result) is not torch.Tensor or not result.is_meta or result.layout != torch.strided:
        return False
    storage = result.untyped_storage()
    spanned = sum((n - 1) * step for n, step in zip(result.shape, result.stride(), strict=True)) + 1
    spanned = spanned if result.numel() else 0
    return (
        result.storage_offset() == 0
        and storage.nbytes() == spanned * result.element_size()
        and all(tensor.untyped_storage()._cdata != storage._cdata for tensor in tensors(inputs))
    )


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


class Holders(NamedTuple):
    """References to a tensor and to its storage, those of a call through a mode among them."""

    of_tensor: int
    of_storage: int


def as_outside_of_a_recording(func: Any, args: tuple[Any, ...], sole: Holders) -> Any:
    """The operator that runs outside of a recording where a dispatch mode gets `func`.

    Where a tensor was used more than once, autograd adds its gradients up. Outside of a recording
    it adds into the first one, if nothing else holds that (`can_accumulate_inplace` in PyTorch's
    `input_buffer.cpp`). While any dispatch mode is on, it takes every tensor for a subclass and
    makes a new one: a recorded run would show memory that no other run takes. So a recording adds
    in place where autograd would have. Likewise gradients of what was selected: they are put into
    zeros in place, but not while a dispatch mode is on (`areAnyTensorSubclassLike`).

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
        return False  # as in `OperatorMode`

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
