"""Where the audit's figures come from: the formulas, or a simulation of the real model."""

from __future__ import annotations

import math
from typing import Protocol

from tritter_mem.config.gpus import find_gpu
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.planner.change import changed
from tritter_mem.planner.compose import plan
from tritter_mem.planner.sizes import sizes_of
from tritter_mem.results import Estimate
from tritter_mem.trace.checkpointing import simulate_policy
from tritter_mem.trace.progress import Progress
from tritter_mem.trace.simulate import simulate


class Answers(Protocol):
    """What the audit asks of a kind of answer."""

    def estimate(self, profile: Profile) -> Estimate:
        """All of a profile's memory."""

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """Under a checkpointing policy: the peak of activations in bytes, and recomputed work.

        The work is a part of that of a step without recomputation.
        """


class Planned:
    """By formula. Recomputed work leaves out attention and the loss."""

    def estimate(self, profile: Profile) -> Estimate:
        """All of a profile's memory."""
        return plan(profile, find_gpu(profile.gpu.name))

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The forward pass's products again but the last of a layer, in one layer of n.

        A step comes to three times the forward pass's products.
        """
        checkpointing = {"policy": policy, "n": n}
        phases = self.estimate(changed(profile, {"training.checkpointing": checkpointing})).phases
        peak = max(p.components.activations_bytes for p in phases if p.components is not None)
        weights = {name: math.prod(shape) for name, shape in sizes_of(profile, 1).linears.items()}
        again = 1 - weights["down"] / sum(weights.values())
        return peak, 0.0 if policy == "none" else again / 3 / n


class Simulated:
    """By simulation, each profile once. Recomputed work has attention and the loss in it.

    Args:
        progress: told how far each simulation is.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or Progress()
        self._estimates: dict[str, Estimate] = {}
        self._work: dict[str, int] = {}

    def estimate(self, profile: Profile) -> Estimate:
        """All of a profile's memory."""
        key = profile_hash(profile)
        if key not in self._estimates:
            self._progress.begin(profile.name)
            self._estimates[key] = simulate(profile, progress=self._progress)
        return self._estimates[key]

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The operators' own operations, against those under `none`, which is asked for first."""
        case = simulate_policy(profile, policy, n, self._progress)
        base = self._work.setdefault(profile_hash(profile), case.flops)
        return case.activations_peak_bytes, case.flops / base - 1
