"""A profile with some settings changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritter_mem.config.schema import Profile


def changed(profile: Profile, settings: Mapping[str, Any]) -> Profile:
    """Copy a profile with values replaced by dotted key, `workload.context` for example.

    Raises:
        ConfigError: the changed profile breaks a rule.
    """
    values = profile.model_dump()
    for key, value in settings.items():
        *sections, last = key.split(".")
        target = values
        for section in sections:
            target = target[section]
        target[last] = value
    return Profile.model_validate(values)
