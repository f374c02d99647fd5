"""The gated squared-ReLU MLP of a layer, ternary or not.

Shapes: T tokens, H hidden, F intermediate.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from tritter_model.bitlinear import make_linear
from tritter_model.config import ModelConfig
from tritter_model.norm import RMSNorm, Stream, norm_weight
from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows


class MLP(nn.Module):
    """Norm, gate and up, relu(gate)² · up, down.

    Args:
        config: the architecture.
        device: where the weights live.
        trainable: master weights that are trained, or weights as inference stores them.
    """

    def __init__(self, config: ModelConfig, device: torch.device, trainable: bool) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.quantises = config.is_ternary and not trainable
        linear = partial(make_linear, config=config, device=device, trainable=trainable)
        weight = norm_weight((hidden,), config, device, trainable)
        self.norm = RMSNorm(weight, config.rms_norm_eps, self.quantises)
        self.gate_up = linear(hidden, 2 * inner)
        self.down = linear(inner, hidden)

    def forward(self, x: Tensor | Stream) -> Tensor:
        """[T, H]; what a step no longer needs is let go by rebinding."""
        rows = self.norm(x)
        rows = self.gate_up(rows)
        rows = gated_relu2_rows(rows) if self.quantises else gated_relu2(rows)
        return self.down(rows)  # type: ignore[no-any-return]
