"""What sorting, selecting the largest and drawing need.

cub's sorts take double buffers for keys and values; keys of one byte go in one pass, without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tritter_mem import torch_release
from tritter_mem.config.cards import GpuCard
from tritter_mem.simulation.cuda.scratch.indexing import INDEX_BYTES

_SMALL_ROW = 4096
_LARGE_ROW = 1_000_000
_FEW_ROWS = 128
_TOPK_LEAST = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4_000, 800))
_TOPK_LEAST_OF_MANY = 400
_THREADS = 256
_DIGITS = 256
_BLOCKS_A_MULTIPROCESSOR = 6
_LEAST_ITEMS, _MOST_ITEMS = 4, 64


def _sort(card: GpuCard, x: Tensor, *rest: Any, **more: Any) -> Iterator[int]:
    """`Sort.cpp` and `SortStable.cu`."""
    dim = next((value for value in rest if type(value) is int), more.get("dim", -1))
    length = x.shape[dim] if x.dim() else 1
    if not x.numel() or length == 1:
        return
    if length <= _SMALL_ROW:
        yield length * INDEX_BYTES
        return
    if x.stride(dim) != 1 or not _dense(x):
        yield from (x.nbytes, x.nbytes, x.numel() * INDEX_BYTES)
    yield from _long_rows(x.numel() // length, length, x.element_size())


def _long_rows(rows: int, length: int, key_bytes: int) -> Iterator[int]:
    """One row at a time; a sort of everything, then by row; or one sort in segments."""
    numbers = rows * length
    if rows == 1 or length >= _LARGE_ROW:
        yield length * INDEX_BYTES
        yield _double_buffers(length, key_bytes)
    elif rows < _FEW_ROWS:
        yield from (numbers * INDEX_BYTES, numbers * INDEX_BYTES, numbers * key_bytes)
        yield _double_buffers(numbers, key_bytes)
    else:
        yield numbers * INDEX_BYTES
        yield numbers * (key_bytes + INDEX_BYTES)


def _double_buffers(numbers: int, key_bytes: int) -> int:
    return numbers * (key_bytes + INDEX_BYTES) if key_bytes > 1 else 0


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
    """`TensorTopK.cu`: long rows are shared by several blocks, which count digits."""
    length = x.shape[dim] if x.dim() else 1
    rows = x.numel() // max(length, 1)
    if not x.is_contiguous():
        yield x.nbytes
    if length >= next((n for most, n in _TOPK_LEAST if rows <= most), _TOPK_LEAST_OF_MANY):
        blocks = rows * -(-length // (_THREADS * _items(card, x.numel())))
        yield from (rows * x.element_size(), rows * INDEX_BYTES, rows * INDEX_BYTES)
        yield from (blocks * _DIGITS * 2, rows * _DIGITS * 4, blocks * 4, blocks * 4)


def _items(card: GpuCard, numbers: int) -> int:
    """Elements of a thread: so many that the blocks fill the card once."""
    at_once = card.multiprocessors * _BLOCKS_A_MULTIPROCESSOR * _THREADS
    return max(_LEAST_ITEMS, min(-(-numbers // at_once), _MOST_ITEMS))


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
