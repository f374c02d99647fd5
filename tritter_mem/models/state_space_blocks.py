"""Mamba-2 as transformers runs it in PyTorch, as without mamba-ssm and causal-conv1d."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import LayerRun, activated
from tritter_mem.models.recurrent_parts import (
    STATE,
    convolved,
    goes_on,
    head_views,
    keep_state,
    remembered,
)
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    Operations,
    Tensor,
)
from tritter_mem.models.transformers_blocks import FeedForward, Module, State, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2(Module):
    """Mamba-2: a state space with one decay a head.

    Attributes:
        inner: channels; `heads` of `head_dim` channels are theirs.
        groups: of heads that share the state's input and output.
        normed: whether a gated norm comes before the output.
        chunk: tokens that are scanned at once.
        before_gate: whether the norm of all groups comes before the gate; None: a norm of each
            group comes behind it.
        scaled: whether inputs and what is projected of them are multiplied by numbers.
    """

    inner: int
    heads: int
    head_dim: int
    groups: int
    states: int
    kernel: int
    bias: bool
    conv_bias: bool
    out_bias: bool = False
    normed: bool = True
    chunk: int = 256
    scaled: bool = False
    before_gate: bool | None = None
    name: str = "mamba"
    ROLE = "mixer"

    @property
    def conv_width(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.states

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, the convolution and the state space."""
        name, conv = self.name, self.conv_width
        return (
            *(vector(f"{name}.{part}", self.heads) for part in ("dt_bias", "A_log", "D")),
            Weight(name=f"{name}.conv1d", shape=(conv, 1, self.kernel)),
            *((vector(f"{name}.conv1d.bias", conv),) if self.conv_bias else ()),
            *linear(f"{name}.in_proj", self.inner + conv + self.heads, hidden, self.bias),
            *((vector(f"{name}.norm", self.inner),) if self.normed else ()),
            *linear(f"{name}.out_proj", hidden, self.inner, self.out_bias),
        )

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Project, convolve, scan, and gate what that gives: `NemotronHMamba2Mixer`."""
        ops, name = run.ops, self.name
        rows, size = (*x.shape[:2], self.inner), x.size
        made = run.linear(ops.scaled(x) if self.scaled else x, f"{name}.in_proj")
        made = ops.scaled(made, max(made.size, run.step.size)) if self.scaled else made
        rates = ops.pointwise(ops.to(run.weights[f"{name}.A_log"], FLOAT), saves="output")
        rates = ops.scaled(rates)
        gate, mixed, dt = ops.split(made, -1, [self.inner, self.conv_width, self.heads])
        mixed = ops.transpose(mixed, 1, 2)
        decodes = goes_on(run)
        if not decodes:
            mixed = remembered(mixed, run, self.kernel)
        mixed = convolved(mixed, run, f"{name}.conv1d")
        mixed = ops.transpose(mixed, 1, 2)
        given = (*self._parts(ops, mixed), dt, rates)
        held: list[Tensor] = []
        if decodes:
            out = self._one(run, given, None if self.normed else gate)
        else:
            out, state = self._scanned(run, given)
            keep_state(state, run)
            held.append(state)
        out = ops.view(out, rows, (*out.strides[:2], 1))
        if self.normed:
            out = self._gated(run, out, gate)
        elif not decodes:
            out = ops.mul(out, ops.pointwise(gate))
        result = run.linear(ops.to(out, size), f"{name}.out_proj")
        del made, gate, mixed, dt, given, held, rates, out
        return result

    def _parts(self, ops: Operations, mixed: Tensor) -> list[Tensor]:
        """Views of inputs [B, T, H, P], and of what goes into and out of the state [B, T, G, N]."""
        state = self.groups, self.states
        return head_views(ops, mixed, ((self.heads, self.head_dim), state, state))

    def _scanned(self, run: LayerRun, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`mamba2_chunk_scan`: the result [B, T, H, P], and the last state, a view of all.

        In the einsums b are sequences, c chunks, l and s positions in one, h heads, p channels of
        a head, n states.
        """
        ops, (x, b, c, dt, rates), size = run.ops, given, self.chunk
        batch, tokens, heads, _ = x.shape
        dt = ops.add(dt, ops.to(run.weights[f"{self.name}.dt_bias"], dt.size))
        dt = ops.pointwise(ops.widened(dt))
        dt = ops.clamped(dt)
        x = ops.to(x, FLOAT)
        b = ops.interleaved(ops.to(b, FLOAT), 2, heads // self.groups)
        c = ops.interleaved(ops.to(c, FLOAT), 2, heads // self.groups)
        length = -(-tokens // size) * size
        skipped = ops.view(run.weights[f"{self.name}.D"], (heads, 1))
        around = ops.mul(skipped, ops.padded(x, 1, length))
        x = ops.mul(x, ops.to(ops.view(dt, (*dt.shape, 1), (*dt.strides, 1)), FLOAT))
        a = ops.mul(rates, ops.to(dt, FLOAT))
        x, a, b, c = [
            ops.reshape(ops.padded(part, 1, length), (batch, length // size, size, *part.shape[2:]))
            for part in (x, a, b, c)
        ]
        a = ops.permuted(a, (0, 3, 1, 2))
        sums = ops.cumsum(a)
        decays = ops.pointwise(_segment_sums(ops, a), saves="output")
        scores = ops.einsum("bclhn,bcshn->bclsh", c, b)
        masked = ops.mul(scores, ops.permuted(decays, (0, 2, 3, 4, 1)))
        inside = ops.einsum("bclsh,bcshp->bclhp", masked, x)
        left = _left(ops, sums)
        written = ops.mul(b, _by_position(ops, left))
        states = ops.einsum("bclhn,bclhp->bchpn", written, x)
        first = run.cache.get(STATE)
        if first is None:
            first = ops.new((batch, 1, *states.shape[2:]), states.size)
        else:
            first = ops.to(ops.view(first, (batch, 1, *states.shape[2:])), states.size)
        states = ops.cat([first, states], 1)
        ends = ops.padded(ops.selected(sums, 3), 2, states.shape[1])
        between = ops.pointwise(_segment_sums(ops, ends), saves="output")
        del ends
        between = ops.permuted(between, (0, 3, 2, 1))
        made = ops.einsum("bzch,bzhpn->bchpn", between, states)
        states = ops.slice(made, 1, made.shape[1] - 1)
        last = ops.alias(made, (batch, *made.shape[2:]), (made.strides[0], *made.strides[2:]))
        outward = ops.pointwise(sums, saves="output")
        read = ops.einsum("bclhn,bchpn->bclhp", c, states)
        outside = ops.mul(read, _by_position(ops, outward))
        out = ops.contiguous(ops.add(inside, outside))
        out = ops.view(out, (batch, length, heads, self.head_dim))
        out = ops.add(out, around)
        del x, dt, a, b, c, around, sums, decays, scores, masked, inside, left, written, states
        del first, between, made, outward, read, outside
        return out if length == tokens else ops.slice(out, 1, tokens), last

    def _one(self, run: LayerRun, given: tuple[Tensor, ...], gate: Tensor | None) -> Tensor:
        """`mamba2_selective_state_update` of one token: [B, 1, H, P]."""
        ops, x = run.ops, given[0]
        batch, size = x.shape[0], x.size
        rows = (batch, self.heads, self.head_dim)
        dt = ops.new(rows, size)
        dt = ops.pointwise(dt)
        whole = (*rows, self.states)
        grown = ops.new(whole, FLOAT)
        factor = ops.pointwise(grown)
        del grown
        inward = ops.new((batch, self.heads, 1, self.states), size)
        entered = ops.new(whole, size)
        added = ops.new(whole, size)
        states = ops.add(ops.new(whole, FLOAT), added)
        outward = ops.new((batch, self.heads, self.states), size)
        states = ops.to(states, size)
        out = ops.new(rows, size)
        ops.product()
        out = ops.add(out, ops.new(rows, size))
        if gate is not None:
            out = ops.mul(out, ops.pointwise(ops.view(gate, rows)))
        del dt, factor, inward, entered, states, outward
        return ops.view(out, (batch, 1, *rows[1:]))

    def _gated(self, run: LayerRun, x: Tensor, gate: Tensor) -> Tensor:
        """A norm of groups of what is gated: `RMSNormGated`."""
        if self.before_gate is not None:
            return self._normed(run, x, gate)
        ops, size = run.ops, x.size
        wide = ops.to(x, FLOAT)
        wide = ops.mul(wide, ops.pointwise(ops.to(gate, FLOAT)))
        groups = ops.view(wide, (*x.shape[:2], self.groups, self.inner // self.groups))
        variance = ops.mean(ops.square(groups))
        groups = ops.mul(groups, ops.rsqrt(ops.shifted(variance)))
        wide = ops.view(groups, x.shape)
        return ops.mul(run.weights[f"{self.name}.norm"], ops.to(wide, size))

    def _normed(self, run: LayerRun, x: Tensor, gate: Tensor) -> Tensor:
        """`FalconH1RMSNormGated`."""
        ops, size = run.ops, x.size
        if not self.before_gate:
            x = ops.mul(x, ops.pointwise(ops.to(gate, FLOAT)))
        x = ops.to(x, FLOAT)
        x = ops.view(x, (*x.shape[:2], self.groups, self.inner // self.groups))
        variance = ops.mean(ops.square(x))
        x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
        x = ops.mul(ops.view(run.weights[f"{self.name}.norm"], x.shape[2:]), x)
        x = ops.view(x, (*x.shape[:2], self.inner))
        if self.before_gate:
            x = ops.mul(x, ops.pointwise(ops.to(gate, FLOAT)))
        return ops.to(x, size)

    def beside(self) -> tuple[tuple[int, ...], ...]:
        """What projections are multiplied by."""
        return ((1, 1, self.inner + self.conv_width + self.heads),) if self.scaled else ()

    def state(self) -> State:
        """The convolution's last inputs, and a float32 matrix for each head."""
        return State(
            compute=self.conv_width * self.kernel,
            float32=self.heads * self.head_dim * self.states,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledFeedForward(FeedForward):
    """An MLP whose gate and result are multiplied by numbers: Falcon-H1."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`FalconH1MLP`."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        made = run.linear(x, up)
        y = ops.mul(made, activated(run, ops.scaled(run.linear(x, gate))))
        del made
        y = ops.scaled(run.linear(y, down))
        return y  # noqa: RET504  (what goes down goes with its name)


def _left(ops: Operations, sums: Tensor) -> Tensor:
    """Decay from each position to the end of its chunk."""
    return ops.pointwise(ops.subtracted(ops.slice(sums, 3, 1), sums), saves="output")


def _by_position(ops: Operations, x: Tensor) -> Tensor:
    """[B, H, C, L] as [B, C, L, H, 1]."""
    turned = ops.permuted(x, (0, 2, 3, 1))
    return ops.view(turned, (*turned.shape, 1), (*turned.strides, 1))


def _segment_sums(ops: Operations, x: Tensor) -> Tensor:
    """`segment_sum`: sums of all stretches [..., L, L] of [..., L]."""
    size = x.shape[-1]
    wide = ops.expand(ops.view(x, (*x.shape, 1), (*x.strides, 1)), (*x.shape, size))
    lower = _lower(ops, size)
    wide = ops.masked(wide, ops.new(lower.shape, BOOL))
    sums = ops.cumsum(wide)
    lower = _lower(ops, size)
    sums = ops.masked(sums, ops.new(lower.shape, BOOL))
    del wide, lower
    return sums


def _lower(ops: Operations, length: int) -> Tensor:
    ones = ops.new((length, length), BOOL)
    lower = ops.new((length, length), BOOL)
    del ones
    return lower
