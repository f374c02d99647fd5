"""What indices that may repeat need: they are sorted, so that sums are made in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from torch import Tensor, broadcast_shapes

from tritter_mem.config.cards import GpuCard

INDEX_BYTES = 8
_FLOAT_BYTES = 4
_SCALAR_BYTES = 8
_DIRECT_TOKENS = 3072
_ROWS_A_PARTIAL_SUM = 10
_MAX_MODE = 2


def _embedding(
    card: GpuCard, grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Iterator[int]:
    """`embedding_dense_backward_cuda` in `Embedding.cu`."""
    if indices.numel() > _DIRECT_TOKENS or by_frequency:
        yield from _sums(grad, indices.numel(), rows, by_frequency)


def _embedding_bag(  # noqa: PLR0913, PLR0917  (the operator's schema)
    card: GpuCard, grad: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor,
    largest: Tensor, rows: int, by_frequency: bool, mode: int, sparse: bool, *rest: Any,
) -> Iterator[int]:  # fmt: skip
    """`embedding_bag_backward_cuda_sum_avg` in `EmbeddingBag.cu`."""
    if mode != _MAX_MODE and not sparse:
        yield from _sums(grad, indices.numel(), rows, by_frequency)


def _sums(grad: Tensor, tokens: int, rows: int, by_frequency: bool) -> Iterator[int]:
    """`embedding_backward_cuda_kernel` in `EmbeddingBackwardKernel.cu`."""
    segments = min(tokens, rows)
    partial_sums = tokens // _ROWS_A_PARTIAL_SUM + segments
    yield from [tokens * INDEX_BYTES] * (4 if by_frequency else 3)
    yield from [_SCALAR_BYTES, segments * INDEX_BYTES, segments * INDEX_BYTES, _SCALAR_BYTES]
    yield partial_sums * INDEX_BYTES
    yield partial_sums * grad.shape[-1] * max(grad.element_size(), _FLOAT_BYTES)


def _index_put(
    card: GpuCard, x: Tensor, indices: Any, values: Tensor, accumulate: bool = False,
    unsafe: bool = False,
) -> Iterator[int]:  # fmt: skip
    """`index_put_with_sort_kernel` in `Indexing.cu`."""
    if accumulate:
        found = [index.shape for index in indices if index is not None]
        count = prod(broadcast_shapes(*found))
        yield from [count * INDEX_BYTES] * 4
        yield count * 2 * INDEX_BYTES


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten.embedding_dense_backward.default": _embedding,
    "aten._embedding_bag_backward.default": _embedding_bag,
    "aten.index_put.default": _index_put,
    "aten.index_put_.default": _index_put,
    "aten._index_put_impl_.default": _index_put,
    "aten._index_put_impl.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
}
