"""Kimi delta attention: the gated delta rule with a decay for each channel.

What runs is transformers' own code in PyTorch, as without the packages fla and causal-conv1d, whose
kernels take less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.gated_delta_blocks import CHUNK, column, upper
from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.recurrent_parts import (
    STATE,
    convolved,
    enough_steps,
    goes_on,
    head_views,
    keep_state,
    remembered,
)
from tritter_mem.models.shape_tensors import BOOL, FLOAT, Operations, Tensor
from tritter_mem.models.transformers_blocks import Module, State, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaAttention(Module):
    """Kimi delta attention: the gated delta rule with a decay for each channel.

    Attributes:
        factorised: whether the decay's and the gate's projections go through one head's width.
        limited: whether there is a lowest decay; only where they are not factorised.
    """

    heads: int
    head_dim: int
    kernel: int
    factorised: bool = True
    limited: bool = False
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Project, convolve, apply the rule, and gate what it gives: `KimiLinearDeltaAttention`."""
        ops, (batch, tokens, _), name = run.ops, x.shape, "self_attn"
        parts = [run.linear(x, f"{name}.{part}") for part in ("q_proj", "k_proj", "v_proj")]
        mixed = ops.transpose(ops.cat(parts, -1), 1, 2)
        parts.clear()
        decodes = goes_on(run)
        if not decodes:
            mixed = remembered(mixed, run, self.kernel)
        mixed = convolved(mixed, run, f"{name}.conv1d")
        heads = (self.heads, self.head_dim)
        q, k, v = head_views(ops, ops.transpose(mixed, 1, 2), (heads, heads, heads))
        decay = self._decay(x, run)
        beta = ops.pointwise(run.linear(x, f"{name}.b_proj"), saves="output")
        rule = self._recurrent if decodes else self._chunked
        out, state = rule(run, (q, k, v, beta, decay))
        keep_state(state, run)
        shape = (batch, tokens, *heads)
        gate = ops.view(self._projected(x, run, "g"), shape)
        normed = ops.view(self._normed(run, out, gate), (batch, tokens, self.width))
        if not self.factorised:
            out = normed
        result = run.linear(normed, f"{name}.o_proj")
        del mixed, q, k, v, decay, beta, out, state, gate, normed
        return result

    def _projected(self, x: Tensor, run: LayerRun, part: str) -> Tensor:
        """Of all heads, [B, T, H * D], through the width of one where that is so."""
        name = f"self_attn.{part}"
        if not self.factorised:
            return run.linear(x, f"{name}_proj")
        return run.linear(run.linear(x, f"{name}_a_proj"), f"{name}_b_proj")

    def _decay(self, x: Tensor, run: LayerRun) -> Tensor:
        """Of each channel, [B, T, H, D]: `KimiLinearForgetGate`, `BailingHybridForgetGate`."""
        ops, (batch, tokens, _), name = run.ops, x.shape, "self_attn.forget_gate"
        shape = (batch, tokens, self.heads, self.head_dim)
        bias: Tensor = run.weights[f"{name}.dt_bias"]
        rates = ops.view(run.weights[f"{name}.A_log"], (1, 1, self.heads, 1))
        if self.factorised:
            made = self._projected(x, run, "forget_gate.f")
            moved = ops.view(ops.add(ops.to(made, FLOAT), ops.to(bias, FLOAT)), shape)
            rates = ops.to(rates, FLOAT)
            decays = ops.pointwise(rates, saves="output")
            soft = self._softplus(ops, moved)
            result = ops.mul(ops.scaled(decays), soft)
            del made, moved, rates, decays, soft
            return result
        made = ops.view(ops.to(self._projected(x, run, "forget_gate.f"), FLOAT), shape)
        made = ops.add(made, ops.view(bias, (1, 1, self.heads, self.head_dim)))
        decays = ops.pointwise(rates, saves="output")
        if self.limited:
            gate = ops.scaled(ops.pointwise(ops.mul(decays, made), saves="output"))
        else:
            gate = ops.mul(ops.scaled(decays), ops.pointwise(made))
        result = ops.to(gate, x.size)
        del made, decays, gate
        return result

    @staticmethod
    def _softplus(ops: Operations, x: Tensor) -> Tensor:
        """`torch.where(x > 20, x, torch.log(1 + torch.exp(x)))`."""
        is_large = ops.new(x.shape, BOOL)
        raised = ops.pointwise(ops.shifted(ops.pointwise(x, saves="output")))
        return _where(ops, is_large, x, raised)

    def _normed(self, run: LayerRun, x: Tensor, gate: Tensor) -> Tensor:
        """`KimiLinearRMSNormGated`."""
        ops, size = run.ops, x.size
        x = ops.to(x, FLOAT)
        variance = ops.mean(ops.square(x))
        x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
        x = ops.mul(ops.to(run.weights["self_attn.o_norm"], FLOAT), x)
        x = ops.mul(x, ops.pointwise(ops.to(gate, FLOAT), saves="output"))
        return ops.to(x, size)

    def _chunked(self, run: LayerRun, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`chunk_kimi_delta_attention`: the result [B, T, H, D], and the state."""
        ops, size = run.ops, given[0].size
        batch, tokens = given[0].shape[:2]
        q, k, v, beta, decay = (
            ops.to(ops.contiguous(ops.transpose(y, 1, 2)), FLOAT) for y in given
        )
        q = _unit(ops, q)
        k = _unit(ops, k)
        chunks = -(-tokens // CHUNK)
        length = chunks * CHUNK
        q = ops.scaled(ops.padded(q, 2, length))
        k = ops.padded(k, 2, length)
        v = ops.padded(v, 2, length)
        decay = ops.padded(decay, 2, length)
        beta = ops.padded(beta, 2, length)
        v_beta = ops.mul(v, column(ops, beta))
        k_beta = ops.mul(k, column(ops, beta))
        rows = (batch, self.heads, chunks, CHUNK, self.head_dim)
        q, k, v, decay, k_beta, v_beta = (
            ops.view(y, rows) for y in (q, k, v, decay, k_beta, v_beta)
        )
        decay = ops.cumsum(decay)
        mask, strict = upper(ops), upper(ops)
        pairs = ops.subtracted(_across(ops, decay, -2), _across(ops, decay, -3))
        pairs = ops.pointwise(ops.masked(pairs, strict), saves="output")
        system = _over_channels(ops, (k_beta, k, pairs))
        system = ops.scaled(ops.masked(system, mask))
        row, sub = _solved(ops, system)
        eye = ops.new((CHUNK, CHUNK), FLOAT)
        system = ops.add(system, eye)
        del eye
        v = ops.matmul(system, v_beta)
        read = ops.matmul(system, ops.mul(k_beta, ops.pointwise(decay, saves="output")))
        before = [run.cache.get(STATE) or ops.new(self._state_shape(batch), FLOAT)]
        out = ops.new(v.shape, FLOAT)
        near = upper(ops)
        mask = near
        del near
        state, *held = _scan(ops, (q, k, v, decay, read, pairs), (mask, out), before)
        out = ops.view(out, (batch, self.heads, length, self.head_dim))
        out = ops.slice(out, 2, tokens) if length > tokens else out
        out = ops.to(ops.contiguous(ops.transpose(out, 1, 2)), size)
        del q, k, v, beta, decay, v_beta, k_beta, mask, strict, pairs, system, row, sub, read, held
        return out, state

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.heads, self.head_dim, self.head_dim

    def _recurrent(self, run: LayerRun, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`recurrent_kimi_delta_attention` of one token."""
        ops, size = run.ops, given[0].size
        q, k, v, beta, decay = (ops.to(y, FLOAT) for y in given)
        q = _unit(ops, q)
        k = _unit(ops, k)
        q = ops.scaled(q)
        out, state = ops.new(v.shape, FLOAT), run.cache[STATE]
        batch, _, heads, width = v.shape
        each = ops.new((batch, heads, width, 1), FLOAT)
        state = ops.scaled(state)
        seen = ops.sum(ops.scaled(state), [2])
        delta = ops.scaled(ops.new(seen.shape, FLOAT))
        state = ops.add(state, ops.scaled(state))
        ops.sum(ops.scaled(state), [2])
        out = ops.to(out, size)
        del q, k, v, beta, decay, each, seen, delta
        return out, state

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, the convolution, decays and gates."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        name, width = "self_attn", self.heads * self.head_dim
        for part in ("q_proj", "k_proj", "v_proj"):
            yield from linear(f"{name}.{part}", width, hidden)
        yield Weight(name=f"{name}.conv1d", shape=(3 * width, 1, self.kernel))
        yield vector(f"{name}.forget_gate.dt_bias", width)
        yield vector(f"{name}.forget_gate.A_log", self.heads)
        yield from self._gate(f"{name}.forget_gate.f", hidden)
        yield from linear(f"{name}.b_proj", self.heads, hidden)
        yield from self._gate(f"{name}.g", hidden)
        yield vector(f"{name}.o_norm", self.head_dim)
        yield from linear(f"{name}.o_proj", hidden, width)

    def _gate(self, name: str, hidden: int) -> Iterator[Weight]:
        width = self.heads * self.head_dim
        if self.factorised:
            yield from linear(f"{name}_a_proj", self.head_dim, hidden)
            yield from linear(f"{name}_b_proj", width, self.head_dim)
        else:
            yield from linear(f"{name}_proj", width, hidden)

    def state(self) -> State:
        """The convolution's last inputs, and a float32 matrix for each head."""
        width = self.heads * self.head_dim
        return State(compute=3 * width * self.kernel, float32=width * self.head_dim)


def _unit(ops: Operations, x: Tensor) -> Tensor:
    """`l2norm`: x over the root of the sum of its squares, by a division."""
    root = ops.pointwise(ops.shifted(ops.sum(ops.mul(x, x), [-1])), saves="output")
    return ops.divided(x, root)


def _where(ops: Operations, flags: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """`torch.where(flags, x, other)`."""
    out = ops.new(x.shape, x.size)

    def rule(saved: list[Tensor], grads: list[Tensor | None]) -> list[Tensor | None]:
        zero = ops.new((), out_size)
        found: list[Tensor | None] = [ops.new(shape, out_size) for _ in range(2)]
        del zero
        return found

    shape, out_size = out.shape, out.size
    ops.record([x, other], [flags], rule, out)
    return out


def _across(ops: Operations, x: Tensor, dim: int) -> Tensor:
    """`x.unsqueeze(dim)`."""
    at = len(x.shape) + 1 + dim
    shape, strides = list(x.shape), list(x.strides)
    shape.insert(at, 1)
    strides.insert(at, 0)
    return ops.view(x, tuple(shape), tuple(strides))


def _over_channels(ops: Operations, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Products of all pairs of rows, each channel times its decay, summed: [..., C, C]."""
    rows, columns, pairs = parts
    made = ops.mul(ops.mul(_across(ops, rows, -2), _across(ops, columns, -3)), pairs)
    return ops.view(ops.sum(made, [-1]), made.shape[:-1])


def _solved(ops: Operations, system: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row, in place; the last copies of a row and of those above it."""
    row = sub = system
    for count in range(1, CHUNK):
        row = ops.clone(ops.slice(ops.selected(system, -2), -1, count))
        sub = ops.clone(ops.slice(ops.slice(system, -2, count), -1, count))
        made = ops.sum(ops.mul(column(ops, row), sub), [-2])
        made = ops.add(row, ops.view(made, row.shape))
        ops.placed(system, made)
        del made
    return row, sub


def _scan(
    ops: Operations,
    whole: tuple[Tensor, ...],
    into: tuple[Tensor, Tensor],
    before: list[Tensor],
) -> list[Tensor]:
    """All chunks: the last state, and what has names behind them.

    Without gradients the first ones stand for all.

    Args:
        ops: makes tensors.
        whole: of all chunks [B, H, chunks, ...] the queries, keys, values, summed decays, keys
            that read the state, and decays between pairs of tokens.
        into: what a token must not see, and what the results are copied to.
        before: the state before the first, which is taken from it: it goes with that chunk.
    """
    mask, out = into
    chunks, state = out.shape[2], before.pop()
    between = inside = behind = new = state
    for _ in range(chunks if ops.grad else enough_steps(chunks)):
        q, k, v, decay, read, pairs = (ops.selected(y, 2) for y in whole)
        between = ops.matmul(ops.mul(q, ops.pointwise(decay, saves="output")), state)
        inside = ops.masked(_over_channels(ops, (q, k, pairs)), mask)
        behind = ops.matmul(read, state)
        new = ops.subtracted(v, behind)
        ops.placed(out, ops.add(between, ops.matmul(inside, new)))
        kept = ops.mul(state, column(ops, ops.pointwise(ops.selected(decay, 2), saves="output")))
        left = ops.pointwise(ops.subtracted(ops.slice(decay, 2, 1), decay), saves="output")
        left = ops.mul(k, left)
        more = ops.matmul(ops.transpose(left, -1, -2), new)
        del left
        state = ops.add(kept, more)
        del kept, more
    return [state, between, inside, behind, new]
