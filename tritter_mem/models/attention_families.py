"""Families whose layers all have grouped-query attention: from keys to layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.family_parts import (
    CORRECTION,
    LAYER_NORMS,
    Modules,
    Outside,
    as_kind,
    attention,
    dense,
    dialect,
    first_dense,
    full_norms,
    head_norms,
    mixtral_experts,
    qwen3,
    rotated_layers,
    routed_experts,
    stack,
)
from tritter_mem.models.gemma3n_blocks import Gemma3nAttention, SparseFeedForward, Streams
from tritter_mem.models.gemma4_blocks import (
    Gemma4Attention,
    Gemma4Experts,
    PerLayerEmbeddings,
)
from tritter_mem.models.huggingface_keys import FULL, MOST_LAYERS, SLIDING, Keys
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.step_blocks import (
    ClampedExperts,
    ClampedFeedForward,
    HeadGatedAttention,
    WideGatedAttention,
)
from tritter_mem.models.transformers_blocks import (
    Attention,
    BlockIndexer,
    ComplexAttention,
    Extra,
    FeedForward,
    Module,
    Norms,
)

GEMMA_NORMS = Norms(
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)


def qwen_types(keys: Keys) -> list[str]:
    """Qwen 2 and 3: a window from `max_window_layers` on, where it is switched on."""
    windowed = keys.has("use_sliding_window") and keys.optional("sliding_window") is not None
    first = keys.optional("max_window_layers") or 0
    return [SLIDING if windowed and n >= first else FULL for n in range(keys.layers)]


def qwen2(keys: Keys, kind: str) -> Attention:
    """Biases of queries, keys and values alone."""
    return attention(keys, kind, bias=True, out_bias=False)


def switched_window(keys: Keys) -> list[str]:
    """A window on all layers, where it is switched on."""
    windowed = keys.has("use_sliding_window") and keys.optional("sliding_window") is not None
    return [SLIDING if windowed else FULL] * keys.layers


def qwen_experts(keys: Keys) -> Experts:
    """Experts, and a gated shared one where the keys say so."""
    shared = keys.optional("shared_expert_intermediate_size") or 0
    return Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("moe_intermediate_size"),
        shared=shared,
        shared_gate=bool(shared),
        shared_name="shared_expert",
        routing="softmax",
        normalised=keys.has("norm_topk_prob"),
    )


def qwen_mlp(keys: Keys, number: int) -> Module:
    """Experts on each `decoder_sparse_step`-th layer that is not listed as dense."""
    step = keys.optional("decoder_sparse_step") or 1
    listed = keys.list_of("mlp_only_layers") or []
    if number in listed or (number + 1) % step or not keys.optional("num_experts"):
        return dense(keys)
    return qwen_experts(keys)


def qwen3_moe_layers(keys: Keys) -> list[Modules]:
    """Qwen 3 with experts."""
    kinds = keys.layer_types(switched_window(keys))
    return stack(kinds, lambda n, kind: (qwen3(keys, kind), qwen_mlp(keys, n), LAYER_NORMS))


def qwen2_moe_layers(keys: Keys) -> list[Modules]:
    """Qwen 2 with experts: every second layer has a window, where that is switched on."""
    first = keys.optional("max_window_layers") or 0
    windowed = keys.has("use_sliding_window")
    derived = [
        SLIDING if windowed and (n + 1) % 2 and n < first else FULL for n in range(keys.layers)
    ]

    def layer(number: int, kind: str) -> Modules:
        own = attention(keys, kind, bias=keys.get("qkv_bias") is not False, out_bias=False)
        return own, qwen_mlp(keys, number), LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def qwen2_moe_dialect(keys: Keys) -> Dialect:
    """A mask for a window is made whether or not a layer has one."""
    windowed = keys.has("use_sliding_window")
    return dialect(more_masks=() if windowed else (0,))(keys)


def minimax_m2_dialect(keys: Keys) -> Dialect:
    """The first channels of a head rotate, which older files call `rotary_dim`."""
    plain = dialect(rotary="partial later")(keys)
    width = keys.optional("rotary_dim")
    return replace(plain, rotary_dim=width) if width else plain


def gpt_oss_experts(keys: Keys) -> Experts:
    """Experts with biases, in one tensor."""
    return mixtral_experts(
        keys, router="router", router_bias=True, bias=True, packed=True, routing="chosen softmax"
    )


def gpt_oss_attention(keys: Keys, kind: str) -> Attention:
    """Attention with a sink for each head."""
    return attention(keys, kind, vectors=(("sinks", keys.heads),))


def llama4_layers(keys: Keys) -> list[Modules]:
    """Chunks but on layers without rotation; experts on listed layers."""
    rotated = rotated_layers(keys)
    derived = ["chunked_attention" if flag else FULL for flag in rotated[: keys.layers]]
    step = keys.optional("interleave_moe_layer_step") or 1
    listed = keys.list_of("moe_layers")
    with_experts = set(range(step - 1, keys.layers, step) if listed is None else listed)
    experts = mixtral_experts(
        keys,
        router="router",
        packed=True,
        routing="all",
        shared=keys.number("intermediate_size"),
        shared_name="shared_expert",
        name="feed_forward",
    )
    wide = FeedForward(inner=keys.number("intermediate_size_mlp"), name="feed_forward")

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = experts if number in with_experts else wide
        plain = attention(keys, kind, rotates=bool(rotated[number]))
        own = as_kind(
            ComplexAttention,
            plain,
            l2_normed=keys.has("use_qk_norm"),
            tuned=keys.has("attn_temperature_tuning"),
        )
        return own, mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


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


def mimo_layers(keys: Keys) -> list[Modules]:
    """Other key heads, and sinks, on layers with a window."""
    pattern = keys.list_of("hybrid_layer_pattern", keys.layers)
    derived = [FULL if n == 0 or not (n + 1) % 6 else SLIDING for n in range(keys.layers)]
    if pattern is not None:
        derived = [SLIDING if flag else FULL for flag in pattern[: keys.layers]]
    with_experts = first_dense(keys, 1)
    if isinstance(keys.get("moe_layer_freq"), list) and keys.get("mlp_layer_types") is None:
        frequency = keys.list_of("moe_layer_freq", keys.layers) or []
        with_experts = [bool(flag) for flag in frequency]
    size = keys.optional("sliding_window_size")

    def layer(number: int, kind: str) -> Modules:
        own = attention(keys, kind, value_dim=keys.number("v_head_dim"), out_bias=False)
        if kind == SLIDING:
            own = replace(
                own,
                kv_heads=keys.optional("swa_num_key_value_heads") or 2 * keys.kv_heads,
                window=own.window if size is None else size + 1,
                vectors=(("sinks", keys.heads),),
            )
        mlp: Module = routed_experts(keys) if with_experts[number] else dense(keys)
        return own, mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def minimax_m2_attention(keys: Keys, kind: str) -> Attention:
    """Norms over all heads."""
    return attention(keys, kind, qk_norm=full_norms(keys))


def minimax_m3_layers(keys: Keys) -> list[Modules]:
    """Attention over chosen blocks on some layers; shared experts."""
    section = keys.section("sparse_attention_config")
    flags = section.list_of("sparse_attention_freq") or [0] * keys.layers
    sparse = "minimax_m3_sparse"
    derived = [sparse if flag else FULL for flag in flags]
    frequency = keys.list_of("moe_layer_freq", keys.layers)
    with_experts = first_dense(keys, 0)
    if frequency is not None and keys.get("mlp_layer_types") is None:
        with_experts = [bool(flag) for flag in frequency]
    chooser = BlockIndexer(
        heads=section.optional("sparse_num_index_heads") or keys.number("index_n_heads"),
        head_dim=section.optional("sparse_index_dim") or keys.number("index_head_dim"),
    )
    experts = mixtral_experts(
        keys,
        shared=keys.number("shared_intermediate_size"),
        shared_fused="gate_up_proj",
        correction=CORRECTION,
    )
    wide = FeedForward(inner=keys.number("dense_intermediate_size"), fused="gate_up_proj")

    def layer(number: int, kind: str) -> Modules:
        own = attention(keys, qk_norm=head_norms(keys))
        mlp: Module = experts if with_experts[number] else wide
        return own, *((chooser,) if kind == sparse else ()), mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def phi3_attention(keys: Keys, kind: str) -> Attention:
    """One projection of queries, keys and values."""
    return attention(keys, kind, fused=True, bias=False, out_bias=False)


def olmo_attention(keys: Keys, kind: str) -> Attention:
    """Norms of queries and keys over all heads."""
    return attention(keys, kind, qk_norm=full_norms(keys))


def cohere2_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer."""
    return keys.every(keys.optional("sliding_window_pattern") or 4)


