"""What indices that may repeat need: `models/cuda_indexing.py` has the sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from torch import Tensor, broadcast_shapes

from tritter_mem.config.cards import GpuCard
from tritter_mem.models.cuda_indexing import (
    embedding_backward_bytes,
    index_put_bytes,
    row_sums_bytes,
)

_FLOAT_BYTES = 4
_MAX_MODE = 2


def _embedding(
    card: GpuCard, grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Iterator[int]:
    yield from embedding_backward_bytes(indices.numel(), rows, _row_bytes(grad), by_frequency)


def _embedding_bag(  # noqa: PLR0913, PLR0917  (the operator's schema)
    card: GpuCard, grad: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor,
    largest: Tensor, rows: int, by_frequency: bool, mode: int, sparse: bool, *rest: Any,
) -> Iterator[int]:  # fmt: skip
    """`embedding_bag_backward_cuda_sum_avg` in `EmbeddingBag.cu`."""
    if mode != _MAX_MODE and not sparse:
        yield from row_sums_bytes(indices.numel(), rows, _row_bytes(grad), by_frequency)


def _row_bytes(grad: Tensor) -> int:
    return int(grad.shape[-1] * max(grad.element_size(), _FLOAT_BYTES))


def _index_put(
    card: GpuCard, x: Tensor, indices: Any, values: Tensor, accumulate: bool = False,
    unsafe: bool = False,
) -> Iterator[int]:  # fmt: skip
    if accumulate:
        found = [index.shape for index in indices if index is not None]
        yield from index_put_bytes(prod(broadcast_shapes(*found)))


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten.embedding_dense_backward.default": _embedding,
    "aten._embedding_bag_backward.default": _embedding_bag,
    "aten.index_put.default": _index_put,
    "aten.index_put_.default": _index_put,
    "aten._index_put_impl_.default": _index_put,
    "aten._index_put_impl.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
}
