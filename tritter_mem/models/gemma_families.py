"""Gemma: layers with four norms, keys of other layers, tables for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.family_parts import (
    Family,
    Modules,
    Outside,
    as_kind,
    dialect,
    plain_layers,
    qwen3,
    stack,
)
from tritter_mem.models.gemma3n_blocks import Gemma3nAttention, SparseFeedForward, Streams
from tritter_mem.models.gemma4_blocks import Gemma4Attention, Gemma4Experts, PerLayerEmbeddings
from tritter_mem.models.huggingface_keys import FULL, MOST_LAYERS, SLIDING, Keys
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.transformers_blocks import Attention, Extra, FeedForward, Norms

GEMMA_NORMS = Norms(
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)


def gemma3_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer."""
    return keys.every(keys.optional("sliding_window_pattern") or 6)


def gemma2_dialect(keys: Keys) -> Dialect:
    """Norms around each part; scores and logits may be capped, which no kernel does."""
    return dialect(
        norm="gemma",
        order="around",
        names=GEMMA_NORMS.names,
        scales_embedding=True,
        eager="float32",
        softcap=keys.get("attn_logit_softcapping") is not None,
        scalars=1,
        logits_steps=3 * (keys.get("final_logit_softcapping") is not None),
    )(keys)


def gemma3_dialect(keys: Keys) -> Dialect:
    """Norms around each part; angles for each kind of layer; logits may be capped."""
    capped = keys.get("final_logit_softcapping") is not None
    return dialect(
        norm="gemma",
        order="around",
        names=GEMMA_NORMS.names,
        heads_first=True,
        scales_embedding=True,
        rotary_kinds=2,
        scalars=1,
        logits_steps=3 * capped,
    )(keys)


def gemma_attention(keys: Keys, kind: str, **more: Any) -> Attention:
    """Norms of queries and keys; a window for both directions is halved."""
    own = qwen3(keys, kind)
    both = keys.get("use_bidirectional_attention") in (True, "all")
    if own.window is not None and both:
        more["window"] = own.window // 2 + 1
    return replace(own, **more)


def reuses_keys(keys: Keys, kinds: Sequence[str]) -> list[bool]:
    """Which layers use the keys and values of an earlier one of their kind: the last ones.

    Raises:
        ConfigError: there is no earlier layer of a kind.
    """
    shared = keys.optional("num_kv_shared_layers") or 0
    first = max(keys.layers - shared, 0)
    if shared and set(kinds[:first]) != set(kinds):
        raise ConfigError(
            f"{keys.place}num_kv_shared_layers: {shared} of {keys.layers} layers share keys, and "
            "not each kind of layer is before them"
        )
    return [number >= first for number in range(keys.layers)]


def keeps_keys(reuse: Sequence[bool], kinds: Sequence[str], number: int) -> bool:
    """Whether layers that reuse keys take those of this layer: the last of its kind before them."""
    return any(reuse) and kinds[number] not in kinds[number + 1 : reuse.index(True)]


def per_layer_inputs(keys: Keys, *, in_place: bool = False) -> tuple[Modules, Modules]:
    """What Gemma's per-layer embeddings add to each layer, and outside of them."""
    width, hidden = keys.optional("hidden_size_per_layer_input"), keys.hidden
    if not width:
        return (), ()
    inside = Extra(
        linears=(("per_layer_input_gate", width, hidden), ("per_layer_projection", hidden, width)),
        tensors=(("post_per_layer_input_norm", (hidden,)),),
    )
    outside = PerLayerEmbeddings(
        vocabulary=keys.number("vocab_size_per_layer_input"),
        layers=keys.layers,
        width=width,
        in_place=in_place,
    )
    return (inside,), (outside,)


