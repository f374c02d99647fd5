"""What a reduction needs where several blocks of threads share an output.

How much that is, `models/cuda_reductions.py` has. Here is which operators reduce what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tritter_mem.config.cards import GpuCard
from tritter_mem.models.cuda_reductions import Summed, shared_bytes

_VECTOR = 4
_HALF = (torch.float16, torch.bfloat16)


def reduce(
    card: GpuCard, x: Tensor, dims: Sequence[int], partial_bytes: int, input_bytes: int = 0,
    loads: int = _VECTOR,
) -> Iterator[int]:  # fmt: skip
    """What a reduction of x over dimensions takes, and gives back when it is done.

    Args:
        card: where it runs.
        x: any shape.
        dims: numbers of dimensions, from either end; none: all.
        partial_bytes: of one partial result.
        input_bytes: of an element; default: x's.
        loads: elements that a thread loads at once.
    """
    reduced = [dim % x.dim() for dim in dims] if dims and x.dim() else list(range(x.dim()))
    summed = Summed(x.shape, x.stride(), reduced, input_bytes or x.element_size())
    found = shared_bytes(card, summed, partial_bytes, loads)
    yield from filter(None, found)
    yield from (-size for size in found if size)


def _dims(dim: Any) -> Sequence[int]:
    return () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)


def accumulated_bytes(dtype: torch.dtype) -> int:
    """Of the type that sums of a type are made in."""
    return 4 if dtype in _HALF else dtype.itemsize


def _sum(card: GpuCard, x: Tensor, dim: Any = None, *rest: Any, **more: Any) -> Iterator[int]:
    default = x.dtype if x.is_floating_point() or x.is_complex() else torch.int64
    dtype = more.get("dtype") or default
    converted = dtype != x.dtype and not (x.dtype in _HALF and dtype == torch.float32)
    if converted:
        yield x.numel() * dtype.itemsize
    input_bytes = dtype.itemsize if converted else 0
    yield from reduce(card, x, _dims(dim), accumulated_bytes(dtype), input_bytes)


def _norm(
    card: GpuCard, x: Tensor, power: Any = 2, dim: Any = None, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from reduce(card, x, _dims(dim), accumulated_bytes(x.dtype))


def _variance(card: GpuCard, x: Tensor, dim: Any = None, *rest: Any, **more: Any) -> Iterator[int]:
    """Mean, squared deviation and two counts."""
    yield from reduce(card, x, _dims(dim), 4 * accumulated_bytes(x.dtype), loads=2)


def _extremum(card: GpuCard, x: Tensor, dim: Any = None, *rest: Any, **more: Any) -> Iterator[int]:
    yield from reduce(card, x, _dims(dim), x.element_size())


def _extremum_and_place(
    card: GpuCard, x: Tensor, dim: Any = None, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from reduce(card, x, _dims(dim), 16)


def _whether(card: GpuCard, x: Tensor, dim: Any = None, *rest: Any, **more: Any) -> Iterator[int]:
    yield from reduce(card, x, _dims(dim), 1)


def _named(
    rule: Callable[..., Iterator[int]], *names: str
) -> dict[str, Callable[..., Iterator[int]]]:
    return {f"aten.{name}": rule for name in names}


RULES = {
    **_named(_sum, "sum.default", "sum.dim_IntList", "mean.default", "mean.dim", "nansum.default"),
    **_named(_norm, "linalg_vector_norm.default", "norm.Scalar"),
    **_named(_variance, "var.correction", "std.correction", "var_mean.correction",
             "std_mean.correction"),
    **_named(_extremum, "amax.default", "amin.default", "max.default", "min.default"),
    **_named(_extremum_and_place, "argmax.default", "argmin.default", "max.dim", "min.dim"),
    **_named(_whether, "all.default", "all.dim", "any.default", "any.dim"),
}  # fmt: skip
