"""What a validation comes to (`tritter-mem.validation/1`): peaks compared with those of a device.

A case is within where its allocated and its reserved peak, planned and simulated, are as near to
what was measured as `differences` allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_OK
from tritter_mem.results.run import Difference, Environment, KindPair, Result
from tritter_mem.results.verdict import RESERVED_TOLERANCE, TOLERANCES, tolerance_of

SCHEMA = "tritter-mem.validation/1"
PEAKS = ("allocated_peak", "reserved_peak")
COMPARED: tuple[KindPair, ...] = (("planned", "measured"), ("simulated", "measured"))
"""What is compared with what."""

Status = Literal["within", "beyond", "out of memory", "not measured"]
Error = tuple[Difference, KindPair, float]
"""A peak, the two kinds of answer that are compared, and (measured / other) - 1."""


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
    def status(self) -> Status:
        """How it ended."""
        measured = self.result.measured if self.result else None
        if self.problem or measured is None:
            return "not measured"
        if measured.out_of_memory is not None:
            return "out of memory"
        if not any(self.errors()):
            return "not measured"
        return "beyond" if any(self.beyond()) else "within"

    def errors(self) -> Iterator[Error]:
        """Every error that is known."""
        for row in self.peaks:
            for pair in COMPARED:
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
    def exit_code(self) -> int:
        """1 where a case is beyond its tolerance, else 3 where one was not measured, else 0."""
        found = {case.status for case in self.cases}
        if found & {"beyond", "out of memory"}:
            return EXIT_DOES_NOT_FIT
        return EXIT_NOT_MEASURED if "not measured" in found else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints, with `schema` first."""
        tolerances = {
            f"{first}_vs_{second}": TOLERANCES[first, second] for first, second in COMPARED
        }
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
