"""Moments of a run: what is alive in them by component, and the highest of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tritter_mem.models.architecture import Tensors
from tritter_mem.results.run import Components

WORKSPACE_PREFIXES = ("packed_", "expanded_", "delta", "attention_scratch", "norm_sums")
"""Names of tensors, in the tables of blocks, that are workspace; the others are activations."""


@dataclass(frozen=True)
class Moment:
    """A point in time: which phase, what runs, and what is alive by component.

    Attributes:
        phase: name of the phase.
        step: what runs, in words.
        parts: component name (`activations`) to bytes.
    """

    phase: str
    step: str
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Everything that is alive."""
        return sum(self.parts.values())

    def plus(self, parts: Mapping[str, int]) -> Moment:
        """The same point in time with more alive."""
        total = dict(self.parts)
        for name, count in parts.items():
            total[name] = total.get(name, 0) + count
        return Moment(self.phase, self.step, total)

    def at(self, location: str) -> Moment:
        """The same moment, said to be in a layer."""
        return replace(self, step=f"{location}, {self.step}")

    def components(self) -> Components:
        """As the result record holds them."""
        return Components(**{f"{name}_bytes": count for name, count in self.parts.items()})


def alive(names: Iterable[str], tensors: Tensors) -> dict[str, int]:
    """Bytes of the named tensors as activations and workspace."""
    found = {"activations": 0, "workspace": 0}
    for name in set(names):
        scratch = name.startswith(WORKSPACE_PREFIXES)
        found["workspace" if scratch else "activations"] += sum(tensors.get(name, ()))
    return found


def highest(moments: Iterable[Moment]) -> Moment:
    """The moment with most alive; the first of equals."""
    return max(moments, key=lambda moment: moment.total_bytes)
