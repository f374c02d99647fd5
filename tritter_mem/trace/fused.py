"""Operators that CUDA runs whole and `meta` in parts, with what they save and return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class FusedRmsNorm(torch.autograd.Function):
    """`_fused_rms_norm` of CUDA: saves its input, its weight and one number a row.

    Shapes only: it is for tensors on `meta`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor | None) -> Tensor:
        """Normalise over the last `shape` dimensions of x; returns the shape of x."""
        rows = x.shape[: x.dim() - len(shape)]
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        rstd = x.new_empty((*rows, *(1 for _ in shape)), dtype=dtype)
        ctx.save_for_backward(x, rstd, weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Gradients of x and of the weight, in their shapes."""
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), None, None if weight is None else torch.empty_like(weight)