def cohere2_attention(keys: Keys, kind: str) -> Attention:
    """Heads as wide as the hidden size allows; layers without a window do not rotate."""
    own = attention(keys, kind, head_dim=keys.hidden_per_head)
    return replace(own, rotates=own.window is not None)


def cohere2_moe_layers(keys: Keys) -> list[Modules]:
    """One norm a layer; experts behind the first dense layers."""
    first = min(keys.optional("first_k_dense_replace") or 0, keys.layers)
    before, behind = (
        keys.number("prefix_dense_sliding_window_pattern"),
        keys.number("sliding_window_pattern"),
    )
    derived = [SLIDING if (n + 1) % before else FULL for n in range(first)] + [
        SLIDING if (n + 1) % behind else FULL for n in range(keys.layers - first)
    ]
    inner, shared = keys.number("intermediate_size"), keys.optional("num_shared_experts") or 0
    selection = keys.text("expert_selection_fn") or ""
    experts = Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        shared=shared * inner,
        routing="chosen " + {"softmax": "chances"}.get(selection, selection),
        normalised=keys.has("norm_topk_prob"),
        averaged=keys.text("shared_expert_combination_strategy") == "average",
    )
    forced = keys.number("prefix_dense_sliding_window_pattern") == 1
    with_experts, norm = first_dense(keys, first), Norms(("input_layernorm",))
    wide = keys.optional("prefix_dense_intermediate_size") or inner

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = experts if with_experts[number] else FeedForward(inner=wide)
        own = attention(keys, kind)
        rotates = own.window is not None or (forced and not with_experts[number])
        return replace(own, rotates=rotates), mlp, norm

    return stack(keys.layer_types(derived), layer)