def gemma3n_layers(keys: Keys) -> list[Modules]:
    """Several residual streams, low-rank residuals, and keys shared by the last layers."""
    streams, hidden = keys.number("altup_num_inputs", MOST_LAYERS), keys.hidden
    rank = keys.number("laurel_rank")
    if isinstance(keys.get("intermediate_size"), list):
        widths = keys.numbers("intermediate_size", keys.layers) or []
    else:
        widths = [keys.number("intermediate_size")] * keys.layers
    mixing = Extra(
        linears=(
            ("altup.correction_coefs", streams, streams),
            ("altup.prediction_coefs", streams**2, streams),
            ("altup.modality_router", streams, hidden),
            ("laurel.linear_left", rank, hidden),
            ("laurel.linear_right", hidden, rank),
        ),
        tensors=tuple(
            (name, (hidden,))
            for name in (
                "altup.correct_output_scale",
                "altup.router_norm",
                "laurel.post_laurel_norm",
            )
        ),
    )
    inside, _ = per_layer_inputs(keys)
    kinds, sparse = keys.layer_types(keys.every(5)), _sparse_layers(keys)
    reuse = reuses_keys(keys, kinds)

    def layer(number: int, kind: str) -> Modules:
        plain = gemma_attention(keys, kind, has_keys=not reuse[number], caches=not reuse[number])
        own = as_kind(Gemma3nAttention, plain, keeps=keeps_keys(reuse, kinds, number))
        mlp = SparseFeedForward(inner=widths[number], sparse=sparse[number])
        return own, mlp, GEMMA_NORMS, mixing, *inside

    return stack(kinds, layer)


def _sparse_layers(keys: Keys) -> list[bool]:
    """Layers whose MLP keeps the largest numbers: the first 10 of more, or by a list."""
    pattern = keys.get("activation_sparsity_pattern")
    if isinstance(pattern, list) and len(pattern) >= keys.layers:
        return [bool(share) for share in pattern[: keys.layers]]
    return [number < 10 < keys.layers for number in range(keys.layers)]


def gemma3n_dialect(keys: Keys) -> Dialect:
    """Norms around each part of one residual stream."""
    return dialect(
        norm="gemma 4",
        order="Gemma 3n",
        names=GEMMA_NORMS.names,
        scales_embedding=True,
        scales_residual=keys.get("altup_correct_scale") is not False,
        rotary_kinds=2,
        logits_steps=3 * (keys.get("final_logit_softcapping") is not None),
        scalars=4 + keys.layers,
    )(keys)


def gemma3n_outside(keys: Keys) -> Outside:
    """Per-layer embeddings, and projections to and from the other residual streams."""
    _, outside = per_layer_inputs(keys, in_place=True)
    streams = Streams(count=keys.number("altup_num_inputs", MOST_LAYERS))
    return Outside(more=(*outside, streams))


def gemma4_kinds(keys: Keys) -> list[str]:
    """Full attention on each sixth layer, and on the last."""
    return [*keys.layer_types(keys.every(6))[:-1], FULL]


def gemma4_layers(keys: Keys) -> list[Modules]:
    """Other heads on full attention, which may take keys for values; experts beside an MLP."""
    inside, kinds = per_layer_inputs(keys)[0], gemma4_kinds(keys)
    reuse = reuses_keys(keys, kinds)
    experts: Modules = ()
    if keys.has("enable_moe_block"):
        experts = (
            Gemma4Experts(
                count=keys.number("num_experts"),
                chosen=keys.number("top_k_experts"),
                inner=keys.number("moe_intermediate_size"),
                router="router.proj",
                routing="softmax",
                vectors=(
                    ("router.scale", keys.hidden),
                    ("router.per_expert_scale", keys.number("num_experts")),
                ),
                name="",
            ),
            Norms(
                (
                    "post_feedforward_layernorm_1",
                    "post_feedforward_layernorm_2",
                    "pre_feedforward_layernorm_2",
                )
            ),
        )

    def layer(number: int, kind: str) -> Modules:
        sizes = gemma4_heads(keys, number, kind)
        plain = gemma_attention(
            keys,
            kind,
            **sizes,
            qk_norm=(sizes["head_dim"], sizes["head_dim"]),
            has_values=not _keys_are_values(keys, kind),
            has_keys=not reuse[number],
            caches=not reuse[number],
        )
        own = as_kind(Gemma4Attention, plain, keeps=keeps_keys(reuse, kinds, number))
        inner = keys.number("intermediate_size")
        wide = keys.has("use_double_wide_mlp") and reuse[number]
        mlp = FeedForward(inner=2 * inner if wide else inner)
        scalar = Extra(buffers=(("layer_scalar", (1,)),))
        return own, mlp, GEMMA_NORMS, scalar, *experts, *inside

    return stack(kinds, layer)


