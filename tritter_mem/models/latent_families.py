"""Families with latent or compressed attention, or other parts of DeepSeek: from keys to layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.deepseek_v4_blocks import CompressedAttention, HyperHead, LimitedExperts
from tritter_mem.models.delta_attention_blocks import DeltaAttention
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.family_parts import (
    CORRECTION,
    LAYER_NORMS,
    ROUTING_BIAS,
    Family,
    Modules,
    Outside,
    as_kind,
    attention,
    dense,
    dialect,
    first_dense,
    head_norms,
    hyper_connections,
    indexer,
    indexer_types,
    latent,
    partial_dialect,
    qwen3,
    rotated_layers,
    routed_experts,
    stack,
    untied,
    with_indexer,
)
from tritter_mem.models.formats import ceil_div
from tritter_mem.models.huggingface_keys import FULL, INDEXED, LINEAR, MOST_LAYERS, SLIDING, Keys
from tritter_mem.models.indexed_attention_blocks import IndexedAttention, SharedLatentAttention
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.longcat_blocks import IdleExperts
from tritter_mem.models.transformers_blocks import (
    Extra,
    FeedForward,
    Module,
    Norms,
)
from tritter_mem.models.transformers_caches import KEYS, SECOND_KEYS, SECOND_VALUES, VALUES


def deepseek_dialect(keys: Keys) -> Dialect:
    """Part of a head rotates, by default in interleaved pairs."""
    rotary = "halves" if keys.get("rope_interleave") is False else "interleaved"
    return dialect(rotary=rotary, rotary_dim=keys.number("qk_rope_head_dim"))(keys)


def deepseek_layers(
    *,
    attention_of: Callable[[Keys], Modules] = lambda keys: (latent(keys),),
    experts: Callable[[Keys], Module] = routed_experts,
    first: str | int = "first_k_dense_replace",
) -> Callable[[Keys], list[Modules]]:
    """Dense layers, then layers with experts.

    Args:
        attention_of: attention of a layer, its indexer included.
        experts: of a layer.
        first: dense layers, or the key that has their number.
    """

    def layers(keys: Keys) -> list[Modules]:
        count = keys.optional(first) if isinstance(first, str) else first
        with_experts = first_dense(keys, count)
        sparse = with_experts and any(with_experts)
        mixture: Module = experts(keys) if sparse else dense(keys)
        own = attention_of(keys)
        return [(*own, mixture if mixed else dense(keys), LAYER_NORMS) for mixed in with_experts]

    return layers


def next_token_layers(
    layers: Callable[[Keys], list[Modules]], *, tables: bool = True
) -> Callable[[Keys], list[Modules]]:
    """DeepSeek's layers for multi-token prediction: the last layer, and what joins two streams.

    No released checkpoint quantises what is beside the layer.

    Args:
        layers: of the language model.
        tables: whether a checkpoint repeats the embedding and the output projection in each.
    """

    def mtp(keys: Keys) -> list[Modules]:
        count, hidden = keys.optional("num_nextn_predict_layers", MOST_LAYERS) or 0, keys.hidden
        shapes = {
            "eh_proj": (hidden, 2 * hidden),
            "enorm": (hidden,),
            "hnorm": (hidden,),
            "shared_head.norm": (hidden,),
        }
        if tables:
            table = (keys.number("vocab_size"), hidden)
            shapes |= {"embed_tokens": table, "shared_head.head": table}
        return [(*layers(keys)[-1], Extra(tensors=tuple(shapes.items())))] * count

    return mtp


def indexed(keys: Keys, **more: Any) -> IndexedAttention:
    """Latent attention with an indexer."""
    own = as_kind(
        IndexedAttention,
        latent(keys),
        index_heads=keys.number("index_n_heads"),
        index_dim=keys.number("index_head_dim"),
        chosen=keys.number("index_topk"),
    )
    return replace(own, **more)


def indexed_dialect(keys: Keys) -> Dialect:
    """DeepSeek's; an indexer takes a mask even where attention needs none."""
    return replace(deepseek_dialect(keys), always_masks=True)