def cohere2_moe_dialect(keys: Keys) -> Dialect:
    """Attention and MLP side by side, of a norm of either kind."""
    norm = "llama" if keys.get("rms_norm_eps") is not None else "cohere"
    return dialect(norm=norm, order="beside", rotary="pairs", logits_steps=1)(keys)


def afmoe_dialect(keys: Keys) -> Dialect:
    """Norms around attention and MLP."""
    names = (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_mlp_layernorm",
        "post_mlp_layernorm",
    )
    return dialect(
        norm="wide", order="around", names=names, scales_embedding=keys.has("mup_enabled")
    )(keys)


def exaone4_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer; everywhere without a window."""
    pattern = keys.get("sliding_window_pattern")
    if not keys.optional("sliding_window") or not pattern:
        return [FULL] * keys.layers
    if isinstance(pattern, str):
        return [SLIDING if pattern[n % len(pattern)] == "L" else FULL for n in range(keys.layers)]
    return keys.every(keys.number("sliding_window_pattern"))


def ernie_layers(keys: Keys) -> list[Modules]:
    """Experts between two layers, at an interval."""
    inner, bias = keys.number("moe_intermediate_size"), keys.has("use_bias")
    shared = keys.optional("moe_num_shared_experts") or 0
    experts = Experts(
        count=keys.number("moe_num_experts"),
        chosen=keys.number("moe_k"),
        inner=inner,
        shared=shared * inner,
        shared_bias=bias,
        correction=("gate.moe_statics.e_score_correction_bias", True),
        routing="float chances",
        shared_at="first",
    )
    first, last = keys.optional("moe_layer_start_index") or 0, keys.integer("moe_layer_end_index")
    if last is None or last == -1:
        last = keys.layers - 1
    interval = keys.optional("moe_layer_interval") or 1
    own = attention(keys, bias=bias, out_bias=bias)

    def layer(number: int) -> Modules:
        mixed = (number + 1) % interval == 0 and first <= number <= last
        return own, experts if mixed else dense(keys, bias=bias), LAYER_NORMS

    return [layer(number) for number in range(keys.layers)]


def glm4_moe_attention(keys: Keys) -> Modules:
    """Biases of queries, keys and values alone; norms where they are switched on."""
    norms = head_norms(keys) if keys.has("use_qk_norm") else (0, 0)
    return (attention(keys, out_bias=False, qk_norm=norms),)


def hy_v3_experts(keys: Keys) -> Experts:
    """Hunyuan's names of DeepSeek's experts."""
    inner = keys.number("moe_intermediate_size")
    return Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        shared=inner * (keys.optional("num_shared_experts") or 0),
        correction=("e_score_correction_bias", False),
        routing="float sigmoid",
        wide_sum=keys.has("enable_moe_fp32_combine"),
    )


def smollm3_layers(keys: Keys) -> list[Modules]:
    """Some layers do not rotate; they have a window, where it is switched on."""
    rotated = rotated_layers(keys)
    windowed = keys.has("use_sliding_window") and keys.optional("sliding_window") is not None
    derived = [SLIDING if windowed and not rotated[n] else FULL for n in range(keys.layers)]

    def layer(number: int, kind: str) -> Modules:
        own = attention(keys, kind, rotates=bool(rotated[number]))
        return own, dense(keys), LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def exaone4_attention(keys: Keys, kind: str) -> Attention:
    """Where some layers have a window, the others do not rotate."""
    own = qwen3(keys, kind)
    return replace(own, rotates=not keys.optional("sliding_window") or own.window is not None)


def seed_oss_attention(keys: Keys, kind: str) -> Attention:
    """A key by itself for the output's bias."""
    return attention(keys, kind, out_bias=keys.has("attention_out_bias"))


