"""Families with linear attention, state spaces or convolutions: from keys to layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.attention_families import olmo_attention, qwen_experts, qwen_mlp
from tritter_mem.models.convolution_blocks import LateGatedAttention, ShortConvolution
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.family_parts import (
    FEED_FORWARD_NORMS,
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
    final_norm,
    first_dense,
    head_norms,
    mixtral_experts,
    partial_dialect,
    qwen3,
    routed_experts,
    stack,
)
from tritter_mem.models.gated_delta_blocks import GatedAttention, GatedDelta, OlmoGatedDelta
from tritter_mem.models.huggingface_keys import FULL, INDEXED, LINEAR, MOST_LAYERS, SLIDING, Keys
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.lightning_blocks import AttentionOfOwnCache, LightningAttention
from tritter_mem.models.relative_attention_blocks import (
    NumberedFeedForward,
    RelativeAttention,
    WeightedSharedExperts,
)
from tritter_mem.models.selective_scan_blocks import Mamba
from tritter_mem.models.state_space_blocks import Mamba2, ScaledFeedForward
from tritter_mem.models.transformers_blocks import (
    Attention,
    DepthwiseConvolutions,
    Extra,
    FeedForward,
    FusedIndexer,
    Module,
    Norms,
    Reused,
    ReusedMlp,
    Tables,
)
from tritter_mem.models.zamba2_blocks import AdaptedFeedForward, KeptEmbeddings


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
        inputs_first=fused,
    )


def gated_query_attention(keys: Keys) -> Attention:
    """Attention whose query projection makes a gate too."""
    plain = attention(keys, query_copies=2, qk_norm=head_norms(keys))
    return as_kind(GatedAttention, plain)


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
        count = keys.optional("mtp_num_hidden_layers", MOST_LAYERS) or 0
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


def minimax_layers(keys: Keys) -> list[Modules]:
    """Lightning attention on every second layer, or as `attn_type_list` has it."""
    listed = keys.list_of("attn_type_list", keys.layers)
    derived = keys.every(2, LINEAR, FULL)
    if listed is not None:
        derived = [FULL if flag else LINEAR for flag in listed[: keys.layers]]
    lightning = LightningAttention(
        heads=keys.heads, head_dim=keys.head_dim, block=keys.number("block_size")
    )

    full = as_kind(AttentionOfOwnCache, attention(keys, bias=False, out_bias=False))

    def layer(number: int, kind: str) -> Modules:
        del number
        return lightning if kind == LINEAR else full, mixtral_experts(keys), LAYER_NORMS

    return stack(keys.layer_types(derived), layer)


def minimax_dialect(keys: Keys) -> Dialect:
    """Masks of a window over a cache of all tokens; none is seen where the first layer has none."""
    kinds = minimax_layers(keys)
    return dialect(
        order="weighted",
        cuts_prompts=False,
        masked_window=keys.optional("sliding_window") or 0,
        masks_forget=isinstance(kinds[0][0], LightningAttention),
    )(keys)


def nemotron_h_kinds(keys: Keys) -> list[str]:
    """`layers_block_type`, or the letters of `hybrid_override_pattern`."""
    letters = {"M": LINEAR, "E": "moe", "*": FULL, "-": "mlp"}
    listed = keys.list_of("layers_block_type")
    if listed is not None:
        return [{"mamba": LINEAR, "attention": FULL}.get(kind, kind) for kind in listed]
    pattern = keys.text("hybrid_override_pattern")
    if pattern is None:
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
            chunk=keys.optional("mamba_chunk_size") or keys.number("chunk_size"),
            name="mixer",
        )
    if kind == FULL:
        own = attention(keys, name="mixer", bias=False, out_bias=False, rotates=False)
        own_width = keys.optional("head_dim") or keys.optional("attention_head_dim")
        return replace(own, head_dim=own_width or own.head_dim)
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


def nemotron_h_dialect(keys: Keys) -> Dialect:
    """One norm and one part a layer; nothing rotates."""
    return dialect(
        norm="float weight",
        order="single",
        names=("norm",),
        rotary="",
        activation=keys.text("mlp_hidden_act") or "",
    )(keys)


def mamba2_of(keys: Keys, inner: int, **more: Any) -> Mamba2:
    """Mamba-2 with the keys of IBM's and Falcon's models."""
    heads = keys.number("mamba_n_heads")
    plain = Mamba2(
        inner=inner,
        heads=heads,
        head_dim=keys.optional("mamba_d_head") or keys.per_head(inner, "mamba_n_heads"),
        groups=keys.number("mamba_n_groups"),
        states=keys.number("mamba_d_state"),
        kernel=keys.number("mamba_d_conv"),
        bias=keys.has("mamba_proj_bias"),
        out_bias=keys.has("mamba_proj_bias"),
        conv_bias=keys.has("mamba_conv_bias"),
        chunk=keys.number("mamba_chunk_size"),
    )
    return replace(plain, **more)


def expanded(keys: Keys) -> int:
    """Inner channels of a Mamba layer."""
    return int(keys.number("mamba_expand") * keys.hidden)


def granite_hybrid_layers(keys: Keys) -> list[Modules]:
    """Mamba-2 or attention; experts beside a shared MLP."""
    experts: Modules = ()
    if keys.optional("num_local_experts"):
        experts = (
            mixtral_experts(
                keys, router="router", name="block_sparse_moe", routing="chosen float softmax"
            ),
        )
    shared = FeedForward(
        inner=keys.number("shared_intermediate_size"),
        fused="input_linear",
        names=("", "", "output_linear"),
        name="shared_mlp",
    )
    state_space = mamba2_of(keys, expanded(keys))

    def layer(number: int, kind: str) -> Modules:
        del number
        own: Module = state_space if kind == LINEAR else attention(keys, rotates=_rotates(keys))
        return own, *experts, shared, LAYER_NORMS

    return stack(_hybrid_types(keys, [LINEAR] * keys.layers), layer)


def _rotates(keys: Keys) -> bool:
    return bool(keys.get("position_embedding_type") == "rope")


def granite_hybrid_dialect(keys: Keys) -> Dialect:
    """Granite's factors; positions may have no angles."""
    return dialect(
        order="experts first",
        rotary="halves" if _rotates(keys) else "",
        scales_embedding=True,
        scales_residual=True,
        logits_steps=1,
    )(keys)


