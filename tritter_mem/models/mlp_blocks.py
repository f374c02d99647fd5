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

    STORED: ClassVar = ("mlp_norm", "gate_up", "down")
    INFERENCE: ClassVar = {
        "gate and up projection": "x rows_in gate_up expanded_gate_up",
        "MLP activation": "x gate_up rows_inner",
        "down projection": "x rows_inner y expanded_down",
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
        """The tensors of `INFERENCE`."""
        stream, inner = rows.activation(rows.hidden), rows.activation(self.inner)
        shapes = self.linears(rows.hidden)
        return {
            "x": stream,
            "y": stream,
            # Other layers than ternary ones take the norm's result, and the activation's.
            "rows_in": rows.quantised(rows.hidden) or stream,
            "rows_inner": rows.quantised(self.inner) or inner,
            "gate_up": rows.activation(2 * self.inner),
            **{f"expanded_{name}": rows.expanded(shape) for name, shape in shapes.items()},
        }

    def trained_tensors(self, rows: Rows) -> Tensors:
        """The tensors of `FORWARD` and `BACKWARD`."""
        stream, inner = rows.activation(rows.hidden), rows.activation(self.inner)
        gate_up = rows.activation(2 * self.inner)
        return {
            **dict.fromkeys(("x", "sum", "y", "norm", "grad", "grad_norm", "grad_x"), stream),
            "rstd": (4 * rows.tokens,),
            **dict.fromkeys(("gate_up", "grad_gate_up"), gate_up),
            **dict.fromkeys(("act", "grad_act"), inner),
            "rows_in": rows.quantised(rows.hidden),
            "rows_inner": rows.quantised(self.inner),
            **{
                f"packed_{name}": rows.rounded(shape)
                for name, shape in self.linears(rows.hidden).items()
            },
        }
