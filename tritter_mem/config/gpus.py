"""The table of cards: one YAML file a card, read when that card is asked for."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tritter_mem.config.card import CardFile, GpuCard
from tritter_mem.config.finding import label_of, near_names, profiles_root
from tritter_mem.config.reading import read_document
from tritter_mem.errors import ConfigError

__all__ = ["AUTO", "GpuCard", "card_names", "find_gpu", "known_as", "read_card", "unknown_card"]

AUTO = "auto"
# Words that people leave out: "NVIDIA GeForce RTX 5080", "RTX 5080" and "5080" are one card.
_NOISE = {"nvidia", "geforce", "tesla", "rtx", "gpu", "generation"}


def card_names() -> tuple[str, ...]:
    """Names of all cards in the table."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def find_gpu(name: str) -> GpuCard:
    """Look a card up by name, alias or the driver's name; `auto` is the card present.

    Raises:
        ConfigError: there is no such card; near names are suggested.
        MeasureError: `auto`, and no card can be read.
    """
    if name == AUTO:
        from tritter_mem.config.present import present_card

        return present_card()
    known = known_as(name)
    if known is None:
        raise ConfigError(f"gpu: {unknown_card(name)}")
    return read_card(known)


def unknown_card(name: str) -> str | None:
    """Say that a name is of no card, and which it may have meant; None where all is well."""
    if name == AUTO or known_as(name) is not None:
        return None
    near = near_names(name.lower(), card_names())
    advice = f"did you mean {' or '.join(near)}?" if near else "`tritter-mem gpus` lists them"
    return f"found {name!r}; allowed: a card in the table, or auto; {advice}"


def known_as(name: str) -> str | None:
    """Turn what people and drivers call a card into its name in the table, if it is there."""
    file_name = slug(name)
    if file_name and len(file_name) <= 100 and _path(file_name).is_file():
        return file_name
    return _names_by_key().get(_key(name))


def slug(name: str) -> str:
    """A name as files have it: `nvidia-h100-80gb-hbm3` for NVIDIA H100 80GB HBM3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@cache
def _names_by_key() -> dict[str, str]:
    """Every name of every card; this reads the whole table."""
    found = {}
    for name in card_names():
        file = _read_file(name)
        found.update({_key(other): name for other in (*file.aliases, file.title, name)})
    return found


def _key(name: str) -> str:
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in _NOISE)


@cache
def read_card(name: str) -> GpuCard:
    """Read one card of the table by its exact name."""
    return _read_file(name).card(name)


def _read_file(name: str) -> CardFile:
    return CardFile.model_validate(read_document(_path(name), label_of(_path(name))).values)


def _path(name: str) -> Path:
    return _folder() / f"{name}.yaml"


def _folder() -> Path:
    return profiles_root() / "gpus"
