"""What a check comes to: finished data for reporters (`tritter-mem.check/1`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_OK, EXIT_USAGE
from tritter_mem.results.baseline import CheckedKind, Gate

SCHEMA = "tritter-mem.check/1"
Group = Literal["component", "phase", "module"]
Status = Literal[
    "ok", "gain", "regression", "no entry", "other torch", "other profile", "failed",
    "added", "updated",
]  # fmt: skip
GROUPS: tuple[Group, ...] = ("component", "phase", "module")
NOT_COMPARED: tuple[Status, ...] = ("no entry", "other torch", "other profile")


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeChange:
    """A peak in the baseline and now."""

    baseline_bytes: int
    now_bytes: int

    @property
    def growth_bytes(self) -> int:
        """By how much it grew; negative where it shrank."""
        return self.now_bytes - self.baseline_bytes

    @property
    def ratio(self) -> float:
        """The growth as a part of the baseline."""
        return self.growth_bytes / self.baseline_bytes if self.baseline_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One thing that grew or shrank.

    Attributes:
        group: what kind of thing.
        name: of the component, phase or module; empty for what no module allocated.
        component: of which component, for a module.
        count: how many modules of that name there are now, such as one in every layer.
        change: bytes in the baseline and now.
    """

    group: Group
    name: str
    component: str = ""
    count: int = 0
    change: SizeChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Where the peak was and is, in words."""

    baseline: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseOutcome:
    """What one case of one kind comes to.

    Attributes:
        label: what was profiled.
        gpu: empty where it is not known, because the run failed.
        status: `gain` is a fall beyond the tolerance; `no entry`, `other torch` and `other profile`
            say why nothing is compared with the baseline; `added` and `updated` are of an update.
        gate: the peak that decides.
        tolerated_bytes: how far it may move.
        allocated: None where there is nothing to compare.
        reserved: None where the kind of number has none.
        moved: where the peak was and is, where that is not the same.
        reasons: what grew or shrank, by group, in the direction of the peak first.
        message: what is wrong and what to do, where the status is no comparison.
        exit_code: of this outcome alone.
    """

    label: str
    kind: CheckedKind
    gpu: str
    torch: str
    status: Status
    gate: Gate = "allocated"
    tolerated_bytes: int = 0
    allocated: SizeChange | None = None
    reserved: SizeChange | None = None
    moved: Moved | None = None
    reasons: tuple[Reason, ...] = ()
    message: str = ""
    exit_code: int = EXIT_OK

    @property
    def gated(self) -> SizeChange | None:
        """The change of the peak that decides."""
        return self.allocated if self.gate == "allocated" else self.reserved


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """All outcomes of a check.

    Attributes:
        baseline: the file.
        notes: what a reader has to know besides.
    """

    baseline: str
    outcomes: tuple[CaseOutcome, ...]
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 for a regression, else 3 where something could not run, else 2, else 0."""
        codes = {outcome.exit_code for outcome in self.outcomes}
        order = (EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_USAGE)
        return next((code for code in order if code in codes), EXIT_OK)

    def with_status(self, statuses: Iterable[Status]) -> list[CaseOutcome]:
        """The outcomes of some statuses, in order."""
        wanted = set(statuses)
        return [outcome for outcome in self.outcomes if outcome.status in wanted]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`, with `schema` first."""
        return {"schema": SCHEMA, "exit_code": self.exit_code, **asdict(self)}
