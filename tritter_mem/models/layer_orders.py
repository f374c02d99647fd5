"""How the parts of a layer are joined: where norms stand, and what is added to the residual stream.

Each function here is the `forward` of a decoder layer of transformers 5.23, line by line, as what a
local name holds is there until the name goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tritter_mem.models.hyper_connections import joined, mixed
from tritter_mem.models.layer_run import LayerRun, Step, activated
from tritter_mem.models.shape_tensors import FLOAT, NotPlannedError, Tensor

PER_LAYER = "per-layer inputs"
"""What each layer takes a part of, in `Step.shared`: [B, T, layers, width]."""

EMBEDDINGS = "embeddings"
"""What the first layer took, in `Step.shared`: [B, T, H]."""
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
    """Norms before each part and, where there are any, behind: Gemma 2 and 3, LFM3."""
    ops, (first, second, third, fourth) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = run.norm(x, second) if second in run.weights else x
    x = ops.add(residual, x)
    residual = x
    x = run.norm(x, third)
    x = mlp(x, run)
    x = run.norm(x, fourth) if fourth in run.weights else x
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
    if run.part is not None:
        x = _with_part(x, run.part, run)
    if "layer_scalar" in run.weights:
        ops.multiplied_in_place(x, run.weights["layer_scalar"])
    return x


def _with_part(x: Tensor, part: Tensor, run: LayerRun) -> Tensor:
    """The stream and what is made of it with the layer's part of the per-layer inputs."""
    residual = x
    x = run.linear(x, "per_layer_input_gate")
    x = activated(run, x)
    x = run.ops.mul(x, part)
    x = run.linear(x, "per_layer_projection")
    x = run.norm(x, "post_per_layer_input_norm")
    return run.ops.add(residual, x)


