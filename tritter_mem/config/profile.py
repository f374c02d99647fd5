"""A profile: what model runs, how, and on which card. One class a section.

Sizes in tokens accept `128k` and `1M`, sizes in bytes `15 GiB` and `15 GB`. `model` uses the key
names of a Hugging Face `config.json`. Unknown keys are errors, and a wrong profile reports all its
problems at once. The text below each field is its documentation, in the JSON Schema too.
"""

# No `from __future__ import annotations`: the annotations are read as objects, not as text.
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from tritter_mem.config.fields import (
    Choice,
    Problem,
    Real,
    Section,
    Text,
    UnknownValueError,
    Whole,
    count,
    memory,
    set_value,
)
from tritter_mem.models.formats import Use, formats_for, storage_format
from tritter_mem.models.vision_towers import VISION_TOWERS

Tokens = Annotated[int, count(1, 1 << 30)]
TokensOrZero = Annotated[int, count(0, 1 << 30)]
Width = Annotated[int, count(1, 1 << 20)]
Vocabulary = Annotated[int, count(1, 1 << 24)]
Small = Annotated[int, Whole(1, 4096)]
Bytes = Annotated[int, memory(1, 1 << 50)]


def _follow(values: dict[str, Any], field: str, value: int | None) -> None:
    """Fill in a field; unknown, as all that is absent, where what it follows from is wrong."""
    if value is None:
        del values[field]
    else:
        values[field] = value


