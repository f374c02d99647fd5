"""From the keys of a `config.json` to layers: one function a family of transformers' models.

The functions follow the modules and configuration classes of transformers 5.23.0, and for models
that only ship their own code, that code (`nemotron-nas`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.architecture import Layer
from tritter_mem.models.huggingface_keys import FULL, INDEXED, LINEAR, SLIDING, Keys
from tritter_mem.models.transformers_blocks import (
    Attention,
    BlockIndexer,
    CacheOnly,
    CompressedAttention,
    DeltaAttention,
    DepthwiseConvolutions,
    Experts,
    Extra,
    FeedForward,
    FusedIndexer,
    GatedDelta,
    Indexer,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    Module,
    Norms,
    ShortConvolution,
    Tables,
)

Modules = tuple[Module, ...]
LAYER_NORMS = Norms(("input_layernorm", "post_attention_layernorm"))
GEMMA_NORMS = Norms(
    (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    )
)
POST_NORMS = Norms(("post_attention_layernorm", "post_feedforward_layernorm"))
FEED_FORWARD_NORMS = Norms(("input_layernorm", "pre_ff_layernorm"))
CORRECTION = ("gate.e_score_correction_bias", False)


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Names of what is outside of the layers.

    Attributes:
        prefix: of the layers, the embedding and the last norm.
        norm: the last norm; empty: there is none. `norm_bias`: whether it has one.
        head_bias: whether the output projection has a bias.
        ties: False where the output projection has weights whatever `tie_word_embeddings` says.
        more: other modules beside the layers.
    """

    prefix: str = "model"
    embedding: str = "embed_tokens"
    norm: str = "norm"
    norm_bias: bool = False
    head_bias: bool = False
    ties: bool = True
    more: Modules = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a `model_type` is read.

    Attributes:
        layers: the modules of each layer.
        outside: names and modules outside of them.
        mtp: layers for multi-token prediction, which are in a checkpoint alone.
        float32: parts of names of weights that stay float32 beside 16-bit weights; a name ends
            with a dot here.
        float32_beside_float16: the same, only beside float16.
        unsupported: what of a config is not counted.
    """

    layers: Callable[[Keys], list[Modules]]
    outside: Callable[[Keys], Outside] = lambda keys: Outside()
    mtp: Callable[[Keys], list[Modules]] = lambda keys: []
    float32: tuple[str, ...] = ()
    float32_beside_float16: tuple[str, ...] = ()
    unsupported: Callable[[Keys], list[str]] = lambda keys: []


def attention(keys: Keys, kind: str = FULL, **more: Any) -> Attention:
    """Grouped-query attention as most families have it; `more` differs from that."""
    plain = Attention(
        heads=keys.heads,
        kv_heads=keys.kv_heads,
        head_dim=keys.head_dim,
        window=keys.window(kind),
        bias=keys.has("attention_bias"),
        out_bias=keys.has("attention_bias"),
    )
    return replace(plain, **more)


def head_norms(keys: Keys) -> tuple[int, int]:
    """Norms of queries and keys over the width of a head."""
    return keys.head_dim, keys.head_dim


def full_norms(keys: Keys) -> tuple[int, int]:
    """Norms of queries and keys over all heads."""
    return keys.heads * keys.head_dim, keys.kv_heads * keys.head_dim


def dense(keys: Keys, **more: Any) -> FeedForward:
    """The gated MLP of most families."""
    plain = FeedForward(inner=keys.number("intermediate_size"), bias=keys.has("mlp_bias"))
    return replace(plain, **more)


def first_dense(keys: Keys, count: int | None) -> list[bool]:
    """Which layers have experts: by `mlp_layer_types`, else all behind the first dense ones."""
    types = keys.list_of("mlp_layer_types", keys.layers)
    if types is not None:
        return [kind != "dense" for kind in types[: keys.layers]]
    return [number >= (count or 0) for number in range(keys.layers)]


def stack(kinds: Iterable[str], layer: Callable[[int, str], Modules]) -> list[Modules]:
    """One layer for each kind of attention; `layer` takes its number and its kind."""
    return [layer(number, kind) for number, kind in enumerate(kinds)]


def plain_layers(
    *,
    types: Callable[[Keys], Sequence[str] | None] = lambda keys: None,
    norms: Norms = LAYER_NORMS,
    attention_of: Callable[[Keys, str], Module] = attention,
    mlp: Callable[[Keys], Module] = dense,
) -> Callable[[Keys], list[Modules]]:
    """Layers of one attention and one MLP.

    Args:
        types: kinds of attention where `layer_types` is absent.
        norms: over the residual stream.
        attention_of: the attention of a kind.
        mlp: the MLP, the same for all layers.
    """

    def layers(keys: Keys) -> list[Modules]:
        return [
            (attention_of(keys, kind), mlp(keys), norms) for kind in keys.layer_types(types(keys))
        ]

    return layers


def qwen_types(keys: Keys) -> list[str]:
    """Qwen 2 and 3: a window from `max_window_layers` on, where it is switched on."""
    windowed = keys.has("use_sliding_window") and keys.optional("sliding_window") is not None
    first = keys.optional("max_window_layers") or 0
    return [SLIDING if windowed and n >= first else FULL for n in range(keys.layers)]


def qwen2(keys: Keys, kind: str) -> Attention:
    """Biases of queries, keys and values alone."""
    return attention(keys, kind, bias=True, out_bias=False)


def qwen3(keys: Keys, kind: str) -> Attention:
    """Norms of queries and keys."""
    return attention(keys, kind, qk_norm=head_norms(keys))


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


def gated_delta(keys: Keys, *, fused: bool) -> GatedDelta:
    """Qwen's linear attention; the first one fuses its input projections."""
    key_heads, value_heads = (
        keys.number("linear_num_key_heads"),
        keys.number("linear_num_value_heads"),
    )
    key_dim, value_dim = keys.number("linear_key_head_dim"), keys.number("linear_value_head_dim")
    channels, values = 2 * key_heads * key_dim + value_heads * value_dim, value_heads * value_dim
    inputs: tuple[tuple[str, int], ...] = (
        ("in_proj_qkv", channels),
        ("in_proj_z", values),
        ("in_proj_b", value_heads),
        ("in_proj_a", value_heads),
    )
    if fused:
        inputs = (("in_proj_qkvz", channels + values), ("in_proj_ba", 2 * value_heads))
    return GatedDelta(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        kernel=keys.number("linear_conv_kernel_dim"),
        inputs=inputs,
    )


def gated_query_attention(keys: Keys) -> Attention:
    """Attention whose query projection makes a gate too."""
    return attention(keys, query_copies=2, qk_norm=head_norms(keys))


def qwen_hybrid_kinds(keys: Keys, rare: str = FULL) -> list[str]:
    """Linear attention, and another on each `full_attention_interval`-th layer."""
    kinds = keys.layer_types(
        keys.every(keys.optional("full_attention_interval") or 4, rare, LINEAR)
    )
    return [rare if kind == FULL else kind for kind in kinds]


def qwen_hybrid(
    mlp: Callable[[Keys, int], Module], *, fused: bool
) -> Callable[[Keys], list[Modules]]:
    """Qwen3-Next and Qwen3.5."""

    def layers(keys: Keys) -> list[Modules]:
        delta = gated_delta(keys, fused=fused)

        def layer(number: int, kind: str) -> Modules:
            own = delta if kind == LINEAR else gated_query_attention(keys)
            return own, mlp(keys, number), LAYER_NORMS

        return stack(qwen_hybrid_kinds(keys), layer)

    return layers