def bamba_dialect(keys: Keys) -> Dialect:
    """Half of a head rotates, whatever the keys say."""
    return dialect(
        names=FEED_FORWARD_NORMS.names, rotary="partial later", rotary_dim=keys.head_dim // 2
    )(keys)


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
        before_gate=keys.has("mamba_norm_before_gate"),
        scaled=True,
        out_bias=keys.has("projectors_bias"),
    )
    mlp = as_kind(ScaledFeedForward, dense(keys, name="feed_forward"))
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
    own = attention(keys, head_dim=keys.hidden_per_head, bias=False, out_bias=False, rotates=False)
    count = keys.number("num_experts")
    experts = Experts(
        count=count,
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("intermediate_size"),
        router="router",
        routing="given softmax",
        name="feed_forward",
    )

    def on(name: str, number: int) -> bool:
        return number % keys.number(f"{name}_period") == (keys.optional(f"{name}_offset") or 0)

    def layer(number: int) -> Modules:
        mixed = count > 1 and on("expert_layer", number)
        mlp: Module = experts if mixed else dense(keys, name="feed_forward")
        return own if on("attn_layer", number) else state_space, mlp, FEED_FORWARD_NORMS

    return [layer(number) for number in range(keys.layers)]


def mamba_layers(*, normed: bool) -> Callable[[Keys], list[Modules]]:
    """The first Mamba alone."""

    def layers(keys: Keys) -> list[Modules]:
        rank = keys.optional("time_step_rank")
        state_space = Mamba(
            inner=int(keys.number("expand") * keys.hidden),
            states=keys.number("state_size"),
            kernel=keys.number("conv_kernel"),
            rank=rank or -(-keys.hidden // 16),
            bias=keys.has("use_bias"),
            conv_bias=keys.has("use_conv_bias"),
            normed=normed,
            weightless=normed,
            name="mixer",
        )
        return [(state_space, Norms(("norm",)))] * keys.layers

    return layers


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
        chunk=keys.number("chunk_size"),
        name="mixer",
    )
    return [(state_space, Norms(("norm",)))] * keys.layers


def mamba_outside(keys: Keys) -> Outside:
    """Names of what is outside of the layers."""
    del keys
    return Outside(prefix="backbone", embedding="embeddings", norm="norm_f")