def _gemma3n(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """One of several residual streams [N, B, T, H], by which the others are moved: AltUp."""
    ops, (first, second, third, fourth) = run.ops, run.dialect.names
    mixer, mlp = parts.one_each()
    predictions = _predicted(x, run)
    active = ops.selected(predictions, 0)
    normed = run.norm(active, first)
    laurel = _low_rank(normed, run)
    attended = mixer(normed, run)
    attended = run.norm(attended, second)
    gated = ops.add(active, attended)
    summed = ops.scaled(ops.add(gated, laurel))
    before = run.norm(summed, third)
    passed = mlp(before, run)
    behind = run.norm(passed, fourth)
    activated_one = ops.add(summed, behind)
    corrected = _corrected(predictions, activated_one, run)
    one = ops.clone(ops.selected(corrected, 0))
    if run.dialect.scales_residual:
        one = ops.mul(one, run.weights["altup.correct_output_scale"])
    one = run.linear(one, "per_layer_input_gate")
    one = activated(run, one)
    if run.part is not None:
        one = ops.mul(one, run.part)
    one = run.linear(one, "per_layer_projection")
    one = run.norm(one, "post_per_layer_input_norm")
    ops.added_behind(corrected, one)
    del predictions, active, normed, laurel, attended, gated, summed, before, passed, behind
    del activated_one, one
    return corrected


def _hyper_connected(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Several residual streams [B, T, N, H], of which each part takes a mix: DeepSeek-V4."""
    first, second = run.dialect.names
    mixer, mlp = parts.one_each()
    post, comb, one = mixed(run, x, "attn_hc")
    made = mixer(run.norm(one, first), run)
    x = joined(run, x, made, post, comb)
    post, comb, one = mixed(run, x, "ffn_hc")
    passed = mlp(run.norm(one, second), run)
    out = joined(run, x, passed, post, comb)
    del x, post, comb, one, made
    run.returned.clear()
    del passed
    return out


def _weighted(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """What is added to is the norm's result, and both are multiplied by a number: MiniMax."""
    ops, mixer_and_mlp = run.ops, parts.one_each()
    for name, part in zip(run.dialect.names, mixer_and_mlp, strict=True):
        x = run.norm(x, name)
        residual = x
        x = part(x, run)
        x = ops.add(ops.scaled(residual), ops.scaled(x))
    return x


def _shortcut(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """Attention and MLP twice; experts run of what the first MLP takes: LongCat."""
    ops, (*mlps, experts) = run.ops, parts.mlps
    routed = None
    for number, (mixer, mlp) in enumerate(zip(parts.mixers, mlps, strict=True)):
        residual = x
        x = run.norm(x, f"input_layernorm.{number}")
        x = mixer(x, run)
        x = ops.add(residual, x)
        residual = x
        x = run.norm(x, f"post_attention_layernorm.{number}")
        routed = experts(x, run) if routed is None else routed
        x = mlp(x, run)
        x = ops.add(residual, x)
    return x if routed is None else ops.add(x, routed)


def _modalities(x: Tensor, run: LayerRun) -> Tensor:
    """`compute_router_modalities`: numbers [B, T, N] of a stream."""
    ops = run.ops
    routed = run.linear(ops.scaled(run.norm(x, "altup.router_norm")), "altup.modality_router")
    return ops.to(ops.pointwise(ops.to(routed, FLOAT), saves="output"), x.size)


def _zamba2(x: Tensor, run: LayerRun, parts: Parts) -> Tensor:
    """A state space, before which some layers run a shared block of attention and MLP."""
    ops, (*attention, space) = run.ops, parts.mixers
    residual, name = x, "input_layernorm"
    if attention:
        name = "mamba_decoder.input_layernorm"
        block = _shared_block(x, run, attention[0], parts.mlps[0])
        block = run.linear(block, "linear")
        x = ops.add(x, block)
        run.returned.append(block)
    x = run.norm(x, name)
    x = space(x, run)
    return ops.add(residual, x)


def _shared_block(x: Tensor, run: LayerRun, attention: Part, mlp: Part) -> Tensor:
    """Attention over the stream beside the embeddings, and an MLP."""
    (embeds,) = run.step.shared[EMBEDDINGS]
    x = run.ops.cat([x, embeds], -1)
    x = run.norm(x, "shared_transformer.input_layernorm")
    x = attention(x, run)
    x = run.norm(x, "shared_transformer.pre_ff_layernorm")
    return mlp(x, run)


def _predicted(x: Tensor, run: LayerRun) -> Tensor:
    """`predict`: each stream a mix of all."""
    ops, (count, batch, tokens, _) = run.ops, x.shape
    modalities = _modalities(ops.selected(x, 0), run)
    mixed = run.linear(modalities, "altup.prediction_coefs")
    mixed = ops.permuted(ops.view(mixed, (batch, tokens, count, count)), (0, 1, 3, 2))
    made = ops.permuted(ops.matmul(ops.permuted(x, (1, 2, 3, 0)), mixed), (3, 0, 1, 2))
    ops.added_in_place(made, x)
    result = ops.to(ops.contiguous(made), x.size)
    del modalities, mixed, made
    return result


def _corrected(predictions: Tensor, x: Tensor, run: LayerRun) -> Tensor:
    """`correct`: streams moved by what the layer changed of one."""
    ops = run.ops
    modalities = _modalities(x, run)
    moved = ops.subtracted(x, ops.selected(predictions, 0))
    moved = ops.clone(ops.expand(ops.view(moved, (1, *moved.shape)), predictions.shape))
    shares = ops.shifted(run.linear(modalities, "altup.correction_coefs"))
    turned = ops.permuted(shares, (2, 0, 1))
    turned = ops.view(turned, (*turned.shape, 1), (*turned.strides, 1))
    result = ops.mul(moved, turned)
    ops.added_in_place(result, predictions)
    del modalities, moved, shares, turned
    return result


def _low_rank(x: Tensor, run: LayerRun) -> Tensor:
    """`Gemma3nTextLaurelBlock`."""
    made = run.linear(x, "laurel.linear_left")
    made = run.linear(made, "laurel.linear_right")
    normed = run.norm(made, "laurel.post_laurel_norm")
    total = run.ops.add(x, normed)
    del made, normed
    return total


def part_of_layer(step: Step) -> Tensor | None:
    """A layer's part [B, T, width] of the per-layer inputs; None: there are none."""
    if PER_LAYER not in step.shared:
        return None
    ops, (inputs,) = step.ops, step.shared[PER_LAYER]
    if inputs.shape[1] != step.tokens:
        inputs = ops.slice(inputs, 1, step.tokens)
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
    "shortcut": _shortcut,
    "weighted": _weighted,
    "single": _single,
    "Gemma 4": _gemma4,
    "Gemma 3n": _gemma3n,
    "hyper-connections": _hyper_connected,
    "Zamba 2": _zamba2,
}