def qwen_mtp(mlp: Callable[[Keys], Module]) -> Callable[[Keys], list[Modules]]:
    """Qwen3.5's layers for multi-token prediction, with full attention."""

    def layers(keys: Keys) -> list[Modules]:
        count = keys.optional("mtp_num_hidden_layers") or 0
        joined = Extra(
            linears=(("fc", keys.hidden, 2 * keys.hidden),),
            tensors=tuple(
                (name, (keys.hidden,))
                for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
            ),
        )
        tables: Modules = ()
        if keys.has("mtp_use_dedicated_embeddings"):
            tables = (Tables(keys.number("vocab_size"), "embed_tokens", ""),)
        own = [(gated_query_attention(keys), mlp(keys), LAYER_NORMS)] * count
        return [(joined, *tables), *own] if count else []

    return layers


def qwen4_layers(keys: Keys) -> list[Modules]:
    """Linear attention and attention over chosen blocks, with several residual streams."""
    delta, count, hidden = gated_delta(keys, fused=False), keys.number("hc_count"), keys.hidden
    rank, wide = keys.number("hc_lowrank"), count * hidden
    streams = tuple(
        Extra(
            linears=(
                (f"{name}.input_mix_weight_down", rank, wide),
                (f"{name}.input_mix_weight_up", wide, rank),
                (f"{name}.block_inject_weight", count, wide),
            ),
            tensors=((f"{name}.hc_norm", (wide,)),),
        )
        for name in ("attn_hyper_connection", "mlp_hyper_connection")
    )

    def layer(number: int, kind: str) -> Modules:
        del number
        own: Modules = (
            (delta,) if kind == LINEAR else (gated_query_attention(keys), query_key_indexer(keys))
        )
        return *own, qwen_experts(keys), *streams

    return stack(qwen_hybrid_kinds(keys, INDEXED), layer)


def query_key_indexer(keys: Keys) -> FusedIndexer:
    """Qwen4's indexer, with one key."""
    return FusedIndexer(
        heads=keys.number("indexer_n_heads"), head_dim=keys.number("indexer_head_dim")
    )


def qwen4_outside(keys: Keys) -> Outside:
    """A mix of the residual streams in place of the last norm."""
    wide, rank = keys.number("hc_count") * keys.hidden, keys.number("hc_lowrank")
    mixer = Extra(
        linears=(
            ("hyper_connection_mixer.input_mix_weight_down", rank, wide),
            ("hyper_connection_mixer.input_mix_weight_up", wide, rank),
        ),
        tensors=(("hyper_connection_mixer.hc_norm", (wide,)),),
    )
    return Outside(norm="", more=(mixer,))


