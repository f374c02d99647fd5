"""What a named model takes at least: what is known of it where its activations are not planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tritter_mem.config.cards import GpuCard
from tritter_mem.results.run import Components, MemoryUse, Phase

if TYPE_CHECKING:  # a bundled profile does without
    from tritter_mem.models.transformers_run import TransformersRun


def least_memory(run: TransformersRun, card: GpuCard, reason: str) -> MemoryUse:
    """Weights, KV cache and CUDA context; gradients and optimizer state too in training.

    Args:
        run: what transformers runs.
        card: the card.
        reason: what is not counted.
    """
    components = _trained(run) if run.trains else _loaded(run, card)
    total = components.total_bytes
    return MemoryUse(
        device=card.name,
        components=components,
        phases=(Phase(name="least", allocated_peak_bytes=total, components=components),),
        allocated_peak_bytes=total,
        context_bytes=card.context_bytes,
        device_peak_bytes=total + card.context_bytes,
        lower_bound_reason=reason,
    )


def _loaded(run: TransformersRun, card: GpuCard) -> Components:
    model = run.model.held_on(card.compute_capability)
    return Components(
        weights_bytes=model.weight_bytes_in(model.quantization, run.dtype),
        kv_cache_bytes=run.least_cache_bytes,
    )


def _trained(run: TransformersRun) -> Components:
    """AdamW's moments have the parameter's type, those of 8 bits a scale for each 256 beside it."""
    parameters, element = run.model.language_parameters, run.master.element_bytes
    state = {"adamw": 2 * element * parameters, "adamw-8bit": 2 * parameters, "sgd": 0}
    return Components(
        weights_bytes=parameters * element,
        gradients_bytes=parameters * element,
        optimizer_state_bytes=state[run.training.optimizer],
    )
