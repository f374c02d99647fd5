"""Bounds in the formulas of PyTorch's kernels, where its sources have them."""

from __future__ import annotations

import pytest

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.cuda_indexing import topk_bytes
from tritter_mem.models.cuda_reductions import Summed, shared_bytes, threads_a_multiprocessor

H100 = find_gpu("h100")


@pytest.mark.parametrize(
    ("rows", "least"),
    [
        (1, 20_000), (20, 20_000), (21, 10_000), (40, 10_000), (41, 8_000), (80, 8_000),
        (81, 5_000), (199, 5_000), (200, 3_000), (799, 3_000), (800, 800), (4_000, 800),
        (4_001, 400),
    ],
)  # fmt: skip
def test_blocks_share_a_row_of_topk_from_a_length_on(rows: int, least: int) -> None:
    """`should_use_multiblock` of `TensorTopK.cu`."""
    assert not list(topk_bytes(H100, rows, least - 1, 4))
    assert list(topk_bytes(H100, rows, least, 4))


def test_blocks_of_topk_count_digits() -> None:
    """A thread takes 4 to 64 elements; 256 threads a block, of which 6 fit a multiprocessor."""
    blocks = 20  # of 4 * 256 elements each, as one row of 20,000 does not fill 132 * 6 blocks
    digits = [blocks * 256 * 2, 256 * 4, blocks * 4, blocks * 4]
    assert list(topk_bytes(H100, 1, 20_000, 2)) == [2, 8, 8, *digits]
    rows, blocks = 30, 30 * 62  # a million elements in blocks of 64 * 256
    digits = [blocks * 256 * 2, rows * 256 * 4, blocks * 4, blocks * 4]
    assert list(topk_bytes(H100, rows, 1_000_000, 4)) == [rows * 4, rows * 8, rows * 8, *digits]


def test_threads_of_a_multiprocessor() -> None:
    """The table of compute capabilities in NVIDIA's programming guide."""
    guide = {
        (7, 5): 1024, (8, 0): 2048, (8, 6): 1536, (8, 9): 1536, (9, 0): 2048,
        (10, 0): 2048, (10, 3): 2048, (12, 0): 1536,
    }  # fmt: skip
    assert {capability: threads_a_multiprocessor(capability) for capability in guide} == guide


@pytest.mark.parametrize("stride", [7, 512, 1 << 22])
@pytest.mark.parametrize("at", range(3))
def test_dimensions_of_one_change_no_reduction(at: int, stride: int) -> None:
    shape, strides = [4096, 512], [512, 1]
    shape.insert(at, 1)
    strides.insert(at, stride)
    for dims in ([0], [1]):
        plain = shared_bytes(H100, Summed((4096, 512), (512, 1), dims, 2), 4)
        moved = [dim + (dim >= at) for dim in dims]
        assert shared_bytes(H100, Summed(tuple(shape), tuple(strides), moved, 2), 4) == plain


def test_what_32_bits_cannot_index_is_reduced_in_halves() -> None:
    """`TensorIterator::can_use_32bit_indexing`: the last element's place is below 2^31 bytes."""

    def summed(count: int) -> tuple[int, int]:
        return shared_bytes(H100, Summed((count,), (1,), [0], 2), 4)

    assert summed((1 << 30) + 1) == summed(1 << 29) != summed(1 << 30)
