"""Rules between the fields of a profile: each says what was found, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tritter_mem.config.schema import QUANTISED_KV_BITS, VISION_PREFIX_TOKENS
from tritter_mem.config.sections import Problem, UnknownValueError

# No machine is near this many parameters, or elements of one kind of tensor.
ABSURD = 1 << 50
Rule = Callable[[Any], Iterator[Problem]]


def broken_rules(profile: Any) -> list[Problem]:
    """Every rule that a profile breaks.

    Args:
        profile: a `Profile`, or the right values of a wrong one (`Known`): a rule that needs a
            value which is wrong itself is left out.
    """
    return [problem for rule in RULES for problem in _broken(rule, profile)]


def _broken(rule: Rule, profile: Any) -> list[Problem]:
    try:
        return list(rule(profile))
    except UnknownValueError:
        return []


def _problem(path: str, text: str) -> Problem:
    return Problem(tuple(path.split(".")), text)


def _heads_share_the_hidden_size(profile: Any) -> Iterator[Problem]:
    model = profile.model
    if model.head_dim is None:
        yield _problem(
            "model.hidden_size",
            f"found {model.hidden_size}; allowed: a multiple of num_attention_heads "
            f"({model.num_attention_heads}); or give head_dim",
        )


def _query_heads_share_kv_heads(profile: Any) -> Iterator[Problem]:
    heads, kv_heads = profile.model.num_attention_heads, profile.model.num_key_value_heads
    if heads % kv_heads:
        yield _problem(
            "model.num_key_value_heads",
            f"found {kv_heads}; allowed: a divisor of num_attention_heads ({heads}), "
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
        yield _problem(
            "model.head_dim",
            f"found {head_dim}; allowed: a multiple of {step} ({why}), "
            f"such as {head_dim + step - head_dim % step}",
        )


def _groups_divide_the_channels(profile: Any) -> Iterator[Problem]:
    head_dim, cache = profile.model.head_dim, profile.kv_cache
    if cache.dtype in QUANTISED_KV_BITS and head_dim and head_dim % min(cache.group_size, head_dim):
        yield _problem(
            "kv_cache.group_size",
            f"found {cache.group_size}; allowed: a divisor of head_dim ({head_dim}), "
            f"or {head_dim} and more: values share a scale along the channels",
        )


def _global_layers_need_a_window(profile: Any) -> Iterator[Problem]:
    model = profile.model
    if model.global_attention_every is not None and model.sliding_window is None:
        yield _problem(
            "model.global_attention_every",
            f"found {model.global_attention_every} without sliding_window; allowed: null; "
            "or set sliding_window, such as 4k",
        )


def _new_tokens_leave_a_prompt(profile: Any) -> Iterator[Problem]:
    work = profile.workload
    if work.mode == "inference" and work.new_tokens >= work.context:
        yield _problem(
            "workload.new_tokens",
            f"found {work.new_tokens}; allowed: fewer than context ({work.context}), "
            "which holds the prompt and the new tokens",
        )


def _training_has_no_graph(profile: Any) -> Iterator[Problem]:
    if profile.workload.cuda_graph and profile.workload.mode == "training":
        yield _problem(
            "workload.cuda_graph",
            "found true; allowed in training: false; or set workload.mode to inference, where "
            "decode replays a graph",
        )


def _vision_prefix_leaves_text(profile: Any) -> Iterator[Problem]:
    if profile.model.vision is None:
        return
    work, prefix = profile.workload, VISION_PREFIX_TOKENS[profile.model.vision]
    taken = prefix + (work.new_tokens if work.mode == "inference" else 0)
    if work.context <= taken:
        yield _problem(
            "workload.context",
            f"found {work.context}; allowed: more than {taken}, because {profile.model.vision} "
            f"puts {prefix} tokens before the text; or set model.vision to null",
        )


def _sinks_are_within_the_context(profile: Any) -> Iterator[Problem]:
    sinks, context = profile.kv_cache.attention_sinks, profile.workload.context
    if sinks >= context:
        yield _problem(
            "kv_cache.attention_sinks", f"found {sinks}; allowed: fewer than context ({context})"
        )


def _trained_weights_are_floats(profile: Any) -> Iterator[Problem]:
    if profile.workload.mode != "training":
        return
    advice = "whole numbers have no gradient; or set workload.mode to inference"
    if profile.weights.format in ("int8", "int4"):
        yield _problem(
            "weights.format",
            f"found {profile.weights.format}; allowed in training: ternary-2bit, "
            f"ternary-1.6bit, bfloat16, float16, float32: {advice}",
        )
    if profile.weights.embedding_dtype == "int8":
        yield _problem(
            "weights.embedding_dtype",
            f"found int8; allowed in training: bfloat16, float16, float32: {advice}",
        )


def _checkpoints_count_layers(profile: Any) -> Iterator[Problem]:
    checkpointing, layers = profile.training.checkpointing, profile.model.num_hidden_layers
    counts = profile.workload.mode == "training" and checkpointing.policy in (
        "every-nth", "segments")  # fmt: skip
    if counts and checkpointing.n > layers:
        yield _problem(
            "training.checkpointing.n",
            f"found {checkpointing.n}; allowed: at most num_hidden_layers ({layers})",
        )


def _digits_fill_a_row(profile: Any) -> Iterator[Problem]:
    """Below 17 inputs a row is as long at 1.6 bits as at 2, and its length tells the format."""
    m = profile.model
    if profile.weights.format != "ternary-1.6bit" or m.head_dim is None:
        return
    narrowest = min(m.hidden_size, m.intermediate_size, m.num_attention_heads * m.head_dim)
    if narrowest < 17:
        yield _problem(
            "weights.format",
            f"found ternary-1.6bit for a layer of {narrowest} inputs; allowed: 17 or more, "
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
        yield _problem("model", f"found {found:,} parameters; allowed: at most {ABSURD:,}")


def _tensors_are_possible(profile: Any) -> Iterator[Problem]:
    m, work = profile.model, profile.workload
    tokens = work.context * work.batch
    cache = 2 * m.num_hidden_layers * m.num_key_value_heads * (m.head_dim or 1) * tokens
    for name, found in (("hidden state", tokens * m.hidden_size), ("key-value cache", cache)):
        if found > ABSURD:
            yield _problem(
                "workload.context",
                f"found {work.context:,} for a batch of {work.batch:,}: a {name} of {found:,} "
                f"elements; allowed: at most {ABSURD:,}",
            )


RULES: tuple[Rule, ...] = (
    _heads_share_the_hidden_size,
    _query_heads_share_kv_heads,
    _channels_pair_and_pack,
    _groups_divide_the_channels,
    _global_layers_need_a_window,
    _new_tokens_leave_a_prompt,
    _training_has_no_graph,
    _vision_prefix_leaves_text,
    _sinks_are_within_the_context,
    _trained_weights_are_floats,
    _checkpoints_count_layers,
    _digits_fill_a_row,
    _parameters_are_possible,
    _tensors_are_possible,
)
