"""What sorting, selecting the largest and drawing need: `models/cuda_indexing.py` has the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tritter_mem import torch_release
from tritter_mem.config.cards import GpuCard
from tritter_mem.models.cuda_indexing import (
    INDEX_BYTES,
    sort_bytes,
    sorts_rows_at_once,
    topk_bytes,
)


def _sort(card: GpuCard, x: Tensor, *rest: Any, **more: Any) -> Iterator[int]:
    """Long rows that do not lie side by side are copied first."""
    dim = next((value for value in rest if type(value) is int), more.get("dim", -1))
    length = x.shape[dim] if x.dim() else 1
    if not x.numel() or length == 1:
        return
    if not sorts_rows_at_once(length) and (x.stride(dim) != 1 or not _dense(x)):
        yield from (x.nbytes, x.nbytes, x.numel() * INDEX_BYTES)
    yield from sort_bytes(x.numel() // length, length, x.element_size())


def _dense(x: Tensor) -> bool:
    """Whether elements lie side by side, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _topk(
    card: GpuCard, x: Tensor, k: int, dim: int = -1, *rest: Any, **more: Any
) -> Iterator[int]:
    length = x.shape[dim] if x.dim() else 1
    rows = x.numel() // max(length, 1)
    if not x.is_contiguous():
        yield x.nbytes
    yield from topk_bytes(card, rows, length, x.element_size())


def _multinomial(
    card: GpuCard, x: Tensor, samples: int, replacement: bool = False, **more: Any
) -> Iterator[int]:
    """`Distributions.cpp`: exponential numbers, or with replacement sums of probabilities.

    PyTorch 2.15 takes two of the three (seen on its CUDA build).
    """
    if replacement and samples > 1:
        yield from [x.nbytes] * (3 if torch_release.release() < (2, 15) else 2)
        return
    yield x.nbytes
    if samples > 1:
        yield x.nbytes // x.shape[-1] * samples
        yield from _topk(card, x, samples)


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten.sort.default": _sort,
    "aten.sort.stable": _sort,
    "aten.topk.default": _topk,
    "aten.multinomial.default": _multinomial,
}