def mixtral_experts(keys: Keys, **more: Any) -> Experts:
    """Experts of the MLP's width."""
    plain = Experts(
        count=keys.number("num_local_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("intermediate_size"),
    )
    return replace(plain, **more)


def gpt_oss_experts(keys: Keys) -> Experts:
    """Experts with biases, in one tensor."""
    return mixtral_experts(keys, router="router", router_bias=True, bias=True, packed=True)


def gpt_oss_attention(keys: Keys, kind: str) -> Attention:
    """Attention with a sink for each head."""
    return attention(keys, kind, vectors=(("sinks", keys.heads),))


def llama4_layers(keys: Keys) -> list[Modules]:
    """Chunks but on layers without rotation; experts on listed layers."""
    period = keys.optional("no_rope_layer_interval") or 4
    rotated = keys.list_of("no_rope_layers") or [
        int((n + 1) % period != 0) for n in range(keys.layers)
    ]
    derived = ["chunked_attention" if flag else FULL for flag in rotated[: keys.layers]]
    step = keys.optional("interleave_moe_layer_step") or 1
    listed = keys.list_of("moe_layers")
    with_experts = set(range(step - 1, keys.layers, step) if listed is None else listed)
    experts = mixtral_experts(
        keys,
        router="router",
        packed=True,
        shared=keys.number("intermediate_size"),
        shared_name="shared_expert",
        name="feed_forward",
    )
    wide = FeedForward(inner=keys.number("intermediate_size_mlp"), name="feed_forward")

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = experts if number in with_experts else wide
        return attention(keys, kind), mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def gemma3_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer."""
    return keys.every(keys.optional("sliding_window_pattern") or 6)


def gemma_attention(keys: Keys, kind: str, **more: Any) -> Attention:
    """Norms of queries and keys; a window for both directions is halved."""
    own = qwen3(keys, kind)
    both = keys.get("use_bidirectional_attention") in (True, "all")
    if own.window is not None and both:
        more["window"] = own.window // 2 + 1
    return replace(own, **more)


def reuses_keys(keys: Keys) -> list[bool]:
    """Which layers use the keys and values of an earlier one: the last ones."""
    first = keys.layers - (keys.optional("num_kv_shared_layers") or 0)
    return [number >= first for number in range(keys.layers)]


def per_layer_inputs(keys: Keys) -> tuple[Modules, Modules]:
    """What Gemma's per-layer embeddings add to each layer, and outside of them."""
    width, hidden = keys.optional("hidden_size_per_layer_input"), keys.hidden
    if not width:
        return (), ()
    inside = Extra(
        linears=(("per_layer_input_gate", width, hidden), ("per_layer_projection", hidden, width)),
        tensors=(("post_per_layer_input_norm", (hidden,)),),
    )
    vocabulary = keys.number("vocab_size_per_layer_input")
    outside = Extra(
        linears=(("per_layer_model_projection", keys.layers * width, hidden),),
        tensors=(
            ("embed_tokens_per_layer", (vocabulary, keys.layers * width)),
            ("per_layer_projection_norm", (width,)),
        ),
    )
    return (inside,), (outside,)


def gemma3n_layers(keys: Keys) -> list[Modules]:
    """Several residual streams, low-rank residuals, and keys shared by the last layers."""
    streams, hidden = keys.number("altup_num_inputs"), keys.hidden
    rank, reuse = keys.number("laurel_rank"), reuses_keys(keys)
    inner = keys.get("intermediate_size")
    widths = inner if isinstance(inner, list) else [inner] * keys.layers
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

    def layer(number: int, kind: str) -> Modules:
        own = gemma_attention(keys, kind, has_keys=not reuse[number], caches=not reuse[number])
        return own, FeedForward(inner=widths[number]), GEMMA_NORMS, mixing, *inside

    return stack(keys.layer_types(keys.every(5)), layer)


def gemma3n_outside(keys: Keys) -> Outside:
    """Per-layer embeddings, and projections to and from the other residual streams."""
    _, outside = per_layer_inputs(keys)
    square = tuple(
        (f"{name}.{number}", keys.hidden, keys.hidden)
        for name in ("altup_projections", "altup_unembed_projections")
        for number in range(keys.number("altup_num_inputs") - 1)
    )
    return Outside(more=(*outside, Extra(linears=square)))


def gemma4_kinds(keys: Keys) -> list[str]:
    """Full attention on each sixth layer, and on the last."""
    return [*keys.layer_types(keys.every(6))[:-1], FULL]


def gemma4_layers(keys: Keys) -> list[Modules]:
    """Other heads on full attention, which may take keys for values; experts beside an MLP."""
    reuse, inside = reuses_keys(keys), per_layer_inputs(keys)[0]
    alike = keys.has("attention_k_eq_v")
    experts: Modules = ()
    if keys.has("enable_moe_block"):
        experts = (
            Experts(
                count=keys.number("num_experts"),
                chosen=keys.number("top_k_experts"),
                inner=keys.number("moe_intermediate_size"),
                router="router.proj",
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

    def heads(number: int, kind: str) -> dict[str, int]:
        own = keys.at(number)
        sizes = {"head_dim": own.head_dim, "kv_heads": own.kv_heads}
        if kind == FULL and not keys.mapping("per_layer_config"):
            sizes["head_dim"] = keys.optional("global_head_dim") or 512
            if alike:
                sizes["kv_heads"] = keys.optional("num_global_key_value_heads") or own.kv_heads
        return sizes

    def layer(number: int, kind: str) -> Modules:
        sizes = heads(number, kind)
        own = gemma_attention(
            keys,
            kind,
            **sizes,
            qk_norm=(sizes["head_dim"], sizes["head_dim"]),
            has_values=not (alike and kind == FULL),
            has_keys=not reuse[number],
            caches=not reuse[number],
        )
        inner = keys.number("intermediate_size")
        wide = keys.has("use_double_wide_mlp") and reuse[number]
        mlp = FeedForward(inner=2 * inner if wide else inner)
        scalar = Extra(buffers=(("layer_scalar", (1,)),))
        return own, mlp, GEMMA_NORMS, scalar, *experts, *inside

    return stack(gemma4_kinds(keys), layer)


def latent(keys: Keys, **more: Any) -> LatentAttention:
    """Multi-head latent attention of DeepSeek."""
    plain = LatentAttention(
        heads=keys.heads,
        query_rank=keys.optional("q_lora_rank"),
        rank=keys.number("kv_lora_rank"),
        nope_dim=keys.number("qk_nope_head_dim"),
        rope_dim=keys.optional("qk_rope_head_dim") or 0,
        value_dim=keys.optional("v_head_dim") or keys.hidden // keys.heads,
        bias=keys.has("attention_bias"),
    )
    return replace(plain, **more)


def routed_experts(keys: Keys, **more: Any) -> Experts:
    """DeepSeek's experts: shared ones are one MLP as wide as all of them."""
    inner = keys.number("moe_intermediate_size")
    plain = Experts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        shared=inner * (keys.optional("n_shared_experts") or 0),
        correction=CORRECTION,
    )
    return replace(plain, **more)


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


def next_token_layers(layers: Callable[[Keys], list[Modules]]) -> Callable[[Keys], list[Modules]]:
    """DeepSeek's layers for multi-token prediction: the last layer, tables, and their projection."""

    def mtp(keys: Keys) -> list[Modules]:
        count = keys.optional("num_nextn_predict_layers") or 0
        joined = Extra(
            linears=(("eh_proj", keys.hidden, 2 * keys.hidden),),
            tensors=tuple(
                (name, (keys.hidden,)) for name in ("enorm", "hnorm", "shared_head.norm")
            ),
        )
        tables = Tables(keys.number("vocab_size"), "embed_tokens", "shared_head.head")
        return [(*layers(keys)[-1], joined, tables)] * count

    return mtp


def indexer(keys: Keys, **more: Any) -> Indexer:
    """An indexer that takes the queries' latent."""
    plain = Indexer(
        heads=keys.number("index_n_heads"),
        head_dim=keys.number("index_head_dim"),
        queries=keys.optional("q_lora_rank") or keys.hidden,
    )
    return replace(plain, **more)


def indexer_types(keys: Keys, derived: Sequence[str] | None = None) -> list[str]:
    """Which layers have an indexer, and which use that of an earlier one (`shared`)."""
    listed = keys.list_of("indexer_types", keys.layers)
    if listed is not None:
        return listed[: keys.layers]
    pattern = keys.get("index_topk_pattern")
    if isinstance(pattern, str):
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    if isinstance(pattern, list):
        return pattern
    if derived is not None:
        return list(derived)
    period = keys.optional("index_topk_freq") or 1
    offset = 2 if keys.get("index_skip_topk_offset") is None else keys.get("index_skip_topk_offset")
    return [
        "shared" if max(number - offset + 1, 0) % period else "full"
        for number in range(keys.layers)
    ]


def with_indexer(keys: Keys, kind: str, own: Module, chooser: Module) -> Modules:
    """Attention with its indexer, or with that of an earlier layer."""
    del keys
    return (own,) if kind == "shared" else (own, chooser)


def glm_dsa_layers(keys: Keys) -> list[Modules]:
    """Latent attention with indexers, of which some layers share one."""
    with_experts = first_dense(keys, keys.optional("first_k_dense_replace"))
    return [
        (
            *with_indexer(keys, kind, latent(keys), indexer(keys)),
            routed_experts(keys) if mixed else dense(keys),
            LAYER_NORMS,
        )
        for kind, mixed in zip(indexer_types(keys), with_experts, strict=False)
    ]


def hyper_connections(keys: Keys, outputs: int, scales: int) -> Modules:
    """Mixing of several residual streams before attention and before the MLP."""
    wide = keys.number("hc_mult") * keys.hidden
    return (
        Extra(
            tensors=tuple(
                (f"{name}.{part}", shape)
                for name in ("attn_hc", "ffn_hc")
                for part, shape in (
                    ("fn", (outputs, wide)),
                    ("base", (outputs,)),
                    ("scale", (scales,)),
                )
            )
        ),
    )


def hyper_head(keys: Keys) -> Outside:
    """One stream of several, before the last norm."""
    streams = keys.number("hc_mult")
    shapes = {
        "hc_fn": (streams, streams * keys.hidden),
        "hc_base": (streams,),
        "hc_scale": (1,),
    }
    return Outside(
        more=(Extra(tensors=tuple((f"hc_head.{n}", shape) for n, shape in shapes.items())),)
    )


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
    period = keys.optional("no_rope_layer_interval") or 4
    rotated = keys.list_of("no_rope_layers") or [(n + 1) % period for n in range(keys.layers)]
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
        own = latent(keys, has_latent=sources[number] == number)
        if not rotated[number]:
            own = replace(own, nope_dim=wide, rope_dim=0)
        mlp: Module = routed_experts(keys, correction=None)
        choosing = with_indexer(keys, types[number], own, chooser)
        return *choosing, scaling, mlp if with_experts[number] else dense(keys), LAYER_NORMS

    return [layer(number) for number in range(keys.layers)]


def mistral_large4_outside(keys: Keys) -> Outside:
    """Scales of the rotation's frequencies."""
    rotated = keys.number("qk_rope_head_dim") // 2
    return Outside(more=(Extra(buffers=(("rotary_emb.alpha", (rotated,)),)),))


def delta_attention(keys: Keys, *, factorised: bool = True) -> DeltaAttention:
    """Kimi delta attention, whose sizes may be in a section by themselves."""
    section = keys.mapping("linear_attn_config")

    def size(name: str, in_section: str) -> int:
        return int(section.get(in_section) or keys.number(name))

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
    )


def kimi_linear_layers(keys: Keys) -> list[Modules]:
    """Kimi delta attention, and latent attention on some layers."""
    section = keys.mapping("linear_attn_config")
    derived = [FULL if n and n % 4 == 0 else LINEAR for n in range(keys.layers)]
    if "full_attn_layers" in section:
        full = set(section["full_attn_layers"])
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
        head_dim=keys.optional("head_dim") or keys.hidden // keys.heads,
        kernel=keys.number("short_conv_kernel_size"),
        factorised=False,
    )
    own = latent(keys, gate=(("g_proj", keys.heads),))

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = kimi_experts(keys) if with_experts[number] else dense(keys)
        return delta if kind == LINEAR else own, mlp, LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def longcat_layers(keys: Keys) -> list[Modules]:
    """Two attentions and two MLPs a layer, and experts beside them, some without weights."""
    idle = keys.optional("zero_expert_num") or 0
    experts = Experts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("moe_topk"),
        inner=keys.number("expert_ffn_hidden_size"),
        idle=idle,
        spare=idle,
        router="router.classifier",
        correction=("router.e_score_correction_bias", False),
    )
    own = tuple(
        module
        for number in range(2)
        for module in (
            latent(keys, name=f"self_attn.{number}"),
            FeedForward(inner=keys.number("ffn_hidden_size"), name=f"mlps.{number}"),
            Norms((f"input_layernorm.{number}", f"post_attention_layernorm.{number}")),
        )
    )
    return [(*own, experts)] * keys.number("num_layers")


