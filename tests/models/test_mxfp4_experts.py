"""Weights in MXFP4 are as large as on a card, and products are split as its kernels split them."""

from __future__ import annotations

import pytest
import torch

from tritter_mem.config.cards import GpuCard
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.formats import storage_format
from tritter_mem.models.mxfp4_experts import Launch, held_bytes, launch, refusal, run_experts
from tritter_mem.models.shape_tensors import NotPlannedError, Operations

BF16 = storage_format("bfloat16")
CARDS = ("t4", "a100-80gb", "rtx-4090", "h100", "h200", "b200", "rtx-5090", "mi300x")
HOPPER = ("h100", "h200")


def swizzled(blocks: torch.Tensor, card: GpuCard) -> torch.Tensor:
    """Bytes [N, K / 2] of an expert as the kernels want them on a card.

    On Hopper each thread has 4 tiles of 2x2 of 4x4 threads side by side, and on others nothing
    moves: `HopperMXValueLayout.swizzle_data` by its own sizes, without the order of bits.
    """
    if card.name not in HOPPER:
        return blocks
    tile = torch.tensor([[1, 2, 4, 2, 1], [4, 2, 4, 1, 1]]).prod(dim=1).tolist()
    short = [-size % whole for size, whole in zip(blocks.shape, tile, strict=True)]
    padded = torch.nn.functional.pad(blocks, (0, short[1], 0, short[0]))
    rows, columns = (size // whole for size, whole in zip(padded.shape, tile, strict=True))
    threads = padded.view(rows, 2, 4, 2, columns, 4, 2, 4).permute(0, 2, 4, 3, 7, 5, 6, 1)
    return threads.reshape(padded.shape[0] // 4, -1)


@pytest.mark.parametrize("shape", [(5760, 2880), (96, 64), (70, 32), (100, 160)])
@pytest.mark.parametrize("name", CARDS)
def test_weights_are_as_large_as_swizzled_tensors(name: str, shape: tuple[int, int]) -> None:
    card, (outputs, inputs) = find_gpu(name), shape
    blocks = torch.zeros((outputs, inputs // 32, 16), dtype=torch.uint8)
    scales = torch.zeros(blocks.shape[:2], dtype=torch.uint8)
    codes = swizzled(blocks.flatten(1), card)
    assert held_bytes(card, outputs, inputs) == (codes.nbytes, scales.nbytes)


def test_inputs_are_whole_blocks() -> None:
    with pytest.raises(NotPlannedError, match="blocks of 32 inputs; found 48"):
        held_bytes(find_gpu("h100"), 64, 48)


# Rows, outputs, inputs and experts; what `make_opt_flags` of the kernels' source (see
# `mxfp4_experts`) answers for them on each card: `split_k` and `fused_scatter`.
SIZES = (
    (4, 5760, 2880, 32), (16, 2880, 2880, 32), (128, 5760, 2880, 32), (700, 512, 1024, 8),
    (4096, 2880, 2880, 32), (16384, 96, 288, 128), (4000, 100, 96, 4),
)  # fmt: skip
ANSWERS = {
    "t4": ((1, True), (3, False), (1, True), (2, False), (1, True), (1, True), (1, True)),
    "a100-80gb": ((4, False), (5, False), (1, True), (2, False), (1, True), (1, True), (1, True)),
    "h100": ((5, False), (5, False), (1, True), (2, False), (1, True), (1, True), (1, True)),
    "b200": ((3, False), (3, False), (3, False), (1, True), (1, True), (1, True), (1, True)),
    "rtx-5090": ((3, False), (3, False), (1, True), (1, True), (1, True), (1, True), (1, True)),
    "mi300x": tuple((parts, False) for parts in (3, 1, 1, 8, 1, 1, 4)),
    "mi350x": tuple((parts, False) for parts in (2, 1, 1, 19, 1, 1, 7)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_products_are_split_as_the_kernels_split_them(name: str) -> None:
    found = tuple(launch(find_gpu(name), *size) for size in SIZES)
    assert found == tuple(Launch(*answer) for answer in ANSWERS[name])


def test_kernels_that_fail_are_not_planned() -> None:
    card = find_gpu("b200")
    assert launch(card, 4, 5760, 3072, 32).parts == 3
    with pytest.raises(NotPlannedError, match="fail for 16,384 rows"):
        launch(card, 16384, 5760, 3072, 32)
    assert launch(card, 16384, 5760, 2880, 32) == Launch(1, fused=True)
    assert launch(find_gpu("h100"), 16384, 5760, 3072, 32) == Launch(1, fused=True)


@pytest.mark.parametrize(
    ("kind", "dtype", "card", "said"),
    [
        ("gpt_oss", "bfloat16", "t4", ""),
        ("gpt_oss", "float16", "a100-80gb", ""),
        ("gpt_oss", "float16", "b200", ""),
        ("gpt_oss", "float16", "mi300x", ""),
        ("gpt_oss", "float16", "h100", "bfloat16 alone"),
        ("gpt_oss", "float32", "a100-80gb", "rows in float32"),
        ("mixtral", "bfloat16", "h100", "experts of gpt-oss alone"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(kind: str, dtype: str, card: str, said: str) -> None:
    found = refusal(kind, storage_format(dtype), find_gpu(card))
    assert said in found
    assert bool(found) == bool(said)


def test_a_product_is_split_no_further_than_four_blocks_of_128_inputs_each() -> None:
    """4,512 inputs are 35.25 blocks, so 36; one product fills one of 132 multiprocessors."""
    assert launch(find_gpu("h100"), 4, 96, 4512, 4).parts == 9


def test_many_rows_of_an_expert_are_blocks_of_256_on_cdna4() -> None:
    """514 rows are 3 blocks, 2,048 outputs 8: 256 units of the card hold them ten times."""
    assert launch(find_gpu("mi350x"), 514, 2048, 2880, 1).parts == 10


def counted(tokens: int, chosen: int) -> list[int]:
    """Bytes of each storage that four experts ask for, whose weights are [192, 96] and [96, 96]."""
    ops = Operations(find_gpu("h100"), 0)
    x, logits = ops.new((tokens, 96), 2), ops.new((tokens, 4), 2)
    up, down = (ops.weight((4, outputs, 96), 2) for outputs in (192, 96))
    first = len(ops.requests.sizes)
    run_experts(ops, x, logits, chosen, up, down)
    return ops.requests.sizes[first:]


def test_every_128_tokens_have_four_sums_for_each_of_32_experts() -> None:
    assert 4 * 32 * (4 * 24) in counted(3000, 2)


def test_a_token_of_one_expert_needs_no_second_sum() -> None:
    """Rows [1000, 96] between the products and behind them, and no more."""
    assert counted(1000, 1).count(1000 * 96 * 2) == 2
