"""What is alive at a step of the model: named tensors, and what they add up to.

A layer's run is written down as steps, each the names of the tensors that are alive in it. Which
names there are and how large they are follows from the sizes; the peak is the largest step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tritter_mem.planner.sizes import Sizes, ceil_div
from tritter_mem.results import Components

Live = Mapping[str, int]
WORKSPACE_PREFIXES = ("packed_", "cast_", "expanded_", "delta", "attention_scratch", "norm_sums")


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

    def at(self, place: str) -> Moment:
        """The same moment, said to be in a layer."""
        return replace(self, step=f"{place}, {self.step}")

    def components(self) -> Components:
        """As the result record holds them."""
        return Components(**{f"{name}_bytes": count for name, count in self.parts.items()})


def alive(names: Iterable[str], sizes: Live) -> dict[str, int]:
    """Bytes of the named tensors as activations and workspace."""
    found = {"activations": 0, "workspace": 0}
    for name in set(names):
        scratch = name.startswith(WORKSPACE_PREFIXES)
        found["workspace" if scratch else "activations"] += sizes.get(name, 0)
    return found


def highest(moments: Iterable[Moment]) -> Moment:
    """The moment with most alive; the first of equals."""
    return max(moments, key=lambda moment: moment.total_bytes)


def row_bytes(sizes: Sizes, width: int) -> int:
    """int8 rows: codes, a float32 scale and an int32 sum a token."""
    return sizes.tokens * (width + 8)


def activation_bytes(sizes: Sizes, width: int) -> int:
    """Rows in the activations' type."""
    return sizes.tokens * width * sizes.compute


def rounded_weight_bytes(sizes: Sizes, per_byte: int) -> dict[str, int]:
    """What a training product makes of its weights: packed ones and a scale, or a cast; by name."""
    if sizes.ternary:
        return {
            f"packed_{name}": rows * (ceil_div(columns, per_byte) + 4)
            for name, (rows, columns) in sizes.linears.items()
        }
    if not sizes.casts:
        return {}
    return {
        f"packed_{name}": rows * columns * sizes.compute
        for name, (rows, columns) in sizes.linears.items()
    }
