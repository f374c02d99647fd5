"""RMSNorm of the residual stream, and the weights of norms.

Shapes: T tokens, H their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import Rows
from tritter_model.config import ModelConfig
from tritter_model.ops.rms_norm import rms_norm, rms_norm_rows


class RMSNorm(nn.Module):
    """x / rms(x) · weight; quantised at once where ternary weights are to take it."""

    def __init__(self, weight: nn.Parameter, eps: float, quantises: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.quantises = weight, eps, quantises

    def forward(self, x: Tensor) -> Rows:
        """[T, H], as a tensor or as int8 rows."""
        return (rms_norm_rows if self.quantises else rms_norm)(x, self.weight, self.eps)


def norm_weight(
    shape: tuple[int, ...], config: ModelConfig, device: torch.device, trainable: bool
) -> nn.Parameter:
    """Ones, as training masters them or as inference stores them."""
    dtype = getattr(torch, config.master_dtype if trainable else config.compute_dtype)
    return nn.Parameter(torch.ones(shape, dtype=dtype, device=device), requires_grad=trainable)