def mamba_dialect(keys: Keys) -> Dialect:
    """One norm and one part a layer; logits are float32, and the residual stream may be."""
    return Dialect(
        order="single",
        names=("norm",),
        rotary="",
        float_residual=keys.has("residual_in_fp32"),
        float_logits=True,
        cuts_prompts=False,
    )


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
        head_dim=keys.per_head(width),
        inputs=width,
        rotates=keys.has("use_mem_rope"),
        name="shared_transformer.self_attn",
    )
    if keys.has("use_shared_attention_adapter"):
        raise ConfigError("use_shared_attention_adapter: adapters of attention are not supported")
    bias = keys.has("add_bias_linear")

    def state_space(name: str) -> Mamba2:
        return Mamba2(
            inner=inner,
            heads=heads,
            head_dim=keys.per_head(inner, "n_mamba_heads"),
            groups=keys.number("mamba_ngroups"),
            states=keys.number("mamba_d_state"),
            kernel=keys.number("mamba_d_conv"),
            bias=bias,
            out_bias=bias,
            conv_bias=keys.has("use_conv_bias"),
            chunk=keys.number("chunk_size"),
            name=name,
        )

    def adapter(number: int) -> Extra:
        name = f"shared_transformer.feed_forward.gate_up_proj_adapter_list.{number}"
        return Extra(linears=((f"{name}.0", rank, hidden), (f"{name}.1", 2 * wide, rank)))

    def shared(number: int, source: int | None) -> Modules:
        """The weights of a shared block are counted where it runs first."""
        mlp = AdaptedFeedForward(
            inner=wide,
            fused="gate_up_proj",
            bias=bias,
            name="shared_transformer.feed_forward",
            adapter=number,
        )
        if source is not None:
            return Reused(own, source), ReusedMlp(mlp, source)
        norms = Extra(
            tensors=(
                ("shared_transformer.input_layernorm", (width,)),
                ("shared_transformer.pre_ff_layernorm", (hidden,)),
            )
        )
        return own, mlp, norms

    blocks, layers = keys.number("num_mem_blocks"), list[Modules]()
    hybrids: list[int] = []
    for number, kind in enumerate(kinds):
        if kind == LINEAR:
            layers.append((state_space("mamba"), Norms(("input_layernorm",))))
            continue
        joined = Extra(linears=(("linear", hidden, hidden),))
        mamba = state_space("mamba_decoder.mamba"), Norms(("mamba_decoder.input_layernorm",))
        count = len(hybrids)
        source = hybrids[count % blocks] if count >= blocks else None
        layers.append((*shared(count, source), adapter(count), joined, *mamba))
        hybrids.append(number)
    return layers


def zamba2_outside(keys: Keys) -> Outside:
    """Embeddings stay to the end."""
    del keys
    return Outside(norm="final_layernorm", more=(KeptEmbeddings(),))


def zamba2_dialect(keys: Keys) -> Dialect:
    """Attention takes twice the width; it may not rotate."""
    return Dialect(
        activation=keys.text("hidden_act") or "gelu",
        order="Zamba 2",
        rotary="halves" if keys.has("use_mem_rope") else "",
        rotary_dim=keys.per_head(2 * keys.hidden),
    )


def lfm2_inner(keys: Keys) -> int:
    """The MLP's width, two thirds of the key's and rounded up where that is asked for."""
    inner = keys.optional("block_ff_dim") or keys.number("intermediate_size")
    if not keys.has("block_auto_adjust_ff_dim"):
        return inner
    inner = int(2 * inner / 3)
    factor = keys.factor("block_ffn_dim_multiplier")
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
        head_dim=keys.hidden_per_head,
        qk_norm=(keys.hidden_per_head,) * 2,
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
            routing="plain sigmoid",
            normalised=keys.has("norm_topk_prob"),
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
            own = as_kind(LateGatedAttention, replace(qwen3(keys, kind), gate=gate))
        return own, plain, Norms(tuple(names))

    return stack(keys.layer_types(derived), layer)


