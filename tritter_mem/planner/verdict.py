"""A profile's plan as a result record, with verdict and suggestions."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from tritter_mem import __version__
from tritter_mem.config.gpus import GpuCard, find_gpu
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.differences import compare, judge
from tritter_mem.planner.compose import plan
from tritter_mem.planner.suggest import suggest
from tritter_mem.results import Environment, Result

NOT_SIMULATED = "`plan` computes by formula only; `profile` simulates"
NOT_MEASURED = "`plan` computes by formula only; `profile` measures"


def budget_of(profile: Profile, card: GpuCard) -> int:
    """What may be used: the profile's budget, else the card's memory less a margin."""
    return profile.gpu.budget or card.default_budget_bytes


def planned_result(profile: Profile) -> Result:
    """Plan a profile and hold it against its card's budget.

    Raises:
        ConfigError: the card is unknown.
    """
    card = find_gpu(profile.gpu.name)
    estimate = plan(profile, card)
    budget = budget_of(profile, card)
    return Result(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        environment=Environment(
            python=sys.version.split()[0], allocator_conf=profile.allocator.conf
        ),
        profile=profile.model_dump(),
        profile_hash=profile_hash(profile),
        planned=estimate,
        simulated_reason=NOT_SIMULATED,
        measured_reason=NOT_MEASURED,
        verdict=judge({"planned": estimate}, budget, suggest(profile, card, budget)),
        differences=compare({"planned": estimate}),
    )
