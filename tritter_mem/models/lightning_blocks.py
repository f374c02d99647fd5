"""Lightning attention of MiniMax-01, and the attention beside it, whose cache is its own."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import LayerRun
from tritter_mem.models.recurrent_parts import STATE
from tritter_mem.models.shape_tensors import Tensor
from tritter_mem.models.transformers_blocks import Attention, Module, State, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOfOwnCache(Attention):
    """Attention of a model that has its own cache class: `MiniMaxCache`."""

    def has_static_cache(self) -> bool:
        """It has none."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LightningAttention(Module):
    """Linear attention with a fixed decay for each head.

    Attributes:
        block: tokens that run at once, for which a checkpoint holds tables of decays.
    """

    heads: int
    head_dim: int
    block: int
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`MiniMaxLightningAttention`."""
        ops, (batch, tokens, _), width = run.ops, x.shape, self.heads * self.head_dim
        made = ops.pointwise(run.linear(x, "self_attn.qkv_proj"))
        heads = ops.view(made, (batch, tokens, self.heads, 3 * self.head_dim))
        q, k, v = (ops.transpose(y, 1, 2) for y in ops.split(heads, 3, [self.head_dim] * 3))
        rule = self._by_token if STATE in run.cache else self._by_block
        held: list[Tensor | None] = []
        out = rule(run, (q, k, v), held)
        out = ops.reshape(ops.transpose(out, 1, 2), (batch, tokens, width))
        out = run.norm(out, "self_attn.norm")
        gate = ops.pointwise(run.linear(x, "self_attn.output_gate"), saves="output")
        out = ops.mul(gate, out)
        del gate
        out = run.linear(out, "self_attn.out_proj")
        del made, heads, q, k, v, held
        return out

    def _by_block(
        self, run: LayerRun, given: tuple[Tensor, Tensor, Tensor], held: list[Tensor | None]
    ) -> Tensor:
        """Blocks of tokens, each behind the state that the one before left: [B, H, T, D]."""
        q, k, v = given
        ops, (batch, heads, tokens, width) = run.ops, q.shape
        tables = [run.weights[f"self_attn.{name}_decay"] for name in ("query", "key", "diagonal")]
        state = ops.new((batch, heads, width, width), v.size)
        parts: list[Tensor] = []
        decay = inside = made = between = one = more = None
        for start in range(0, tokens, self.block):
            size = min(self.block, tokens - start)
            some_q, some_k, some_v = (ops.slice(y, 2, size) for y in (q, k, v))
            of_q, of_k = (ops.slice(table, 1, size) for table in tables[:2])
            both = ops.slice(ops.slice(tables[2], 1, size), 2, size)
            decay = self._decay(run, negated_alone=False)
            inside = ops.matmul(some_q, ops.transpose(some_k, -1, -2))
            made = ops.matmul(ops.mul(inside, both), some_v)
            between = ops.matmul(ops.mul(some_q, of_q), state)
            one = ops.add(between, made)
            parts.append(one)
            more = ops.matmul(ops.transpose(ops.mul(some_k, of_k), -1, -2), some_v)
            state = ops.add(ops.mul(state, decay), more)
        out = ops.cat(parts, -2)
        parts.clear()
        self._keep(run, state)
        held += [one, more, between, made, inside, decay]
        return out

    def _by_token(
        self, run: LayerRun, given: tuple[Tensor, Tensor, Tensor], held: list[Tensor | None]
    ) -> Tensor:
        """Behind the state of earlier tokens: [B, H, 1, D]."""
        q, k, v = given
        ops, state = run.ops, run.cache[STATE]
        decay = self._decay(run, negated_alone=True)
        more = ops.matmul(ops.transpose(k, -1, -2), v)
        state = ops.add(ops.mul(decay, state), more)
        one = ops.matmul(q, state)
        out = ops.cat([one], -2)
        held += [run.cache[STATE], one, more, decay]
        self._keep(run, state)
        return out

    @staticmethod
    def _decay(run: LayerRun, *, negated_alone: bool) -> Tensor:
        """Of each head, [H, 1, 1], over some tokens or over one."""
        ops = run.ops
        rate = ops.scaled(run.weights["self_attn.slope_rate"])
        return ops.pointwise(rate if negated_alone else ops.scaled(rate), saves="output")

    @staticmethod
    def _keep(run: LayerRun, state: Tensor) -> None:
        """In the cache, or as what the layer does not look at."""
        if run.step.caches:
            run.ops.account(state, "kv_cache")
            run.cache[STATE] = state
        else:
            run.returned.append(state)

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, the norm and the output's gate."""
        name, width = "self_attn", self.heads * self.head_dim
        return (
            vector(f"{name}.norm", width),
            *linear(f"{name}.qkv_proj", 3 * width, hidden),
            *linear(f"{name}.out_proj", hidden, width),
            *linear(f"{name}.output_gate", width, hidden),
            *(
                Weight(name=f"{name}.{table}", shape=(self.heads, *shape), is_parameter=False)
                for table, shape in (
                    ("slope_rate", (1, 1)),
                    ("query_decay", (self.block, 1)),
                    ("key_decay", (self.block, 1)),
                    ("diagonal_decay", (self.block, self.block)),
                )
            ),
        )

    def state(self) -> State:
        """A matrix for each head."""
        return State(compute=self.heads * self.head_dim**2)