def glm_dsa_layers(keys: Keys) -> list[Modules]:
    """Latent attention with indexers, of which some layers share one."""
    own = indexed(keys, hands_on=True, index_rotary="interleaved")
    with_experts = first_dense(keys, keys.optional("first_k_dense_replace"))
    return [
        (
            *with_indexer(keys, kind, replace(own, chooses=kind != "shared"), indexer(keys)),
            routed_experts(keys) if mixed else dense(keys),
            LAYER_NORMS,
        )
        for kind, mixed in zip(indexer_types(keys), with_experts, strict=False)
    ]


def glm5_next_layers(keys: Keys) -> list[Modules]:
    """Kimi delta attention, and latent attention whose index keys are pooled."""
    kinds = keys.layer_types(keys.every(4, INDEXED, LINEAR))
    with_experts, choosers = first_dense(keys, 3), indexer_types(keys)
    streams = hyper_connections(keys, 2 * keys.number("hc_mult") + keys.number("hc_mult") ** 2, 3)
    width = keys.number("index_head_dim")
    chooser = indexer(keys, pooled=keys.number("index_kpool"), rows_of_token=2 * width + 1)

    def layer(number: int, kind: str) -> Modules:
        own: Modules = (delta_attention(keys),)
        if kind in (INDEXED, FULL):
            own = with_indexer(keys, choosers[number], latent(keys), chooser)
        mlp: Module = routed_experts(keys) if with_experts[number] else dense(keys)
        return *own, mlp, LAYER_NORMS, *streams

    return stack(kinds, layer)


def hy_v4_layers(keys: Keys) -> list[Modules]:
    """Gated latent attention with sinks; three of four layers share an indexer."""
    derived = ["shared" if number and (number - 1) % 4 else "full" for number in range(keys.layers)]
    value_width = keys.heads * keys.number("v_head_dim")
    own = latent(keys, sinks=True, gate=(("gate_proj", value_width),))
    streams = hyper_connections(keys, 2 * keys.number("hc_mult"), 2)
    return [
        (
            *with_indexer(keys, kind, own, indexer(keys)),
            routed_experts(keys) if mixed else dense(keys),
            LAYER_NORMS,
            *streams,
        )
        for kind, mixed in zip(indexer_types(keys, derived), first_dense(keys, 1), strict=False)
    ]


def mistral_large4_layers(keys: Keys) -> list[Modules]:
    """Latent attention with indexers; keys without rotation on some layers, shared on others."""
    rotated = rotated_layers(keys)
    sources = keys.list_of("kv_source_layers", keys.layers) or list(range(keys.layers))
    with_experts = first_dense(keys, keys.optional("first_k_dense_replace"))
    types = indexer_types(keys)
    heads = keys.number("index_n_heads")
    scaling = Extra(
        tensors=tuple(
            (f"self_attn.softmax_scaling.{part}", (keys.heads,)) for part in ("scale", "bias")
        )
    )
    chooser = indexer(
        keys,
        vectors=(
            ("q_input_norm", keys.hidden),
            ("q_input_norm.bias", keys.hidden),
            ("softmax_scaling.scale", heads),
            ("softmax_scaling.bias", heads),
        ),
    )
    wide = keys.number("qk_nope_head_dim") + keys.number("qk_rope_head_dim")

    def layer(number: int) -> Modules:
        plain = indexed(keys, has_latent=sources[number] == number, hands_on=True)
        own = as_kind(
            SharedLatentAttention,
            replace(plain, chooses=types[number] != "shared"),
            stores=number in sources[number + 1 :],
        )
        if not rotated[number]:
            own = replace(own, nope_dim=wide, rope_dim=0)
        mlp: Module = routed_experts(keys, correction=None, routing="float grouped softmax")
        choosing = with_indexer(keys, types[number], own, chooser)
        return *choosing, scaling, mlp if with_experts[number] else dense(keys), LAYER_NORMS

    return [layer(number) for number in range(keys.layers)]


