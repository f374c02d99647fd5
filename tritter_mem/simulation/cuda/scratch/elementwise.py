"""What softmax, losses and norms need between their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from tritter_mem import torch_release
from tritter_mem.config.cards import GpuCard
from tritter_mem.simulation.cuda.scratch.reductions import accumulated_bytes, reduce

_NO_REDUCTION = 0
_MANY_ROWS = 65_536
_ROWS_A_SUM = 32
_WARP = 32
_GRID = 65_535
_CHUNK = 65_536
_OFFSET_BYTES = 8


def _softmax_backward(
    card: GpuCard, grad: Tensor, output: Tensor, *rest: Any, **more: Any
) -> Iterator[int]:
    """`softmax_backward_cuda_out` in `SoftMax.cu`."""
    yield grad.numel() * max(grad.element_size(), output.element_size())


def _safe_softmax(card: GpuCard, x: Tensor, dim: int, *rest: Any, **more: Any) -> Iterator[int]:
    """`_safe_softmax` in `SoftMax.cpp`: rows that are all infinite become zeros."""
    rows = x.numel() // x.shape[dim]
    yield from (x.numel(), rows)
    yield from (-rows, -x.numel())


def _loss(
    card: GpuCard, x: Tensor, target: Tensor, reduction: int = 1, *rest: Any, **more: Any
) -> Iterator[int]:
    """`Loss.cpp`: the result is made as if it were not reduced, and reduced from another."""
    if reduction != _NO_REDUCTION:
        yield from [x.numel() * x.element_size()] * 2
        yield from reduce(card, x, (), accumulated_bytes(x.dtype))


def _layer_norm_backward(  # noqa: PLR0913, PLR0917  (the operator's schema)
    card: GpuCard, grad: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, wanted: Sequence[bool],
) -> Iterator[int]:  # fmt: skip
    """Tall and narrow: `LaunchGammaBetaBackwardCUDAKernel` in `layer_norm_kernel.cu`."""
    width = prod(shape)
    rows = x.numel() // max(width, 1)
    if rows <= _MANY_ROWS or width // _WARP >= card.multiprocessors // 2:
        return
    sums = torch.empty(_row_sums(rows, width), width, dtype=x.dtype, device="meta")
    parts = [sums.nbytes] * sum(wanted[1:])
    yield from parts
    for _ in parts:
        yield width * x.element_size()
        yield from reduce(card, sums, (0,), accumulated_bytes(x.dtype))
        yield -width * x.element_size()


def _row_sums(rows: int, width: int) -> int:
    """Of 32 rows each, or of as many more as a grid of blocks needs."""
    each = _ROWS_A_SUM
    while -(-rows // each) * -(-width // _WARP) > _GRID:
        each *= 2
    return -(-rows // each)


def _foreach_norm(
    card: GpuCard, tensors: Sequence[Tensor], *rest: Any, **more: Any
) -> Iterator[int]:
    """`ForeachReduceOp.cu`: a partial norm for each chunk, in as many chunks as the longest has.

    PyTorch 2.15 has each tensor's own chunks, and where they begin.
    """
    chunks = [-(-tensor.numel() // _CHUNK) for tensor in tensors]
    partial = 8 if tensors[0].dtype == torch.float64 else 4
    if torch_release.release() < (2, 15):
        yield len(chunks) * max(chunks) * partial
    else:
        yield (len(chunks) + 1) * _OFFSET_BYTES
        yield sum(chunks) * partial


RULES: dict[str, Callable[..., Iterator[int]]] = {
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._safe_softmax.default": _safe_softmax,
    "aten.mse_loss.default": _loss,
    "aten.smooth_l1_loss.default": _loss,
    "aten.huber_loss.default": _loss,
    "aten._foreach_norm.Scalar": _foreach_norm,
    "aten.native_layer_norm_backward.default": _layer_norm_backward,
}
