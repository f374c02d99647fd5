"""Modules of Zamba 2: `modeling_zamba2.py` of transformers 5.23."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_orders import EMBEDDINGS
from tritter_mem.models.layer_run import LayerRun, activated, halves
from tritter_mem.models.shape_tensors import Tensor
from tritter_mem.models.transformers_blocks import FeedForward, Module


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedFeedForward(FeedForward):
    """An MLP to whose gate and up a pair of small matrices of the layer is added.

    Attributes:
        adapter: number of the pair.
    """

    adapter: int

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Zamba2MLP`."""
        ops, pair = run.ops, f"{self.name}.gate_up_proj_adapter_list.{self.adapter}"
        made = run.linear(x, f"{self.name}.{self.fused}")
        made = ops.add(made, run.linear(run.linear(x, f"{pair}.0"), f"{pair}.1"))
        gate, up = halves(ops, made)
        del made
        x = ops.mul(activated(run, gate), up)
        out = run.linear(x, f"{self.name}.{self.names[2]}")
        del gate, up, x
        return out


@dataclass(frozen=True, slots=True)
class KeptEmbeddings(Module):
    """A copy of the embeddings, which shared blocks take beside the residual stream."""

    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """None."""
        del hidden
        return ()

    def begin(self, x: Tensor, run: LayerRun) -> Tensor:
        """The embeddings, which stay."""
        run.step.shared[EMBEDDINGS] = (run.ops.clone(x),)
        return x