def mistral_large4_dialect(keys: Keys) -> Dialect:
    """An indexer takes a mask; frequencies are multiplied by what a checkpoint has."""
    own = dialect(rotary="interleaved", always_masks=True, scaled_frequencies=True)(keys)
    return replace(own, rotary_dim=keys.number("qk_rope_head_dim"))


def mistral_large4_outside(keys: Keys) -> Outside:
    """Scales of the rotation's frequencies."""
    rotated = keys.number("qk_rope_head_dim") // 2
    return Outside(more=(Extra(buffers=(("rotary_emb.alpha", (rotated,)),)),))


def delta_attention(keys: Keys, *, factorised: bool = True) -> DeltaAttention:
    """Kimi delta attention, whose sizes may be in a section by themselves."""
    section = keys.section("linear_attn_config")

    def size(name: str, in_section: str) -> int:
        return section.optional(in_section) or keys.number(name)

    return DeltaAttention(
        heads=size("linear_num_heads", "num_heads"),
        head_dim=size("linear_head_dim", "head_dim"),
        kernel=size("linear_conv_kernel_dim", "short_conv_kernel_size"),
        factorised=factorised,
    )


def kimi_experts(keys: Keys) -> Experts:
    """Kimi's names of DeepSeek's experts."""
    inner = keys.number("moe_intermediate_size")
    return Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_token"),
        inner=inner,
        shared=inner * (keys.optional("num_shared_experts") or 0),
        correction=CORRECTION,
        routing="grouped sigmoid",
        normalised=keys.get("norm_topk_prob") is not False,
        groups=keys.optional("n_group") or 1,
        chosen_groups=keys.optional("topk_group") or 1,
    )


def kimi_linear_layers(keys: Keys) -> list[Modules]:
    """Kimi delta attention, and latent attention on some layers."""
    full = keys.section("linear_attn_config").numbers("full_attn_layers")
    derived = [FULL if n and n % 4 == 0 else LINEAR for n in range(keys.layers)]
    if full is not None:
        derived = [FULL if n + 1 in full else LINEAR for n in range(keys.layers)]
    with_experts = first_dense(keys, keys.optional("first_k_dense_replace") or 1)

    def layer(number: int, kind: str) -> Modules:
        own: Module = delta_attention(keys) if kind == LINEAR else latent(keys)
        mlp: Module = kimi_experts(keys) if with_experts[number] else dense(keys)
        return own, mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def bailing_layers(keys: Keys) -> list[Modules]:
    """Kimi delta attention, and gated latent attention on each `layer_group_size`-th layer."""
    derived = keys.every(keys.optional("layer_group_size") or 1, FULL, LINEAR)
    with_experts = first_dense(keys, keys.optional("first_k_dense_replace"))
    delta = DeltaAttention(
        heads=keys.heads,
        head_dim=keys.head_dim,
        kernel=keys.number("short_conv_kernel_size"),
        factorised=False,
        limited=keys.get("kda_safe_gate") is not False,
    )
    own = latent(keys, gate=(("g_proj", keys.heads),))

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = kimi_experts(keys) if with_experts[number] else dense(keys)
        return delta if kind == LINEAR else own, mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def longcat_layers(keys: Keys) -> list[Modules]:
    """Two attentions and two MLPs a layer, and experts beside them, some without weights."""
    idle = keys.optional("zero_expert_num") or 0
    experts = IdleExperts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("moe_topk"),
        inner=keys.number("expert_ffn_hidden_size"),
        idle=idle,
        spare=idle,
        router="router.classifier",
        correction=("router.e_score_correction_bias", False),
        routing="wide softmax",
    )
    own = tuple(
        module
        for number, cached in enumerate(((KEYS, VALUES), (SECOND_KEYS, SECOND_VALUES)))
        for module in (
            latent(keys, name=f"self_attn.{number}", scaled=True, cached=cached),
            FeedForward(inner=keys.number("ffn_hidden_size"), name=f"mlps.{number}"),
            Norms((f"input_layernorm.{number}", f"post_attention_layernorm.{number}")),
        )
    )
    return [(*own, experts)] * keys.number("num_layers", MOST_LAYERS)


