"""How the parts of a layer are joined: where norms stand, and what is added to the residual stream.

Each function here is the `forward` of a decoder layer of transformers 5.23, line by line, as what a
local name holds is there until the name goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tritter_mem.models.layer_run import LayerRun, activated
from tritter_mem.models.shape_tensors import FLOAT, NotPlannedError, Tensor

PER_LAYER = "per-layer inputs"
"""What each layer takes a part of, in `Step.shared`: [B, T, layers, width]."""

LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
"""Names of norms before attention and MLP in most families."""

Part = Callable[[Tensor, LayerRun], Tensor]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer runs.

    Attributes:
        mixers: attention, and what stands in its place, in order.
        mlps: MLPs and experts, in order.
    """

    mixers: tuple[Part, ...]
    mlps: tuple[Part, ...]

    def one_each(self) -> tuple[Part, Part]:
        """The mixer and the MLP of a layer that has one of each.

        Raises:
            NotPlannedError: it has others.
        """
        if len(self.mixers) != 1 or len(self.mlps) != 1:
            raise NotPlannedError("a layer without one attention and one MLP is not planned")
        return self.mixers[0], self.mlps[0]


def _before(x: Tensor, run: LayerRun, parts: Parts, names: tuple[str, ...] | None = None) -> Tensor:
    """A norm before each part."""
    ops, (first, second) = run.ops, names or run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = ops.add(residual, _scaled(run, x))
    residual = x
    x = run.norm(x, second)
    x = mlp(x, run)
    return ops.add(residual, _scaled(run, x))


def _before_kept(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """The same, and what attention returned has a name to the end: Llama 4."""
    ops, (first, second) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = run.norm(x, first)
    attended = mixer(x, run)
    x = ops.add(residual, attended)
    residual = x
    x = run.norm(x, second)
    x = mlp(x, run)
    total = ops.add(residual, x)
    del attended
    return total


def _before_all_kept(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """The same, and the layer's input has a name to the end: LFM2."""
    ops, (first, second) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = ops.add(mixer(run.norm(x, first), run), residual)
    x = ops.add(x, mlp(run.norm(x, second), run))
    del residual
    return x


def _scaled(run: LayerRun, x: Tensor) -> Tensor:
    return run.ops.scaled(x) if run.dialect.scales_residual else x


def _behind(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """A norm behind each part: OLMo 2, EXAONE 4."""
    ops, (first, second) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = mixer(x, run)
    x = run.norm(x, first)
    x = ops.add(residual, x)
    residual = x
    x = mlp(x, run)
    x = run.norm(x, second)
    return ops.add(residual, x)


def _before_or_behind(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Norms before the parts of layers that have them there, else behind: OLMo Hybrid."""
    if LLAMA_NORMS[0] not in run.weights:
        return _behind(x, run, parts)
    return _before(x, run, parts, LLAMA_NORMS)


def _around(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Norms before and behind each part: Gemma 2 and 3."""
    ops, (first, second, third, fourth) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = run.norm(x, second)
    x = ops.add(residual, x)
    residual = x
    x = run.norm(x, third)
    x = mlp(x, run)
    x = run.norm(x, fourth)
    return ops.add(residual, x)


def _beside(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Attention and MLP of the same norm's result: Cohere."""
    ops = run.ops
    mixer, mlp = parts.one_each()
    residual = x
    x = run.norm(x, run.dialect.names[0])
    attended = mixer(x, run)
    passed = mlp(x, run)
    return ops.add(ops.add(residual, attended), passed)


def _state_space_beside(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """A state space and attention of the same norm's result, each scaled: Falcon-H1."""
    ops, (first, second) = run.ops, run.dialect.names
    (space, attention), (mlp,) = parts.mixers, parts.mlps
    residual = x
    x = run.norm(x, first)
    states = space(x, run)
    states = ops.scaled(states)
    attended = attention(ops.scaled(x), run)
    attended = ops.scaled(attended)
    x = ops.add(states, attended)
    x = ops.add(residual, x)
    residual = x
    x = run.norm(x, second)
    x = mlp(x, run)
    total = ops.add(residual, x)
    del states, attended
    return total


def _experts_first(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Experts, where there are any, and a shared MLP of the same norm's result: Granite."""
    ops, (first, second) = run.ops, run.dialect.names
    (mixer,), (*experts, shared) = parts.mixers, parts.mlps
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = ops.add(residual, _scaled(run, x))
    residual = x
    x = run.norm(x, second)
    for part in experts:
        routed = part(x, run)
        run.returned.append(routed)
        x = ops.add(routed, shared(x, run))
    if not experts:
        x = shared(x, run)
    return ops.add(residual, _scaled(run, x))


def _single(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """One part a layer, with a norm before it: Nemotron-H, Mamba.

    Raises:
        NotPlannedError: there are several.
    """
    ops, found = run.ops, (*parts.mixers, *parts.mlps)
    if len(found) != 1:
        raise NotPlannedError("a layer of several parts with one norm is not planned")
    residual = x
    x = run.norm(ops.to(x, run.step.size), run.dialect.names[0])
    if run.dialect.float_residual:
        residual = ops.to(residual, FLOAT)
    x = found[0](x, run)
    return ops.add(residual, x)


def _gemma4(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Norms around each part; experts beside the MLP; an embedding of the layer behind them."""
    ops, (first, second, third, fourth) = run.ops, run.dialect.names
    (mixer,), (mlp, *experts) = parts.mixers, parts.mlps
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = run.norm(x, second)
    x = ops.add(residual, x)
    residual = x
    x = run.norm(x, third)
    x = mlp(x, run)
    for part in experts:
        dense = run.norm(x, "post_feedforward_layernorm_1")
        routed = part(residual, run)
        routed = run.norm(routed, "post_feedforward_layernorm_2")
        x = ops.add(dense, routed)
        run.returned += [dense, routed]
    x = run.norm(x, fourth)
    x = ops.add(residual, x)
    if PER_LAYER not in run.step.shared:
        return x
    residual = x
    x = run.linear(x, "per_layer_input_gate")
    x = activated(run, x)
    x = ops.mul(x, _of_layer(run))
    x = run.linear(x, "per_layer_projection")
    x = run.norm(x, "post_per_layer_input_norm")
    return ops.add(residual, x)


def _of_layer(run: LayerRun) -> Tensor:
    """A layer's part [B, T, width] of the per-layer inputs."""
    ops, (inputs,) = run.ops, run.step.shared[PER_LAYER]
    if inputs.shape[1] != run.step.tokens:
        inputs = ops.slice(inputs, 1, run.step.tokens)
    part = ops.slice(inputs, 2, 1)
    batch, tokens, _, width = part.shape
    return ops.view(part, (batch, tokens, width), (*part.strides[:2], 1))


ORDERS: Mapping[str, Callable[[Tensor, LayerRun, Parts], Tensor]] = {
    "before": _before,
    "before, kept": _before_kept,
    "before, all kept": _before_all_kept,
    "behind": _behind,
    "before or behind": _before_or_behind,
    "around": _around,
    "beside": _beside,
    "state space beside": _state_space_beside,
    "experts first": _experts_first,
    "single": _single,
    "Gemma 4": _gemma4,
}
