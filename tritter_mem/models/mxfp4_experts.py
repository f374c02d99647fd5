"""Experts of gpt-oss in MXFP4, as the Triton kernels run them that transformers 5.23 loads.

They are `kernels-community/gpt-oss-triton-kernels`, version 1. What is here is read from its source
in huggingface/kernels-community at 40d4194 (2026-08-21), which names commit 7d0efaa of
triton-lang/triton as its own source. None of it was measured on a GPU.

| what | source |
|---|---|
| weights | `swizzle_mxfp4` in `integrations/mxfp4.py`; `layout_details/hopper_value.py` |
| routing | `topk.py`, `reduction_details/reduce_bitmatrix.py`, `routing.py` |
| products | `init_allocation` and `apply_preprocessing_features` in `matmul_ogs.py` |
| how many parts a sum has | `opt_flags.py` and its details in `matmul_ogs_details` |
| biases in float32 | `Mxfp4GptOssExperts` in `integrations/mxfp4.py` |
"""

from __future__ import annotations

from typing import NamedTuple

from tritter_mem.models.cuda_reductions import Chip
from tritter_mem.models.formats import StorageFormat, ceil_div
from tritter_mem.models.shape_tensors import (
    FLOAT,
    HALF,
    NotPlannedError,
    Operations,
    Parameter,
    Tensor,
)

KIND = "gpt_oss"
"""The family whose experts transformers puts these kernels in: `replace_with_mxfp4_linear`."""
BLOCK = 32
"""Inputs that share a scale, and bits of a word of the routing's matrix."""
INDEX = 4
"""Bytes of an int32."""
SHORT = 2
"""Bytes of an int16."""
_HOPPER, _BLACKWELL, _CDNA4 = (9, 0), (10, 0), (9, 5)
_HOPPER_TILE = 16, 32
"""Outputs, and bytes of inputs, of which a swizzled weight has a whole number."""
_SUMMED_COLUMNS = 128
"""Experts that a block of `topk` sets to zero."""
_ROWS_A_SUM, _SUMS_A_BLOCK = 32, 4
_SET_TO_ZERO = 512
"""Elements that a block of the routing fills."""
_LEAST_ROWS = 16
"""Of the blocks that tokens are split in, which have a table each: 16, 32, 64 and 128 rows."""
_TMA_INPUTS = 1024
"""Inputs of which a weight has a multiple where its scales can be read by TMA: their rows, which
`is_tma_compliant` takes for 4-bit numbers, have a multiple of 16 bytes then."""
_PERSISTENT_TILES = 2
"""Tiles a multiprocessor from which on kernels are persistent."""


def is_amd(card: Chip) -> bool:
    """Whether Triton compiles for ROCm."""
    return card.vendor == "amd"


def refusal(kind: str, dtype: StorageFormat, card: Chip) -> str:
    """Why these kernels do not run a model; empty: they do.

    Args:
        kind: of the language model.
        dtype: of activations.
        card: that they run on.
    """
    if kind != KIND:
        return "transformers has kernels for MXFP4 for experts of gpt-oss alone"
    if dtype.element_bytes != HALF:
        return f"the Triton kernels for MXFP4 do not take rows in {dtype.name}"
    if swizzles(card) and dtype.name != "bfloat16":
        return "on this card the Triton kernels for MXFP4 take rows in bfloat16 alone"
    return ""


def not_in_blocks(inputs: int) -> str:
    """Why a weight with so many inputs is not in MXFP4; empty: it may be."""
    return f"MXFP4 has blocks of {BLOCK} inputs; found {inputs}" if inputs % BLOCK else ""


def swizzles(card: Chip) -> bool:
    """Whether codes are brought in another order, for Hopper."""
    return not is_amd(card) and _HOPPER <= card.compute_capability < _BLACKWELL


