"""Attention over blocks of keys that an indexer chooses, and limited experts: MiniMax-M3."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.layer_run import ROTATIONS, LayerRun, halves
from tritter_mem.models.shape_tensors import BOOL, FLOAT, LONG, Operations, Tensor
from tritter_mem.models.transformers_blocks import Attention, FeedForward
from tritter_mem.models.transformers_caches import GROWING, INDEX_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAttention(Attention):
    """Attention whose tokens read some blocks of keys: those that an indexer chooses.

    Attributes:
        index_heads: of the indexer. `index_dim`: width of one.
        block: keys of a block.
        chosen: blocks that a token reads. `near`: of those before it, which it always reads.
    """

    index_heads: int
    index_dim: int
    block: int
    chosen: int
    near: int

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`MiniMaxM3VLAttention` with an indexer."""
        ops, step = run.ops, run.step
        q = self._projected(x, run, "q_proj", self.heads, self.norm_names[0])
        k = self._projected(x, run, "k_proj", self.kv_heads, self.norm_names[1])
        v = self._projected(x, run, "v_proj", self.kv_heads, "")
        q, k = ROTATIONS[run.dialect.rotary](run, q, k, *step.angles[False])
        k, v = run.update({"keys": k, "values": v})
        places = self._places(x, run)
        mask = self._mask(run, places, k.shape[2], q.size)
        out = self._attended(run, q, k, v, mask)
        out = ops.reshape(out, (step.batch, step.tokens, self.out_width))
        out = run.linear(out, f"{self.name}.{self.out}")
        del mask, places
        return out

    def _places(self, x: Tensor, run: LayerRun) -> Tensor:
        """Blocks that each token reads, [B, H, S, chosen]: `MiniMaxM3VLIndexer.forward`."""
        ops, step = run.ops, run.step
        name, (batch, tokens, _) = f"{self.name}.indexer", x.shape
        q = ops.view(
            run.linear(x, f"{name}.q_proj"), (batch, tokens, self.index_heads, self.index_dim)
        )
        q = ops.transpose(run.norm(q, f"{name}.q_norm"), 1, 2)
        k = ops.view(run.linear(x, f"{name}.k_proj"), (batch, tokens, 1, self.index_dim))
        k = ops.transpose(run.norm(k, f"{name}.k_norm"), 1, 2)
        q, k = ROTATIONS[run.dialect.rotary](run, q, k, *step.angles[False])
        k = self._kept(k, run)
        keys = k.shape[2]
        blocks = -(-keys // self.block)
        scores = ops.matmul(ops.to(q, FLOAT), ops.transpose(ops.to(k, FLOAT), -1, -2))
        positions = ops.new((keys,), LONG)
        future = ops.new((run.step.batch, 1, tokens, keys), BOOL)
        scores = ops.masked(scores, future)
        if keys % self.block:
            scores = ops.padded(scores, 3, blocks * self.block)
        whole = (batch, self.index_heads, tokens, blocks, self.block)
        best = ops.view(ops.extreme(ops.view(scores, whole), [-1]), whole[:-1])
        own = ops.new((batch, tokens), LONG)
        local = ops.new((self.near,), LONG)
        near = ops.scaled(ops.new((batch, tokens, self.near), LONG))
        values, found = ops.topk(best, min(self.chosen, blocks))
        none = ops.new(found.shape, BOOL)
        result = ops.new(found.shape, LONG)
        del none
        del q, k, scores, positions, future, best, own, local, near, values, found
        return result

    @staticmethod
    def _kept(k: Tensor, run: LayerRun) -> Tensor:
        """All index keys; the first ones of a cache that grows are cached as they are."""
        if not run.step.caches or run.step.cache_kind is not GROWING:
            return run.update({INDEX_KEYS: k})[0]
        before = run.cache.get(INDEX_KEYS)
        k = k if before is None else run.ops.cat([before, k], 2)
        run.ops.account(k, "kv_cache")
        run.cache[INDEX_KEYS] = k
        return k

    def _mask(self, run: LayerRun, places: Tensor, keys: int, size: int) -> Tensor:
        """Numbers [B, H, S, K] to add to scores: `build_block_mask`."""
        ops, (batch, heads, tokens, _) = run.ops, places.shape
        blocks = -(-keys // self.block)
        none = ops.new(places.shape, BOOL)
        safe = ops.new(places.shape, LONG)
        del none
        bias = ops.new((batch, heads, tokens, blocks + 1), size)
        kept = ops.interleaved(ops.new((batch, heads, tokens, blocks), BOOL), -1, self.block)
        kept = ops.slice(kept, -1, keys)
        kept = ops.interleaved(kept, 1, self.heads // heads)
        seen, held = run.step.masks[self.window], []
        if seen is None:
            held = [ops.new((keys,), LONG), ops.new((run.step.batch, 1, tokens, keys), BOOL)]
            past = ops.new(held[1].shape, BOOL)
            both = ops.new(kept.shape, BOOL)
            del past
        else:
            both = ops.new(kept.shape, BOOL)
        zeros, others = ops.new(both.shape, size), ops.new(both.shape, BOOL)
        mask = ops.new(both.shape, size)
        del zeros, others, safe, bias, kept, both, held
        return mask


def _limited(ops: Operations, held: list[Tensor]) -> Tensor:
    """Gate and up with limits, the gate times its sigmoid: [..., N] of what was made, [..., 2 * N].

    Args:
        ops: makes tensors.
        held: what was made, to which what has names beside it is added.
    """
    gate, up = halves(ops, held[0])
    gate = ops.clamped(gate, limits=1)
    up = ops.clamped(up)
    glu = ops.mul(gate, ops.pointwise(ops.scaled(gate), saves="output"))
    held += [gate, up, glu]
    return ops.mul(ops.shifted(up), glu)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidFeedForward(FeedForward):
    """An MLP with limits, whose gate is multiplied by its sigmoid."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`MiniMaxM3VLDenseMLP`."""
        ops = run.ops
        held = [run.linear(x, f"{self.name}.{self.fused}")]
        made = _limited(ops, held)
        out = run.linear(made, f"{self.name}.{self.names[2]}")
        del made, held
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidExperts(Experts):
    """Experts of that kind behind a shared one, multiplied by a number."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`MiniMaxM3VLSparseMoeBlock`."""
        ops, shape = run.ops, x.shape
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        inner = SigmoidFeedForward(
            inner=self.shared,
            fused=self.shared_fused,
            name=f"{self.inside}{self.shared_name}",
        )
        shared = inner.run(flat, run)
        logits, values, places = self.route(flat, run)
        flat = self._chosen(flat, run, values, places)
        flat = ops.scaled(flat)
        flat = ops.add(flat, shared)
        del shared, logits, values, places
        return ops.view(flat, shape)

    def _through(self, run: LayerRun, made: Tensor) -> Tensor:
        """`_apply_gate`."""
        return _limited(run.ops, [made])