LIGHT, HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
V4_KINDS = {0: SLIDING, 4: LIGHT, 128: HEAVY}
"""Kinds of layers, by what `compress_ratios` says of them."""
MOST_ROUNDS = 1_000
V4_ROTATED = 64 / 512
"""The share of a head that rotates where the keys do not say."""


def deepseek_v4_layers(keys: Keys) -> list[Modules]:
    """Windows with compressed tokens behind them, and several residual streams."""
    streams = hyper_connections(keys, 2 * keys.number("hc_mult") + keys.number("hc_mult") ** 2, 3)
    kinds, hashed = _v4_kinds(keys), _v4_hashed(keys)
    own = {kind: _v4_attention(keys, kind) for kind in dict.fromkeys(kinds)}
    table = (keys.number("vocab_size"), keys.number("num_experts_per_tok"))
    hashing: Modules = (Extra(integers=(("mlp.gate.tid2eid", table),)),)

    def layer(number: int, kind: str) -> Modules:
        by_hash = hashed[number]
        more = hashing if by_hash else ()
        return own[kind], _v4_experts(keys, by_hash=by_hash), *more, LAYER_NORMS, *streams

    return stack(kinds, layer)


def _v4_kinds(keys: Keys) -> list[str]:
    """Of each layer: `layer_types`, else by `compress_ratios`, else in turn behind the first two.

    Raises:
        ConfigError: there is another.
    """
    listed = keys.list_of("layer_types", keys.layers)
    if listed is not None:
        _refuse_others(listed, V4_KINDS.values(), f"{keys.place}layer_types")
        return listed[: keys.layers]
    ratios = keys.numbers("compress_ratios", keys.layers)
    if ratios is None:
        return [LIGHT if n > 1 and n % 2 else HEAVY for n in range(keys.layers)]
    _refuse_others(ratios, V4_KINDS, f"{keys.place}compress_ratios")
    return [V4_KINDS[ratio] for ratio in ratios[: keys.layers]]


def _v4_hashed(keys: Keys) -> list[bool]:
    """Whether experts of each layer are found in a table: `mlp_layer_types`, else the first ones.

    Raises:
        ConfigError: there is another kind.
    """
    listed = keys.list_of("mlp_layer_types", keys.layers)
    if listed is not None:
        _refuse_others(listed, ("hash_moe", "moe"), f"{keys.place}mlp_layer_types")
        return [kind == "hash_moe" for kind in listed[: keys.layers]]
    count = keys.integer("num_hash_layers")
    return [number < (3 if count is None else count) for number in range(keys.layers)]


def _refuse_others(listed: Sequence[object], known: Iterable[object], name: str) -> None:
    others = [kind for kind in listed if kind not in (*known,)]
    if others:
        expected = ", ".join(str(kind) for kind in known)
        raise ConfigError(f"{name}: got {others[0]!r:.60}, expected one of {expected} for a layer")


def _v4_rate(keys: Keys, kind: str) -> int:
    """Tokens that become one; 0: none do."""
    if kind == SLIDING:
        return 0
    given = keys.section("compress_rates")
    rates = {name: given.optional(name) for name in (LIGHT, HEAVY)}
    older = keys.optional(f"compress_rate_{'csa' if kind == LIGHT else 'hca'}")
    if older is not None or keys.get("compress_rates") is None:
        return older or next(rate for rate, known in V4_KINDS.items() if known == kind)
    return rates[kind] or given.number(kind)