def held_bytes(card: Chip, outputs: int, inputs: int) -> tuple[int, int]:
    """Bytes of the codes of a weight [outputs, inputs] of one expert on a card, and of its scales.

    On Hopper codes are padded to whole tiles of 16 outputs and 64 inputs.

    Raises:
        NotPlannedError: inputs are not in whole blocks.
    """
    if found := not_in_blocks(inputs):
        raise NotPlannedError(found)
    rows, columns = outputs, inputs // 2
    if swizzles(card):
        rows, columns = (
            tile * ceil_div(size, tile)
            for size, tile in zip((rows, columns), _HOPPER_TILE, strict=True)
        )
    return rows * columns, outputs * (inputs // BLOCK)


def load_again(ops: Operations, weight: Parameter) -> None:
    """Load the weights [E, N, K] of experts anew, beside all that is loaded.

    On Hopper their codes come as they are stored, are padded, moved, and packed in words of 32 bits
    for four of them: `HopperMXValueLayout.swizzle_data`. On other cards they stay as they are
    stored.
    """
    if not swizzles(ops.card):
        return
    experts, outputs, inputs = weight.shape
    codes = experts * held_bytes(ops.card, outputs, inputs)[0]
    weight.storage = None
    stored = ops.new((experts * outputs * inputs // 2,), 1)
    padded = ops.new((codes,), 1)
    moved = ops.new((codes,), 1)
    del padded
    packed = _packed(ops, codes)
    ops.account(packed, "weights")
    weight.storage = packed.storage
    del stored, moved


def _packed(ops: Operations, codes: int) -> Tensor:
    """`_pack_bits`: words of so many bytes."""
    words = [_word(ops, codes) for _ in range(4)]
    joined = words[0]
    for _ in range(2):
        shifted = ops.new((codes,), 1)
        joined = ops.new((codes,), 1)
        del shifted
    joined = ops.new((codes,), 1)
    del words
    return joined


def _word(ops: Operations, codes: int) -> Tensor:
    """The two codes of a byte, in two halves of a word."""
    low = _spread(ops, codes, [])
    high = _spread(ops, codes, [ops.new((codes // 4,), 1)])
    shifted = ops.new((codes,), 1)
    del high
    out = ops.new((codes,), 1)
    del low, shifted
    return out


def _spread(ops: Operations, codes: int, made_of: list[Tensor]) -> Tensor:
    """`_compress_fp4`: sign and number apart, and then together."""
    wide = ops.new((codes,), 1)
    made_of.clear()
    parts = []
    for _ in range(2):
        bits = ops.new((codes,), 1)
        parts.append(ops.new((codes,), 1))
        del bits
    out = ops.new((codes,), 1)
    del parts, wide
    return out


class Launch(NamedTuple):
    """How a product is made.

    Attributes:
        parts: of each sum, which are float32 and added up behind (split K).
        fused: whether the product itself scatters rows, beside its result.
    """

    parts: int
    fused: bool


def launch(card: Chip, rows: int, outputs: int, inputs: int, experts: int) -> Launch:
    """How a card multiplies so many rows, those of all experts, with their weights.

    `make_default_opt_flags_nvidia` and `_amd`, for half-precision rows and scales as stored.

    Raises:
        NotPlannedError: the kernels fail: a persistent one asks `Storage.make_tma` for blocks of
            scales in two dimensions, and those that are not swizzled have three.
    """
    if is_amd(card):
        return Launch(_parts_on_amd(card, rows, outputs, experts), fused=False)
    major, chips = card.compute_capability[0], card.multiprocessors
    least = 64 if major == _BLACKWELL[0] else _LEAST_ROWS
    block_rows = max(least, min(_power_of_two(max(1, rows // experts)), 128))
    block_outputs = 256 if outputs > 128 else max(16, _power_of_two(outputs))
    columns = ceil_div(outputs, block_outputs)
    tiles = _row_blocks(rows, experts, block_rows) * columns
    by_tma = card.compute_capability >= _BLACKWELL and inputs % _TMA_INPUTS == 0
    if by_tma and tiles >= _PERSISTENT_TILES * chips:
        raise NotPlannedError(
            f"on this card the Triton kernels for MXFP4 fail for {rows:,} rows by weights with a "
            f"multiple of {_TMA_INPUTS:,} inputs"
        )
    block_inputs = 128
    if card.compute_capability >= _BLACKWELL:
        block_inputs = max(BLOCK, min(_power_of_two(inputs), 256))
    parts = chips // (ceil_div(rows, block_rows) * columns)
    parts = max(1, min(parts, ceil_div(inputs, block_inputs) // 4))
    return Launch(parts, fused=parts == 1)


def _parts_on_amd(card: Chip, rows: int, outputs: int, experts: int) -> int:
    each, newest = max(1, rows // experts), card.compute_capability == _CDNA4
    block_rows = max(32, min(_power_of_two(each), 64))
    if each >= 512 and outputs >= 2048:
        block_rows = 256 if newest else 128
    elif newest and rows >= 512:
        block_rows = 128
    tiles, chips = _row_blocks(rows, experts, block_rows), card.multiprocessors
    block_outputs = max(32, min(256, _power_of_two(max(1, tiles * outputs * 8 // chips))))
    if outputs <= 128 and outputs == _power_of_two(outputs):
        block_outputs = outputs
    if newest and block_rows == 128:
        block_outputs = 512
    return max(1, chips // (tiles * ceil_div(outputs, block_outputs)))


def _row_blocks(rows: int, experts: int, block_rows: int) -> int:
    """`RoutingData.n_blocks`: as many as there may be."""
    if rows <= experts:
        return rows
    return ceil_div(rows - experts + 1, block_rows) + experts - 1


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def run_experts(
    ops: Operations, x: Tensor, logits: Tensor, chosen: int, up: Parameter, down: Parameter
) -> Tensor:
    """`Mxfp4GptOssMLP.forward` behind the router.

    Args:
        ops: makes tensors.
        x: rows [T, H].
        logits: of the router, [T, E].
        chosen: experts of a token.
        up: weights of gate and up [E, 2 * I, H].
        down: weights [E, H, I].

    Returns:
        Rows [T, H], over a storage that holds those of each expert too where the product scatters.
    """
    routing = _routing(ops, logits, chosen)
    made = _gathered(ops, x, chosen, up)
    out = _scattered(ops, made, chosen, down)
    del routing, made
    return out


def _routing(ops: Operations, logits: Tensor, chosen: int) -> list[Tensor]:
    """What `routing` returns: histogram, indices, weights, and tables of blocks."""
    (tokens, experts), size = logits.shape, logits.size
    rows, words = tokens * chosen, ceil_div(experts, BLOCK)
    values = ops.new((tokens, chosen), size)
    places = ops.new((tokens, chosen), SHORT)
    matrix = ops.new((words, ceil_div(tokens, BLOCK) * BLOCK), INDEX)
    histogram = ops.new((ceil_div(experts, _SUMMED_COLUMNS) * _SUMMED_COLUMNS,), INDEX)
    blocks = ceil_div(tokens, _ROWS_A_SUM * _SUMS_A_BLOCK)
    sums = ops.new((words * BLOCK, blocks * _SUMS_A_BLOCK), INDEX)
    offsets = ops.new((experts,), INDEX)
    indices = ops.new((2 * rows,), INDEX)
    weights = ops.new((rows,), size)
    tables = 5 if is_amd(ops.card) else 4
    starts = ops.new((tables + 1, _filled(experts + 1)), INDEX)
    most = _row_blocks(rows, experts, _LEAST_ROWS)
    block_map = ops.new((tables, _filled(most)), INDEX)
    del sums, offsets, values, places, matrix
    return [histogram, indices, weights, starts, block_map]


def _filled(elements: int) -> int:
    return ceil_div(elements, _SET_TO_ZERO) * _SET_TO_ZERO


def _gathered(ops: Operations, x: Tensor, chosen: int, weight: Parameter) -> Tensor:
    """Rows [T * chosen, I] of gate times up: the first `matmul_ogs`, which ends in `swiglu`."""
    (tokens, width), (experts, outputs, _) = x.shape, weight.shape
    rows = tokens * chosen
    parts = launch(ops.card, rows, outputs, width, experts).parts
    out = ops.new((rows, outputs // 2), x.size)
    sums = ops.new((parts, rows, outputs), FLOAT) if parts > 1 else None
    del sums
    return out


def _scattered(ops: Operations, x: Tensor, chosen: int, weight: Parameter) -> Tensor:
    """Rows [T, H], sums over the experts of a token: the second `matmul_ogs`."""
    (rows, inner), (experts, width, _) = x.shape, weight.shape
    tokens = rows // chosen
    how = launch(ops.card, rows, width, inner, experts)
    scatters = how.fused and chosen > 1
    # Rows of the result, and those of each expert behind them.
    out = ops.new((tokens + rows * scatters, width), x.size)
    apart: list[Tensor] = []
    if scatters:
        apart = [ops.new((count,), INDEX) for count in (rows, tokens + rows + 1)]
    elif how.parts > 1 or chosen > 1:
        apart = [ops.new((how.parts, rows, width), FLOAT if how.parts > 1 else x.size)]
    del apart
    return ops.alias(out, (tokens, width), (width, 1))
