"""Copies of matrices that cuBLAS cannot read as they lie: `cublasCommonArgs` and `Blas.cpp`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tritter_mem.config.cards import GpuCard


def _product(card: GpuCard, left: Tensor, right: Tensor, *rest: Any, **more: Any) -> Iterator[int]:
    for matrix in (left, right):
        if not _readable(matrix):
            yield matrix.numel() * matrix.element_size()


def _sum_and_product(
    card: GpuCard, added: Tensor, left: Tensor, right: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    yield from _product(card, left, right)


def _readable(matrix: Tensor) -> bool:
    """Whether rows, or columns, lie side by side and do not overlap."""
    (rows, columns), (down, along) = matrix.shape[-2:], matrix.stride()[-2:]
    by_rows = along == 1 and down >= max(1, columns)
    by_columns = down == 1 and along >= max(1, rows)
    return by_rows or by_columns or matrix.is_contiguous()


RULES: dict[str, Callable[..., Iterator[int]]] = {
    **{f"aten.{name}.default": _product for name in ("mm", "bmm")},
    **{f"aten.{name}.default": _sum_and_product for name in ("addmm", "baddbmm")},
}
