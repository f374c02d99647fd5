"""Short convolutions in place of attention, and attention beside them: LFM2, LFM3."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import ROTATIONS, LayerRun
from tritter_mem.models.recurrent_parts import convolved, goes_on, remembered
from tritter_mem.models.shape_tensors import Tensor
from tritter_mem.models.transformers_blocks import Attention, Module, State, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvolution(Module):
    """A gated convolution over the last few tokens."""

    kernel: int
    width: int
    bias: bool
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Gate what is projected, convolve it, and gate it again: `Lfm2ShortConv`."""
        ops = run.ops
        made = ops.transpose(run.linear(x, "conv.in_proj"), 1, 2)
        b, c, x = ops.split(made, 1, [self.width] * 3)
        x = ops.mul(b, x)
        if not goes_on(run):
            x = remembered(x, run, self.kernel)
        x = convolved(x, run, "conv.conv", activates=False)
        y = ops.mul(c, x)
        y = ops.contiguous(ops.transpose(y, 1, 2))
        y = run.linear(y, "conv.out_proj")
        del made, b, c, x
        return y

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """The convolution between two projections."""
        return (
            Weight(name="conv.conv", shape=(self.width, 1, self.kernel)),
            *((vector("conv.conv.bias", self.width),) if self.bias else ()),
            *linear("conv.in_proj", 3 * self.width, hidden, self.bias),
            *linear("conv.out_proj", hidden, self.width, self.bias),
        )

    def state(self) -> State:
        """Its last inputs."""
        return State(compute=self.width * self.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateGatedAttention(Attention):
    """Attention whose result is multiplied by a number for each head, found behind it."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Lfm3Attention`."""
        ops, step, name = run.ops, run.step, self.name
        q = self._projected(x, run, "q_proj", self.heads, self.norm_names[0])
        k = self._projected(x, run, "k_proj", self.kv_heads, self.norm_names[1])
        v = self._projected(x, run, "v_proj", self.kv_heads, "")
        angles = step.angles[self.window is not None]
        q, k = ROTATIONS[run.dialect.rotary](run, q, k, *angles)
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        for gate, _ in self.gate:
            made = ops.pointwise(run.linear(x, f"{name}.{gate}"), saves="output")
            out = ops.mul(out, ops.view(made, (*made.shape, 1)))
            del made
        out = ops.reshape(out, (step.batch, step.tokens, self.out_width))
        out = run.linear(out, f"{name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)