def _v4_attention(keys: Keys, kind: str) -> CompressedAttention:
    """Attention of a layer of a kind.

    Raises:
        ConfigError: sizes do not go together.
    """
    index = keys.number("index_n_heads"), keys.number("index_head_dim")
    own = CompressedAttention(
        heads=keys.heads,
        head_dim=keys.head_dim,
        query_rank=keys.number("q_lora_rank"),
        out_groups=keys.number("o_groups"),
        out_rank=keys.number("o_lora_rank"),
        window=keys.number("sliding_window"),
        rate=_v4_rate(keys, kind),
        index=index if kind == LIGHT else None,
        chosen=keys.number("index_topk"),
        rotated=v4_rotated(keys),
    )
    if own.heads * own.head_dim % own.out_groups:
        raise ConfigError(
            f"{keys.place}o_groups: got {own.out_groups:,}, expected a divisor of the width of all "
            f"heads, {own.heads * own.head_dim:,}"
        )
    if kind == LIGHT and index[1] < own.rotated[1]:
        raise ConfigError(
            f"{keys.place}index_head_dim: got {index[1]:,}, expected at least the "
            f"{own.rotated[1]:,} channels that rotate"
        )
    if own.window == 1:
        raise ConfigError(
            f"{keys.place}sliding_window: got 1, expected at least 2: transformers cannot cache a "
            "window of one token"
        )
    return own


def v4_rotated(keys: Keys) -> tuple[int, int]:
    """Channels of a head that rotate: in layers with a window alone, and in others.

    Raises:
        ConfigError: they are none, or more than a head has.
    """
    given = keys.mapping("rope_parameters")
    nested = all(isinstance(given.get(name), Mapping) for name in ("main", "compress"))
    shares = [_v4_share(keys)] * 2
    if nested:
        sections = (keys.section("rope_parameters").section(name) for name in ("main", "compress"))
        shares = [section.factor("partial_rotary_factor") or 1.0 for section in sections]
    main, compressed = (2 * ceil_div(int(keys.head_dim * share), 2) for share in shares)
    for width in (main, compressed):
        if not 0 < width <= keys.head_dim:
            raise ConfigError(
                f"{keys.place}partial_rotary_factor: {width:,} channels of a head rotate, expected "
                f"2 to {keys.head_dim:,}"
            )
    return main, compressed


def _v4_share(keys: Keys) -> float:
    if keys.get("partial_rotary_factor") is not None:
        return keys.factor("partial_rotary_factor") or 0.0
    width = keys.optional("qk_rope_head_dim")
    return V4_ROTATED if width is None else width / keys.head_dim


def _v4_experts(keys: Keys, *, by_hash: bool) -> LimitedExperts:
    """Experts and one shared one, whatever `n_shared_experts` says."""
    plain = routed_experts(
        keys,
        correction=None if by_hash else CORRECTION,
        shared=keys.number("moe_intermediate_size"),
        routing="hash" if by_hash else "root of softplus",
    )
    scoring = keys.text("scoring_func") or "sqrtsoftplus"
    return as_kind(
        LimitedExperts, plain if scoring == "sqrtsoftplus" else replace(plain, routing="")
    )


def deepseek_v4_dialect(keys: Keys) -> Dialect:
    """Several residual streams; attention with sinks is written out."""
    main, compressed = v4_rotated(keys)
    own = dialect(
        norm="wide",
        order="hyper-connections",
        eager="sinks",
        rotary="interleaved",
        half_angles=True,
        rotary_kinds=2,
        all_kinds=True,
        mixing_rounds=keys.optional("hc_sinkhorn_iters", MOST_ROUNDS) or 1,
    )(keys)
    return replace(own, rotary_dim=compressed, windowed_dim=main)


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


def hyper_head(keys: Keys) -> Outside:
    """One stream of several, before the last norm."""
    return Outside(more=(HyperHead(streams=keys.number("hc_mult")),))


_DEEPSEEK = deepseek_layers()

_DEEPSEEK_V32 = deepseek_layers(attention_of=lambda keys: (indexed(keys), indexer(keys)))

