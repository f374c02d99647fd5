"""The residual stream in inference, RMSNorm of it, and the weights of norms.

Shapes: T tokens, H their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import Rows
from tritter_model.config import ModelConfig
from tritter_model.ops.rms_norm import add_rms_norm_rows, rms_norm, rms_norm_rows


class Stream:
    """The residual stream of new tokens, which the parts of a layer add to.

    Args:
        x: [T, H]; added to in place.
        defers: whether what is added waits for the next norm, which then adds, normalises and
            quantises in one launch. The bits are the same.
    """

    def __init__(self, x: Tensor, defers: bool) -> None:
        self.x, self._defers = x, defers
        self._waiting: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        """Add [T, H], now or with the next norm."""
        if self._defers:
            self._waiting = delta
        else:
            self.x.add_(delta)

    def normalised(self, weight: Tensor, eps: float, quantises: bool) -> Rows:
        """RMSNorm of the sum so far, as a tensor or as int8 rows."""
        delta, self._waiting = self._waiting, None
        if delta is not None:
            return add_rms_norm_rows(self.x, delta, weight, eps)
        return (rms_norm_rows if quantises else rms_norm)(self.x, weight, eps)

    def sum(self) -> Tensor:
        """The stream with all that was added."""
        if self._waiting is not None:
            self.x.add_(self._waiting)
            self._waiting = None
        return self.x


class RMSNorm(nn.Module):
    """x / rms(x) · weight; quantised at once where ternary weights are to take it."""

    def __init__(self, weight: nn.Parameter, eps: float, quantises: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.quantises = weight, eps, quantises

    def forward(self, x: Tensor | Stream) -> Rows:
        """[T, H], as a tensor or as int8 rows."""
        if isinstance(x, Stream):
            return x.normalised(self.weight, self.eps, self.quantises)
        return (rms_norm_rows if self.quantises else rms_norm)(x, self.weight, self.eps)


def norm_weight(
    shape: tuple[int, ...], config: ModelConfig, device: torch.device, trainable: bool
) -> nn.Parameter:
    """Ones, as training masters them or as inference stores them."""
    dtype = getattr(torch, config.master_dtype if trainable else config.compute_dtype)
    return nn.Parameter(torch.ones(shape, dtype=dtype, device=device), requires_grad=trainable)