def afmoe_layers(keys: Keys) -> list[Modules]:
    """Gated attention; experts behind the first dense layers."""
    derived = keys.every(keys.number("global_attn_every_n_layers"))
    inner = keys.number("moe_intermediate_size")
    experts = Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        shared=inner * (keys.optional("num_shared_experts") or 0),
        router="router.gate",
        correction=("expert_bias", True),
        routing="wide sigmoid",
        shared_at="between",
    )
    norms = Norms(
        (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_mlp_layernorm",
            "post_mlp_layernorm",
        )
    )
    gate, first = (
        (("gate_proj", keys.heads * keys.head_dim),),
        keys.optional("num_dense_layers") or 0,
    )

    def layer(number: int, kind: str) -> Modules:
        plain = attention(
            keys, kind, bias=False, out_bias=False, qk_norm=head_norms(keys), gate=gate
        )
        own = as_kind(WideGatedAttention, plain)
        return own, experts if number >= first else dense(keys), norms

    return stack(keys.layer_types(derived), layer)


def muse_spark_layers(keys: Keys) -> list[Modules]:
    """Gated attention; experts of another width than the residual stream."""
    last, width = keys.layers - 1, keys.number("moe_hidden_size")
    derived = [SLIDING if (last - n) % 4 else FULL for n in range(keys.layers)]
    experts = Experts(
        count=keys.number("num_local_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("moe_intermediate_size"),
        width=width,
        correction=CORRECTION,
        vectors=(("pre_expert_norm", width), ("experts.post_expert_norm", width)),
    )
    through = Extra(
        linears=(
            ("mlp.pre_expert_proj", width, keys.hidden),
            ("mlp.post_expert_proj", keys.hidden, width),
        ),
    )
    norms = Norms(
        (
            "input_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
            "post_attention_residual_gate.gate",
            "post_feedforward_residual_gate.gate",
        )
    )
    gate, with_experts = (("gate_proj", keys.heads * keys.head_dim),), first_dense(keys, 0)

    def layer(number: int, kind: str) -> Modules:
        own = attention(keys, kind, gate=gate)
        mlp: Modules = (experts, through) if with_experts[number] else (dense(keys),)
        return own, *mlp, norms

    return stack(keys.layer_types(derived), layer)


def bitnet_attention(keys: Keys, kind: str) -> Attention:
    """A norm before the output projection."""
    width = keys.hidden
    return attention(keys, kind, vectors=(("attn_sub_norm", width),))


def bitnet_mlp(keys: Keys) -> FeedForward:
    """A norm before the projection down."""
    inner = keys.number("intermediate_size")
    return FeedForward(inner=inner, vectors=(("ffn_sub_norm", inner),))


def _step_experts(keys: Keys) -> list[int]:
    """Layers with experts: `moe_layers_enum`, a list or text with commas."""
    listed = keys.get("moe_layers_enum")
    if not isinstance(listed, str):
        return keys.numbers("moe_layers_enum") or []
    if not re.fullmatch(r"[0-9]{0,9}(\s*,\s*[0-9]{0,9})*", listed.strip(), re.ASCII):
        raise ConfigError(f"moe_layers_enum: numbers with commas are wanted, not {listed!r:.60}")
    return [int(item) for item in re.findall("[0-9]+", listed)]


def step_layers(keys: Keys) -> list[Modules]:
    """Other query heads on layers with a window; a gate for each head; one shared expert."""
    chosen, with_experts = _step_experts(keys), first_dense(keys, 3)
    if chosen and keys.get("mlp_layer_types") is None:
        with_experts = [number in chosen for number in range(keys.layers)]
    section = keys.section("attention_other_setting")
    other = keys.optional("num_sliding_attention_heads") or section.optional("num_attention_heads")
    experts = ClampedExperts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("moe_intermediate_size"),
        shared=keys.number("share_expert_dim"),
        correction=CORRECTION,
        routing="sigmoid",
    )
    mlp = as_kind(ClampedFeedForward, dense(keys))

    def layer(number: int, kind: str) -> Modules:
        heads = (kind == SLIDING and other) or keys.at(number).heads
        per_head = keys.get("gating") in (None, True, "per-head")
        gate = heads if per_head else heads * keys.head_dim
        plain = attention(
            keys, kind, heads=heads, qk_norm=head_norms(keys), gate=(("g_proj", gate),)
        )
        own = as_kind(HeadGatedAttention, plain)
        return own, experts if with_experts[number] else mlp, LAYER_NORMS

    return stack(keys.layer_types([FULL] * keys.layers), layer)


