"""A profile of a model that people name: what transformers runs of it, and on which card."""

# No `from __future__ import annotations`: the annotations are read as objects, not as text.
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tritter_mem.config.fields import Choice, Problem, Section, Text, Whole
from tritter_mem.config.profile import (
    Allocator,
    Gpu,
    Profile,
    Tokens,
    broken,
    new_tokens_leave_a_prompt,
    problem_at,
)

QUANTIZATIONS: Mapping[str, dict[str, Any]] = {
    "bitsandbytes-int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes-nf4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
    },
    "bitsandbytes-nf4-double": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
}
"""Ways to store linear layers that transformers offers while it loads, as `quantization_config`."""


@dataclass(eq=False, repr=False)
class ModelSource:
    """A model's name or path, or the keys of its `config.json`."""

    allowed: str = (
        "a model's name or path, such as Qwen/Qwen3-8B or ./model/config.json, "
        "or Hugging Face keys with model_type"
    )

    def read(self, value: object) -> str | dict[str, Any]:
        """Accept text of one line, and mappings with a `model_type`."""
        if isinstance(value, str):
            return Text(1, 4096).read(value)
        if isinstance(value, Mapping) and isinstance(value.get("model_type"), str):
            return dict(value)
        raise ValueError(self.allowed)

    def json_schema(self) -> dict[str, Any]:
        """Text, or an object with a `model_type`."""
        keys = {"type": "object", "required": ["model_type"]}
        return {"anyOf": [Text(1, 4096).json_schema(), keys]}


class NamedWeights(Section):
    """How transformers holds the weights."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations, as from_pretrained's dtype; auto: the checkpoint's."""
    quantization: Annotated[str, Choice(("auto", "none", *QUANTIZATIONS))] = "auto"
    """Storage of linear layers; auto: as the checkpoint has them; none: not quantised."""


class NamedCache(Section):
    """The key-value cache of inference: generate's cache_implementation and its settings."""

    implementation: Literal["dynamic", "static", "quantized"] = "dynamic"
    """dynamic: grows with each token; static: has room for all tokens from the first one on, and
    generate runs with disable_compile=True; quantized: in fewer bits, of models whose layers all
    have full attention."""
    dtype: Annotated[
        str,
        Choice(
            ("auto",),
            "transformers keeps keys and values in the type of the activations, which --dtype "
            "sets; kv_cache.implementation=quantized keeps them in fewer bits",
        ),
    ] = "auto"
    """auto: the activations' type, in which transformers holds keys and values that are not
    quantised."""
    max_cache_len: Tokens | None = None
    """Tokens that a static cache has room for at least, as generate's max_cache_len; null: those of
    the context."""
    backend: Literal["quanto", "fp8"] = "quanto"
    """What a quantized cache is coded by."""
    nbits: Annotated[int, Whole(1, 8)] = 4
    """Bits of a code of quanto: 2 or 4."""
    axis_key: Annotated[int, Whole(-1, 0)] = 0
    """Along which axis quanto codes keys: 0 or -1."""
    axis_value: Annotated[int, Whole(-1, 0)] = 0
    """Along which axis quanto codes values: 0 or -1."""
    q_group_size: Annotated[int, Whole(1, 65536)] = 64
    """Elements that share a scale of quanto."""
    residual_length: Tokens = 128
    """Tokens that wait, as they are, until quanto codes all."""


class NamedWorkload(Section):
    """What is run."""

    mode: Literal["inference", "training"] = "inference"
    """inference: greedy generate(); training: one step of Trainer."""
    context: Tokens = 4096
    """Tokens of each sequence: prompt and new tokens together, or the training sequence."""
    batch: Annotated[int, Whole(1, 65536)] = 1
    """Sequences at once."""
    prefill_chunk: Tokens | None = None
    """Tokens of the prompt that run at a time, as generate's prefill_chunk_size; null: all."""
    new_tokens: Tokens = 32
    """Tokens that inference generates; part of the context."""


class NamedCheckpointing(Section):
    """Which activations training recomputes instead of keeping."""

    policy: Literal["none", "every-layer"] = "none"
    """every-layer: as gradient_checkpointing_enable() does."""


class NamedTraining(Section):
    """Settings that only training uses."""

    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    """Optimizer: PyTorch's fused AdamW, bitsandbytes' 8-bit AdamW, or SGD without momentum."""
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of trained weights, gradients and AdamW's moments. With float32 the forward pass
    runs under autocast to bfloat16."""
    checkpointing: NamedCheckpointing = NamedCheckpointing()
    """Which activations are recomputed."""


class NamedProfile(Section):
    """One profile of a named model, resolved: every default filled in, every size a number."""

    name: Annotated[str, Text(1, 200)]
    """What reports call it."""
    description: Annotated[str, Text(0, 2000)] = ""
    """One line for `tritter-mem models`."""
    model: Annotated[str | dict[str, Any], ModelSource()]
    """A name or path, or the keys of a `config.json`."""
    weights: NamedWeights = NamedWeights()
    kv_cache: NamedCache = NamedCache()
    workload: NamedWorkload = NamedWorkload()
    training: NamedTraining = NamedTraining()
    gpu: Gpu = Gpu()
    allocator: Allocator = Allocator()

    @classmethod
    def broken_rules(cls, known: Any) -> list[Problem]:
        """Rules between fields, of one section or of several."""
        return broken(NAMED_RULES, known)


def _training_is_of_floats(profile: Any) -> Iterator[Problem]:
    if profile.workload.mode == "training" and profile.weights.quantization in QUANTIZATIONS:
        yield problem_at(
            "weights.quantization",
            f"got {profile.weights.quantization}; training takes auto, none: "
            "whole numbers have no gradient; or set workload.mode to inference",
        )


QUANTO_BITS = (2, 4)


def _quanto_has_codes_of(profile: Any) -> Iterator[Problem]:
    cache = profile.kv_cache
    by_quanto = cache.implementation == "quantized" and cache.backend == "quanto"
    if by_quanto and cache.nbits not in QUANTO_BITS:
        yield problem_at("kv_cache.nbits", f"got {cache.nbits}; quanto takes 2, 4")


NAMED_RULES = (
    new_tokens_leave_a_prompt,
    _training_is_of_floats,
    _quanto_has_codes_of,
)


AnyProfile = Profile | NamedProfile


def is_named(model: object) -> bool:
    """Whether a profile's `model` names a model, rather than describes a bundled one."""
    return isinstance(model, str) or (isinstance(model, Mapping) and "model_type" in model)
