"""The largest context or batch of a profile, with what it and the next one need."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.config.schema import Profile
from tritter_mem.planner.compose import plan
from tritter_mem.planner.solve import LIMITS, Unknown, smallest, solve, with_value
from tritter_mem.planner.verdict import budget_of

SCHEMA = "tritter-mem.max/1"


@dataclass(frozen=True, kw_only=True)
class Largest:
    """What was solved for.

    Attributes:
        value: the largest that fits; None where not even the smallest does.
        footprint_bytes: what it needs; where nothing fits, what the smallest needs.
        next_footprint_bytes: what one more would need; None where a profile may hold no more.
    """

    name: str
    gpu: str
    unknown: Unknown
    value: int | None
    budget_bytes: int
    footprint_bytes: int
    next_footprint_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"schema": SCHEMA, **asdict(self)}


def find_largest(profile: Profile, unknown: Unknown) -> Largest:
    """Solve for one unknown of a profile, on its card and budget.

    Raises:
        ConfigError: the card is unknown.
    """
    card = find_gpu(profile.gpu.name)
    budget = budget_of(profile, card)
    value = solve(profile, card, budget, unknown)
    at = smallest(profile, unknown) if value is None else value
    return Largest(
        name=profile.name,
        gpu=card.name,
        unknown=unknown,
        value=value,
        budget_bytes=budget,
        footprint_bytes=_need(profile, card, unknown, at),
        next_footprint_bytes=(
            None if at >= LIMITS[unknown] else _need(profile, card, unknown, at + 1)
        ),
    )


def _need(profile: Profile, card: GpuCard, unknown: Unknown, value: int) -> int:
    return plan(with_value(profile, unknown, value), card).footprint_bytes
