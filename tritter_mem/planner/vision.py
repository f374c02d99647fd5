"""The vision tower before the prompt: what its run takes."""

from __future__ import annotations

from collections.abc import Iterator

from tritter_mem.planner.case import Case
from tritter_mem.planner.moments import Moment


def prefix_bytes(case: Case) -> int:
    """Patch embeddings in the language model's width; 0 without a tower."""
    tower = case.architecture.vision
    if tower is None:
        return 0
    return case.rows(tower.patches).activation_bytes(case.architecture.hidden)


def vision_moments(case: Case, phase: str) -> Iterator[Moment]:
    """The tower's highest moment, where there is one."""
    tower = case.architecture.vision
    if tower is not None:
        elements = case.work.batch * tower.highest_elements
        yield Moment(phase, "vision tower", {"activations": elements * case.compute.element_bytes})
