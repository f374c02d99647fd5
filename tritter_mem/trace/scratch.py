"""What operators allocate inside on CUDA and let go before they return.

A run on `meta` shows an operator's results alone. The rules here add what its CUDA kernel needs
beside them, where that grows with the tensors. All come and go with the operator, after its results.

| operator | inside | source, in `ATen/native` of PyTorch |
|---|---|---|
| `embedding_dense_backward`, over 3,072 tokens | indices sorted and in their old order, offsets of segments, and a float32 row for each partial sum: tokens / 10 + min(tokens, rows) of them | `cuda/Embedding.cu`, `cuda/EmbeddingBackwardKernel.cu` |
| `_scaled_dot_product_flash_attention_backward` | gradient of the queries in float32, a float32 a query and head; with grouped heads, gradients of keys and values for every head | `transformers/cuda/flash_attn/flash_api.cpp`, `mha_bwd` |
| `_scaled_dot_product_efficient_attention_backward` | a float32 a query and head; for half types, gradient of the queries in float32 | `transformers/cuda/attention_backward.cu` |
| `index_put` and its kin, accumulating | linear indices, sorted, and in their old order: 8 bytes each | `cuda/Indexing.cu`, `index_put_with_sort_kernel` |
| `sort` of rows over 4,096 long | values and indices once more | `cuda/Sort.cpp`, `cuda/Sort.cu` |

From source: no rule has been confirmed on a device yet. Not covered: what is below a few KiB
(`cumsum`, `nonzero`, reductions), cuDNN's workspaces (convolutions, recurrent layers), and partial
sums of `native_layer_norm_backward` over more than 65,536 rows.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

from torch import Tensor, bfloat16, broadcast_shapes, float16

_INDEX_BYTES = 8
_FLOAT_BYTES = 4
_HALF = (float16, bfloat16)
_DIRECT_EMBEDDING_TOKENS = 3072
_ROWS_A_PARTIAL_SUM = 10
_FLASH_ROWS = 128
_ROW_SORT_LENGTH = 4096

Rule = Callable[..., Iterator[int]]


def scratch_bytes(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[int]:
    """Sizes of what an operator allocates inside on CUDA, in order.

    Args:
        operator: such as `aten.sort.default`.
        args: its positional arguments.
        kwargs: its named arguments.
    """
    rule = RULES.get(operator)
    return iter(()) if rule is None else rule(*args, **kwargs)


def _embedding(
    grad: Tensor, indices: Tensor, rows: int, padding: int, by_frequency: bool
) -> Iterator[int]:
    tokens = indices.numel()
    if tokens <= _DIRECT_EMBEDDING_TOKENS and not by_frequency:
        return
    segments = min(tokens, rows)
    partial_sums = tokens // _ROWS_A_PARTIAL_SUM + segments
    width = grad.shape[-1]
    yield from [tokens * _INDEX_BYTES] * (4 if by_frequency else 3)
    yield from [segments * _INDEX_BYTES] * 2
    yield partial_sums * _INDEX_BYTES
    yield partial_sums * width * max(grad.element_size(), _FLOAT_BYTES)


def _flash_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    """Queries [B, H, Q, D], keys [B, G, K, D]; Q in whole blocks of 128, D of 32 (64 above 128)."""
    batch, heads, queries, width = query.shape
    queries = _whole(queries, _FLASH_ROWS)
    wide = _whole(width, 32) if width <= 128 else _whole(width, 64)
    yield batch * heads * queries * _FLOAT_BYTES
    yield batch * heads * queries * wide * _FLOAT_BYTES
    if key.shape[1] != heads:
        expanded = batch * heads * key.shape[2] * width * key.element_size()
        yield expanded
        yield expanded


def _efficient_backward(grad: Tensor, query: Tensor, *rest: Any, **more: Any) -> Iterator[int]:
    yield prod(query.shape[:3]) * _FLOAT_BYTES
    if query.dtype in _HALF:
        yield query.numel() * _FLOAT_BYTES


def _index_put(
    self: Tensor,
    indices: Any,
    values: Tensor,
    accumulate: bool = False,
    unsafe: bool = False,
) -> Iterator[int]:
    if accumulate:
        found = [index.shape for index in indices if index is not None]
        yield from [prod(broadcast_shapes(*found)) * _INDEX_BYTES] * 3


def _sort(self: Tensor, *rest: Any, **more: Any) -> Iterator[int]:
    dim = next((value for value in rest if type(value) is int), more.get("dim", -1))
    if self.dim() and self.shape[dim] > _ROW_SORT_LENGTH:
        yield self.numel() * self.element_size()
        yield self.numel() * _INDEX_BYTES


def _whole(count: int, block: int) -> int:
    return -(-count // block) * block


RULES: dict[str, Rule] = {
    "aten.embedding_dense_backward.default": _embedding,
    "aten._scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "aten._scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
    "aten.index_put.default": _index_put,
    "aten.index_put_.default": _index_put,
    "aten._index_put_impl_.default": _index_put,
    "aten._unsafe_index_put.default": _index_put,
    "aten.sort.default": _sort,
    "aten.sort.stable": _sort,
}