_V4_MIXING = ("attn_hc", "ffn_hc", "hc_head", "norm", "sinks", "position_bias")

_LATENT = deepseek_layers(experts=dense, first=0)

_GLM4_MOE = deepseek_layers(attention_of=glm4_moe_attention)

FAMILIES: dict[str, Family] = {
    "deepseek_v3": Family(
        layers=_DEEPSEEK,
        mtp=next_token_layers(_DEEPSEEK),
        float32=ROUTING_BIAS,
        dialect=deepseek_dialect,
    ),
    "deepseek_v32": Family(
        layers=_DEEPSEEK_V32,
        mtp=next_token_layers(_DEEPSEEK_V32),
        dialect=indexed_dialect,
        float32=ROUTING_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "deepseek_v4": Family(
        layers=deepseek_v4_layers,
        outside=hyper_head,
        dialect=deepseek_v4_dialect,
        float32=(*ROUTING_BIAS, *_V4_MIXING),
        float32_beside_float16=(
            "self_attn.compressor.gate_proj",
            "self_attn.compressor.kv_proj",
            "indexer.scorer.weights_proj",
            "indexer.gate_proj",
            "indexer.kv_proj",
        ),
        own_class=("self_attn.o_a_proj",),
    ),
    "mistral4": Family(
        layers=deepseek_layers(
            experts=lambda keys: routed_experts(keys, correction=None, routing="grouped softmax")
        ),
        dialect=lambda keys: replace(deepseek_dialect(keys), scales_queries=True),
    ),
    "mistral_large4_text": Family(
        layers=mistral_large4_layers,
        dialect=mistral_large4_dialect,
        outside=mistral_large4_outside,
        float32=("mlp.gate.", "rotary_emb"),
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "longcat_flash": Family(
        layers=longcat_layers,
        float32_beside_float16=("classifier",),
        dialect=lambda keys: replace(deepseek_dialect(keys), order="shortcut"),
    ),
    "minicpm3": Family(
        layers=_LATENT, dialect=lambda keys: replace(deepseek_dialect(keys), scalars=1)
    ),
    "youtu": Family(layers=_LATENT, dialect=deepseek_dialect),
    "glm_moe_dsa": Family(
        layers=glm_dsa_layers,
        mtp=next_token_layers(glm_dsa_layers, tables=False),
        dialect=indexed_dialect,
        float32=ROUTING_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "glm5_next_text": Family(
        layers=glm5_next_layers,
        float32=(*ROUTING_BIAS, "conv1d", "A_log", "dt_bias", "hc.base", "hc.scale"),
    ),
    "glm4_moe": Family(
        layers=_GLM4_MOE,
        mtp=next_token_layers(_GLM4_MOE),
        float32=ROUTING_BIAS,
        dialect=partial_dialect(0.5, rotary="partial later"),
    ),
    "solar_open": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (attention(keys, out_bias=False),), first=0
        ),
        float32=ROUTING_BIAS,
        dialect=dialect(),
    ),
    "kimi_linear": Family(layers=kimi_linear_layers, outside=untied, dialect=dialect(rotary="")),
    "bailing_hybrid": Family(
        layers=bailing_layers,
        outside=untied,
        mtp=next_token_layers(bailing_layers),
        dialect=lambda keys: replace(deepseek_dialect(keys), rotary="interleaved"),
        float32=(*ROUTING_BIAS, "conv1d", "A_log", "dt_bias"),
    ),
    "hy_v3": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (qwen3(keys, FULL),), experts=hy_v3_experts, first=1
        ),
        float32=ROUTING_BIAS,
        dialect=dialect(heads_first=True),
    ),
    "hy_v4": Family(
        layers=hy_v4_layers,
        outside=hyper_head,
        float32=(*ROUTING_BIAS, "lm_head", "sinks", "_hc.", "hc_head", "k_norm", "weights_proj"),
    ),
}
"""A `model_type` to how it is read."""
