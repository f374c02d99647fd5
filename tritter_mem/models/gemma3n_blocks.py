"""Modules of Gemma 3n: `modeling_gemma3n.py` of transformers 5.23."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.gemma4_blocks import Gemma4Attention
from tritter_mem.models.layer_run import LayerRun, activated, normalised
from tritter_mem.models.shape_tensors import Tensor
from tritter_mem.models.transformers_blocks import FeedForward, Module, linear

HELD = "residual streams as they began"
"""What the model's `forward` holds to its end, in `Step.shared`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3nAttention(Gemma4Attention):
    """Gemma 4's attention, whose values are projected when keys are done."""

    def _keys(self, x: Tensor, run: LayerRun) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, K, D] with all that is cached."""
        ops = run.ops
        k = self._normed(x, run, "k_proj", self.kv_heads, self.norm_names[1])
        k = ops.transpose(self._turned(run, k), 1, 2)
        v = normalised(ops, self._heads(x, run, "v_proj", self.kv_heads))
        v = ops.transpose(v, 1, 2)
        k, v = run.update({"keys": k, "values": v}, self.window)
        return k, v


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseFeedForward(FeedForward):
    """An MLP whose gate keeps the largest numbers of each row.

    Attributes:
        sparse: whether it does.
    """

    sparse: bool = False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Gemma3nTextMLP`."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        made = run.linear(x, gate)
        if self.sparse:
            made = self._largest(run, made)
        passed = activated(run, made)
        raised = run.linear(x, up)
        out = run.linear(ops.mul(passed, raised), down)
        del made, passed, raised
        return out

    @staticmethod
    def _largest(run: LayerRun, x: Tensor) -> Tensor:
        """What is above a number of deviations from the mean: `_gaussian_topk`."""
        ops = run.ops
        mean = ops.mean(x)
        deviation = ops.deviation(x)
        cutoff = ops.add(mean, ops.scaled(deviation))
        del mean, deviation
        return ops.pointwise(ops.subtracted(x, cutoff), saves="output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams(Module):
    """Projections of embeddings to the other residual streams, and back: AltUp.

    Attributes:
        count: of all streams.
    """

    count: int
    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """A matrix for each stream and direction."""
        return tuple(
            weight
            for name in ("altup_projections", "altup_unembed_projections")
            for number in range(self.count - 1)
            for weight in linear(f"{name}.{number}", hidden, hidden)
        )

    def begin(self, x: Tensor, run: LayerRun) -> Tensor:
        """Streams [N, B, T, H] of embeddings [B, T, H]."""
        target = self._magnitude(run, x)
        held: list[Tensor] = []
        names = (f"altup_projections.{number}" for number in range(self.count - 1))
        streams = [x, *(self._another(run, x, target, name, held) for name in names)]
        run.step.shared[HELD] = (*streams, target, *held)
        return self._stacked(run, streams)

    def end(self, x: Tensor, run: LayerRun) -> Tensor:
        """One stream [B, T, H]: the mean of all."""
        ops, (_, batch, tokens, width) = run.ops, x.shape
        first = ops.selected(x, 0)
        target = self._magnitude(run, first)
        *_, last, _, projected, magnitude = run.step.shared.pop(HELD)
        streams, held = [first], [magnitude]
        del _, magnitude
        for number in range(self.count - 1):
            name = f"altup_unembed_projections.{number}"
            streams.append(self._another(run, ops.selected(x, 0), target, name, held))
            last = streams[-1]
        x = self._stacked(run, streams)
        x = ops.view(ops.mean(x, dim=0), (batch, tokens, width))
        del held, last, projected
        return x

    @staticmethod
    def _magnitude(run: LayerRun, x: Tensor) -> Tensor:
        return run.ops.pointwise(run.ops.mean(run.ops.square(run.ops.widened(x))), steps=1)

    @staticmethod
    def _another(run: LayerRun, x: Tensor, target: Tensor, name: str, held: list[Tensor]) -> Tensor:
        """Another stream, as large as the first.

        Args:
            run: of what is outside of the layers.
            x: what is projected.
            target: magnitude of the first stream.
            name: of the projection.
            held: what has a name, until another has it.
        """
        ops = run.ops
        made = run.linear(x, name)
        magnitude = held.pop() if held else None
        held[:] = [made]
        current = ops.to(made, x.size)
        magnitude = ops.mean(ops.square(ops.widened(current)))
        magnitude = ops.pointwise(ops.clamped(magnitude), saves="output")
        held.append(magnitude)
        return ops.divided(ops.mul(current, target), magnitude)

    @staticmethod
    def _stacked(run: LayerRun, streams: list[Tensor]) -> Tensor:
        ops = run.ops
        return ops.cat([ops.view(x, (1, *x.shape), (0, *x.strides)) for x in streams], 0)
