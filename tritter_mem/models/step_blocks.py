"""Modules of Step 3.5 and 3.7, and gated attention of AFMoE."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.layer_run import ROTATIONS, LayerRun, activated, halves
from tritter_mem.models.shape_tensors import LONG, Tensor
from tritter_mem.models.transformers_blocks import Attention, FeedForward

EXPERTS_RUN = 3
"""Of experts that run one after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadGatedAttention(Attention):
    """Attention with a gate for each head: the one that `gate` names."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Step3p7Attention`."""
        ops, step, name = run.ops, run.step, self.name
        heads = (step.batch, step.tokens, self.heads)
        q = self._projected(x, run, "q_proj", self.heads, self.norm_names[0])
        k = self._projected(x, run, "k_proj", self.kv_heads, self.norm_names[1])
        v = self._projected(x, run, "v_proj", self.kv_heads, "")
        gate = run.linear(x, f"{name}.{self.gate[0][0]}")
        angles = step.angles[self.window is not None]
        q, k = ROTATIONS[run.dialect.rotary](run, q, k, *angles)
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        width = gate.shape[2] // self.heads
        out = ops.reshape(out, (*heads, self.out_width // self.heads))
        out = ops.mul(out, ops.pointwise(ops.view(gate, (*heads, width)), saves="output"))
        out = ops.view(out, (*heads[:2], self.out_width))
        out = run.linear(out, f"{name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)


@dataclass(frozen=True, slots=True, kw_only=True)
class WideGatedAttention(Attention):
    """Attention whose result a projection as wide as it gates; layers with a window rotate."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`AfmoeAttention`."""
        ops, step, name = run.ops, run.step, self.name
        shape = (step.batch, step.tokens, -1, self.head_dim)
        made = [run.linear(x, f"{name}.{part}") for part in ("q_proj", "k_proj", "v_proj")]
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = (
            ops.view(part, (*shape[:2], count, self.head_dim))
            for part, count in zip(made, heads, strict=True)
        )
        made.clear()
        gate = run.linear(x, f"{name}.{self.gate[0][0]}")
        q = ops.transpose(run.norm(q, f"{name}.{self.norm_names[0]}"), 1, 2)
        k = ops.transpose(run.norm(k, f"{name}.{self.norm_names[1]}"), 1, 2)
        v = ops.transpose(v, 1, 2)
        if self.window is not None:
            q, k = ROTATIONS[run.dialect.rotary](run, q, k, *step.angles[True])
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        out = ops.reshape(out, (*shape[:2], self.out_width))
        out = ops.mul(out, ops.pointwise(gate, saves="output"))
        attended = run.linear(out, f"{name}.{self.out}")
        del q, k, v, gate, out
        return attended


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedFeedForward(FeedForward):
    """An MLP whose gate and what goes up are limited."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Step3p7MLP`."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        limited = ops.clamped(activated(run, run.linear(x, gate)))
        raised = ops.clamped(run.linear(x, up))
        return run.linear(ops.mul(limited, raised), down)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampedExperts(Experts):
    """Experts that are limited, behind a shared one; they run one after another."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Step3p7SparseMoeBlock`.

        Raises:
            NotPlannedError: its weights are quantised.
        """
        ops, shape = run.ops, x.shape
        self.refuse_quantised(run)
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        inner = ClampedFeedForward(inner=self.shared, name=f"{self.inside}{self.shared_name}")
        shared = inner.run(flat, run)
        chosen = self.route(flat, run)
        out = self._in_turn(flat, run, chosen[1], chosen[2])
        out = ops.scaled(out)
        out = ops.view(ops.add(out, shared), shape)
        del shared, chosen
        return out

    def _in_turn(self, x: Tensor, run: LayerRun, scores: Tensor, places: Tensor) -> Tensor:
        """`Step3p7Experts`: each gets as many rows, the first ones a row more.

        Without gradients each takes what the one before left, so that the first ones stand for all.
        """
        ops = run.ops
        out = ops.new(x.shape, x.size)
        masks = ops.new((*places.shape, self.count + 1), LONG)
        pairs = places.elements
        found = min(self.count, pairs)
        for number in range(found if ops.grad else min(found, EXPERTS_RUN)):
            rows = pairs // self.count + (number < pairs % self.count)
            both = ops.new((rows, 2), LONG)
            index = ops.alias(both, (rows,), (2,))
            made = self._limited(run, ops.linear(ops.rows_of(x, index), self._one(run, self._up)))
            made = ops.mul(
                ops.linear(made, self._one(run, "down_proj")), ops.numbers_of(scores, index)
            )
            ops.rows_added(out, ops.to(made, x.size), index)
        del masks, both, index, made
        return out

    def _one(self, run: LayerRun, part: str) -> Tensor:
        """The weight of one expert, a view."""
        return run.ops.selected(run.weights[f"{self.inside}experts.{part}"], 0)

    @staticmethod
    def _limited(run: LayerRun, made: Tensor) -> Tensor:
        gate, up = halves(run.ops, made)
        gate = run.ops.clamped(activated(run, gate))
        up = run.ops.clamped(up)
        return run.ops.mul(gate, up)
