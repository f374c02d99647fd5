"""What operators allocate inside on CUDA: single rules, by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tritter_mem import torch_release
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.cuda_reductions import dimensions, threads_a_multiprocessor
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.cuda.libraries import Libraries
from tritter_mem.simulation.cuda.scratch import RULES, peak_bytes, scratch_bytes
from tritter_mem.simulation.recorder import Recorder

B, H, T, D = 2, 8, 300, 80
H100 = find_gpu("h100")


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta", requires_grad=grad)


def inside(call: Callable[[], object]) -> list[int]:
    """Bytes that a call's operators allocate inside, in order."""
    libraries = Libraries(H100, in_backward=lambda: False)
    with as_on_cuda(H100.compute_capability), Recorder("meta", libraries) as recorder:
        call()
    events = list(recorder.log)
    found = [e for e in events if e.kind == "alloc" and e.operator.startswith("inside ")]
    freed = {event.storage for event in events if event.kind == "free"}
    assert all(event.category == "workspace" and event.storage in freed for event in found)
    return [event.bytes for event in found]


def embed(tokens: int, **options: bool) -> list[int]:
    table = nn.Embedding(1000, 64, device="meta", dtype=torch.bfloat16, **options)
    loss = table(ones(tokens, dtype=torch.int64))
    return inside(lambda: loss.backward(torch.empty_like(loss)))


def test_embedding_of_few_tokens_needs_nothing() -> None:
    assert embed(3072) == []


def test_embedding_of_many_tokens_sums_in_float32() -> None:
    tokens, segments = 3073, 1000
    partial = tokens // 10 + segments
    scalars = [8, segments * 8, segments * 8, 8]
    assert embed(tokens) == [tokens * 8] * 3 + scalars + [partial * 8, partial * 64 * 4]


def test_embedding_scaled_by_frequency_counts_too() -> None:
    assert embed(100, scale_grad_by_freq=True)[:4] == [100 * 8] * 4


def attend(dtype: torch.dtype, groups: int = H, **options: Any) -> list[int]:
    """Of the backward pass without cuDNN, of tensors that are [B, T, H, D] in memory."""
    query = ones(B, T, H, D, dtype=dtype, grad=True)
    key, value = (ones(B, T, groups, D, dtype=dtype, grad=True) for _ in range(2))
    heads = (tensor.transpose(1, 2) for tensor in (query, key, value))
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    with as_on_cuda(H100.compute_capability), sdpa_kernel(kernels):
        out = functional.scaled_dot_product_attention(*heads, **options)
    return inside(lambda: out.backward(torch.empty_like(out)))


def test_flash_backward_gathers_the_queries_gradient_in_float32() -> None:
    rows, width = 384, 96  # whole blocks of 128 and 32
    assert attend(torch.bfloat16) == [B * H * rows * 4, B * H * rows * width * 4]


def test_flash_backward_with_grouped_heads_expands_keys_and_values() -> None:
    assert attend(torch.bfloat16, 2, enable_gqa=True)[2:] == [B * H * T * D * 2] * 2


def test_efficient_backward_gathers_in_whole_blocks_with_a_lock_each() -> None:
    delta, product = B * H * T * 4, B * H * T * D * 4
    narrow = B * H * 3 * 2 * (128 * 64 * 4 + 16)  # blocks of 128 queries, of 64 columns
    assert attend(torch.float32) == [product, delta, delta, narrow]
    wide = B * H * 3 * (128 * 128 * 4 + 16)
    mask = ones(T, T, dtype=torch.bfloat16)
    assert attend(torch.bfloat16, attn_mask=mask) == [delta, wide]


def test_few_queries_share_out_the_keys_by_the_card_s_multiprocessors() -> None:
    query, key = ones(1, 8, 1, 64, dtype=torch.float16), ones(1, 8, 4096, 64, dtype=torch.float16)
    name = "aten._scaled_dot_product_flash_attention.default"
    parts = 16  # all blocks of 256 keys: 8 heads fill but little of a card
    small = replace(H100, multiprocessors=20)
    assert list(scratch_bytes(H100, name, (query, key, key), {})) == [
        parts * 32,
        parts * 8 * 64 * 4,
    ]
    assert list(scratch_bytes(small, name, (query, key, key), {})) == [4 * 32, 4 * 8 * 64 * 4]
    assert list(scratch_bytes(H100, name, (query, key, key, 0.1), {})) == []


def test_index_put_sorts_its_indices_where_it_accumulates() -> None:
    index = ones(50, dtype=torch.int64)
    sizes = [400] * 4 + [800]
    assert inside(lambda: ones(100, 6)[index]) == []
    assert inside(lambda: ones(100).index_put_((index,), ones(50), accumulate=True)) == sizes
    assert inside(lambda: ones(100).index_put_((index,), ones(50))) == []


@pytest.mark.parametrize(
    ("shape", "dim", "sizes"),
    [
        ((3, 4096), -1, [4096 * 8]),
        ((1, 4097), -1, [4097 * 8, 4097 * 12]),
        ((3, 4097), -1, [3 * 4097 * n for n in (8, 8, 4, 12)]),
        ((200, 4097), -1, [200 * 4097 * n for n in (8, 12)]),
        ((4097, 3), 1, [3 * 8]),
        ((4097, 3), 0, [3 * 4097 * n for n in (4, 4, 8, 8, 8, 4, 12)]),
    ],
)
def test_sort_goes_by_rows_length_and_number(
    shape: tuple[int, int], dim: int, sizes: list[int]
) -> None:
    assert inside(lambda: ones(*shape).sort(dim)) == sizes
    assert inside(lambda: ones(*shape).sort(dim=dim, stable=True)) == sizes