def deepseek_v4_layers(keys: Keys) -> list[Modules]:
    """Windows with compressed tokens behind them, and several residual streams."""
    ratios = keys.list_of("compress_ratios", keys.layers)
    light, heavy = "compressed_sparse_attention", "heavily_compressed_attention"
    rates = {light: 4, heavy: 128} | dict(keys.mapping("compress_rates"))
    derived = [light if n > 1 and n % 2 else heavy for n in range(keys.layers)]
    if ratios is not None:
        names = {0: SLIDING, rates[light]: light, rates[heavy]: heavy}
        derived = [names.get(ratio, heavy) for ratio in ratios[: keys.layers]]
    hashed = keys.list_of("mlp_layer_types")
    count = keys.get("num_hash_layers")
    first = 3 if count is None else count
    streams = hyper_connections(keys, 2 * keys.number("hc_mult") + keys.number("hc_mult") ** 2, 3)

    def own(kind: str) -> Module:
        index = keys.number("index_n_heads"), keys.number("index_head_dim")
        return CompressedAttention(
            heads=keys.heads,
            head_dim=keys.head_dim,
            query_rank=keys.number("q_lora_rank"),
            out_groups=keys.number("o_groups"),
            out_rank=keys.number("o_lora_rank"),
            window=keys.number("sliding_window"),
            rate=rates.get(kind, 0),
            index=index if kind == light else None,
        )

    def layer(number: int, kind: str) -> Modules:
        by_hash = number < first if hashed is None else hashed[number] == "hash_moe"
        experts = routed_experts(keys, correction=None if by_hash else CORRECTION)
        table = (keys.number("vocab_size"), keys.number("num_experts_per_tok"))
        hashing: Modules = ()
        if by_hash:
            hashing = (Extra(integers=(("mlp.gate.tid2eid", table),)),)
        return own(kind), experts, LAYER_NORMS, *streams, *hashing

    return stack(keys.layer_types(derived), layer)


def mimo_layers(keys: Keys) -> list[Modules]:
    """Other key heads, and sinks, on layers with a window."""
    pattern = keys.list_of("hybrid_layer_pattern", keys.layers)
    derived = [FULL if n == 0 or not (n + 1) % 6 else SLIDING for n in range(keys.layers)]
    if pattern is not None:
        derived = [SLIDING if flag else FULL for flag in pattern[: keys.layers]]
    frequency = keys.get("moe_layer_freq")
    with_experts = first_dense(keys, 1)
    if isinstance(frequency, list) and keys.get("mlp_layer_types") is None:
        with_experts = [bool(flag) for flag in frequency[: keys.layers]]
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


def minimax_layers(keys: Keys) -> list[Modules]:
    """Lightning attention on every second layer, or as `attn_type_list` has it."""
    listed = keys.list_of("attn_type_list", keys.layers)
    derived = keys.every(2, LINEAR, FULL)
    if listed is not None:
        derived = [FULL if flag else LINEAR for flag in listed[: keys.layers]]
    lightning = LightningAttention(
        heads=keys.heads, head_dim=keys.head_dim, block=keys.number("block_size")
    )

    def layer(number: int, kind: str) -> Modules:
        del number
        own: Module = lightning if kind == LINEAR else attention(keys, bias=False, out_bias=False)
        return own, mixtral_experts(keys), LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def minimax_m2_attention(keys: Keys, kind: str) -> Attention:
    """Norms over all heads."""
    return attention(keys, kind, qk_norm=full_norms(keys))


