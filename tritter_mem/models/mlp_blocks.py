"""Kinds of MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tritter_mem.models.architecture import Rows, Shape, SteppedBlock, Tensors


@dataclass(frozen=True, slots=True)
class GatedMLP(SteppedBlock):
    """A norm, a fused projection to gate and up, relu(gate)² · up, and a projection down.

    Saved bytes of a layer in training, with T tokens, hidden h, inner f, in a type of 2 bytes:
    4Th + 6Tf + 4T.
    """

    inner: int

    INFERENCE: ClassVar = {
        "gate and up projection": "x rows_in expanded_gate_up gate_up",
        "MLP activation": "x gate_up rows_inner",
        "down projection": "x rows_inner expanded_down y",
    }
    FORWARD: ClassVar = {
        "gate and up projection": "x norm rows_in packed_gate_up gate_up",
        "MLP activation": "x gate_up act",
        "down projection": "x act rows_inner packed_down y",
        "second residual": "x y sum",
    }
    SAVED_SINCE: ClassVar = {"x": 0, "norm": 0, "rstd": 0, "gate_up": 0, "act": 1}
    RESULTS: ClassVar = {"gate and up projection": "gate_up"}
    KEPT: ClassVar = {"selective-attention": (), "selective-matmul": ("gate_up",)}
    BACKWARD: ClassVar = {
        "down projection, input gradient": (
            "x norm rstd gate_up act grad grad_act packed_down", ""),
        "down projection, weight gradient": (
            "x norm rstd gate_up act grad grad_act rows_inner", "down"),
        "MLP activation": ("x norm rstd gate_up grad grad_act grad_gate_up", "down"),
        "gate and up projection, input gradient": (
            "x norm rstd grad grad_gate_up grad_norm packed_gate_up", "down"),
        "gate and up projection, weight gradient": (
            "x norm rstd grad grad_gate_up grad_norm rows_in", "down gate_up"),
        "MLP norm": ("x rstd grad grad_norm grad_x", "down gate_up mlp_norm"),
    }  # fmt: skip

    def linears(self, hidden: int) -> dict[str, Shape]:
        """Gate and up in one, and down."""
        return {"gate_up": (2 * self.inner, hidden), "down": (hidden, self.inner)}

    def norms(self, hidden: int) -> dict[str, int]:
        """That of the input."""
        return {"mlp_norm": hidden}

    def tensors(self, rows: Rows) -> Tensors:
        """Bytes of the tensors of `INFERENCE`."""
        stream, inner = rows.activation_bytes(rows.hidden), rows.activation_bytes(self.inner)
        shapes = self.linears(rows.hidden)
        return {
            "x": stream,
            "y": stream,
            # Other layers than ternary ones take the norm's result, and the activation's.
            "rows_in": rows.input_bytes(rows.hidden) or stream,
            "rows_inner": rows.input_bytes(self.inner) or inner,
            "gate_up": 2 * inner,
            **{f"expanded_{name}": rows.expanded_bytes(shape) for name, shape in shapes.items()},
        }

    def trained_tensors(self, rows: Rows) -> Tensors:
        """Bytes of the tensors of `FORWARD` and `BACKWARD`."""
        stream, inner = rows.activation_bytes(rows.hidden), rows.activation_bytes(self.inner)
        return {
            **dict.fromkeys(("x", "sum", "y", "norm", "grad", "grad_norm", "grad_x"), stream),
            "rstd": 4 * rows.tokens,
            **dict.fromkeys(("gate_up", "grad_gate_up"), 2 * inner),
            **dict.fromkeys(("act", "grad_act"), inner),
            "rows_in": rows.input_bytes(rows.hidden),
            "rows_inner": rows.input_bytes(self.inner),
            **{
                f"packed_{name}": rows.rounded_bytes(shape)
                for name, shape in self.linears(rows.hidden).items()
            },
        }