def test_a_sum_over_rows_has_a_result_for_every_thread_of_a_block() -> None:
    """[2048, 2048]: 64 blocks of 32 columns in fours, and 64 rows of blocks, in float32."""
    blocks = 2048 // 128
    assert inside(lambda: ones(2048, 2048).sum(0)) == [2048 * 32 * 128 * 4, blocks * 4]


def test_a_sum_of_everything_has_a_result_for_every_block() -> None:
    blocks = H100.multiprocessors * 2048 // 512
    assert inside(lambda: ones(1 << 24).sum()) == [blocks * 4, 4]
    assert inside(lambda: ones(1000).sum()) == []


def test_a_card_with_fewer_threads_has_fewer_partial_results() -> None:
    rtx = find_gpu("rtx-5080")
    x = ones(1 << 24)
    blocks = rtx.multiprocessors * (threads_a_multiprocessor(rtx.compute_capability) // 512)
    found = list(scratch_bytes(rtx, "aten.sum.default", (x,), {}))
    assert (threads_a_multiprocessor(rtx.compute_capability), found[0]) == (1536, blocks * 4)


@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (5, 1), (1, 1), (1000, 1), (1, 1000), (7, 3, 1)])
def test_reductions_of_little_need_nothing(shape: tuple[int, ...]) -> None:
    for dim in range(len(shape)):
        assert list(scratch_bytes(H100, "aten.sum.dim_IntList", (ones(*shape), [dim]), {})) == []


def test_dimensions_that_lie_one_after_the_other_are_walked_as_one() -> None:
    x = torch.empty(4, 5, 6, device="meta")
    assert dimensions(x.shape, x.stride(), [0, 1]) == [(20, 6, 0), (6, 1, 1)]
    assert dimensions(x.shape, x.stride(), [2]) == [(6, 1, 0), (20, 6, 1)]
    assert dimensions(x.shape, x.stride(), [1]) == [(5, 6, 0), (6, 1, 1), (4, 30, 6)]
    turned = x.transpose(0, 2)
    assert dimensions(turned.shape, turned.stride(), [0]) == [(6, 1, 0), (4, 30, 1), (5, 6, 4)]


def test_a_matrix_that_cublas_cannot_read_is_copied() -> None:
    x, y = ones(64, 64), ones(128, 128)
    assert inside(lambda: y[::2, ::2] @ x) == [64 * 64 * 4]
    assert inside(lambda: y[::2, :64] @ x.t()) == []
    assert inside(lambda: torch.addmm(ones(64), x, y[::2, ::2])) == [64 * 64 * 4]


@pytest.mark.parametrize(("release", "copies"), [((2, 11), 3), ((2, 14), 3), ((2, 15), 2)])
def test_draws_with_replacement_copy_the_probabilities(
    release: torch_release.Release, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each release's CUDA build does."""
    monkeypatch.setattr(torch_release, "release", lambda: release)
    drawn = inside(lambda: torch.multinomial(ones(8, 1000), 4, replacement=True))
    assert drawn == [8 * 1000 * 4] * copies


@pytest.mark.parametrize(
    ("release", "dtype", "sizes"),
    [
        ((2, 11), torch.float32, [256]), ((2, 14), torch.bfloat16, [256]),
        ((2, 11), torch.float64, [512]), ((2, 15), torch.float64, [40, 160]),
    ],
)  # fmt: skip
def test_norms_of_many_tensors_have_a_part_for_each_chunk(
    release: torch_release.Release,
    dtype: torch.dtype,
    sizes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded from each release's CUDA build, without a GPU."""
    monkeypatch.setattr(torch_release, "release", lambda: release)
    tensors = [ones(size, dtype=dtype) for size in (10, 70_000, 1 << 20, 65_536)]
    assert inside(lambda: torch._foreach_norm(tensors, 2.0)) == sizes


def test_efficient_backward_with_grouped_heads_expands_gradients() -> None:
    """Recorded from the CUDA builds of PyTorch 2.14 and 2.15, without a GPU."""
    query, key = ones(2, 8, 1024, 64), ones(2, 2, 1024, 64)
    name = "aten._scaled_dot_product_efficient_attention_backward.default"
    expanded, product, delta = 4_194_304, 4_194_304, 65_536
    assert list(scratch_bytes(H100, name, (query, query, key, key), {})) == [
        expanded, expanded, product, delta, delta, -delta, -product, 4_198_400,
    ]  # fmt: skip


def test_what_comes_and_goes_is_not_held_at_once() -> None:
    assert peak_bytes([1000, -1000, 2000, 1]) == 2048 + 512


def test_every_rule_is_of_an_operator_that_exists() -> None:
    for name in RULES:
        packet, overload = name.removeprefix("aten.").split(".")
        assert hasattr(getattr(torch.ops.aten, packet), overload), name


def test_other_devices_need_nothing() -> None:
    libraries = Libraries(H100, in_backward=lambda: False)
    with Recorder("meta", libraries) as recorder:
        torch.randn(9000).sort()
        torch.randn(4, 4) @ torch.randn(4, 4)
    assert list(recorder.log) == []
