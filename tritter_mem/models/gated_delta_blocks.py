"""Linear attention by the gated delta rule, and attention whose result is gated: Qwen.

What runs is transformers' own code in PyTorch, as without the packages fla and causal-conv1d, whose
kernels take less: `torch_chunk_gated_delta_rule` for several tokens, and for one
`torch_recurrent_gated_delta_rule`. What `solve_triangular` takes inside is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import ROTATIONS, LayerRun, halves
from tritter_mem.models.recurrent_parts import (
    STATE,
    convolved,
    enough_steps,
    goes_on,
    head_views,
    keep_state,
    remembered,
)
from tritter_mem.models.shape_tensors import BOOL, FLOAT, NotPlannedError, Operations, Tensor
from tritter_mem.models.transformers_blocks import Attention, Module, State, linear, vector

CHUNK = 64
"""Tokens that the rule takes at once."""
CHUNKS_TRAINED = 64
"""Of a training step's chunks: those of longer sequences run several at once."""


class _Inputs(NamedTuple):
    """What the projections of linear attention make.

    Attributes:
        mixed: queries, keys and values, [B, C, T].
        z: gates of the result.
        b: how fast heads learn. `a`: how fast they forget; [B, T, H] both.
        held: what has a name to the end. `parts`: until there are heads.
    """

    mixed: Tensor
    z: Tensor
    b: Tensor
    a: Tensor
    held: list[Tensor]
    parts: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedAttention(Attention):
    """Attention whose query projection makes a gate for the result too."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Qwen3_5Attention`."""
        ops, step, name = run.ops, run.step, self.name
        heads = (step.batch, step.tokens, self.heads)
        made = ops.view(run.linear(x, f"{name}.q_proj"), (*heads, 2 * self.head_dim))
        q, gate = halves(ops, made)
        del made
        gate = ops.reshape(gate, (*heads[:2], self.heads * self.head_dim))
        q = ops.transpose(run.norm(q, f"{name}.{self.norm_names[0]}"), 1, 2)
        k = self._projected(x, run, "k_proj", self.kv_heads, self.norm_names[1])
        v = self._projected(x, run, "v_proj", self.kv_heads, "")
        q, k = ROTATIONS[run.dialect.rotary](run, q, k, *step.angles[False])
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        out = ops.reshape(out, (*heads[:2], self.out_width))
        out = ops.mul(out, ops.pointwise(gate, saves="output"))
        out = run.linear(out, f"{name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta(Module):
    """Linear attention by the gated delta rule.

    Attributes:
        inputs: outputs of its input projections, by name.
        out: names of the output projection and of the norm before it.
        inputs_first: whether its input projections are made before those two.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    inputs: tuple[tuple[str, int], ...]
    out: tuple[str, str] = ("out_proj", "norm")
    inputs_first: bool = True
    ROLE = "mixer"

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, the convolution, and decays of each head."""
        name, values = "linear_attn", self.value_heads * self.value_dim
        out, norm = self.out
        inputs = [w for part, size in self.inputs for w in linear(f"{name}.{part}", size, hidden)]
        outputs = [
            vector(f"{name}.{norm}", self.value_dim),
            *linear(f"{name}.{out}", hidden, values),
        ]
        return (
            Weight(name=f"{name}.conv1d", shape=(self.conv_width, 1, self.kernel)),
            *(inputs + outputs if self.inputs_first else outputs + inputs),
            vector(f"{name}.dt_bias", self.value_heads),
            vector(f"{name}.A_log", self.value_heads),
        )

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Project, convolve, apply the rule, and gate what it gives: `Qwen3_5GatedDeltaNet`.

        Raises:
            NotPlannedError: its projections have other names than Qwen's.
        """
        ops = run.ops
        mixed, z, b, a, held, parts = self._inputs(x, run)
        decodes = goes_on(run)
        if not decodes:
            mixed = remembered(mixed, run, self.kernel)
        mixed = convolved(mixed, run, "linear_attn.conv1d")
        q, k, v = self._heads_of(ops, mixed)
        parts.clear()
        beta = ops.pointwise(b, saves="output")
        decay = self._decay(a, run)
        rule = self._recurrent if decodes else self._chunked
        out, state = rule(run, (q, k, v, beta, decay))
        keep_state(state, run)
        out = self._normed_rows(run, out, z)
        result = run.linear(out, f"linear_attn.{self.out[0]}")
        del mixed, z, b, a, held, q, k, v, beta, decay, out, state
        return result

    def _normed_rows(self, run: LayerRun, out: Tensor, z: Tensor) -> Tensor:
        """Normed and gated, [B, T, H * D]."""
        ops, (batch, tokens, heads, width) = run.ops, out.shape
        flat = (out.elements // width, width)
        gated = self._gated(run, ops.view(out, flat), ops.view(z, flat))
        return ops.view(gated, (batch, tokens, heads * width))

    def _inputs(self, x: Tensor, run: LayerRun) -> _Inputs:
        """What the projections make."""
        names = {name for name, _ in self.inputs}
        if "in_proj_qkvz" in names:
            return self._of_groups(x, run)
        if "in_proj_qkv" not in names:
            raise NotPlannedError(f"linear attention of {run.kind} models is not planned")
        ops, name = run.ops, "linear_attn"
        mixed = ops.transpose(run.linear(x, f"{name}.in_proj_qkv"), 1, 2)
        z = run.linear(x, f"{name}.in_proj_z")
        b = run.linear(x, f"{name}.in_proj_b")
        a = run.linear(x, f"{name}.in_proj_a")
        return _Inputs(mixed, z, b, a, [], [])

    def _of_groups(self, x: Tensor, run: LayerRun) -> _Inputs:
        """Projections whose outputs lie by key head: `fix_query_key_value_ordering`."""
        ops, (batch, tokens, _), name = run.ops, x.shape, "linear_attn"
        each = self.value_heads // self.key_heads
        widths = (self.key_dim, self.key_dim, each * self.value_dim, each * self.value_dim)
        whole = run.linear(x, f"{name}.in_proj_qkvz")
        small = run.linear(x, f"{name}.in_proj_ba")
        heads = (batch, tokens, self.key_heads)
        q, k, v, z = ops.split(ops.view(whole, (*heads, sum(widths))), 3, widths)
        b, a = ops.split(ops.view(small, (*heads, 2 * each)), 3, (each, each))
        v = ops.reshape(v, (batch, tokens, self.value_heads, self.value_dim))
        z = ops.reshape(z, (batch, tokens, self.value_heads, self.value_dim))
        b = ops.reshape(b, (batch, tokens, self.value_heads))
        a = ops.reshape(a, (batch, tokens, self.value_heads))
        parts = [
            ops.reshape(part, (batch, tokens, part.elements // (batch * tokens)))
            for part in (q, k, v)
        ]
        mixed = ops.transpose(ops.cat(parts, -1), 1, 2)
        return _Inputs(mixed, z, b, a, [whole, small], parts)

    def _heads_of(self, ops: Operations, mixed: Tensor) -> list[Tensor]:
        """Views [B, T, H, D] of queries, keys and values."""
        key, value = (self.key_heads, self.key_dim), (self.value_heads, self.value_dim)
        return head_views(ops, ops.transpose(mixed, 1, 2), (key, key, value))

    def _decay(self, a: Tensor, run: LayerRun) -> Tensor:
        """`-A_log.float().exp() * softplus(a.float() + dt_bias)`: [B, T, H] in float32."""
        ops, weights = run.ops, run.weights
        rates = ops.pointwise(ops.to(weights["linear_attn.A_log"], FLOAT), saves="output")
        rates = ops.scaled(rates)
        moved = ops.pointwise(ops.add(ops.to(a, FLOAT), weights["linear_attn.dt_bias"]))
        return ops.mul(rates, moved)

    def _wide(self, run: LayerRun, given: tuple[Tensor, ...]) -> list[Tensor]:
        """Heads first and in float32, as many heads of queries and keys as of values."""
        ops, (q, k, *others) = run.ops, given
        times = self.value_heads // self.key_heads
        if times > 1:
            q = ops.interleaved(q, 2, times)
            k = ops.interleaved(k, 2, times)

        def wide(x: Tensor) -> Tensor:
            turned = ops.transpose(x, 1, 2)
            return turned if x.size == FLOAT else ops.clone(turned, FLOAT)

        return [wide(x) for x in (q, k, *others)]

    def _chunked(self, run: LayerRun, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`torch_chunk_gated_delta_rule`: the result [B, T, H, D], and the state."""
        ops, size = run.ops, given[0].size
        batch, tokens = given[0].shape[:2]
        q, k, v, beta, decay = self._wide(run, given)
        q = _unit(ops, q)
        k = _unit(ops, k)
        q = ops.scaled(q)
        chunks = -(-tokens // CHUNK)
        length = chunks * CHUNK
        q, k, v = [ops.padded(x, 2, length) for x in (q, k, v)]
        beta, decay = [ops.padded(x, 2, length) for x in (beta, decay)]
        v_beta = ops.mul(v, column(ops, beta))
        k_beta = ops.mul(k, column(ops, beta))
        rows = (batch, self.value_heads, chunks, CHUNK)
        q, k, k_beta, v_beta = [ops.view(x, (*rows, x.shape[3])) for x in (q, k, k_beta, v_beta)]
        decay = ops.reshape(decay, rows)
        mask = upper(ops)
        sums = ops.cumsum(decay)
        pairs = ops.subtracted(column(ops, sums), ops.view(sums, (*rows[:3], 1, CHUNK)))
        pairs = ops.masked(pairs, mask)
        pairs = ops.pointwise(pairs, saves="output")
        system = ops.mul(ops.matmul(k_beta, ops.transpose(k, 3, 4)), pairs)
        inside = ops.mul(ops.matmul(q, ops.transpose(k, 3, 4)), pairs)
        decayed = ops.mul(k_beta, column(ops, ops.pointwise(sums, saves="output")))
        values = ops.solved(system, v_beta)
        read = ops.solved(system, decayed)
        before = [run.cache.get(STATE) or ops.new(self._state_shape(batch), FLOAT)]
        out = ops.new(values.shape, FLOAT, values.strides)
        q = ops.mul(q, column(ops, ops.pointwise(sums, saves="output")))
        k = ops.mul(k, column(ops, self._left(ops, sums)))
        each = ops.pointwise(ops.selected(sums, 3), saves="output")
        each = ops.view(each, (*rows[:3], 1, 1))
        state, new, between = _scan(ops, (q, k, values, read, inside, each), out, before)
        out = ops.reshape(out, (*rows[:2], length, self.value_dim))
        if length > tokens:
            out = ops.slice(out, 2, tokens)
        out = ops.clone(ops.transpose(out, 1, 2), size)
        del q, k, v, beta, decay, v_beta, k_beta, mask, sums, pairs, system, inside, decayed
        del values, read, each, new, between
        return out, state

    def _state_shape(self, batch: int) -> tuple[int, ...]:
        return batch, self.value_heads, self.key_dim, self.value_dim

    @staticmethod
    def _left(ops: Operations, sums: Tensor) -> Tensor:
        """Decay from each position to the end of its chunk."""
        return ops.pointwise(ops.subtracted(ops.slice(sums, 3, 1), sums), saves="output")

    def _recurrent(self, run: LayerRun, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """`torch_recurrent_gated_delta_rule` of one token."""
        ops, size = run.ops, given[0].size
        q, k, v, beta, decay = self._wide(run, given)
        q = _unit(ops, q)
        k = _unit(ops, k)
        q = ops.scaled(q)
        state, out = run.cache[STATE], ops.new(v.shape, FLOAT)
        factor = ops.new(decay.shape, FLOAT)
        state = ops.scaled(state)
        vector_shape = (*v.shape[:2], 1, v.shape[3])
        seen = ops.sum(ops.scaled(state), [2])
        delta = ops.scaled(ops.new(vector_shape, FLOAT))
        state = ops.add(state, ops.scaled(state))
        ops.sum(ops.scaled(state), [2])
        # One token's heads lie in order after the transposition, too.
        out = ops.view(out, (v.shape[0], 1, *v.shape[1::2]))
        out = ops.to(out, size)
        del q, k, v, beta, decay, factor, seen, delta
        return out, state

    def _gated(self, run: LayerRun, x: Tensor, gate: Tensor) -> Tensor:
        """`Qwen3_5RMSNormGated` of rows [N, D]."""
        ops, size = run.ops, x.size
        x = ops.to(x, FLOAT)
        variance = ops.mean(ops.square(x))
        x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
        x = ops.mul(run.weights[f"linear_attn.{self.out[1]}"], ops.to(x, size))
        x = ops.mul(x, ops.pointwise(ops.to(gate, FLOAT)))
        return ops.to(x, size)

    def state(self) -> State:
        """The convolution's last inputs, and a float32 matrix for each value head."""
        return State(
            compute=self.conv_width * self.kernel,
            float32=self.value_heads * self.key_dim * self.value_dim,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OlmoGatedDelta(GatedDelta):
    """The same with a projection for each part, of which those of heads follow the convolution.

    Attributes:
        doubled: whether what says how fast heads learn is doubled.
    """

    doubled: bool = False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`OlmoHybridGatedDeltaNet`."""
        ops, name = run.ops, "linear_attn"
        parts = [run.linear(x, f"{name}.{part}") for part in ("q_proj", "k_proj", "v_proj")]
        mixed = ops.transpose(ops.cat(parts, -1), 1, 2)
        parts.clear()
        decodes = goes_on(run)
        if not decodes:
            mixed = remembered(mixed, run, self.kernel)
        mixed = convolved(mixed, run, f"{name}.conv1d")
        q, k, v = self._heads_of(ops, mixed)
        beta = ops.pointwise(run.linear(x, f"{name}.b_proj"), saves="output")
        if self.doubled:
            beta = ops.scaled(beta)
        decay = self._decay(run.linear(x, f"{name}.a_proj"), run)
        rule = self._recurrent if decodes else self._chunked
        out, state = rule(run, (q, k, v, beta, decay))
        keep_state(state, run)
        gate = run.linear(x, f"{name}.g_proj")
        out = self._normed_rows(run, out, gate)
        out = run.linear(out, f"{name}.{self.out[0]}")
        del mixed, q, k, v, beta, decay, state, gate
        return out


def _unit(ops: Operations, x: Tensor) -> Tensor:
    """`l2norm`: x over the root of the sum of its squares."""
    inverse = ops.rsqrt(ops.shifted(ops.sum(ops.mul(x, x), [-1])))
    return ops.mul(x, inverse)


def upper(ops: Operations) -> Tensor:
    """What a chunk must not see."""
    ones = ops.new((CHUNK, CHUNK), BOOL)
    upper = ops.new(ones.shape, BOOL)
    del ones
    return upper


def column(ops: Operations, x: Tensor) -> Tensor:
    """`x.unsqueeze(-1)`."""
    return ops.view(x, (*x.shape, 1), (*x.strides, 1))


def _scan(
    ops: Operations, whole: tuple[Tensor, ...], out: Tensor, before: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """All chunks: the last state, new values, and what was read of the state before.

    Without gradients the first ones stand for all. With gradients several of many run as one of as
    many heads more, which keeps as much.

    Args:
        ops: makes tensors.
        whole: of all chunks [B, H, chunks, ...] the queries, keys, values, keys that read the
            state, scores inside of the chunk, and decays of the state.
        out: what the results are copied to.
        before: the state before the first, which is taken from it: it goes with that chunk.
    """
    chunks, state = out.shape[2], before.pop()
    at_once = _at_once(chunks) if ops.grad else 1
    if at_once > 1:
        whole = tuple(_as_heads(ops, x, at_once) for x in whole)
        batch, heads, *widths = state.shape
        state = ops.new((batch, heads * at_once, *widths), state.size)
        chunks //= at_once
    new = between = state
    for _ in range(chunks if ops.grad else enough_steps(chunks)):
        q, k, values, read, inside, each = whole
        new = ops.subtracted(ops.selected(values, 2), ops.matmul(ops.selected(read, 2), state))
        between = ops.matmul(ops.selected(q, 2), state)
        ops.placed(out, ops.add(between, ops.matmul(ops.selected(inside, 2), new)))
        state = ops.add(
            ops.mul(state, ops.selected(each, 2)),
            ops.matmul(ops.transpose(ops.selected(k, 2), 2, 3), new),
        )
    return state, new, between


def _at_once(chunks: int) -> int:
    """How many chunks run as one, so that there are at most `CHUNKS_TRAINED`; 1 where none fits."""
    for count in range(1, 2 * chunks // CHUNKS_TRAINED + 1):
        if chunks % count == 0 and chunks // count <= CHUNKS_TRAINED:
            return count
    return 1


def _as_heads(ops: Operations, x: Tensor, count: int) -> Tensor:
    """[B, H, C, ...] as [B, H * count, C / count, ...]: as many numbers in fewer chunks."""
    batch, heads, chunks, *rest = x.shape
    to_batch, to_head, *others = x.strides
    shape = (batch, heads * count, chunks // count, *rest)
    return ops.view(x, shape, (to_batch, to_head // count, *others))
