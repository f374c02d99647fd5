"""What attention kernels on a card need beside their results, and when cuDNN's is taken.

Flash attention: `flash_attn/flash_api.cpp`. Efficient attention: `attention_backward.cu` and
`mem_eff_attention/kernel_backward.h`, with the kernels of capability 8.0 and newer whose blocks fit
the shared memory of an 8.0 or 9.0; on smaller ones half types of heads over 64 take others.
What cuDNN's needs, `cudnn_attention.py` says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from tritter_mem import torch_release
from tritter_mem.models import cudnn_attention
from tritter_mem.models.cuda_reductions import Chip

_FLOAT_BYTES = 4
_FLASH_ROWS = 128
_FLASH_QUERIES = 64
_MOST_SPLITS = 128
_FILLED = 0.8
_GOOD_ENOUGH = 0.85
_LOCK_AND_COUNTER = 16
_SPLIT_ROWS = 200
_ONE_PASS_WIDTH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSizes(cudnn_attention.Call):
    """Sizes of one call of attention, with the bytes of an element of its tensors."""

    element_bytes: int

    @property
    def rows(self) -> int:
        """Heads of all sequences."""
        return self.batch * self.heads

    @property
    def is_half(self) -> bool:
        """Whether numbers have 16 bits."""
        return self.element_bytes < _FLOAT_BYTES


def prefers_cudnn(capability: tuple[int, int], vendor: str) -> bool:
    """Whether a card asks for cuDNN's kernel first: `check_prefer_cudnn_attention`.

    A variable of the environment puts it last, as it does for PyTorch. ROCm has no cuDNN.
    """
    return (
        vendor == "nvidia"
        and capability[0] in cudnn_attention.CAPABILITIES
        and torch_release.release() >= cudnn_attention.PREFERRED_FROM
        and os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1"
    )


def cudnn_suits(call: AttentionSizes, capability: tuple[int, int]) -> bool:
    """Whether cuDNN's kernel takes a call of these sizes."""
    return call.is_half and cudnn_attention.suits(call, capability)


def cudnn_forward_bytes(card: Chip, call: AttentionSizes) -> Iterator[int]:
    """Its workspace, if it takes one."""
    yield cudnn_attention.forward_bytes(call, card.multiprocessors)


def cudnn_backward_bytes(call: AttentionSizes, copy: int) -> Iterator[int]:
    """Its workspace; before it, a copy of the output's gradient of so many bytes, 0: none.

    The gradient is copied where its channels do not lie side by side: `run_cudnn_SDP_bprop`.
    """
    workspace = cudnn_attention.backward_bytes(call)
    yield from (copy, workspace, -workspace)


def flash_forward_bytes(card: Chip, call: AttentionSizes) -> Iterator[int]:
    """For few queries, sums and outputs of each part of the keys: `set_params_splitkv`."""
    keys_a_block = 256 if call.width <= 64 else 128 if call.width <= 128 else 64
    if call.queries == 1 and call.heads > call.groups:  # heads of a group are taken for queries
        blocks = call.batch * call.groups * _up(call.heads // call.groups, _FLASH_QUERIES)
    else:
        blocks = call.rows * _up(call.queries, _FLASH_QUERIES)
    parts = _splits(blocks, 2 * card.multiprocessors, _up(call.keys, keys_a_block))
    if parts > 1:
        yield parts * call.rows * call.queries * _FLOAT_BYTES
        yield parts * call.rows * call.queries * _flash_width(call.width) * _FLOAT_BYTES


def _splits(blocks: int, at_once: int, key_blocks: int) -> int:
    """Parts of the keys, the fewest that fill the card nearly as well: `num_splits_heuristic`."""
    if blocks >= _FILLED * at_once:
        return 1
    filled = {}
    for parts in range(1, min(_MOST_SPLITS, at_once, key_blocks) + 1):
        if parts == 1 or _up(key_blocks, parts) != _up(key_blocks, parts - 1):
            waves = blocks * parts / at_once
            filled[parts] = waves / ceil(waves)
    return next(p for p, full in filled.items() if full >= _GOOD_ENOUGH * max(filled.values()))


def flash_backward_bytes(call: AttentionSizes) -> Iterator[int]:
    """Queries in whole blocks of 128, beside copies of what does not lie as it wants: `mha_bwd`."""
    rows = call.rows * _whole(call.queries, _FLASH_ROWS)
    yield rows * _FLOAT_BYTES
    yield rows * _flash_width(call.width) * _FLOAT_BYTES
    if call.groups != call.heads:
        expanded = call.rows * call.keys * call.width * call.element_bytes
        yield from (expanded, expanded)


def _flash_width(width: int) -> int:
    return _whole(width, 32) if width <= 128 else _whole(width, 64)


class Blocks(NamedTuple):
    """Of an efficient backward kernel: queries, keys, and columns of the queries' gradient."""

    queries: int
    keys: int
    columns: int
    sums_keys: bool = False


def _efficient_blocks(is_half: bool, width: int) -> Blocks:
    if width <= 64:
        return Blocks(64, 64, 64)
    if not is_half:
        return Blocks(128, 64, 64)
    if width <= _ONE_PASS_WIDTH:
        return Blocks(128, 128, 128)
    return Blocks(128, 64, 64, sums_keys=True)


def efficient_forward_bytes(call: AttentionSizes) -> Iterator[int]:
    """From values of over 128 of half types, the output in float32."""
    if call.is_half and call.value_width > _ONE_PASS_WIDTH:
        output = call.rows * call.queries * call.value_width * _FLOAT_BYTES
        yield from (output, -output)


def efficient_backward_bytes(call: AttentionSizes) -> Iterator[int]:
    """Gradients for every head where there are fewer groups; sums in whole blocks."""
    if call.groups < call.heads:
        for width in (call.width, call.value_width):
            yield call.rows * call.keys * width * call.element_bytes
    delta = call.rows * call.queries * _FLOAT_BYTES
    if not call.is_half:  # the kernel leaves the sums over output times gradient outside
        product = delta * call.value_width
        yield from (product, delta, delta, -delta, -product)
    else:
        yield delta
    blocks = _efficient_blocks(call.is_half, max(call.width, call.value_width))
    tile = blocks.queries * blocks.columns * _FLOAT_BYTES + _LOCK_AND_COUNTER
    tiles = _up(call.queries, blocks.queries) * _up(call.width, blocks.columns) * tile
    yield call.rows * (tiles + _key_sums(blocks, call))


def _key_sums(blocks: Blocks, call: AttentionSizes) -> int:
    """Bytes of a head's gradients of keys and values, each in parts."""
    if not blocks.sums_keys:
        return 0
    parts = max(1, min(_up(call.keys, blocks.keys), _SPLIT_ROWS // call.rows))
    widths = (_whole(width, blocks.queries) for width in (call.width, call.value_width))
    return parts * blocks.keys * sum(widths) * _FLOAT_BYTES


def _up(count: int, block: int) -> int:
    return -(-count // block)


def _whole(count: int, block: int) -> int:
    return _up(count, block) * block