def minimax_m3_layers(keys: Keys) -> list[Modules]:
    """Attention over chosen blocks on some layers; shared experts."""
    section = keys.mapping("sparse_attention_config")
    flags = section.get("sparse_attention_freq")
    sparse = "minimax_m3_sparse"
    derived = [sparse if flag else FULL for flag in flags or [0] * keys.layers]
    frequency = keys.list_of("moe_layer_freq")
    with_experts = first_dense(keys, 0)
    if frequency is not None and keys.get("mlp_layer_types") is None:
        with_experts = [bool(flag) for flag in frequency]
    chooser = BlockIndexer(
        heads=section.get("sparse_num_index_heads") or keys.number("index_n_heads"),
        head_dim=section.get("sparse_index_dim") or keys.number("index_head_dim"),
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


def nemotron_h_kinds(keys: Keys) -> list[str]:
    """`layers_block_type`, or the letters of `hybrid_override_pattern`."""
    letters = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
    listed, pattern = keys.list_of("layers_block_type"), keys.get("hybrid_override_pattern")
    if listed is not None:
        return [{"mamba": LINEAR, "attention": FULL}.get(kind, kind) for kind in listed]
    if not isinstance(pattern, str):
        return [LINEAR, "moe", FULL, "mlp"]
    if unknown := set(pattern) - set(letters):
        raise ConfigError(f"hybrid_override_pattern: unknown letters {''.join(sorted(unknown))}")
    return [letters[letter] for letter in pattern]


def nemotron_h_module(keys: Keys, kind: str) -> Module:
    """One module a layer: Mamba-2, attention, an MLP or experts."""
    if kind == LINEAR:
        heads, width = keys.number("mamba_num_heads"), keys.number("mamba_head_dim")
        return Mamba2(
            inner=heads * width,
            heads=heads,
            head_dim=width,
            groups=keys.optional("mamba_n_groups") or keys.number("n_groups"),
            states=keys.number("ssm_state_size"),
            kernel=keys.optional("mamba_d_conv") or keys.number("conv_kernel"),
            bias=keys.has("mamba_proj_bias") or keys.has("use_bias"),
            conv_bias=keys.has("use_conv_bias"),
            out_bias=keys.has("use_bias"),
            name="mixer",
        )
    if kind == FULL:
        width = keys.optional("head_dim") or keys.optional("attention_head_dim")
        own = attention(keys, name="mixer", bias=False, out_bias=False)
        return replace(own, head_dim=width) if width else own
    if kind == "moe":
        shared = keys.number("moe_shared_expert_intermediate_size")
        latent_width = keys.optional("moe_latent_size")
        return routed_experts(
            keys,
            shared=shared if keys.optional("n_shared_experts") else 0,
            gated=False,
            width=latent_width,
            name="mixer",
        )
    return dense(keys, gated=False, name="mixer")


def nemotron_h_layers(keys: Keys) -> list[Modules]:
    """One module and one norm a layer."""
    modules = {kind: nemotron_h_module(keys, kind) for kind in set(nemotron_h_kinds(keys))}
    layers: list[Modules] = [(modules[kind], Norms(("norm",))) for kind in nemotron_h_kinds(keys)]
    width = keys.optional("moe_latent_size")
    if width is None:
        return layers
    down, up = (
        ("mixer.fc1_latent_proj", width, keys.hidden),
        ("mixer.fc2_latent_proj", keys.hidden, width),
    )
    latent_projections = Extra(linears=(down, up))
    return [
        (*layer, latent_projections) if isinstance(layer[0], Experts) else layer for layer in layers
    ]


def mamba2_of(keys: Keys, inner: int, **more: Any) -> Mamba2:
    """Mamba-2 with the keys of IBM's and Falcon's models."""
    heads = keys.number("mamba_n_heads")
    plain = Mamba2(
        inner=inner,
        heads=heads,
        head_dim=keys.optional("mamba_d_head") or inner // heads,
        groups=keys.number("mamba_n_groups"),
        states=keys.number("mamba_d_state"),
        kernel=keys.number("mamba_d_conv"),
        bias=keys.has("mamba_proj_bias"),
        out_bias=keys.has("mamba_proj_bias"),
        conv_bias=keys.has("mamba_conv_bias"),
    )
    return replace(plain, **more)


def expanded(keys: Keys) -> int:
    """Inner channels of a Mamba layer."""
    return int(keys.number("mamba_expand") * keys.hidden)


def granite_hybrid_layers(keys: Keys) -> list[Modules]:
    """Mamba-2 or attention; experts beside a shared MLP."""
    experts: Modules = ()
    if keys.optional("num_local_experts"):
        experts = (mixtral_experts(keys, router="router", name="block_sparse_moe"),)
    shared = FeedForward(
        inner=keys.number("shared_intermediate_size"),
        fused="input_linear",
        names=("", "", "output_linear"),
        name="shared_mlp",
    )
    state_space = mamba2_of(keys, expanded(keys))

    def layer(number: int, kind: str) -> Modules:
        del number
        own: Module = state_space if kind == LINEAR else attention(keys)
        return own, *experts, shared, LAYER_NORMS

    return stack(_hybrid_types(keys, [LINEAR] * keys.layers), layer)


def _hybrid_types(keys: Keys, derived: Sequence[str]) -> list[str]:
    """`layer_types`, or its older name `layers_block_type`."""
    listed = keys.list_of("layers_block_type", keys.layers)
    if listed is None:
        return keys.layer_types(derived)
    return [{"mamba": LINEAR, "attention": FULL}.get(kind, kind) for kind in listed]


def falcon_h1_layers(keys: Keys) -> list[Modules]:
    """Mamba-2 and attention side by side on every layer."""
    inner = keys.optional("mamba_d_ssm") or expanded(keys)
    state_space = mamba2_of(
        keys,
        inner,
        normed=keys.has("mamba_rms_norm"),
        out_bias=keys.has("projectors_bias"),
    )
    mlp = dense(keys, name="feed_forward")
    return [(state_space, attention(keys), mlp, FEED_FORWARD_NORMS)] * keys.layers


def bamba_layers(keys: Keys) -> list[Modules]:
    """Mamba-2, and attention on listed layers."""
    listed = keys.list_of("attn_layer_indices") or []
    derived = [FULL if number in listed else LINEAR for number in range(keys.layers)]
    state_space, mlp = mamba2_of(keys, expanded(keys)), dense(keys, name="feed_forward")
    return stack(
        derived,
        lambda n, kind: (
            state_space if kind == LINEAR else attention(keys),
            mlp,
            FEED_FORWARD_NORMS,
        ),
    )


def jamba_layers(keys: Keys) -> list[Modules]:
    """Mamba, attention on each `attn_layer_period`-th layer, experts on every second."""
    inner, rank = expanded(keys), keys.optional("mamba_dt_rank")
    state_space = Mamba(
        inner=inner,
        states=keys.number("mamba_d_state"),
        kernel=keys.number("mamba_d_conv"),
        rank=rank or -(-keys.hidden // 16),
        bias=keys.has("mamba_proj_bias"),
        conv_bias=keys.has("mamba_conv_bias"),
        normed=True,
    )
    own = attention(keys, head_dim=keys.hidden // keys.heads, bias=False, out_bias=False)
    count = keys.number("num_experts")
    experts = Experts(
        count=count,
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("intermediate_size"),
        router="router",
        name="feed_forward",
    )

    def on(name: str, number: int) -> bool:
        return number % keys.number(f"{name}_period") == (keys.optional(f"{name}_offset") or 0)

    def layer(number: int) -> Modules:
        mixed = count > 1 and on("expert_layer", number)
        mlp: Module = experts if mixed else dense(keys, name="feed_forward")
        return own if on("attn_layer", number) else state_space, mlp, FEED_FORWARD_NORMS

    return [layer(number) for number in range(keys.layers)]


def mamba2_layers(keys: Keys) -> list[Modules]:
    """Mamba-2 alone."""
    state_space = Mamba2(
        inner=int(keys.number("expand") * keys.hidden),
        heads=keys.number("num_heads"),
        head_dim=keys.number("head_dim"),
        groups=keys.number("n_groups"),
        states=keys.number("state_size"),
        kernel=keys.number("conv_kernel"),
        bias=keys.has("use_bias"),
        out_bias=keys.has("use_bias"),
        conv_bias=keys.has("use_conv_bias"),
        name="mixer",
    )
    return [(state_space, Norms(("norm",)))] * keys.layers


def zamba2_kinds(keys: Keys) -> list[str]:
    """`layers_block_type`, else that of the released model."""
    listed = keys.list_of("layers_block_type")
    if listed is not None:
        return [{"mamba": LINEAR}.get(kind, kind) for kind in listed]
    tail = [*[LINEAR] * 4, "hybrid", *[LINEAR] * 3, "hybrid", *[LINEAR] * 2]
    return [LINEAR, *[*[LINEAR] * 5, "hybrid"] * 7, *tail]


def zamba2_layers(keys: Keys) -> list[Modules]:
    """Mamba-2; hybrid layers run one of a few shared blocks of attention and MLP before it."""
    hidden, inner = keys.hidden, int(keys.number("mamba_expand") * keys.hidden)
    heads = keys.number("n_mamba_heads")
    width, rank = 2 * hidden, keys.number("adapter_rank")
    wide = keys.optional("intermediate_size") or 4 * hidden
    kinds = zamba2_kinds(keys)
    own = Attention(
        heads=keys.heads,
        kv_heads=keys.kv_heads,
        head_dim=width // keys.heads,
        inputs=width,
        name="shared_transformer.self_attn",
    )
    if keys.has("use_shared_attention_adapter"):
        raise ConfigError("use_shared_attention_adapter: adapters of attention are not supported")
    bias = keys.has("add_bias_linear")

    def state_space(name: str) -> Mamba2:
        return Mamba2(
            inner=inner,
            heads=heads,
            head_dim=inner // heads,
            groups=keys.number("mamba_ngroups"),
            states=keys.number("mamba_d_state"),
            kernel=keys.number("mamba_d_conv"),
            bias=bias,
            out_bias=bias,
            conv_bias=keys.has("use_conv_bias"),
            name=name,
        )

    def adapter(number: int) -> Extra:
        name = f"shared_transformer.feed_forward.gate_up_proj_adapter_list.{number}"
        return Extra(linears=((f"{name}.0", rank, hidden), (f"{name}.1", 2 * wide, rank)))

    def shared(first: bool) -> Modules:
        """The weights of a shared block are counted where it runs first."""
        if not first:
            return (CacheOnly(own),)
        mlp = FeedForward(
            inner=wide, fused="gate_up_proj", bias=bias, name="shared_transformer.feed_forward"
        )
        norms = Extra(
            tensors=(
                ("shared_transformer.input_layernorm", (width,)),
                ("shared_transformer.pre_ff_layernorm", (hidden,)),
            )
        )
        return own, mlp, norms

    blocks, layers = keys.number("num_mem_blocks"), list[Modules]()
    hybrids = 0
    for kind in kinds:
        if kind == LINEAR:
            layers.append((state_space("mamba"), Norms(("input_layernorm",))))
            continue
        joined = Extra(linears=(("linear", hidden, hidden),))
        mamba = state_space("mamba_decoder.mamba"), Norms(("mamba_decoder.input_layernorm",))
        layers.append((*shared(hybrids < blocks), adapter(hybrids), joined, *mamba))
        hybrids += 1
    return layers


def lfm2_inner(keys: Keys) -> int:
    """The MLP's width, two thirds of the key's and rounded up where that is asked for."""
    inner = keys.optional("block_ff_dim") or keys.number("intermediate_size")
    if not keys.has("block_auto_adjust_ff_dim"):
        return inner
    inner = int(2 * inner / 3)
    factor = keys.get("block_ffn_dim_multiplier")
    if factor is None:
        return inner
    unit = keys.number("block_multiple_of")
    return unit * -(-int(factor * inner) // unit)


LFM_NAMES = ("w1", "w3", "w2")


def lfm_convolution(keys: Keys) -> ShortConvolution:
    """The short convolution of LFM2 and LFM3."""
    return ShortConvolution(
        kernel=keys.number("conv_L_cache"), width=keys.hidden, bias=keys.has("conv_bias")
    )


def lfm2_attention(keys: Keys) -> Attention:
    """LFM2's names."""
    return attention(
        keys,
        head_dim=keys.hidden // keys.heads,
        qk_norm=(keys.hidden // keys.heads,) * 2,
        bias=False,
        out_bias=False,
        out="out_proj",
        norm_names=("q_layernorm", "k_layernorm"),
    )


def lfm2_layers(keys: Keys) -> list[Modules]:
    """Convolutions, and attention on some layers; with experts behind the first dense layers."""
    listed = keys.list_of("full_attn_idxs")
    derived = [FULL if listed is None or n in listed else "conv" for n in range(keys.layers)]
    norms = Norms(("operator_norm", "ffn_norm"))
    dense_layers = keys.layers
    experts: Module | None = None
    if keys.optional("num_experts"):
        dense_layers = keys.optional("num_dense_layers") or 0
        experts = Experts(
            count=keys.number("num_experts"),
            chosen=keys.number("num_experts_per_tok"),
            inner=keys.number("moe_intermediate_size"),
            correction=("expert_bias", False) if keys.has("use_expert_bias") else None,
            name="feed_forward",
        )
    plain = FeedForward(inner=lfm2_inner(keys), names=LFM_NAMES, name="feed_forward")

    def layer(number: int, kind: str) -> Modules:
        own: Module = lfm2_attention(keys) if kind == FULL else lfm_convolution(keys)
        mlp = plain if experts is None or number < dense_layers else experts
        return own, mlp, norms

    return stack(keys.layer_types(derived), layer)


def lfm3_layers(keys: Keys) -> list[Modules]:
    """Convolutions, windows and full attention, gated per head."""
    derived = [
        FULL if n % 4 == 2 else SLIDING if n % 4 == 0 and n else "conv" for n in range(keys.layers)
    ]
    names = ["operator_norm", "ffn_norm"]
    if keys.has("use_sandwich_norm"):
        names += ["post_operator_norm", "post_ffn_norm"]
    plain = FeedForward(
        inner=keys.number("intermediate_size"), names=LFM_NAMES, name="feed_forward"
    )
    gate = (("g_proj", keys.heads),) if keys.has("use_attention_gate") else ()

    def layer(number: int, kind: str) -> Modules:
        del number
        own: Module = lfm_convolution(keys)
        if kind != "conv":
            own = replace(qwen3(keys, kind), gate=gate)
        return own, plain, Norms(tuple(names))

    return stack(keys.layer_types(derived), layer)


def phi3_attention(keys: Keys, kind: str) -> Attention:
    """One projection of queries, keys and values."""
    return attention(keys, kind, fused=True, bias=False, out_bias=False)


def olmo_attention(keys: Keys, kind: str) -> Attention:
    """Norms of queries and keys over all heads."""
    return attention(keys, kind, qk_norm=full_norms(keys))


def olmo_hybrid_layers(keys: Keys) -> list[Modules]:
    """The gated delta rule, and full attention on each fourth layer."""
    derived = keys.every(4, FULL, LINEAR)
    if FULL not in derived:
        derived[-1] = FULL
    key_heads = keys.optional("linear_num_key_heads") or keys.heads
    value_heads = keys.optional("linear_num_value_heads") or keys.heads
    key_dim = keys.optional("linear_key_head_dim") or int(0.75 * keys.hidden / key_heads)
    value_dim = keys.optional("linear_value_head_dim") or 2 * key_dim
    queries, values = key_heads * key_dim, value_heads * value_dim
    delta = GatedDelta(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        kernel=keys.number("linear_conv_kernel_dim"),
        inputs=(
            ("q_proj", queries),
            ("k_proj", queries),
            ("v_proj", values),
            ("a_proj", value_heads),
            ("b_proj", value_heads),
            ("g_proj", values),
        ),
        out=("o_proj", "o_norm"),
    )

    def layer(number: int, kind: str) -> Modules:
        del number
        if kind == LINEAR:
            return delta, dense(keys), LAYER_NORMS
        return olmo_attention(keys, kind), dense(keys), POST_NORMS

    return stack(keys.layer_types(derived), layer)


def cohere2_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer."""
    return keys.every(keys.optional("sliding_window_pattern") or 4)


def cohere2_attention(keys: Keys, kind: str) -> Attention:
    """Heads as wide as the hidden size allows."""
    return attention(keys, kind, head_dim=keys.hidden // keys.heads)


def cohere2_moe_layers(keys: Keys) -> list[Modules]:
    """One norm a layer; experts behind the first dense layers."""
    first = keys.optional("first_k_dense_replace") or 0
    before, behind = (
        keys.number("prefix_dense_sliding_window_pattern"),
        keys.number("sliding_window_pattern"),
    )
    derived = [SLIDING if (n + 1) % before else FULL for n in range(first)] + [
        SLIDING if (n + 1) % behind else FULL for n in range(keys.layers - first)
    ]
    inner, shared = keys.number("intermediate_size"), keys.optional("num_shared_experts") or 0
    experts = Experts(
        count=keys.number("num_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        shared=shared * inner,
    )
    with_experts, norm = first_dense(keys, first), Norms(("input_layernorm",))
    wide = keys.optional("prefix_dense_intermediate_size") or inner

    def layer(number: int, kind: str) -> Modules:
        mlp: Module = experts if with_experts[number] else FeedForward(inner=wide)
        return attention(keys, kind), mlp, norm

    return stack(keys.layer_types(derived), layer)


def exaone4_types(keys: Keys) -> list[str]:
    """Full attention on each `sliding_window_pattern`-th layer; everywhere without a window."""
    pattern = keys.get("sliding_window_pattern")
    if not keys.optional("sliding_window") or not pattern:
        return [FULL] * keys.layers
    if isinstance(pattern, str):
        return [SLIDING if pattern[n % len(pattern)] == "L" else FULL for n in range(keys.layers)]
    return keys.every(pattern)


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
    )
    first, last = keys.optional("moe_layer_start_index") or 0, keys.get("moe_layer_end_index")
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
    )


def smollm3_types(keys: Keys) -> list[str]:
    """A window on layers without rotation, where it is switched on."""
    period = keys.optional("no_rope_layer_interval") or 4
    rotated = keys.list_of("no_rope_layers") or [(n + 1) % period for n in range(keys.layers)]
    windowed = keys.has("use_sliding_window") and keys.optional("sliding_window") is not None
    return [SLIDING if windowed and not rotated[n] else FULL for n in range(keys.layers)]


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
        own = attention(keys, kind, bias=False, out_bias=False, qk_norm=head_norms(keys), gate=gate)
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


def inkling_layers(keys: Keys) -> list[Modules]:
    """Short convolutions around attention and MLP, and learned relative positions."""
    listed = keys.list_of("local_layer_ids")
    derived = [
        "hybrid_sliding" if (n in listed if listed is not None else (n + 1) % 6) else "hybrid"
        for n in range(keys.layers)
    ]
    kernel, relative = keys.number("conv_kernel_size"), keys.number("d_rel")
    inner, shared = keys.number("moe_intermediate_size"), keys.optional("n_shared_experts") or 0
    wide = keys.number("intermediate_size")
    if keys.optional("dense_intermediate_size"):
        inner, wide = wide, keys.number("dense_intermediate_size")
    experts = Experts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=inner,
        idle=shared,
        shared=inner,
        shared_copies=shared,
        vectors=(("gate.global_scale", 1),),
    )
    bias = Extra(
        buffers=(("mlp.gate.e_score_correction_bias", (keys.number("n_routed_experts"),)),)
    )
    with_experts = first_dense(keys, keys.optional("dense_mlp_idx"))

    def layer(number: int, kind: str) -> Modules:
        sliding = kind == "hybrid_sliding"
        heads = keys.optional("swa_num_attention_heads") if sliding else None
        kv_heads = keys.optional("swa_num_key_value_heads") if sliding else None
        width = (keys.optional("swa_head_dim") if sliding else None) or keys.head_dim
        own = attention(
            keys,
            heads=heads or keys.heads,
            kv_heads=kv_heads or keys.kv_heads,
            head_dim=width,
            window=keys.number("sliding_window_size") if sliding else None,
            qk_norm=(width, width),
            gate=(("r_proj", (heads or keys.heads) * relative),),
        )
        extent = keys.number("sliding_window_size") if sliding else keys.number("rel_extent")
        positions = Extra(tensors=(("self_attn.rel_logits_proj.proj", (relative, extent)),))
        around = DepthwiseConvolutions(
            widths=(
                ("attn_sconv", keys.hidden),
                ("mlp_sconv", keys.hidden),
                ("self_attn.k_sconv", own.key_width),
                ("self_attn.v_sconv", own.value_width),
            ),
            kernel=kernel,
        )
        mixed: Modules = (FeedForward(inner=wide, vectors=(("global_scale", 1),)),)
        if with_experts[number]:
            mixed = (experts, bias)
        return own, *mixed, LAYER_NORMS, positions, around

    return stack(keys.layer_types(derived), layer)


def bitnet_attention(keys: Keys, kind: str) -> Attention:
    """A norm before the output projection."""
    width = keys.hidden
    return attention(keys, kind, vectors=(("attn_sub_norm", width),))


def bitnet_mlp(keys: Keys) -> FeedForward:
    """A norm before the projection down."""
    inner = keys.number("intermediate_size")
    return FeedForward(inner=inner, vectors=(("ffn_sub_norm", inner),))


def step_layers(keys: Keys) -> list[Modules]:
    """Other query heads on layers with a window; a gate for each head; one shared expert."""
    listed = keys.get("moe_layers_enum")
    items = listed.split(",") if isinstance(listed, str) else listed
    with_experts = first_dense(keys, 3)
    if items and keys.get("mlp_layer_types") is None:
        chosen = {int(item) for item in items if str(item).strip()}
        with_experts = [number in chosen for number in range(keys.layers)]
    section = keys.mapping("attention_other_setting")
    other = keys.optional("num_sliding_attention_heads") or section.get("num_attention_heads")
    experts = Experts(
        count=keys.number("n_routed_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("moe_intermediate_size"),
        shared=keys.number("share_expert_dim"),
        correction=CORRECTION,
    )

    def layer(number: int, kind: str) -> Modules:
        heads = (kind == SLIDING and other) or keys.at(number).heads
        per_head = keys.get("gating") in (None, True, "per-head")
        gate = heads if per_head else heads * keys.head_dim
        own = attention(keys, kind, heads=heads, qk_norm=head_norms(keys), gate=(("g_proj", gate),))
        return own, experts if with_experts[number] else dense(keys), LAYER_NORMS

    return stack(keys.layer_types([FULL] * keys.layers), layer)


def nemotron_nas_layers(keys: Keys) -> list[Modules]:
    """`block_configs` has each layer's heads and MLP; either may be absent or one linear layer."""
    configs = keys.list_of("block_configs")
    if configs is None:
        raise ConfigError("block_configs: a nemotron-nas model needs it, and it is missing")
    return [
        _nas_attention(keys, block["attention"]) + _nas_mlp(keys, block["ffn"]) for block in configs
    ]


def _nas_attention(keys: Keys, block: dict[str, Any]) -> Modules:
    if block.get("no_op"):
        return ()
    norm = Norms(("input_layernorm",))
    if block.get("replace_with_linear"):
        return Extra(linears=(("self_attn.linear_attn", keys.hidden, keys.hidden),)), norm
    own = attention(keys, kv_heads=keys.heads // block["n_heads_in_group"])
    return replace(own, window=block.get("window_length")), norm


def _nas_mlp(keys: Keys, block: dict[str, Any]) -> Modules:
    if block.get("no_op"):
        return ()
    norm = Norms(("post_attention_layernorm",))
    if block.get("replace_with_linear"):
        return Extra(linears=(("mlp.linear_mlp", keys.hidden, keys.hidden),)), norm
    inner = 256 * -(-int(2 * block["ffn_mult"] * keys.hidden / 3) // 256)
    return FeedForward(inner=inner, bias=keys.has("mlp_bias")), norm


def phimoe_layers(keys: Keys) -> list[Modules]:
    """Experts, and norms with biases."""
    norms = Norms(LAYER_NORMS.names, bias=True)
    experts = mixtral_experts(keys, router="router")
    return [(attention(keys, kind), experts, norms) for kind in keys.layer_types()]


def plain_attention(keys: Keys, kind: str) -> Attention:
    """Attention without biases, whatever the keys."""
    return attention(keys, kind, bias=False, out_bias=False)


def untied(keys: Keys) -> Outside:
    """Never tied."""
    del keys
    return Outside(ties=False)


def final_norm(name: str) -> Callable[[Keys], Outside]:
    """Another name of the last norm."""
    return lambda keys: Outside(norm=name)


_BIAS = ("e_score_correction_bias",)
_DEEPSEEK = deepseek_layers()
_DEEPSEEK_V32 = deepseek_layers(attention_of=lambda keys: (latent(keys), indexer(keys)))
_GLM4_MOE = deepseek_layers(attention_of=glm4_moe_attention)
_LATENT = deepseek_layers(experts=dense, first=0)
_V4_MIXING = ("attn_hc", "ffn_hc", "hc_head", "norm", "sinks", "position_bias")

FAMILIES: dict[str, Family] = {
    "llama": Family(layers=plain_layers()),
    "mistral": Family(layers=plain_layers(attention_of=plain_attention)),
    "ministral3": Family(layers=plain_layers(attention_of=plain_attention)),
    "mixtral": Family(layers=plain_layers(attention_of=plain_attention, mlp=mixtral_experts)),
    "granite": Family(layers=plain_layers()),
    "gemma": Family(layers=plain_layers()),
    "gemma2": Family(layers=plain_layers(types=lambda keys: keys.every(2), norms=GEMMA_NORMS)),
    "qwen2": Family(layers=plain_layers(types=qwen_types, attention_of=qwen2)),
    "qwen2_moe": Family(layers=qwen2_moe_layers),
    "qwen3": Family(layers=plain_layers(types=qwen_types, attention_of=qwen3)),
    "qwen3_moe": Family(layers=qwen3_moe_layers),
    "qwen3_vl_text": Family(layers=plain_layers(attention_of=qwen3)),
    "qwen3_vl_moe_text": Family(layers=qwen3_moe_layers),
    "qwen3_next": Family(layers=qwen_hybrid(qwen_mlp, fused=True)),
    "qwen3_5_text": Family(
        layers=qwen_hybrid(lambda keys, number: dense(keys, bias=False), fused=False),
        mtp=qwen_mtp(lambda keys: dense(keys, bias=False)),
    ),
    "qwen3_5_moe_text": Family(
        layers=qwen_hybrid(lambda keys, number: qwen_experts(keys), fused=False),
        mtp=qwen_mtp(qwen_experts),
    ),
    "qwen4_exp_text": Family(layers=qwen4_layers, outside=qwen4_outside),
    "llama4_text": Family(layers=llama4_layers),
    "gemma3_text": Family(
        layers=plain_layers(types=gemma3_types, attention_of=gemma_attention, norms=GEMMA_NORMS)
    ),
    "gemma3n_text": Family(layers=gemma3n_layers, outside=gemma3n_outside),
    "gemma4_text": Family(
        layers=gemma4_layers, outside=lambda keys: Outside(more=per_layer_inputs(keys)[1])
    ),
    "deepseek_v3": Family(layers=_DEEPSEEK, mtp=next_token_layers(_DEEPSEEK), float32=_BIAS),
    "deepseek_v32": Family(
        layers=_DEEPSEEK_V32,
        mtp=next_token_layers(_DEEPSEEK_V32),
        float32=_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "deepseek_v4": Family(
        layers=deepseek_v4_layers,
        outside=hyper_head,
        float32=(*_BIAS, *_V4_MIXING),
        float32_beside_float16=(
            "self_attn.compressor.gate_proj",
            "self_attn.compressor.kv_proj",
            "indexer.scorer.weights_proj",
            "indexer.gate_proj",
            "indexer.kv_proj",
        ),
    ),
    "mistral4": Family(
        layers=deepseek_layers(experts=lambda keys: routed_experts(keys, correction=None))
    ),
    "mistral_large4_text": Family(
        layers=mistral_large4_layers,
        outside=mistral_large4_outside,
        float32=("mlp.gate.", "rotary_emb"),
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "longcat_flash": Family(layers=longcat_layers, float32_beside_float16=("classifier",)),
    "minicpm3": Family(layers=_LATENT),
    "youtu": Family(layers=_LATENT),
    "glm_moe_dsa": Family(
        layers=glm_dsa_layers,
        mtp=next_token_layers(glm_dsa_layers),
        float32=_BIAS,
        float32_beside_float16=("indexer.weights_proj",),
    ),
    "glm5_next_text": Family(
        layers=glm5_next_layers,
        float32=(*_BIAS, "conv1d", "A_log", "dt_bias", "hc.base", "hc.scale"),
    ),
    "glm4_moe": Family(layers=_GLM4_MOE, mtp=next_token_layers(_GLM4_MOE), float32=_BIAS),
    "solar_open": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (attention(keys, out_bias=False),), first=0
        ),
        float32=_BIAS,
    ),
    "kimi_linear": Family(layers=kimi_linear_layers, outside=untied),
    "bailing_hybrid": Family(
        layers=bailing_layers,
        outside=untied,
        mtp=next_token_layers(bailing_layers),
        float32=(*_BIAS, "conv1d", "A_log", "dt_bias"),
    ),
    "hy_v3": Family(
        layers=deepseek_layers(
            attention_of=lambda keys: (qwen3(keys, FULL),), experts=hy_v3_experts, first=1
        ),
        float32=_BIAS,
    ),
    "hy_v4": Family(
        layers=hy_v4_layers,
        outside=hyper_head,
        float32=(*_BIAS, "lm_head", "sinks", "_hc.", "hc_head", "k_norm", "weights_proj"),
    ),
    "gpt_oss": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(2), attention_of=gpt_oss_attention, mlp=gpt_oss_experts
        ),
        float32_beside_float16=("norm",),
    ),
    "minimax": Family(layers=minimax_layers),
    "minimax_m2": Family(
        layers=plain_layers(
            attention_of=minimax_m2_attention,
            mlp=lambda keys: mixtral_experts(keys, correction=("e_score_correction_bias", False)),
        )
    ),
    "minimax_m3_vl_text": Family(layers=minimax_m3_layers),
    "nemotron_h": Family(
        layers=nemotron_h_layers,
        outside=lambda keys: Outside(embedding="embeddings", norm="norm_f", ties=False),
        float32=_BIAS,
    ),
    "nemotron-nas": Family(layers=nemotron_nas_layers),
    "granitemoehybrid": Family(layers=granite_hybrid_layers),
    "falcon_h1": Family(layers=falcon_h1_layers, outside=final_norm("final_layernorm")),
    "jamba": Family(layers=jamba_layers, outside=final_norm("final_layernorm")),
    "bamba": Family(layers=bamba_layers, outside=final_norm("final_layernorm")),
    "mamba2": Family(
        layers=mamba2_layers,
        outside=lambda keys: Outside(prefix="backbone", embedding="embeddings", norm="norm_f"),
    ),
    "zamba2": Family(layers=zamba2_layers, outside=final_norm("final_layernorm")),
    "lfm2": Family(layers=lfm2_layers, outside=final_norm("embedding_norm")),
    "lfm2_moe": Family(layers=lfm2_layers, outside=final_norm("embedding_norm")),
    "lfm3": Family(layers=lfm3_layers, outside=final_norm("embedding_norm")),
    "phi3": Family(layers=plain_layers(attention_of=phi3_attention)),
    "phimoe": Family(
        layers=phimoe_layers,
        outside=lambda keys: Outside(norm_bias=True, head_bias=keys.has("lm_head_bias")),
    ),
    "olmo2": Family(layers=plain_layers(attention_of=olmo_attention, norms=POST_NORMS)),
    "olmo3": Family(
        layers=plain_layers(
            types=lambda keys: keys.every(4), attention_of=olmo_attention, norms=POST_NORMS
        )
    ),
    "olmo_hybrid": Family(layers=olmo_hybrid_layers),
    "cohere2": Family(
        layers=plain_layers(
            types=cohere2_types, attention_of=cohere2_attention, norms=Norms(("input_layernorm",))
        )
    ),
    "cohere2_moe": Family(layers=cohere2_moe_layers),
    "exaone4": Family(
        layers=plain_layers(types=exaone4_types, attention_of=qwen3, norms=POST_NORMS)
    ),
    "ernie4_5_moe": Family(
        layers=ernie_layers,
        outside=lambda keys: Outside(head_bias=keys.has("use_bias")),
        float32=("mlp.gate.",),
    ),
    "mimo_v2_flash": Family(layers=mimo_layers, float32=_BIAS),
    "seed_oss": Family(layers=plain_layers(attention_of=seed_oss_attention)),
    "smollm3": Family(layers=plain_layers(types=smollm3_types)),
    "muse_spark_text": Family(
        layers=muse_spark_layers, float32=(*_BIAS, "residual_gate", "mlp.gate.")
    ),
    "inkling_text": Family(
        layers=inkling_layers,
        outside=lambda keys: Outside(
            ties=False, more=(Extra(tensors=(("embed_tokens.embed_norm", (keys.hidden,)),)),)
        ),
        float32=(*_BIAS, "gate.global_scale", "sconv"),
    ),
    "bitnet": Family(layers=plain_layers(attention_of=bitnet_attention, mlp=bitnet_mlp)),
    "afmoe": Family(layers=afmoe_layers, float32_beside_float16=("norm", "expert_bias")),
    "step3p5": Family(layers=step_layers, mtp=next_token_layers(step_layers)),
}
"""A `model_type` of a language model to how it is read. A new one is a row here."""

SAME_AS = {
    "kimi_k2": "deepseek_v3",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
    "llama4": "llama4_text",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "mistral3": "mistral",
    "mistral_large4": "mistral_large4_text",
    "glm5_next": "glm5_next_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "muse_spark": "muse_spark_text",
    "inkling": "inkling_text",
    "kimi_k25": "deepseek_v3",
    "step3p7": "step3p5",
}
"""Other names of a `model_type`, such as that of a multimodal model whose keys are not apart."""

__all__ = ["FAMILIES", "SAME_AS", "Family", "Layer", "Outside"]
