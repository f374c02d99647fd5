"""Modules of Gemma 4: `modeling_gemma4.py` of transformers 5.23."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.architecture import Weight
from tritter_mem.models.expert_blocks import Experts, Routed
from tritter_mem.models.layer_orders import PER_LAYER
from tritter_mem.models.layer_run import LayerRun, by_token, normalised, rotated
from tritter_mem.models.shape_tensors import FLOAT, Tensor
from tritter_mem.models.transformers_blocks import Attention, Module, linear, vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4Attention(Attention):
    """Attention whose last layers read the keys and values of an earlier one of their kind.

    Attributes:
        keeps: whether later layers read its keys and values, which then stay to the end of a call.
    """

    keeps: bool = False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Gemma4TextAttention`."""
        ops, step = run.ops, run.step
        kind = f"keys and values, {'window' if self.window else 'full'}"
        q = self._normed(x, run, "q_proj", self.heads, self.norm_names[0])
        q = ops.transpose(self._turned(run, q), 1, 2)
        k, v = self._keys(x, run) if self.has_keys else step.shared[kind]
        if self.keeps:
            step.shared[kind] = (k, v)
        out = self._attend(run, q, k, v)
        out = ops.reshape(out, (step.batch, step.tokens, self.out_width))
        out = run.linear(out, f"{self.name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)

    def _heads(self, x: Tensor, run: LayerRun, name: str, heads: int) -> Tensor:
        """A projection [B, T, H, D]."""
        shape = (*x.shape[:2], heads, self.head_dim)
        return run.ops.view(run.linear(x, f"{self.name}.{name}"), shape)

    def _normed(self, x: Tensor, run: LayerRun, name: str, heads: int, norm: str) -> Tensor:
        states = self._heads(x, run, name, heads)
        states = run.norm(states, f"{self.name}.{norm}")
        return states  # noqa: RET504  (what was projected goes with its name)

    def _turned(self, run: LayerRun, x: Tensor) -> Tensor:
        """Rotated as [B, T, H, D]."""
        ops = run.ops
        cos, sin = (by_token(ops, angle) for angle in run.step.angles[self.window is not None])
        return rotated(ops, x, cos, sin)

    def _keys(self, x: Tensor, run: LayerRun) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, K, D] with all that is cached; values may be keys without norm."""
        ops = run.ops
        k = self._heads(x, run, "k_proj", self.kv_heads)
        v = self._heads(x, run, "v_proj", self.kv_heads) if self.has_values else k
        k = run.norm(k, f"{self.name}.{self.norm_names[1]}")
        k = self._turned(run, k)
        k = ops.transpose(k, 1, 2)
        v = normalised(ops, v)
        v = ops.transpose(v, 1, 2)
        k, v = run.update({"keys": k, "values": v}, self.window)
        return k, v


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma4Experts(Experts):
    """Experts that take the residual stream, beside an MLP."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Experts of the stream before the MLP, which is normed for them alone."""
        ops, shape = run.ops, x.shape
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        chosen = self.route(flat, run)
        run.returned += chosen
        states = run.norm(flat, "pre_feedforward_layernorm_2")
        return ops.view(self._chosen(states, run, chosen[1], chosen[2]), shape)

    def route(self, x: Tensor, run: LayerRun) -> Routed:
        """`Gemma4TextRouter`: of normed states, with a scale for each expert."""
        ops, weights = run.ops, run.weights
        x = normalised(ops, x)
        x = ops.scaled(ops.mul(x, weights[f"{self.inside}router.scale"]))
        scores = run.linear(x, f"{self.inside}{self.router}")
        chances = ops.softmax(scores, FLOAT)
        values, places = ops.topk(chances, self.chosen)
        ops.divided_in_place(values, ops.sum(values, [-1]))
        scales = weights[f"{self.inside}router.per_expert_scale"]
        values = ops.mul(values, ops.rows_of(scales, places))
        return chances, values, places


@dataclass(frozen=True, slots=True, kw_only=True)
class PerLayerEmbeddings(Module):
    """Embeddings that each layer has for itself, in one table.

    Attributes:
        width: of a layer's embedding.
        in_place: whether what is projected is scaled in place.
    """

    vocabulary: int
    layers: int
    width: int
    in_place: bool
    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """The table, and a projection of the model's embeddings."""
        wide = self.layers * self.width
        return (
            Weight(name="embed_tokens_per_layer", shape=(self.vocabulary, wide)),
            *linear("per_layer_model_projection", wide, hidden),
            vector("per_layer_projection_norm", self.width),
        )

    def prepare(self, ids: Tensor, embeds: Tensor, run: LayerRun) -> None:
        """`get_per_layer_inputs` and `project_per_layer_inputs`: [B, T, L, width]."""
        ops, shape = run.ops, (*ids.shape, self.layers, self.width)
        rows = ops.scaled(ops.embedding(ids, run.weights["embed_tokens_per_layer"]))
        rows = ops.view(rows, shape)
        made = run.linear(embeds, "per_layer_model_projection")
        made = made if self.in_place else ops.scaled(made)
        made = ops.view(made, shape)
        made = run.norm(made, "per_layer_projection_norm")
        run.step.shared[PER_LAYER] = (ops.scaled(ops.add(made, rows)),)
