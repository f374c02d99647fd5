"""What families of Hugging Face models have in common, from their keys to modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.huggingface_keys import FULL, Keys
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.transformers_blocks import (
    Attention,
    Extra,
    FeedForward,
    Indexer,
    LatentAttention,
    Module,
    Norms,
)

Modules = tuple[Module, ...]
M = TypeVar("M", bound=Module)


def as_kind(kind: type[M], module: Any, **more: Any) -> M:
    """A module, which is a dataclass, as a kind that has its fields and some more."""
    return kind(**{field.name: getattr(module, field.name) for field in fields(module)}, **more)


LAYER_NORMS = Norms(("input_layernorm", "post_attention_layernorm"))


POST_NORMS = Norms(("post_attention_layernorm", "post_feedforward_layernorm"))


FEED_FORWARD_NORMS = Norms(("input_layernorm", "pre_ff_layernorm"))


CORRECTION = ("gate.e_score_correction_bias", False)


ROUTING_BIAS = ("e_score_correction_bias",)


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
        unbuilt: other modules that are in a checkpoint alone, by the number of their layer.
        dialect: how transformers writes what runs; None: its activations are not planned.
        float32: parts of names of weights that stay float32 beside 16-bit weights; a name ends
            with a dot here.
        float32_beside_float16: the same, only beside float16.
        own_class: parts of names of linear layers of a class for themselves, which bitsandbytes
            does not quantise.
    """

    layers: Callable[[Keys], list[Modules]]
    outside: Callable[[Keys], Outside] = lambda keys: Outside()
    mtp: Callable[[Keys], list[Modules]] = lambda keys: []
    unbuilt: Callable[[Keys], dict[int, Modules]] = lambda keys: {}
    dialect: Callable[[Keys], Dialect] | None = None
    float32: tuple[str, ...] = ()
    float32_beside_float16: tuple[str, ...] = ()
    own_class: tuple[str, ...] = ()


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


def rotary_share(keys: Keys) -> float | None:
    """The share of a head that rotates, or None where the keys do not say."""
    share = keys.section("rope_parameters").factor("partial_rotary_factor")
    return share or keys.factor("partial_rotary_factor")


def dialect(**more: Any) -> Callable[[Keys], Dialect]:
    """Llama's dialect; `more` differs from that."""

    def of(keys: Keys) -> Dialect:
        activation = keys.text("hidden_activation") or keys.text("hidden_act") or "silu"
        width = int(keys.head_dim * (rotary_share(keys) or 1))
        plain = Dialect(activation=activation, rotary_dim=width)
        return replace(plain, **more)

    return of


def partial_dialect(share: float, **more: Any) -> Callable[[Keys], Dialect]:
    """Llama's dialect; this share of a head rotates unless the keys say how much."""

    def of(keys: Keys) -> Dialect:
        plain = dialect(**more)(keys)
        width = int(keys.head_dim * share)
        return plain if rotary_share(keys) else replace(plain, rotary_dim=width)

    return of


def plain_attention(keys: Keys, kind: str) -> Attention:
    """Attention without biases, whatever the keys."""
    return attention(keys, kind, bias=False, out_bias=False)


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


def rotated_layers(keys: Keys) -> list[bool]:
    """Which layers rotate: `no_rope_layers`, else all but each `no_rope_layer_interval`-th."""
    period = keys.optional("no_rope_layer_interval") or 4
    if not keys.get("no_rope_layers"):
        return [(number + 1) % period != 0 for number in range(keys.layers)]
    return [bool(flag) for flag in keys.list_of("no_rope_layers", keys.layers) or ()]


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


def qwen3(keys: Keys, kind: str) -> Attention:
    """Norms of queries and keys."""
    return attention(keys, kind, qk_norm=head_norms(keys))


def mixtral_experts(keys: Keys, **more: Any) -> Experts:
    """Experts of the MLP's width."""
    plain = Experts(
        count=keys.number("num_local_experts"),
        chosen=keys.number("num_experts_per_tok"),
        inner=keys.number("intermediate_size"),
        routing="float softmax",
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
        routing="grouped sigmoid",
        normalised=keys.get("norm_topk_prob") is not False,
        groups=keys.optional("n_group") or 1,
        chosen_groups=keys.optional("topk_group") or 1,
    )
    return replace(plain, **more)


def latent(keys: Keys, **more: Any) -> LatentAttention:
    """Multi-head latent attention of DeepSeek."""
    plain = LatentAttention(
        heads=keys.heads,
        query_rank=keys.optional("q_lora_rank"),
        rank=keys.number("kv_lora_rank"),
        nope_dim=keys.number("qk_nope_head_dim"),
        rope_dim=keys.optional("qk_rope_head_dim") or 0,
        value_dim=keys.optional("v_head_dim") or keys.hidden_per_head,
        bias=keys.has("attention_bias"),
    )
    return replace(plain, **more)


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
    if isinstance(keys.get("index_topk_pattern"), list):
        return keys.list_of("index_topk_pattern", keys.layers) or []
    if pattern := keys.text("index_topk_pattern"):
        return [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    if derived is not None:
        return list(derived)
    period = keys.optional("index_topk_freq") or 1
    found = keys.integer("index_skip_topk_offset")
    offset = 2 if found is None else found
    return [
        "shared" if max(number - offset + 1, 0) % period else "full"
        for number in range(keys.layers)
    ]


def with_indexer(keys: Keys, kind: str, own: Module, chooser: Module) -> Modules:
    """Attention with its indexer, or with that of an earlier layer."""
    del keys
    return (own,) if kind == "shared" else (own, chooser)


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


def untied(keys: Keys) -> Outside:
    """Never tied."""
    del keys
    return Outside(ties=False)


def final_norm(name: str) -> Callable[[Keys], Outside]:
    """Another name of the last norm."""
    return lambda keys: Outside(norm=name)
