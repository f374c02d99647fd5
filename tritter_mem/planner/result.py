"""A profile's plan as a result record, with verdict and suggestions."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from tritter_mem.config.loading import profile_hash
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import budget_of, kv_bytes_per_token, plan
from tritter_mem.planner.suggest import judge_with_advice
from tritter_mem.planner.weights import embeddings_bytes, weights_bytes
from tritter_mem.results.header import header
from tritter_mem.results.run import Components, Environment, ModelFacts, Result
from tritter_mem.results.verdict import compare
from tritter_mem.units import GB

ONLY_PLANNED = "`plan` only uses formulas; `tritter-mem profile` does the rest"


def planned_result(profile: AnyProfile) -> Result:
    """Plan a profile and compare it with its card's budget.

    Raises:
        ConfigError: the card is unknown.
    """
    card = find_gpu(profile.gpu.name)
    use = plan(profile, card)
    return Result(
        **header(),
        environment=Environment(
            python=sys.version.split()[0], allocator_conf=profile.allocator.conf
        ),
        profile=profile.model_dump(),
        profile_hash=content_hash(profile),
        model=model_facts(profile),
        planned=use,
        simulated_reason=ONLY_PLANNED,
        measured_reason=ONLY_PLANNED,
        verdict=judge_with_advice(profile, card, {"planned": use}, budget_of(profile, card)),
        differences=compare({"planned": use}),
    )


def content_hash(profile: AnyProfile) -> str:
    """The profile's hash; of a named model by what its configuration says, not by its name."""
    if isinstance(profile, NamedProfile):
        from tritter_mem.models.transformers_run import named_model

        return profile_hash(profile, named_model(profile).config)
    return profile_hash(profile)


def model_facts(profile: AnyProfile) -> ModelFacts:
    """What a profile's model is."""
    if isinstance(profile, NamedProfile):
        return _named_facts(profile)
    case = Case.of(profile, find_gpu(profile.gpu.name))
    model = case.architecture
    trained = model.parameters - model.vision_parameters
    return ModelFacts(
        name=profile.name,
        architecture=model.name,
        parameters=model.parameters,
        language_parameters=trained,
        active_parameters=trained,
        weight_bytes=weights_bytes(case) + embeddings_bytes(case),
        kv_bytes_per_token=0 if case.trains else kv_bytes_per_token(case),
    )


def _named_facts(profile: NamedProfile) -> ModelFacts:
    # Planning the bundled model does without the readers of others.
    from tritter_mem.models.transformers_run import named_model, transformers_run

    run, named = transformers_run(profile), named_model(profile)
    model = run.model
    return ModelFacts(
        name=named.name,
        architecture=model.model_type,
        parameters=model.parameters,
        language_parameters=model.language_parameters,
        active_parameters=model.active_parameters,
        weight_bytes=model.weight_bytes_in(model.quantization, run.dtype),
        kv_bytes_per_token=run.kv_bytes_per_token,
        stored_bytes=named.stored_bytes,
        runtime=run.runtime,
        dequantises=not run.trains
        and model.quantization.is_dequantised(find_gpu(profile.gpu.name).compute_capability),
        unsupported=model.unsupported,
    )


class SpecificationConfig(Protocol):
    """The attributes that the specification's configuration has.

    `intermediate_size` and `vocab_size` are taken where they are there; the specification leaves
    them out, and then they are the 7B model's, in proportion to the hidden size.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    max_position_embeddings: int
    use_bitnet: bool
    int4_kv_cache: bool
    use_sliding_window: bool
    sliding_window_size: int


def calculate_memory_budget(config: Profile | SpecificationConfig) -> dict[str, float]:
    """Plan the memory of a configuration, before anything is run.

    What the specification's sketch leaves out is in: embeddings that stay in bfloat16, scales and
    minima of the cache, attention sinks, the prompt in chunks, workspaces and the CUDA context.

    Args:
        config: a profile, or an object with the specification's attributes.

    Returns:
        Decimal gigabytes (10⁹ bytes): `weights` (linear layers, embeddings, vision), `kv_cache`,
        `activations` (logits among them), `overhead` (workspaces and the CUDA context) and `total`;
        in training also `gradients` and `optimizer_state`. All but `total` sum to it.

    Raises:
        ConfigError: the configuration is not possible.
    """
    profile = config if isinstance(config, Profile) else _profile_of(config)
    use = plan(profile, find_gpu(profile.gpu.name))
    parts = _parts(use.components, use.context_bytes or 0)
    budget = {name: count / GB for name, count in parts.items()}
    return {**budget, "total": sum(parts.values()) / GB}


def _parts(found: Components, context_bytes: int) -> dict[str, int]:
    trained = {
        "gradients": found.gradients_bytes,
        "optimizer_state": found.optimizer_state_bytes,
    }
    return {
        "weights": found.weights_bytes + found.embeddings_bytes + found.vision_bytes,
        "kv_cache": found.kv_cache_bytes,
        "activations": found.activations_bytes + found.logits_bytes,
        "overhead": found.workspace_bytes + context_bytes,
        **{name: count for name, count in trained.items() if count},
    }


def _profile_of(config: SpecificationConfig) -> Profile:
    return Profile.model_validate({
        "name": "specification",
        "model": _model_of(config),
        "weights": {"format": "ternary-2bit" if config.use_bitnet else "bfloat16"},
        "kv_cache": {"dtype": "int4" if config.int4_kv_cache else "bfloat16"},
        "workload": {"context": config.max_position_embeddings},
    })  # fmt: skip


def _model_of(config: SpecificationConfig) -> dict[str, Any]:
    hidden = config.hidden_size
    return {
        "hidden_size": hidden,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "head_dim": config.head_dim,
        "intermediate_size": getattr(config, "intermediate_size", hidden * 11008 // 4096),
        "vocab_size": getattr(config, "vocab_size", 65536),
        "sliding_window": config.sliding_window_size if config.use_sliding_window else None,
    }
