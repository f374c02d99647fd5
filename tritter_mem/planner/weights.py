"""Bytes of the weights and their gradients, and of the optimizer's state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tritter_mem.models.architecture import Architecture
from tritter_mem.models.formats import ceil_div
from tritter_mem.planner.case import Case

OPTIMIZER_BLOCK = 256


def weights_bytes(case: Case) -> int:
    """Linear layers and norms, as inference stores them or as training does (master weights)."""
    model = case.architecture
    if case.trains:
        return (model.linear_parameters + model.norm_parameters) * case.master.element_bytes
    linears = sum(
        count * case.weights.weight_bytes(outputs, inputs)
        for layer, count in model.counted_layers.items()
        for outputs, inputs in layer.linears(model.hidden).values()
    )
    return linears + model.norm_parameters * case.compute.element_bytes


def packed_linear_bytes(case: Case) -> int:
    """The linear layers' codes alone, without scales: N * ceil(K / 4) bytes each at 2 bits."""
    model = case.architecture
    return sum(
        count * outputs * case.weights.packed_row_bytes(inputs)
        for layer, count in model.counted_layers.items()
        for outputs, inputs in layer.linears(model.hidden).values()
    )


def embeddings_bytes(case: Case) -> int:
    """Embedding and output projection; int8 tables have a float32 scale a row."""
    model = case.architecture
    if case.trains:
        return model.embedding_parameters * case.master.element_bytes
    return model.tables * case.embeddings.weight_bytes(model.vocabulary, model.hidden)


def vision_bytes(case: Case) -> int:
    """The frozen tower and its projection, in the activations' type."""
    return case.architecture.vision_parameters * case.compute.element_bytes


def gradient_bytes(case: Case) -> int:
    """Gradients of all trained weights, in the master type."""
    model = case.architecture
    language = model.linear_parameters + model.norm_parameters + model.embedding_parameters
    return language * case.master.element_bytes


def optimizer_state_bytes(case: Case) -> int:
    """Two moments a parameter: float32, or 8 bits with a float32 scale for each block of 256.

    Blocks do not cross parameters. SGD keeps nothing. The frozen vision tower has no state.
    """
    optimizer = case.training.optimizer
    if not case.trains or optimizer == "sgd":
        return 0
    tensors = _trained_tensors(case.architecture)
    if optimizer == "adamw":
        return sum(8 * elements * count for elements, count in tensors.items())
    return sum(
        count * (2 * elements + 8 * ceil_div(elements, OPTIMIZER_BLOCK))
        for elements, count in tensors.items()
    )


def _trained_tensors(model: Architecture) -> Mapping[int, int]:
    """How many trained tensors there are of each size, in elements."""
    found: Counter[int] = Counter()
    for layer, count in model.counted_layers.items():
        for rows, columns in layer.linears(model.hidden).values():
            found[rows * columns] += count
        for elements in layer.norms(model.hidden).values():
            found[elements] += count
    found[model.hidden] += 1
    found[model.vocabulary * model.hidden] += model.tables
    return found
