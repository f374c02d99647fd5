"""The short names of settings that people change most: one table for commands, marks and Python."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KEYS: Mapping[str, str] = {
    "context": "workload.context",
    "batch": "workload.batch",
    "mode": "workload.mode",
    "gpu": "gpu.name",
    "budget": "gpu.budget",
    "checkpoint": "training.checkpointing.policy",
    "dtype": "weights.dtype",
    "kv_dtype": "kv_cache.dtype",
    "alloc_conf": "allocator.conf",
}
"""Option to dotted key. `checkpoint` may hold a number too, as in `every-nth:4`."""
CHECKPOINT_NUMBER = "training.checkpointing.n"


def overrides(
    given: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What options change in a profile, by dotted key.

    Args:
        given: values by name of `KEYS`; None: as in the profile.
        settings: values by dotted key; they come last and win.
    """
    found = {key: given[name] for name, key in KEYS.items() if given.get(name) is not None}
    checkpoint = given.get("checkpoint")
    if isinstance(checkpoint, str) and ":" in checkpoint:
        policy, _, number = checkpoint.partition(":")
        found |= {KEYS["checkpoint"]: policy, CHECKPOINT_NUMBER: whole(number)}
    if given.get("gpu") is not None:
        # The profile's budget was for the profile's card.
        found["gpu.budget"] = given.get("budget")
    return found | dict(settings or {})


def whole(text: str | None) -> int | str | None:
    """A number of decimal digits as such; all else is for the profile's rules to refuse."""
    # int() refuses thousands of digits by itself, and takes those of any script.
    return int(text) if text and re.fullmatch("[0-9]{1,30}", text) else text
