"""What operators allocate inside on CUDA: one rule each, by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tritter_mem.trace.as_on_cuda import as_on_cuda
from tritter_mem.trace.libraries import Libraries
from tritter_mem.trace.recorder import Recorder
from tritter_mem.trace.scratch import RULES

B, H, T, D = 2, 8, 300, 80


def ones(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.ones(shape, dtype=dtype, device="meta", requires_grad=grad)


def inside(call: Callable[[], object]) -> list[int]:
    """Bytes that a call's operators allocate inside, in order."""
    libraries = Libraries((8, 0), in_backward=lambda: False)
    with as_on_cuda((8, 0)), Recorder("meta", libraries) as recorder:
        call()
    events = list(recorder.log)
    found = [e for e in events if e.kind == "alloc" and e.operator.startswith("inside ")]
    freed = {event.storage for event in events if event.kind == "free"}
    assert all(event.category == "workspace" and event.storage in freed for event in found)
    return [event.bytes for event in found]


def embed(tokens: int, **options: bool) -> list[int]:
    table = nn.Embedding(1000, 64, device="meta", dtype=torch.bfloat16, **options)
    return inside(lambda: table(ones(tokens, dtype=torch.int64)).sum().backward())


def test_embedding_of_few_tokens_needs_nothing() -> None:
    assert embed(3072) == []


def test_embedding_of_many_tokens_sums_in_float32() -> None:
    tokens, segments = 3073, 1000
    partial = tokens // 10 + segments
    assert embed(tokens) == [tokens * 8] * 3 + [segments * 8] * 2 + [partial * 8, partial * 64 * 4]


def test_embedding_scaled_by_frequency_counts_too() -> None:
    assert embed(100, scale_grad_by_freq=True)[:4] == [100 * 8] * 4


def attend(dtype: torch.dtype, groups: int = H, **options: object) -> list[int]:
    query = ones(B, H, T, D, dtype=dtype, grad=True)
    key, value = (ones(B, groups, T, D, dtype=dtype, grad=True) for _ in range(2))

    def run() -> None:
        out = functional.scaled_dot_product_attention(query, key, value, **options)
        out.sum().backward()

    return inside(run)


def test_flash_backward_gathers_the_queries_gradient_in_float32() -> None:
    rows, width = 384, 96  # whole blocks of 128 and 32
    assert attend(torch.bfloat16) == [B * H * rows * 4, B * H * rows * width * 4]


def test_flash_backward_with_grouped_heads_expands_keys_and_values() -> None:
    assert attend(torch.bfloat16, 2, enable_gqa=True)[2:] == [B * H * T * D * 2] * 2


def test_memory_efficient_backward() -> None:
    assert attend(torch.float32) == [B * H * T * 4]
    mask = ones(T, T, dtype=torch.bfloat16)
    assert attend(torch.bfloat16, attn_mask=mask) == [B * H * T * 4, B * H * T * D * 4]


def test_index_put_sorts_its_indices_where_it_accumulates() -> None:
    index = ones(50, dtype=torch.int64)
    assert inside(lambda: ones(100, 6, grad=True)[index].sum().backward()) == [50 * 8] * 3
    assert inside(lambda: ones(100).index_put_((index,), ones(50), accumulate=True)) == [400] * 3
    assert inside(lambda: ones(100).index_put_((index,), ones(50))) == []


@pytest.mark.parametrize(
    ("shape", "dim", "sizes"),
    [((3, 4096), -1, []), ((3, 4097), -1, [3 * 4097 * 4, 3 * 4097 * 8]), ((4097, 3), 1, [])],
)
def test_sort_of_long_rows_copies(shape: tuple[int, int], dim: int, sizes: list[int]) -> None:
    assert inside(lambda: ones(*shape).sort(dim)) == sizes
    assert inside(lambda: ones(*shape).sort(dim=dim, stable=True)) == sizes


def test_every_rule_is_of_an_operator_that_exists() -> None:
    for name in RULES:
        packet, overload = name.removeprefix("aten.").split(".")
        assert hasattr(getattr(torch.ops.aten, packet), overload)


def test_other_devices_need_nothing() -> None:
    libraries = Libraries((8, 0), in_backward=lambda: False)
    with Recorder("meta", libraries) as recorder:
        torch.randn(9000).sort()
        torch.randn(4, 4) @ torch.randn(4, 4)
    assert list(recorder.log) == []