def gemma4_dialect(keys: Keys) -> Dialect:
    """Norms around each part; heads of layers with a window have another width."""
    kinds = gemma4_kinds(keys)
    widths = {kind: gemma4_heads(keys, kinds.index(kind), kind)["head_dim"] for kind in set(kinds)}
    capped = keys.get("final_logit_softcapping") is not None
    shared = keys.optional("num_kv_shared_layers")
    return dialect(
        norm="gemma 4",
        order="Gemma 4",
        names=GEMMA_NORMS.names,
        scales_embedding=True,
        rotary_dim=widths[FULL],
        rotary_kinds=2,
        windowed_dim=widths.get(SLIDING, 0),
        logits_steps=3 * capped,
        scalars=1 + bool(keys.optional("hidden_size_per_layer_input")),
        last_token_from=keys.layers - shared if shared else None,
    )(keys)


def gemma4_heads(keys: Keys, number: int, kind: str) -> dict[str, int]:
    """Width of a head, and key heads, of a layer."""
    own = keys.at(number)
    sizes = {"head_dim": own.head_dim, "kv_heads": own.kv_heads}
    if kind == FULL and not keys.mapping("per_layer_config"):
        sizes["head_dim"] = keys.optional("global_head_dim") or 512
        if _keys_are_values(keys, kind):
            sizes["kv_heads"] = keys.optional("num_global_key_value_heads") or own.kv_heads
    return sizes


def _keys_are_values(keys: Keys, kind: str) -> bool:
    return keys.has("attention_k_eq_v") and kind == FULL


def gemma4_unbuilt(keys: Keys) -> dict[int, Modules]:
    """Keys and values of layers that use those of an earlier one: a checkpoint has them."""
    found: dict[int, Modules] = {}
    kinds = gemma4_kinds(keys)
    reuse = reuses_keys(keys, kinds)
    for number, kind in enumerate(kinds):
        if reuse[number]:
            sizes = gemma4_heads(keys, number, kind)
            parts = ("k_proj",) if _keys_are_values(keys, kind) else ("k_proj", "v_proj")
            width = sizes["kv_heads"] * sizes["head_dim"]
            linears = tuple((f"self_attn.{part}", width, keys.hidden) for part in parts)
            norm = ("self_attn.k_norm", (sizes["head_dim"],))
            found[number] = (Extra(linears=linears, tensors=(norm,)),)
    return found


FAMILIES: dict[str, Family] = {
    "gemma": Family(
        layers=plain_layers(), dialect=dialect(norm="gemma", scales_embedding=True, scalars=1)
    ),
    "gemma2": Family(
        layers=plain_layers(types=lambda keys: keys.every(2), norms=GEMMA_NORMS),
        dialect=gemma2_dialect,
    ),
    "gemma3_text": Family(
        layers=plain_layers(types=gemma3_types, attention_of=gemma_attention, norms=GEMMA_NORMS),
        dialect=gemma3_dialect,
    ),
    "gemma3n_text": Family(layers=gemma3n_layers, outside=gemma3n_outside, dialect=gemma3n_dialect),
    "gemma4_text": Family(
        layers=gemma4_layers,
        outside=lambda keys: Outside(more=per_layer_inputs(keys)[1]),
        unbuilt=gemma4_unbuilt,
        dialect=gemma4_dialect,
    ),
}
"""A `model_type` to how it is read."""