def step_dialect(keys: Keys) -> Dialect:
    """Angles for each kind of layer, of a part of a head that the keys give for each."""
    kinds = keys.layer_types([FULL] * keys.layers)
    listed = keys.factors("partial_rotary_factors", keys.layers)
    widths = {}
    for kind in (FULL, SLIDING):
        share = keys.section("rope_parameters").section(kind).factor("partial_rotary_factor")
        if listed and kind in kinds:
            share = listed[kinds.index(kind)]
        widths[kind] = int(keys.head_dim * (share or 1))
    return dialect(
        norm="gemma",
        rotary="partial later",
        rotary_kinds=2,
        rotary_dim=widths[FULL],
        windowed_dim=widths[SLIDING],
    )(keys)


def nemotron_nas_layers(keys: Keys) -> list[Modules]:
    """`block_configs` has each layer's heads and MLP; either may be absent or one linear layer."""
    blocks = keys.sections("block_configs")
    if not blocks:
        raise ConfigError("block_configs: a nemotron-nas model needs it, and it is missing")
    return [
        _nas_attention(keys, block.section("attention")) + _nas_mlp(keys, block.section("ffn"))
        for block in blocks
    ]


def _nas_attention(keys: Keys, block: Keys) -> Modules:
    if block.has("no_op"):
        return ()
    norm = Norms(("input_layernorm",))
    if block.has("replace_with_linear"):
        return Extra(linears=(("self_attn.linear_attn", keys.hidden, keys.hidden),)), norm
    own = attention(keys, kv_heads=block.per_head(keys.heads, "n_heads_in_group"))
    return replace(own, window=block.optional("window_length")), norm


def _nas_mlp(keys: Keys, block: Keys) -> Modules:
    if block.has("no_op"):
        return ()
    norm = Norms(("post_attention_layernorm",))
    if block.has("replace_with_linear"):
        return Extra(linears=(("mlp.linear_mlp", keys.hidden, keys.hidden),)), norm
    multiple = block.factor("ffn_mult")
    if multiple is None:
        raise ConfigError("block_configs: ffn_mult is missing")
    inner = 256 * -(-int(2 * multiple * keys.hidden / 3) // 256)
    return FeedForward(inner=inner, bias=keys.has("mlp_bias")), norm


def phimoe_layers(keys: Keys) -> list[Modules]:
    """Experts, and norms with biases."""
    norms = Norms(LAYER_NORMS.names, bias=True)
    experts = mixtral_experts(keys, router="router", routing="sparse mixer")
    return [(attention(keys, kind), experts, norms) for kind in keys.layer_types()]