def olmo_hybrid_layers(keys: Keys) -> list[Modules]:
    """The gated delta rule, and full attention on each fourth layer."""
    derived = keys.every(4, FULL, LINEAR)
    if FULL not in derived:
        derived[-1] = FULL
    own, shared = "linear_num_key_heads", "num_attention_heads"
    key_heads = keys.optional(own) or keys.heads
    value_heads = keys.optional("linear_num_value_heads") or keys.heads
    key_dim = keys.optional("linear_key_head_dim") or keys.per_head(
        3 * keys.hidden // 4, own if keys.optional(own) else shared
    )
    value_dim = keys.optional("linear_value_head_dim") or 2 * key_dim
    queries, values = key_heads * key_dim, value_heads * value_dim
    delta = OlmoGatedDelta(
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        kernel=keys.number("linear_conv_kernel_dim"),
        doubled=keys.has("linear_allow_neg_eigval"),
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
        own = replace(olmo_attention(keys, kind), rotates=_has_angles(keys))
        return own, dense(keys), POST_NORMS

    return stack(keys.layer_types(derived), layer)


def _has_angles(keys: Keys) -> bool:
    """Whether attention of OLMo Hybrid rotates: `rope_theta` is null where it does not."""
    section = keys.get("rope_parameters")
    return not isinstance(section, Mapping) or section.get("rope_theta", 0) is not None


def olmo_hybrid_dialect(keys: Keys) -> Dialect:
    """OLMo's norms, which stand behind attention and before linear attention."""
    return dialect(
        norm="wide",
        order="before or behind",
        names=POST_NORMS.names,
        rotary="wide halves" if _has_angles(keys) else "",
        wide_angles=True,
    )(keys)


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
    experts = WeightedSharedExperts(
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
        extent = keys.number("sliding_window_size") if sliding else keys.number("rel_extent")
        plain = attention(
            keys,
            heads=heads or keys.heads,
            kv_heads=kv_heads or keys.kv_heads,
            head_dim=width,
            window=keys.number("sliding_window_size") if sliding else None,
            qk_norm=(width, width),
            gate=(("r_proj", (heads or keys.heads) * relative),),
        )
        own = as_kind(
            RelativeAttention,
            plain,
            relative=relative,
            extent=extent,
            floored=keys.get("log_scaling_n_floor") is not None,
        )
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
        mixed: Modules = (NumberedFeedForward(inner=wide, vectors=(("global_scale", 1),)),)
        if with_experts[number]:
            mixed = (experts, bias)
        return own, *mixed, LAYER_NORMS, positions, around

    return stack(keys.layer_types(derived), layer)


def inkling_dialect(keys: Keys) -> Dialect:
    """Positions are in the scores; what the last norm gives is divided by a number."""
    return dialect(
        order="convolved behind",
        rotary="",
        scales_hidden=True,
        logits_width=keys.optional("unpadded_vocab_size") or 0,
    )(keys)


LFM2 = dialect(order="before, all kept", names=("operator_norm", "ffn_norm"), activation="silu")

FAMILIES: dict[str, Family] = {
    "qwen3_next": Family(
        layers=qwen_hybrid(qwen_mlp, fused=True),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later"),
    ),
    "qwen3_5_text": Family(
        layers=qwen_hybrid(lambda keys, number: dense(keys, bias=False), fused=False),
        mtp=qwen_mtp(lambda keys: dense(keys, bias=False)),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later", grids=3),
    ),
    "qwen3_5_moe_text": Family(
        layers=qwen_hybrid(lambda keys, number: qwen_experts(keys), fused=False),
        mtp=qwen_mtp(qwen_experts),
        dialect=partial_dialect(0.25, norm="gemma", rotary="partial later", grids=3),
    ),
    "qwen4_exp_text": Family(layers=qwen4_layers, outside=qwen4_outside),
    "minimax": Family(layers=minimax_layers, dialect=minimax_dialect),
    "nemotron_h": Family(
        layers=nemotron_h_layers,
        outside=lambda keys: Outside(embedding="embeddings", norm="norm_f", ties=False),
        float32=ROUTING_BIAS,
        dialect=nemotron_h_dialect,
    ),
    "granitemoehybrid": Family(layers=granite_hybrid_layers, dialect=granite_hybrid_dialect),
    "falcon_h1": Family(
        layers=falcon_h1_layers,
        outside=final_norm("final_layernorm"),
        dialect=dialect(
            order="state space beside",
            names=FEED_FORWARD_NORMS.names,
            scales_embedding=True,
            scales_keys=True,
            logits_steps=1,
        ),
    ),
    "jamba": Family(
        layers=jamba_layers,
        outside=final_norm("final_layernorm"),
        dialect=dialect(names=FEED_FORWARD_NORMS.names, rotary=""),
    ),
    "bamba": Family(
        layers=bamba_layers, outside=final_norm("final_layernorm"), dialect=bamba_dialect
    ),
    "mamba": Family(
        layers=mamba_layers(normed=False), outside=mamba_outside, dialect=mamba_dialect
    ),
    "falcon_mamba": Family(
        layers=mamba_layers(normed=True), outside=mamba_outside, dialect=mamba_dialect
    ),
    "mamba2": Family(layers=mamba2_layers, outside=mamba_outside, dialect=mamba_dialect),
    "zamba2": Family(layers=zamba2_layers, outside=zamba2_outside, dialect=zamba2_dialect),
    "lfm2": Family(layers=lfm2_layers, outside=final_norm("embedding_norm"), dialect=LFM2),
    "lfm2_moe": Family(
        layers=lfm2_layers,
        outside=final_norm("embedding_norm"),
        float32=("expert_bias",),
        dialect=LFM2,
    ),
    "lfm3": Family(
        layers=lfm3_layers,
        outside=final_norm("embedding_norm"),
        dialect=dialect(
            order="around",
            names=("operator_norm", "post_operator_norm", "ffn_norm", "post_ffn_norm"),
            activation="silu",
            rotary="wide halves",
            wide_angles=True,
            rotary_kinds=2,
        ),
    ),
    "olmo_hybrid": Family(
        layers=olmo_hybrid_layers, float32=("A_log",), dialect=olmo_hybrid_dialect
    ),
    "inkling_text": Family(
        layers=inkling_layers,
        dialect=inkling_dialect,
        outside=lambda keys: Outside(
            ties=False, more=(Extra(tensors=(("embed_tokens.embed_norm", (keys.hidden,)),)),)
        ),
        float32=(*ROUTING_BIAS, "gate.global_scale", "sconv"),
    ),
}
"""A `model_type` to how it is read."""
