"""What every document of results begins with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypedDict

from tritter_mem.version import __version__


class Header(TypedDict):
    """When a document was made, as ISO 8601 in UTC, and by which version."""

    created: str
    tool_version: str


def header() -> Header:
    """The header of a document that is made now: `Result(**header(), …)`."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "tool_version": __version__,
    }
