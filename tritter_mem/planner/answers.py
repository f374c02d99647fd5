"""Where the audit's figures come from: formulas, simulation of the real model, runs on a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

from tritter_mem.config.gpus import find_gpu
from tritter_mem.config.loading import profile_hash
from tritter_mem.config.schema import Profile
from tritter_mem.planner.change import changed
from tritter_mem.planner.compose import plan
from tritter_mem.planner.sizes import sizes_of
from tritter_mem.results import COMPONENTS, Components, Estimate, Phase, Result
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


NAN = cast("int", math.nan)
_NOWHERE = Components(**{f"{name}_bytes": NAN for name in COMPONENTS})
UNKNOWN = Estimate(
    device="",
    components=_NOWHERE,
    phases=(Phase(name="optimizer", allocated_peak_bytes=NAN, components=_NOWHERE),),
    allocated_peak_bytes=NAN,
    library_workspace_bytes=NAN,
)
"""An estimate of which nothing is known: its figures are NaN, and so is what follows from one."""


class Measured:
    """By runs on a GPU that went to their end; figures that no run tells are NaN.

    Args:
        results: records with what was measured; the card to fit and the name do not matter.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self._found = {
            _content(result.profile): _with_known_components(result.measured)
            for result in results
            if result.measured is not None
            and result.measured.device != "cpu"
            and result.measured.out_of_memory is None
        }

    def estimate(self, profile: Profile) -> Estimate:
        """All of a profile's memory."""
        return self._found.get(_content(profile.model_dump()), UNKNOWN)

    def policy(self, profile: Profile, policy: str, n: int) -> tuple[int, float]:
        """The peak; recomputed work is no figure of a run."""
        checkpointing = {"policy": policy, "n": n}
        found = self.estimate(changed(profile, {"training.checkpointing": checkpointing}))
        parts = [phase.components for phase in found.phases if phase.components is not None]
        return max((part.activations_bytes for part in parts), default=NAN), math.nan


def _with_known_components(estimate: Estimate) -> Estimate:
    if estimate.components_known:
        return estimate
    return replace(
        estimate, components=_NOWHERE, phases=UNKNOWN.phases, library_workspace_bytes=NAN
    )


def _content(profile: Mapping[str, Any]) -> str:
    """What a run's memory depends on, whatever it is called and whichever card it is to fit."""
    workload = profile.get("workload")
    trains = isinstance(workload, Mapping) and workload.get("mode") == "training"
    unused = {"name", "description", "gpu", "kv_cache" if trains else "training"}
    kept = {key: value for key, value in profile.items() if key not in unused}
    return json.dumps(kept, sort_keys=True)
