"""Families whose layers all have grouped-query attention: from keys to layers."""

from __future__ import annotations

import re
from dataclasses import replace

from tritter_mem.errors import ConfigError
from tritter_mem.models.block_attention_blocks import (
    BlockAttention,
    SigmoidExperts,
    SigmoidFeedForward,
)
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.family_parts import (
    CORRECTION,
    LAYER_NORMS,
    POST_NORMS,
    ROUTING_BIAS,
    Family,
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
    partial_dialect,
    plain_attention,
    plain_layers,
    qwen3,
    rotated_layers,
    routed_experts,
    stack,
)
from tritter_mem.models.huggingface_keys import FULL, SLIDING, Keys
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
    experts = as_kind(
        SigmoidExperts,
        mixtral_experts(
            keys,
            shared=keys.number("shared_intermediate_size"),
            shared_fused="gate_up_proj",
            correction=CORRECTION,
            routing="sigmoid",
        ),
    )
    wide = SigmoidFeedForward(inner=keys.number("dense_intermediate_size"), fused="gate_up_proj")
    plain = attention(keys, qk_norm=head_norms(keys))
    local = section.integer("sparse_local_block")
    local = keys.integer("index_local_blocks") if local is None else local
    choosing = as_kind(
        BlockAttention,
        plain,
        index_heads=chooser.heads,
        index_dim=chooser.head_dim,
        block=section.optional("sparse_block_size") or keys.number("index_block_size"),
        chosen=section.optional("sparse_topk_blocks") or keys.number("index_topk_blocks"),
        near=1 if local is None else local,
    )

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = experts if with_experts[number] else wide
        return *((choosing, chooser) if kind == sparse else (plain,)), mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def minimax_m3_dialect(keys: Keys) -> Dialect:
    """Norms as Gemma writes them; layers of two kinds have the same mask."""
    kinds = {isinstance(layer[0], BlockAttention) for layer in minimax_m3_layers(keys)}
    return dialect(norm="gemma", rotary="partial later", same_masks=len(kinds) - 1)(keys)


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


OLMO = dialect(
    norm="wide", order="behind", names=POST_NORMS.names, rotary="wide halves", wide_angles=True
)

FAMILIES: dict[str, Family] = {
    "llama": Family(layers=plain_layers(), dialect=dialect()),
    "mistral": Family(layers=plain_layers(attention_of=plain_attention), dialect=dialect()),
    "ministral3": Family(
        layers=plain_layers(attention_of=plain_attention), dialect=dialect(scales_queries=True)
    ),
    "mixtral": Family(
        layers=plain_layers(attention_of=plain_attention, mlp=mixtral_experts), dialect=dialect()
    ),
    "granite": Family(
        layers=plain_layers(),
        dialect=dialect(scales_embedding=True, scales_residual=True, logits_steps=1),
    ),
    "qwen2": Family(layers=plain_layers(types=qwen_types, attention_of=qwen2), dialect=dialect()),
    "qwen2_moe": Family(layers=qwen2_moe_layers, dialect=qwen2_moe_dialect),
    "qwen3": Family(layers=plain_layers(types=qwen_types, attention_of=qwen3), dialect=dialect()),
    "qwen3_moe": Family(layers=qwen3_moe_layers, dialect=dialect()),
    "qwen3_vl_text": Family(layers=plain_layers(attention_of=qwen3), dialect=dialect(grids=3)),
    "qwen3_vl_moe_text": Family(layers=qwen3_moe_layers, dialect=dialect(grids=3)),
    "llama4_text": Family(
        layers=llama4_layers,
        dialect=dialect(norm="llama4", order="before, kept", complex_angles=True, chunked=True),
    ),
    "gpt_oss": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(2), attention_of=gpt_oss_attention, mlp=gpt_oss_experts
        ),
        dialect=dialect(norm="wide", eager="sinks", rotary="chunked", half_angles=True),
        float32_beside_float16=("norm",),
    ),
    "minimax_m2": Family(
        layers=plain_layers(
            attention_of=minimax_m2_attention,
            mlp=lambda keys: mixtral_experts(
                keys, correction=("e_score_correction_bias", False), routing="sigmoid"
            ),
        ),
        dialect=minimax_m2_dialect,
    ),
    "minimax_m3_vl_text": Family(layers=minimax_m3_layers, dialect=minimax_m3_dialect),
    "nemotron-nas": Family(layers=nemotron_nas_layers),
    "phi3": Family(
        layers=plain_layers(
            attention_of=phi3_attention, mlp=lambda keys: dense(keys, fused="gate_up_proj")
        ),
        dialect=dialect(rotary="partial"),
    ),
    "phimoe": Family(
        layers=phimoe_layers,
        outside=lambda keys: Outside(norm_bias=True, head_bias=keys.has("lm_head_bias")),
        dialect=dialect(new_frequencies=True),
    ),
    "olmo2": Family(
        layers=plain_layers(attention_of=olmo_attention, norms=POST_NORMS), dialect=OLMO
    ),
    "olmo3": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(4), attention_of=olmo_attention, norms=POST_NORMS
        ),
        dialect=lambda keys: replace(OLMO(keys), rotary_kinds=2),
    ),
    "cohere2": Family(
        layers=plain_layers(
            types=cohere2_types, attention_of=cohere2_attention, norms=Norms(("input_layernorm",))
        ),
        dialect=dialect(norm="cohere", order="beside", rotary="pairs", logits_steps=1),
    ),
    "cohere2_moe": Family(layers=cohere2_moe_layers, dialect=cohere2_moe_dialect),
    "exaone4": Family(
        layers=plain_layers(types=exaone4_types, attention_of=exaone4_attention, norms=POST_NORMS),
        dialect=dialect(order="behind", names=POST_NORMS.names, heads_first=True),
    ),
    "ernie4_5_moe": Family(
        layers=ernie_layers,
        outside=lambda keys: Outside(head_bias=keys.has("use_bias")),
        float32=("mlp.gate.",),
        dialect=dialect(rotary="wide pairs", wide_angles=True),
    ),
    "mimo_v2_flash": Family(
        layers=mimo_layers,
        float32=ROUTING_BIAS,
        dialect=partial_dialect(
            0.334, eager="max", rotary="partial later", rotary_kinds=2, scales_values=True
        ),
    ),
    "seed_oss": Family(layers=plain_layers(attention_of=seed_oss_attention), dialect=dialect()),
    "smollm3": Family(layers=smollm3_layers, dialect=dialect()),
    "muse_spark_text": Family(
        layers=muse_spark_layers, float32=(*ROUTING_BIAS, "residual_gate", "mlp.gate.")
    ),
    "bitnet": Family(
        layers=plain_layers(attention_of=bitnet_attention, mlp=bitnet_mlp), dialect=dialect()
    ),
    "afmoe": Family(
        layers=afmoe_layers,
        float32_beside_float16=("norm", "expert_bias"),
        dialect=afmoe_dialect,
    ),
    "step3p5": Family(layers=step_layers, dialect=step_dialect),
}
"""A `model_type` to how it is read."""
