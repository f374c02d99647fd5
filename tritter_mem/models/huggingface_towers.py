"""Towers: what a multimodal model reads images or sound with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritter_mem.models.architecture import Weight
from tritter_mem.models.huggingface_keys import Keys

SECTIONS = ("vision_config", "audio_config")


def tower_weights(
    config: Mapping[str, Any], keys: Keys
) -> tuple[tuple[Weight, ...], tuple[str, ...]]:
    """Weights of the towers, and what cannot be counted."""
    del keys
    found = [name for name in SECTIONS if isinstance(config.get(name), Mapping)]
    return (), tuple(f"{name}: not counted" for name in found)