class Model(Section):
    """The architecture, in Hugging Face's key names."""

    hidden_size: Width
    """Width of the residual stream."""
    num_hidden_layers: Small
    """Number of transformer layers."""
    num_attention_heads: Small
    """Number of query heads."""
    num_key_value_heads: Small | None = None
    """Number of key and value heads; default: as many as query heads (no grouping)."""
    head_dim: Width | None = None
    """Width of one head; default: hidden_size / num_attention_heads."""
    intermediate_size: Width
    """Width of the gated MLP."""
    vocab_size: Vocabulary
    """Number of tokens in the vocabulary."""
    tie_word_embeddings: bool = False
    """Whether the output projection shares the input embedding's weights."""
    rms_norm_eps: Annotated[float, Real(0, 1)] = 1e-5
    """Epsilon of every RMSNorm."""
    rope_theta: Annotated[float, Real(0, 1e12)] = 500_000.0
    """Base of the rotary position embedding."""
    qk_norm: bool = True
    """RMSNorm on queries and keys, per head, before the rotary embedding."""
    sliding_window: Tokens | None = None
    """Attend to this many last tokens only (and to the attention sinks); null: to all."""
    global_attention_every: Small | None = None
    """With a window: every n-th layer attends to all tokens."""
    vision: Annotated[str, Choice(tuple(VISION_TOWERS))] | None = None
    """Frozen vision tower whose patch embeddings are a prefix of the prompt; null: none."""

    @classmethod
    def derived(cls, values: dict[str, Any]) -> dict[str, Any]:
        """As many key and value heads as query heads; heads that share the hidden size out."""
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if values.get("num_key_value_heads", 0) is None:
            _follow(values, "num_key_value_heads", heads)
        if values.get("head_dim", 0) is None:
            if not heads or not hidden:
                _follow(values, "head_dim", None)
            elif hidden % heads == 0:
                _follow(values, "head_dim", hidden // heads)
        return values

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, never None."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head, never None."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Weights(Section):
    """How weights are stored for inference; in training the master weights stand for them."""

    format: Annotated[str, Choice(formats_for("weights"))] = "ternary-2bit"
    """Storage of the linear layers."""
    embedding_dtype: Annotated[str, Choice(formats_for("embeddings"))] = "bfloat16"
    """Storage of the token embedding and the output projection."""


class KVCache(Section):
    """The key-value cache of inference."""

    dtype: Annotated[str, Choice(formats_for("kv_cache"))] = "int4"
    """Storage of keys and values."""
    group_size: Annotated[int, Whole(8, 4096)] = 128
    """Tokens that share a key's scale and minimum; channels that share a value's."""
    attention_sinks: TokensOrZero = 4
    """First tokens that stay in the cache, in full precision, whatever the window."""


class Workload(Section):
    """What is run."""

    mode: Literal["inference", "training"] = "inference"
    """inference: prefill and decode; training: forward, backward, optimizer."""
    context: Tokens = 4096
    """Tokens of each sequence: prompt and new tokens together, or the training sequence."""
    batch: Annotated[int, Whole(1, 65536)] = 1
    """Sequences at once."""
    prefill_chunk: Tokens = 2048
    """Tokens of the prompt that run at a time."""
    new_tokens: Tokens = 32
    """Tokens that inference generates; part of the context."""
    cuda_graph: bool = False
    """Whether decode replays a CUDA graph of its step, which has a memory pool of its own."""


class Checkpointing(Section):
    """Which activations training recomputes instead of keeping."""

    policy: Literal[
        "none", "every-layer", "every-nth", "segments", "selective-attention", "selective-matmul"
    ] = "none"
    """none; every-layer; every-nth: the layers with i % n == 0; segments: n layers each;
    selective-attention: every layer, attention output kept; selective-matmul: every second
    matrix product kept too."""
    n: Small = 1
    """The n of every-nth and segments."""


class Training(Section):
    """Settings that only training uses."""

    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    """Optimizer; its state is kept in float32, or in 8 bits with a scale for each block."""
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the trained (shadow) weights and of their gradients."""
    checkpointing: Checkpointing = Checkpointing()
    """Which activations are recomputed."""
    loss_chunk: Tokens = 2048
    """Tokens whose logits exist at a time."""


class Gpu(Section):
    """The card to fit."""

    name: Annotated[str, Text(1, 100)] = "rtx-5080"
    """A name of `tritter-mem gpus`, or `auto` for the card that is present."""
    budget: Bytes | None = None
    """Memory that may be used; default: the card's memory less a margin."""


class Allocator(Section):
    """PyTorch's CUDA caching allocator."""

    conf: Annotated[str, Text(0, 1000)] = ""
    """Settings as in PYTORCH_CUDA_ALLOC_CONF."""


class Profile(Section):
    """One profile, resolved: every default filled in, every size a number."""

    name: Annotated[str, Text(1, 200)]
    """What reports call it."""
    description: Annotated[str, Text(0, 2000)] = ""
    """One line for `tritter-mem models`."""
    model: Model
    weights: Weights = Weights()
    kv_cache: KVCache = KVCache()
    workload: Workload = Workload()
    training: Training = Training()
    gpu: Gpu = Gpu()
    allocator: Allocator = Allocator()

    @classmethod
    def broken_rules(cls, known: Any) -> list[Problem]:
        """Rules between fields, of one section or of several."""
        return broken(RULES, known)


# No machine is near this many parameters, or elements of one kind of tensor.
ABSURD = 1 << 50
Rule = Callable[[Any], Iterator[Problem]]


def broken(rules: Sequence[Rule], profile: Any) -> list[Problem]:
    """Every rule that a profile breaks.

    Args:
        rules: those of its kind of profile.
        profile: a profile, or the right values of a wrong one (`Known`): a rule that needs a
            value which is wrong itself is left out.
    """
    return [problem for rule in rules for problem in _broken(rule, profile)]


def _broken(rule: Rule, profile: Any) -> list[Problem]:
    try:
        return list(rule(profile))
    except UnknownValueError:
        return []


def problem_at(path: str, text: str) -> Problem:
    """A problem at a dotted key."""
    return Problem(tuple(path.split(".")), text)


def _heads_share_the_hidden_size(profile: Any) -> Iterator[Problem]:
    model = profile.model
    if model.head_dim is None:
        yield problem_at(
            "model.hidden_size",
            f"got {model.hidden_size}, expected a multiple of num_attention_heads "
            f"({model.num_attention_heads}); or give head_dim",
        )


def _query_heads_share_kv_heads(profile: Any) -> Iterator[Problem]:
    heads, kv_heads = profile.model.num_attention_heads, profile.model.num_key_value_heads
    if heads % kv_heads:
        yield problem_at(
            "model.num_key_value_heads",
            f"got {kv_heads}, expected a divisor of num_attention_heads ({heads}), "
            f"such as {_nearest_divisor(heads, kv_heads)}",
        )


def _nearest_divisor(whole: int, wanted: int) -> int:
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    return min(divisors, key=lambda n: abs(n - wanted))


def _channels_pair_and_pack(profile: Any) -> Iterator[Problem]:
    head_dim, dtype = profile.model.head_dim, profile.kv_cache.dtype
    step, why = (4, "int2 packs 4 channels a byte") if dtype == "int2" else (
        2, "rotary embeddings turn pairs of channels, and int4 packs 2 a byte")  # fmt: skip
    if head_dim is not None and head_dim % step:
        yield problem_at(
            "model.head_dim",
            f"got {head_dim}, expected a multiple of {step} ({why}), "
            f"such as {head_dim + step - head_dim % step}",
        )


def _groups_divide_the_channels(profile: Any) -> Iterator[Problem]:
    head_dim, cache = profile.model.head_dim, profile.kv_cache
    grouped = not storage_format(cache.dtype).is_float
    if grouped and head_dim and head_dim % min(cache.group_size, head_dim):
        yield problem_at(
            "kv_cache.group_size",
            f"got {cache.group_size}, expected a divisor of head_dim ({head_dim}), "
            f"or {head_dim} and more: values share a scale along the channels",
        )


def _global_layers_need_a_window(profile: Any) -> Iterator[Problem]:
    model = profile.model
    if model.global_attention_every is not None and model.sliding_window is None:
        yield problem_at(
            "model.global_attention_every",
            f"got {model.global_attention_every} without sliding_window, expected null; "
            "or set sliding_window, such as 4k",
        )


def new_tokens_leave_a_prompt(profile: Any) -> Iterator[Problem]:
    """The context holds the prompt and what is generated."""
    work = profile.workload
    if work.mode == "inference" and work.new_tokens >= work.context:
        yield problem_at(
            "workload.new_tokens",
            f"got {work.new_tokens}, expected fewer than context ({work.context}), "
            "which holds the prompt and the new tokens",
        )


def _training_has_no_graph(profile: Any) -> Iterator[Problem]:
    if profile.workload.cuda_graph and profile.workload.mode == "training":
        yield problem_at(
            "workload.cuda_graph",
            "got true; training takes false; or set workload.mode to inference, where "
            "decode replays a graph",
        )


def _vision_prefix_leaves_text(profile: Any) -> Iterator[Problem]:
    if profile.model.vision is None:
        return
    work, prefix = profile.workload, VISION_TOWERS[profile.model.vision].patches
    taken = prefix + (work.new_tokens if work.mode == "inference" else 0)
    if work.context <= taken:
        yield problem_at(
            "workload.context",
            f"got {work.context}, expected more than {taken}, because {profile.model.vision} "
            f"puts {prefix} tokens before the text; or set model.vision to null",
        )


def _sinks_are_within_the_context(profile: Any) -> Iterator[Problem]:
    sinks, context = profile.kv_cache.attention_sinks, profile.workload.context
    if sinks >= context:
        yield problem_at(
            "kv_cache.attention_sinks", f"got {sinks}, expected fewer than context ({context})"
        )


def _trained_weights_are_floats(profile: Any) -> Iterator[Problem]:
    if profile.workload.mode != "training":
        return
    advice = "whole numbers have no gradient; or set workload.mode to inference"
    weights = profile.weights
    uses: tuple[tuple[Use, str, str], ...] = (
        ("weights", "format", weights.format),
        ("embeddings", "embedding_dtype", weights.embedding_dtype),
    )
    for use, key, found in uses:
        if not storage_format(found).is_trainable:
            names = (name for name in formats_for(use) if storage_format(name).is_trainable)
            allowed = ", ".join(names)
            yield problem_at(f"weights.{key}", f"got {found}; training takes {allowed}: {advice}")


def _checkpoints_count_layers(profile: Any) -> Iterator[Problem]:
    checkpointing, layers = profile.training.checkpointing, profile.model.num_hidden_layers
    counts = profile.workload.mode == "training" and checkpointing.policy in (
        "every-nth", "segments")  # fmt: skip
    if counts and checkpointing.n > layers:
        yield problem_at(
            "training.checkpointing.n",
            f"got {checkpointing.n}, expected at most num_hidden_layers ({layers})",
        )


def _digits_fill_a_row(profile: Any) -> Iterator[Problem]:
    """Below 17 inputs a row is as long at 1.6 bits as at 2, and its length tells the format."""
    m = profile.model
    if profile.weights.format != "ternary-1.6bit" or m.head_dim is None:
        return
    narrowest = min(m.hidden_size, m.intermediate_size, m.num_attention_heads * m.head_dim)
    if narrowest < 17:
        yield problem_at(
            "weights.format",
            f"got ternary-1.6bit for a layer of {narrowest} inputs, expected 17 or more, "
            "or ternary-2bit",
        )


def _parameters_are_possible(profile: Any) -> Iterator[Problem]:
    m = profile.model
    if m.head_dim is None:
        return
    attention = 2 * m.hidden_size * m.head_dim * (m.num_attention_heads + m.num_key_value_heads)
    layers = m.num_hidden_layers * (attention + 3 * m.hidden_size * m.intermediate_size)
    found = layers + 2 * m.vocab_size * m.hidden_size
    if found > ABSURD:
        yield problem_at("model", f"got {found:,} parameters, expected at most {ABSURD:,}")


def _tensors_are_possible(profile: Any) -> Iterator[Problem]:
    m, work = profile.model, profile.workload
    tokens = work.context * work.batch
    cache = 2 * m.num_hidden_layers * m.num_key_value_heads * (m.head_dim or 1) * tokens
    for name, found in (("hidden state", tokens * m.hidden_size), ("key-value cache", cache)):
        if found > ABSURD:
            yield problem_at(
                "workload.context",
                f"got {work.context:,} for a batch of {work.batch:,}: a {name} of {found:,} "
                f"elements, expected at most {ABSURD:,}",
            )


RULES: tuple[Rule, ...] = (
    _heads_share_the_hidden_size,
    _query_heads_share_kv_heads,
    _channels_pair_and_pack,
    _groups_divide_the_channels,
    _global_layers_need_a_window,
    new_tokens_leave_a_prompt,
    _training_has_no_graph,
    _vision_prefix_leaves_text,
    _sinks_are_within_the_context,
    _trained_weights_are_floats,
    _checkpoints_count_layers,
    _digits_fill_a_row,
    _parameters_are_possible,
    _tensors_are_possible,
)


OneProfile = TypeVar("OneProfile", bound=Section)


def changed(profile: OneProfile, settings: Mapping[str, Any]) -> OneProfile:
    """Copy a profile with values replaced by dotted key, `workload.context` for example.

    Raises:
        ConfigError: the changed profile breaks a rule.
    """
    values: dict[str, Any] = {}
    for key, value in settings.items():
        set_value(values, tuple(key.split(".")), value)
    return profile.replaced(values)
