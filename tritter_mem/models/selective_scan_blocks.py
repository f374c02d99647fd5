"""The first Mamba as transformers runs it in PyTorch, as without mamba-ssm and causal-conv1d."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.recurrent_parts import (
    convolved,
    enough_steps,
    goes_on,
    keep_state,
    remembered,
)
from tritter_mem.models.shape_tensors import FLOAT, NotPlannedError, Operations, Tensor
from tritter_mem.models.transformers_blocks import Module, State, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba(Module):
    """The first Mamba's selective state space.

    Attributes:
        inner: channels. `states`: of each.
        rank: of what decides how fast channels forget.
        normed: whether that, and what goes into and out of the state, is normed. `weightless`:
            whether those norms have no weights.
    """

    inner: int
    states: int
    kernel: int
    rank: int
    bias: bool
    conv_bias: bool
    normed: bool = False
    weightless: bool = False
    name: str = "mamba"
    ROLE = "mixer"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, the convolution and the state space."""
        name, rank = self.name, self.rank
        normed = {"dt_layernorm": rank, "b_layernorm": self.states, "c_layernorm": self.states}
        has_norms = self.normed and not self.weightless
        return (
            Weight(name=f"{name}.A_log", shape=(self.inner, self.states)),
            vector(f"{name}.D", self.inner),
            Weight(name=f"{name}.conv1d", shape=(self.inner, 1, self.kernel)),
            *((vector(f"{name}.conv1d.bias", self.inner),) if self.conv_bias else ()),
            *linear(f"{name}.in_proj", 2 * self.inner, hidden, self.bias),
            *linear(f"{name}.x_proj", rank + 2 * self.states, self.inner),
            *linear(f"{name}.dt_proj", self.inner, rank, True),
            *linear(f"{name}.out_proj", hidden, self.inner, self.bias),
            *(vector(f"{name}.{n}", width) for n, width in normed.items() if has_norms),
        )

    def beside(self) -> tuple[tuple[int, ...], ...]:
        """Weights of norms that use none."""
        return ((self.inner,), (self.states,), (self.states,)) if self.weightless else ()

    def state(self) -> State:
        """The convolution's last inputs, and the state of each channel."""
        return State(compute=self.inner * self.kernel, float32=self.inner * self.states)

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Project, convolve, scan token by token, and gate what that gives: `MambaMixer`.

        Raises:
            NotPlannedError: it trains.
        """
        ops, name = run.ops, self.name
        if ops.grad:
            raise NotPlannedError("training with a scan token by token is not planned")
        made = ops.transpose(run.linear(x, f"{name}.in_proj"), 1, 2)
        rates = ops.scaled(ops.pointwise(ops.to(run.weights[f"{name}.A_log"], FLOAT)))
        mixed, gate = ops.split(made, 1, [self.inner, self.inner])
        decodes = goes_on(run)
        if not decodes:
            mixed = remembered(mixed, run, self.kernel)
        mixed = ops.transpose(convolved(mixed, run, f"{name}.conv1d"), 1, 2)
        dt, b, c = self._selected(mixed, run)
        bias = ops.to(run.weights[f"{name}.dt_proj.bias"], FLOAT)
        held: list[Tensor] = []
        if decodes:
            out = self._one(run, (mixed, gate))
        else:
            skips = ops.to(run.weights[f"{name}.D"], FLOAT)
            out, state = self._scanned(run, (mixed, gate, dt, b, rates, bias), skips)
            keep_state(state, run)
            held.append(state)
        result = run.linear(ops.to(ops.transpose(out, 1, 2), x.size), f"{name}.out_proj")
        del made, rates, mixed, gate, dt, b, c, bias, held, out
        return result

    def _selected(self, mixed: Tensor, run: LayerRun) -> tuple[Tensor, Tensor, Tensor]:
        """How fast channels forget [B, I, T], and what goes into and out of the state [B, T, N]."""
        ops, name = run.ops, self.name
        made = run.linear(mixed, f"{name}.x_proj")
        dt, b, c = ops.split(made, -1, [self.rank, self.states, self.states])
        del made
        dt = self._normed(run, dt, "dt_layernorm")
        b = self._normed(run, b, "b_layernorm")
        c = self._normed(run, c, "c_layernorm")
        # The matrix comes first in the product: its transpose is made, and copied.
        dt = ops.linear(dt, run.weights[f"{name}.dt_proj"])
        return ops.clone(ops.transpose(dt, 1, 2)), b, c

    def _normed(self, run: LayerRun, x: Tensor, name: str) -> Tensor:
        if not self.normed:
            return x
        if not self.weightless:
            return run.norm(x, f"{self.name}.{name}")
        ops, wide = run.ops, run.ops.to(x, FLOAT)
        return ops.to(ops.mul(wide, ops.rsqrt(ops.shifted(ops.mean(ops.square(wide))))), x.size)

    def _scanned(
        self, run: LayerRun, given: tuple[Tensor, ...], skips: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`mamba_selective_scan`: the result [B, I, T], and the last state [B, I, N]."""
        ops, (mixed, gate, dt, b, rates, bias) = run.ops, given
        x, size = ops.transpose(mixed, 1, 2), mixed.size
        batch, inner, tokens = x.shape
        dt = ops.add(dt, ops.view(ops.to(bias, size), (inner, 1)))
        dt = ops.pointwise(dt)
        each = ops.view(dt, (*dt.shape, 1), (*dt.strides, 1))
        kept = ops.pointwise(ops.mul(ops.view(rates, (1, inner, 1, self.states)), each))
        enters = ops.view(b, (batch, 1, tokens, self.states), _inserted(b.strides))
        written = ops.mul(each, ops.to(enters, FLOAT))
        added = ops.mul(written, ops.to(ops.view(x, (*x.shape, 1), (*x.strides, 1)), FLOAT))
        state, outputs = self._steps(ops, (batch, inner, tokens), size)
        out = ops.new((batch, inner, tokens), size)
        out = ops.add(out, ops.mul(x, ops.view(skips, (1, inner, 1))))
        out = ops.mul(out, ops.pointwise(gate))
        del dt, each, kept, enters, written, added, outputs
        return out, state

    def _steps(
        self, ops: Operations, shape: tuple[int, int, int], size: int
    ) -> tuple[Tensor, list[Tensor]]:
        """The last state, and the output of each token, [B, I, 1]."""
        batch, inner, tokens = shape
        state = ops.new((batch, inner, self.states), size)
        outputs: list[Tensor] = []
        read = state
        for number in range(tokens):
            if number < enough_steps(tokens):
                state = ops.add(ops.new((batch, inner, self.states), FLOAT), state)
                narrow = ops.to(state, size)
            read = ops.new((batch, inner, 1), size)
            ops.product()
            outputs.append(read)
        del narrow, read
        return state, outputs

    def _one(self, run: LayerRun, given: tuple[Tensor, ...]) -> Tensor:
        """`mamba_selective_state_update` of one token: [B, I, 1]."""
        ops, (mixed, gate) = run.ops, given
        size, rows = mixed.size, (mixed.shape[0], self.inner)
        whole = (*rows, self.states)
        dt = ops.new(rows, size)
        dt = ops.pointwise(dt)
        kept = ops.pointwise(ops.new(whole, FLOAT))
        enters = ops.new(whole, FLOAT)
        added = ops.new(whole, FLOAT)
        state = ops.add(ops.new(whole, FLOAT), added)
        narrow = ops.to(state, size)
        out = ops.new((*rows, 1), size)
        ops.product()
        del narrow
        out = ops.add(out, ops.new((*rows, 1), size))
        out = ops.mul(out, ops.pointwise(ops.view(gate, (*rows, 1))))
        del dt, kept, enters, added, state
        return out


def _inserted(strides: tuple[int, ...]) -> tuple[int, ...]:
    return (strides[0], 0, *strides[1:])
