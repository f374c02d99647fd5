"""Experts of LongCat, some of which give back what they take; they run one after another."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.layer_run import LayerRun, activated, halves
from tritter_mem.models.shape_tensors import BOOL, LONG, Tensor

EXPERTS_RUN = 3
"""Of experts that run one after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleExperts(Experts):
    """Experts of which some are the identity."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`LongcatFlashMoE`.

        Raises:
            NotPlannedError: its weights are quantised.
        """
        ops, shape = run.ops, x.shape
        self.refuse_quantised(run)
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        logits, values, places = self.route(flat, run)
        out = ops.view(self._in_turn(flat, run, values, places), shape)
        del logits, values, places
        return out

    def _in_turn(self, x: Tensor, run: LayerRun, scores: Tensor, places: Tensor) -> Tensor:
        """`LongcatFlashExperts`: each gets as many rows, the first ones a row more.

        Without gradients each takes what the one before left, so that the first ones stand for all.
        """
        ops, total, pairs = run.ops, self.count + self.idle, places.elements
        out = ops.new(x.shape, x.size)
        masks = ops.new((*places.shape, total), LONG)
        ops.inside([total * LONG, total * BOOL])
        found = min(total, pairs)
        both = index = state = made = gate = up = None
        for number in range(found if ops.grad else min(found, EXPERTS_RUN)):
            rows = pairs // total + (number < pairs % total)
            both = ops.new((rows, 2), LONG)
            index = ops.alias(both, (rows,), (2,))
            state = ops.rows_of(x, index)
            if number < self.count:
                gate, up = halves(ops, ops.linear(state, self._one(run, self._up)))
                made = ops.mul(activated(run, gate), up)
                made = ops.linear(made, self._one(run, "down_proj"))
            else:
                made = state
            made = ops.mul(made, ops.numbers_of(scores, index))
            ops.rows_added(out, ops.to(made, x.size), index)
        del masks, both, index, state, made, gate, up
        return out

    def _one(self, run: LayerRun, part: str) -> Tensor:
        """The weight of one expert, a view."""
        return run.ops.selected(run.weights[f"{self.inside}experts.{part}"], 0)
