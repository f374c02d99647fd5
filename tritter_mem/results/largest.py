"""The largest context or batch that fits (`tritter-mem.max/1`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tritter_mem.results.run import Kind

Unknown = Literal["context", "batch"]
SCHEMA = "tritter-mem.max/1"


@dataclass(frozen=True, kw_only=True)
class Largest:
    """What was solved for.

    Attributes:
        unknown: what was solved for.
        basis: the kind of answer by which a value fits or not.
        value: the largest that fits; None where not even the smallest does.
        footprint_bytes: what it needs; where nothing fits, what the smallest needs.
        next_value: the next one that was tried, and does not fit; None where a profile may hold no
            more. Planned it is one more, simulated at most 0.5% more.
        next_footprint_bytes: what that would need.
    """

    name: str
    gpu: str
    unknown: Unknown
    basis: Kind
    value: int | None
    budget_bytes: int
    footprint_bytes: int
    next_value: int | None
    next_footprint_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"schema": SCHEMA, **asdict(self)}
