"""Quantised caches of transformers on `meta`, by shape: their backends need not be installed.

Where `QuantizedCache` makes a layer of a backend, it makes one of these classes. What float8 takes
is transformers' own code. `models/quantised_caches.py` has the sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import QuantizedLayer

Coded = tuple[Tensor, Tensor, Tensor, torch.Size, int]
"""Codes, scales, shifts; the shape of what was coded, and along which axis."""


@contextmanager
def shapes_of_backends() -> Iterator[None]:
    """Let `QuantizedCache` make layers of the classes here."""
    with patch.object(cache_utils, "QuantoQuantizedLayer", QuantoLayer):
        yield


class QuantoLayer(QuantizedLayer):  # type: ignore[no-untyped-call]
    """Coded by optimum-quanto."""

    def _quantize(self, tensor: Tensor, axis: int) -> Coded:  # type: ignore[override]
        base = _grouped(tensor, axis, self.q_group_size)
        scale, shift = _extremes(base, axis, self.nbits)
        del base
        codes = self._codes(tensor, scale, shift, axis)
        return _packed(codes, self.nbits), scale, shift, tensor.shape, axis

    def _codes(self, tensor: Tensor, scale: Tensor, shift: Tensor, axis: int) -> Tensor:
        """`quantize_affine`."""
        base = _grouped(tensor, axis, self.q_group_size)
        data = torch.round((base + shift) / scale)
        return torch.clamp(data, min=0, max=2**self.nbits - 1).to(torch.uint8)

    def _dequantize(self, coded: Coded) -> Tensor:
        """`QBitsDequantizer`."""
        packed, scale, shift, shape, axis = coded
        unpacked = packed.new_empty((packed.shape[0] * (8 // self.nbits), packed.shape[1]))
        rows = scale.shape[0] if axis == 0 else self.q_group_size
        wide = scale * unpacked[:rows]
        wide -= shift
        if axis == 0:
            return wide.reshape(shape)
        grouped = wide.reshape(self.q_group_size, shape[axis], -1)
        return grouped.permute(2, 0, 1).reshape(shape)


def _grouped(base: Tensor, axis: int, size: int) -> Tensor:
    """`group`: a row, or a column, for each group."""
    if axis == 0:
        return base.reshape([-1, size])
    width = base.shape[axis]
    grouped = base.reshape((-1, size, width)).permute(1, 2, 0)
    return grouped.reshape(size, -1)


def _extremes(base: Tensor, axis: int, bits: int) -> tuple[Tensor, Tensor]:
    """`MaxOptimizer.optimize`."""
    dim = [1] if axis == 0 else [0]
    rmin = torch.amin(base, dim=dim, keepdim=True)
    rmax = torch.amax(base, dim=dim, keepdim=True)
    scale = (rmax - rmin) / (2**bits - 1)
    shift = -rmin
    return scale, shift


def _packed(codes: Tensor, bits: int) -> Tensor:
    """`pack_weights`."""
    rows, values = codes.shape[0], 8 // bits
    row_dim = -(-rows // values)
    packed = torch.zeros((row_dim, *codes.shape[1:]), device=codes.device, dtype=torch.uint8)
    for i in range(min(values, rows // row_dim + 1)):
        start, end = i * row_dim, min((i + 1) * row_dim, rows)
        packed[: end - start] |= codes[start:end] << (bits * i)
    return packed
