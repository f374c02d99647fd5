"""What both allocators are asked after each operation, in a form that compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class SeenBlock(NamedTuple):
    """A block: `requested` is 0 where it is free."""

    size: int
    requested: int
    state: str


class SeenSegment(NamedTuple):
    """A segment, or a mapped range; its address counts from where the highest region ends."""

    address: int
    stream: int
    pool: int
    small: bool
    expandable: bool
    blocks: tuple[SeenBlock, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an operation led to.

    Attributes:
        result: the address that a request got, `out of memory`, or nothing.
        statistics: as `torch.cuda.memory_stats` names them.
        segments: by address.
    """

    result: int | str | None
    statistics: dict[str, int]
    segments: tuple[SeenSegment, ...]

    def without_segments(self) -> Answer:
        """The same, where the other answer has no segments either."""
        return replace(self, segments=())


def differences(real: Answer, simulated: Answer) -> list[str]:
    """What differs, one line each; nothing where the answers are the same."""
    found = []
    if real.result != simulated.result:
        found.append(f"result: PyTorch {real.result}, simulated {simulated.result}")
    found += [
        f"{name}: PyTorch {value:,}, simulated {simulated.statistics.get(name)}"
        for name, value in real.statistics.items()
        if simulated.statistics.get(name) != value
    ]
    if real.segments != simulated.segments:
        found += _segment_differences(real.segments, simulated.segments)
    return found


def _segment_differences(
    real: tuple[SeenSegment, ...], simulated: tuple[SeenSegment, ...]
) -> list[str]:
    ours, theirs = set(simulated), set(real)
    found = [f"only PyTorch: {segment}" for segment in real if segment not in ours]
    found += [f"only simulated: {segment}" for segment in simulated if segment not in theirs]
    return found


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, int]:
    """Statistics by their whole names."""
    found: dict[str, int] = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found
