"""What a named model takes at least on a card: what is known of it without a plan of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritter_mem.config.profile import Gpu, KVCache, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError, UsageError
from tritter_mem.models.formats import storage_format
from tritter_mem.models.named_model import NamedModel
from tritter_mem.results.model import LeastMemory

SETTINGS = ("workload.context", "workload.batch", "gpu.name", "gpu.budget", "kv_cache.dtype")
"""What can be changed of it, by dotted key."""


def least_memory(
    named: NamedModel, settings: Mapping[str, Any], labels: Mapping[str, str]
) -> LeastMemory:
    """Weights, cache and CUDA context of a model.

    Args:
        named: the model.
        settings: values by dotted key, of `SETTINGS`.
        labels: what messages call each.

    Raises:
        ConfigError: a value is wrong, the card is unknown, or the cache cannot be in such a type.
        UsageError: a setting is for profiles of the bundled model alone.
    """
    _refuse_others(settings, labels)
    work = Workload.model_validate(_section(settings, "workload"))
    gpu = Gpu.model_validate(_section(settings, "gpu"))
    card, model = find_gpu(gpu.name), named.model
    dtype = KVCache.model_validate(_section(settings, "kv_cache")).dtype
    cache = storage_format(dtype) if "kv_cache.dtype" in settings else model.dtype
    if cache.name not in ("bfloat16", "float16", "float32"):
        allowed = "bfloat16, float16, which transformers' DynamicCache has"
        raise ConfigError(f"--kv-dtype: found {cache.name}; allowed for {named.name}: {allowed}")
    return LeastMemory(
        name=named.name,
        architecture=model.model_type,
        parameters=model.parameters,
        language_parameters=model.language_parameters,
        active_parameters=model.active_parameters,
        weight_bytes=model.weight_bytes,
        stored_bytes=named.stored_bytes,
        kv_bytes_per_token=model.kv_bytes_per_token(cache),
        kv_cache_bytes=model.cache_bytes(work.context, work.batch, cache.name),
        cache_dtype=cache.name,
        context=work.context,
        batch=work.batch,
        gpu=card.name,
        context_bytes=card.context_bytes,
        budget_bytes=gpu.budget or card.default_budget_bytes,
        unsupported=model.unsupported,
    )


def _refuse_others(settings: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    others = [key for key in settings if key not in SETTINGS]
    if others:
        names = ", ".join(labels.get(key, f"--set {key}") for key in others)
        raise UsageError(
            f"{names}: not for a model of Hugging Face or GGUF; allowed: --context, --batch, "
            "--gpu, --budget, --kv-dtype"
        )


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}."
    found = {key: value for key, value in settings.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): v for key, v in found.items() if v is not None}
