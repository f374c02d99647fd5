"""Short convolutions in place of attention: LFM2."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.recurrent_parts import convolved, goes_on, remembered
from tritter_mem.models.shape_tensors import Tensor
from tritter_mem.models.transformers_blocks import Module, State, linear, vector


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
