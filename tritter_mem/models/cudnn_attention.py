"""What cuDNN's attention takes: which calls, and the workspace beside what it returns.

PyTorch prefers it on compute capability 9.x and 10.x where cuDNN is newer than 9.15.0, which the
default wheels have from PyTorch 2.11 on: `check_prefer_cudnn_attention` and
`can_use_cudnn_attention` in `ATen/native/transformers/cuda/sdp_utils.cpp`. The sizes of workspaces
are cuDNN's own and stand in no source: they were measured on an H200 with cuDNN 9.19.0 and PyTorch
2.11.0, and `tests/models/cudnn_attention.json` holds each call.

A rehearsal loads this file alone, so it imports nothing of the project.
"""

from __future__ import annotations

from dataclasses import dataclass

PREFERRED_FROM = (2, 11)
"""The first release of PyTorch whose default wheel prefers it."""
CAPABILITIES = (9, 10)
"""Major numbers of the compute capabilities that do."""
MOST_WIDTH = 256
"""Of heads on capability 9.0."""
MOST_WIDTH_ELSEWHERE = 128
LATENT_WIDTHS = (192, 128)
"""Of keys and of values, as DeepSeek's are: capability 10.x takes them, too."""
WIDTH_MULTIPLE = 8
FEWEST_KEYS = 2
SCALAR_BYTES = 8
"""Of the seed and of the offset that it returns, each an int64."""
_BLACKWELL = 10
_FLOAT_BYTES = 4
_HALF_BYTES = 2
_ALIGNMENT = 128
_HEAD_BYTES = 128
_FIXED_BYTES = 256
_WHOLE_KEYS = 512
_PART_KEYS = 128
"""Fewest keys of a part, where they are shared out evenly and rounded up."""
_MOST_PARTS, _FEWEST_PARTS = 32, 4
_PROGRAMS_A_MULTIPROCESSOR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Sizes of one call of attention.

    Attributes:
        heads: of queries; `groups`: of keys and values.
        queries: tokens of each sequence; `keys`: that they may attend to.
        width: of a query and a key; `value_width`: of a value.
    """

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    value_width: int


def suits(call: Call, capability: tuple[int, int] = (9, 0)) -> bool:
    """Whether it takes such a call, of 16-bit numbers, without dropout, on such a card."""
    widths = (call.width, call.value_width)
    most = MOST_WIDTH if capability == (9, 0) else MOST_WIDTH_ELSEWHERE
    fits = max(widths) <= most or (capability[0] == _BLACKWELL and widths == LATENT_WIDTHS)
    return call.keys >= FEWEST_KEYS and fits and not any(one % WIDTH_MULTIPLE for one in widths)


def forward_bytes(call: Call, multiprocessors: int) -> int:
    """Workspace of a forward pass; for one query, the outputs and sums of each part of the keys."""
    if call.queries > 1:
        return _FIXED_BYTES
    parts = _parts(call, multiprocessors)
    if parts == 1:
        return 0
    rows = call.batch * call.heads * parts
    sums = 2 * _aligned(rows * _FLOAT_BYTES)
    return _aligned(rows * call.value_width * _FLOAT_BYTES) + sums + _HEAD_BYTES


def _parts(call: Call, multiprocessors: int) -> int:
    """Parts that the keys are split into, a power of two; 1: they are not."""
    if call.keys <= _WHOLE_KEYS:
        return 1
    programs = _PROGRAMS_A_MULTIPROCESSOR * multiprocessors
    room = max(1, programs // (call.batch * call.groups))
    filled = (call.keys - 1) // (_PART_KEYS - 1)  # so that ceil(keys / filled) is that at least
    parts = min(_MOST_PARTS, _floor_power(filled), _floor_power(room))
    return parts if parts >= _FEWEST_PARTS else 1


def backward_bytes(call: Call) -> int:
    """Workspace of a backward pass.

    The gradient of the queries in float32, sums over outputs times their gradients, and, where
    heads share keys and values, the gradients of those for every head.
    """
    rows = call.batch * call.heads
    expanded = 0
    if call.groups < call.heads:
        expanded = rows * call.keys * (call.width + call.value_width) * _HALF_BYTES
    return rows * call.queries * (call.width + 1) * _FLOAT_BYTES + expanded + _FIXED_BYTES


def _floor_power(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
