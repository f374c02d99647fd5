"""Latent attention over tokens that an indexer chooses: DeepSeek V3.2, GLM-5.

transformers scores every token, and masks those that are not chosen: each layer takes the scores of
all heads of the indexer in float32, for all pairs of tokens that run.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.layer_run import ROTATIONS, LayerRun, by_token, rotated_pairs
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    LONG,
    QUANTISED,
    NotPlannedError,
    Operations,
    Tensor,
)
from tritter_mem.models.transformers_blocks import LatentAttention

CHOSEN = "chosen tokens"
"""Of the layer before, in `Step.shared`."""
PLACE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedAttention(LatentAttention):
    """Latent attention, whose mask leaves the tokens that an indexer chooses.

    Attributes:
        index_heads: heads of the indexer. `index_dim`: their width.
        chosen: tokens that it chooses.
        chooses: False where the tokens are those of the layer before.
        hands_on: whether the next layer gets them.
        index_rotary: of `ROTATIONS`, how the indexer rotates.
    """

    index_heads: int
    index_dim: int
    chosen: int
    chooses: bool = True
    hands_on: bool = False
    index_rotary: str = "halves"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV32Attention`.

        Raises:
            NotPlannedError: its queries are not factorised.
        """
        if self.gate or self.sinks or not self.has_latent or not self.query_rank:
            raise NotPlannedError(f"activations of {run.kind} attention are not planned")
        ops, step, name = run.ops, run.step, self.name
        heads = (step.batch, step.tokens, self.heads)
        resid = run.norm(run.linear(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm")
        q = ops.view(run.linear(resid, f"{name}.q_b_proj"), (*heads, self.nope_dim + self.rope_dim))
        q_pass, q_rot = ops.split(ops.transpose(q, 1, 2), -1, [self.nope_dim, self.rope_dim])
        compressed, latent, k_rot = self._compressed(x, run)
        q_rot, k_rot = ROTATIONS[run.dialect.rotary](run, q_rot, k_rot, *step.angles[False])
        latent, k_rot = run.update({"keys": latent, "values": k_rot})
        query = ops.cat([q_pass, q_rot], -1)
        k, v = self._expanded(latent, k_rot, run)
        places = self._places(x, resid, run)
        mask, hidden = self._mask(ops, places, k.shape[2])
        out = ops.attention(query, k, v, mask, False)
        out = ops.contiguous(ops.transpose(out, 1, 2))
        out = ops.view(out, (*heads[:2], self.heads * self.value_dim))
        out = run.linear(out, f"{name}.o_proj")
        del resid, q, q_pass, compressed, places, mask, hidden
        return out

    def _places(self, x: Tensor, resid: Tensor, run: LayerRun) -> Tensor:
        """Of the tokens that each token reads, [B, S, chosen]."""
        shared = run.step.shared
        before = shared.get(CHOSEN, ())
        run.returned += before
        places = self._choose(x, resid, run) if self.chooses else before[0]
        if self.hands_on:
            shared[CHOSEN] = (places,)
        return places

    def _choose(self, x: Tensor, resid: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV32Indexer`: the largest of all scores."""
        ops, name, (batch, tokens, _) = run.ops, f"{self.name}.indexer", x.shape
        with ops.without_gradients():
            q, k, *held = self._index_keys(x, resid, run)
            turned = ops.transpose(k, 2, 3)
            scores = ops.matmul(ops.to(q, FLOAT), ops.to(turned, FLOAT))
            scores = ops.scaled(scores)
            scores = ops.pointwise(scores)
            weight = run.weights[f"{name}.weights_proj"]
            given = x if weight.size == QUANTISED else ops.to(x, weight.size)
            weights = ops.to(ops.linear(given, weight), FLOAT)
            weights = ops.scaled(weights)
            del given
            whole = (batch, tokens, k.shape[2])
            summed = ops.matmul(ops.view(weights, (batch, tokens, 1, self.index_heads)), scores)
            summed = ops.view(summed, whole)
            others = ops.new(whole, BOOL)
            summed = ops.pointwise(summed)
            del others
            places = ops.topk(summed, min(self.chosen, whole[2]))[1]
            places = ops.to(places, PLACE_BYTES)
            del q, k, held, turned, scores, weights, summed
            return places

    def _index_keys(self, x: Tensor, resid: Tensor, run: LayerRun) -> tuple[Tensor, ...]:
        """Queries [B, S, H, D] of the indexer, its keys [B, 1, T, D] with those before, and parts.

        What the parts hold is there until tokens are chosen.
        """
        ops, name, (batch, tokens, _) = run.ops, f"{self.name}.indexer", x.shape
        cos, sin = (by_token(ops, angle) for angle in run.step.angles[False])
        parts = [self.rope_dim, self.index_dim - self.rope_dim]
        shape = (batch, tokens, self.index_heads, self.index_dim)
        q = ops.view(run.linear(resid, f"{name}.wq_b"), shape)
        q_rot, q_pass = ops.split(q, -1, parts)
        k = _layer_norm(ops, run.linear(x, f"{name}.wk"))
        k = ops.view(k, (batch, tokens, 1, self.index_dim))
        k_rot, k_pass = ops.split(k, -1, parts)
        q_rot, k_rot = ROTATIONS[self.index_rotary](run, q_rot, k_rot, cos, sin)
        q = ops.cat([q_rot, q_pass], -1)
        k = ops.cat([k_rot, k_pass], -1)
        k = ops.view(k, (batch, 1, tokens, self.index_dim))
        (k,) = run.update({"index keys": k})
        return q, k, q_rot, q_pass, k_rot, k_pass

    def _mask(self, ops: Operations, places: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """What attention may read [B, 1, S, T], and what the indexer hides."""
        shape = (*places.shape[:2], keys)
        ones, long = ops.new(shape, BOOL), ops.to(places, LONG)
        hidden = ops.new(shape, BOOL)
        del ones, long
        others = ops.new(shape, BOOL)
        mask = ops.new((shape[0], 1, *shape[1:]), BOOL)
        del others
        return mask, hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedLatentAttention(IndexedAttention):
    """The same with queries of one matrix, and with latents that later layers use too.

    Attributes:
        stores: whether later layers use its latent; those without one use the last of their kind,
            with rotation or without.
    """

    stores: bool = False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`MistralLarge4TextAttention`."""
        ops, step, name = run.ops, run.step, self.name
        heads = (step.batch, step.tokens, self.heads)
        q = ops.view(run.linear(x, f"{name}.q_proj"), (*heads, self.nope_dim + self.rope_dim))
        q = ops.transpose(q, 1, 2)
        q_pass, q_rot = ops.split(q, -1, [self.nope_dim, self.rope_dim])
        latent, k_rot, held = self._latent(x, run)
        if self.rope_dim:
            q_rot = rotated_pairs(ops, q_rot, *step.angles[False])
        if self.has_latent:
            if self.rope_dim:
                k_rot = rotated_pairs(ops, k_rot, *step.angles[False])
            latent, k_rot = run.update({"keys": latent, "values": k_rot})
        if self.stores:
            step.shared[self._kind] = (latent, k_rot)
        query = ops.cat([q_pass, q_rot], -1)
        query = self._scaled(run, query, f"{name}.softmax_scaling", tokens_first=False)
        k, v = self._expanded(latent, k_rot, run)
        places = self._places(x, x, run)
        mask, hidden = self._mask(ops, places, k.shape[2])
        out = ops.attention(query, k, v, mask, False)
        out = ops.contiguous(ops.transpose(out, 1, 2))
        out = ops.view(out, (*heads[:2], self.heads * self.value_dim))
        out = run.linear(out, f"{name}.o_proj")
        del q, q_pass, held, places, mask, hidden
        return out

    @property
    def _kind(self) -> str:
        return "latent with rotation" if self.rope_dim else "latent without rotation"

    def _latent(self, x: Tensor, run: LayerRun) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The latent, the key that rotates, and what is there beside them."""
        if not self.has_latent:
            latent, k_rot = run.step.shared[self._kind]
            return latent, k_rot, []
        compressed, latent, k_rot = self._compressed(x, run)
        return latent, k_rot, [compressed]

    @staticmethod
    def _scaled(run: LayerRun, q: Tensor, name: str, *, tokens_first: bool) -> Tensor:
        """Queries times a number for each head and position: `MistralLarge4TextSoftmaxScaling`.

        Args:
            run: of the layer.
            q: queries, of four dimensions.
            name: of the weights.
            tokens_first: whether their second dimension is of tokens, and the third of heads.
        """
        ops, step = run.ops, run.step
        shape = (step.batch if step.caches else 1, step.tokens)
        numbers = ops.scaled(ops.new(shape, LONG), FLOAT)
        numbers = ops.to(ops.scaled(numbers), q.size)
        scale, bias = (ops.to(run.weights[f"{name}.{part}"], q.size) for part in ("scale", "bias"))
        rows = (shape[0], shape[1], 1) if tokens_first else (shape[0], 1, shape[1])
        each = (1, 1, scale.shape[0]) if tokens_first else (1, scale.shape[0], 1)
        factor = ops.mul(ops.view(scale, each), ops.view(numbers, rows))
        factor = ops.add(factor, ops.view(bias, each))
        result = ops.mul(q, ops.view(factor, (*factor.shape, 1)))
        del numbers, scale, bias, factor
        return result

    def _index_keys(self, x: Tensor, resid: Tensor, run: LayerRun) -> tuple[Tensor, ...]:
        """`MistralLarge4TextIndexer`: queries of the normed input, scaled as those of attention."""
        del resid
        ops, name, (batch, tokens, _) = run.ops, f"{self.name}.indexer", x.shape
        q = _layer_norm(ops, x)
        q = run.linear(q, f"{name}.wq_b")
        q = ops.view(q, (batch, tokens, self.index_heads, self.index_dim))
        q = self._scaled(run, q, f"{name}.softmax_scaling", tokens_first=True)
        k = _layer_norm(ops, run.linear(x, f"{name}.wk"))
        k = ops.view(k, (batch, tokens, 1, self.index_dim))
        held: list[Tensor] = []
        if self.rope_dim:
            cos, sin = (by_token(ops, angle) for angle in run.step.angles[False])
            parts = [self.rope_dim, self.index_dim - self.rope_dim]
            q_rot, q_pass = ops.split(q, -1, parts)
            k_rot, k_pass = ops.split(k, -1, parts)
            q_rot = rotated_pairs(ops, q_rot, cos, sin)
            k_rot = rotated_pairs(ops, k_rot, cos, sin)
            q = ops.cat([q_rot, q_pass], -1)
            k = ops.cat([k_rot, k_pass], -1)
            held = [q_rot, q_pass, k_rot, k_pass]
        k = ops.view(k, (batch, 1, tokens, self.index_dim))
        (k,) = run.update({"index keys": k})
        return q, k, *held


def _layer_norm(ops: Operations, x: Tensor) -> Tensor:
    """Over the last dimension, with a weight and a bias, without a gradient."""
    out = ops.new(x.shape, x.size)
    rows = x.elements // x.shape[-1]
    ops.inside([rows * FLOAT, rows * FLOAT])
    return out
