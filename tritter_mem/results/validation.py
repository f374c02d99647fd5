"""What a validation comes to (`tritter-mem.validation/1`): peaks compared with those of a device.

A case is within where its allocated and its reserved peak, planned and simulated, are as near to
what was measured as `differences` allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_OK
from tritter_mem.results.run import Difference, Environment, Kind, KindPair, MemoryUse, Result
from tritter_mem.results.verdict import RESERVED_TOLERANCE, TOLERANCES, tolerance_of

SCHEMA = "tritter-mem.validation/1"
PEAKS = ("allocated_peak", "reserved_peak")
PREDICTED: tuple[Kind, ...] = ("planned", "simulated")
"""The kinds that are compared with what ran."""

Status = Literal["within", "beyond", "out of memory", "not measured"]
Error = tuple[Difference, KindPair, float]
"""A peak, the two kinds of answer that are compared, and (measured / other) - 1."""


def pairs_with(kind: Kind) -> tuple[KindPair, ...]:
    """What is compared with a kind of run."""
    return tuple((first, kind) for first in PREDICTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """One case.

    Attributes:
        name: of the profile.
        key: names what the figures were made of and with: 16 hex digits.
        result: its record, as far as it came.
        problem: why it was not measured.
        kept: whether it was finished by an earlier run.
    """

    name: str
    key: str
    result: Result | None
    problem: str = ""
    kept: bool = False

    @property
    def peaks(self) -> tuple[Difference, ...]:
        """The allocated peak and, where it is known, the reserved one."""
        found = self.result.differences if self.result else ()
        return tuple(row for row in found if row.name in PEAKS)

    @property
    def ran_as(self) -> Kind:
        """What the others are compared with: measured, or rehearsed where nothing could measure."""
        return "rehearsed" if self.result and self.result.rehearsed else "measured"

    @property
    def ran(self) -> MemoryUse | None:
        """What the run came to."""
        return self.result.by_kind().get(self.ran_as) if self.result else None

    @property
    def status(self) -> Status:
        """How it ended."""
        ran = self.ran
        if self.problem or ran is None:
            return "not measured"
        if ran.out_of_memory is not None:
            return "out of memory"
        if not any(self.errors()):
            return "not measured"
        return "beyond" if any(self.beyond()) else "within"

    def errors(self) -> Iterator[Error]:
        """Every error that is known."""
        for row in self.peaks:
            for pair in pairs_with(self.ran_as):
                if (ratio := row.ratio(pair)) is not None:
                    yield row, pair, ratio

    def beyond(self) -> Iterator[Error]:
        """The errors beyond their tolerance."""
        for row, pair, ratio in self.errors():
            if abs(ratio) > tolerance_of(row.name, pair):
                yield row, pair, ratio

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the record that they are from."""
        return {
            "name": self.name,
            "key": self.key,
            "profile_hash": self.result.profile_hash if self.result else None,
            "status": self.status,
            "problem": self.problem or None,
            "peaks": [asdict(row) for row in self.peaks],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A case that was not run, because by its plan the card does not hold it."""

    name: str
    needs_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """All cases of a run.

    Attributes:
        device: where it was measured: a card's title, or `cpu`.
        left_out: of the bundled cases.
        interrupted: whether cases were still to come.
    """

    created: str
    tool_version: str
    device: str
    environment: Environment
    cases: tuple[Validated, ...]
    left_out: tuple[LeftOut, ...] = ()
    interrupted: bool = False
    schema: str = field(default=SCHEMA)

    @property
    def ran_as(self) -> Kind:
        """What the cases ran as: all alike, for they ran on one device."""
        return next((case.ran_as for case in self.cases if case.ran is not None), "measured")

    @property
    def exit_code(self) -> int:
        """1 where a case is beyond its tolerance, else 3 where one was not measured, else 0."""
        found = {case.status for case in self.cases}
        if found & {"beyond", "out of memory"}:
            return EXIT_DOES_NOT_FIT
        return EXIT_NOT_MEASURED if "not measured" in found else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, with `schema` first."""
        tolerances = {f"{a}_vs_{b}": TOLERANCES[a, b] for a, b in pairs_with(self.ran_as)}
        return {
            "schema": self.schema,
            "created": self.created,
            "tool_version": self.tool_version,
            "device": self.device,
            "environment": asdict(self.environment),
            "tolerances": {**tolerances, "reserved": RESERVED_TOLERANCE},
            "interrupted": self.interrupted,
            "cases": [case.to_dict() for case in self.cases],
            "left_out": [asdict(one) for one in self.left_out],
        }
