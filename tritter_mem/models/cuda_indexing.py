"""What indices that may repeat, sorts and searches for the largest need on a card.

Indices are sorted, so that sums are made in order. cub's sorts take double buffers for keys and
values; keys of one byte go in one pass, without.
"""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem.models.cuda_reductions import Chip

INDEX_BYTES = 8
_FLOAT_BYTES = 4
_SCALAR_BYTES = 8
_DIRECT_TOKENS = 3072
_ROWS_A_PARTIAL_SUM = 10
_SMALL_ROW = 4096
_LARGE_ROW = 1_000_000
_FEW_ROWS = 128
_TOPK_LEAST = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4_000, 800))
_TOPK_LEAST_OF_MANY = 400
_THREADS = 256
_DIGITS = 256
_BLOCKS_A_MULTIPROCESSOR = 6
_LEAST_ITEMS, _MOST_ITEMS = 4, 64


def embedding_backward_bytes(
    tokens: int, rows: int, row_bytes: int, by_frequency: bool = False
) -> Iterator[int]:
    """`embedding_dense_backward_cuda` in `Embedding.cu`.

    Args:
        tokens: indices.
        rows: of the table.
        row_bytes: of a row in float32, or in what is wider.
        by_frequency: whether gradients are divided by how often an index occurs.
    """
    if tokens > _DIRECT_TOKENS or by_frequency:
        yield from row_sums_bytes(tokens, rows, row_bytes, by_frequency)


def row_sums_bytes(
    tokens: int, rows: int, row_bytes: int, by_frequency: bool
) -> Iterator[int]:
    """`embedding_backward_cuda_kernel` in `EmbeddingBackwardKernel.cu`; see above."""
    segments = min(tokens, rows)
    partial_sums = tokens // _ROWS_A_PARTIAL_SUM + segments
    yield from [tokens * INDEX_BYTES] * (4 if by_frequency else 3)
    yield from [_SCALAR_BYTES, segments * INDEX_BYTES, segments * INDEX_BYTES, _SCALAR_BYTES]
    yield partial_sums * INDEX_BYTES
    yield partial_sums * row_bytes


def index_put_bytes(count: int) -> Iterator[int]:
    """Of so many indices that are added up: `index_put_with_sort_kernel` in `Indexing.cu`."""
    yield from [count * INDEX_BYTES] * 4
    yield count * 2 * INDEX_BYTES


def sort_bytes(rows: int, length: int, key_bytes: int) -> Iterator[int]:
    """Of dense rows: `Sort.cpp` and `SortStable.cu`.

    Up to 4,096 numbers a row, their places. Over that one row at a time; a sort of everything, then
    by row; or one sort in segments.
    """
    numbers = rows * length
    if not numbers or length == 1:
        return
    if length <= _SMALL_ROW:
        yield length * INDEX_BYTES
    elif rows == 1 or length >= _LARGE_ROW:
        yield length * INDEX_BYTES
        yield _double_buffers(length, key_bytes)
    elif rows < _FEW_ROWS:
        yield from (numbers * INDEX_BYTES, numbers * INDEX_BYTES, numbers * key_bytes)
        yield _double_buffers(numbers, key_bytes)
    else:
        yield numbers * INDEX_BYTES
        yield numbers * (key_bytes + INDEX_BYTES)


def sorts_rows_at_once(length: int) -> bool:
    """Whether rows are so short that each is sorted where it lies."""
    return length <= _SMALL_ROW


def _double_buffers(numbers: int, key_bytes: int) -> int:
    return numbers * (key_bytes + INDEX_BYTES) if key_bytes > 1 else 0


def topk_bytes(card: Chip, rows: int, length: int, element_bytes: int) -> Iterator[int]:
    """Long rows are shared by several blocks, which count digits: `TensorTopK.cu`."""
    if length < next((n for most, n in _TOPK_LEAST if rows <= most), _TOPK_LEAST_OF_MANY):
        return
    blocks = rows * -(-length // (_THREADS * _items(card, rows * length)))
    yield from (rows * element_bytes, rows * INDEX_BYTES, rows * INDEX_BYTES)
    yield from (blocks * _DIGITS * 2, rows * _DIGITS * 4, blocks * 4, blocks * 4)


def _items(card: Chip, numbers: int) -> int:
    """Elements of a thread: so many that the blocks fill the card once."""
    at_once = card.multiprocessors * _BLOCKS_A_MULTIPROCESSOR * _THREADS
    return max(_LEAST_ITEMS, min(-(-numbers // at_once), _MOST_ITEMS))
