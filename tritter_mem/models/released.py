"""Models that others have released, bundled: their configuration, and where each figure is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tritter_mem.config.bundled_files import find_released, label_of, released_names
from tritter_mem.config.reading import read_document
from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import HuggingFaceModel, read_config
from tritter_mem.models.quantization import read_quantization
from tritter_mem.units import parse_count

BFLOAT16 = "bfloat16"
_KEYS = ("description", "hub", "source", "parameters", "model")
_FROM, _TO = parse_count("32k"), parse_count("64k")


@dataclass(frozen=True, kw_only=True)
class ReleasedModel:
    """One file of `profiles/released/`.

    Attributes:
        name: what people call it, in lower case.
        description: one line for lists.
        hub: the repository on the Hugging Face Hub that the configuration is of.
        source: where the configuration is from: `file`, `version`, and `date` of that version or
            the day on which it was `read`; `note` has the keys that are from elsewhere.
        parameters: `stated`, the count `of` a repository, and the same of its source: what
            `model.parameters` was checked against.
        config: the keys of the `config.json` that decide what is built.
    """

    name: str
    description: str
    hub: str
    source: Mapping[str, str]
    parameters: Mapping[str, Any]
    config: Mapping[str, Any]

    @cached_property
    def model(self) -> HuggingFaceModel:
        """What the configuration describes."""
        return read_config(self.config)

    @property
    def bfloat16_bytes(self) -> int:
        """Bytes of the language model's weights in bfloat16, none of them quantised."""
        plain = read_quantization(None, None)
        return self.model.weight_bytes_in(plain, storage_format(BFLOAT16))

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that a token adds to the cache in bfloat16: the mean from 32K to 64K tokens.

        Windows longer than that still grow there.
        """
        before, after = (self.model.cache_bytes(tokens, 1, BFLOAT16) for tokens in (_FROM, _TO))
        return (after - before) // (_TO - _FROM)


def read_released(name: str) -> ReleasedModel | None:
    """Read a bundled model by its name, in whatever case; None where there is no such one."""
    path = find_released(name)
    return None if path is None else _read(path)


def released_from(repository: str) -> ReleasedModel | None:
    """The bundled model whose configuration is of a repository on the Hub; None without one."""
    for name in released_names():
        released = read_released(name)
        if released is not None and released.hub.lower() == repository.lower():
            return released
    return None


def _read(path: Path) -> ReleasedModel:
    document = read_document(path, label_of(path))
    values = document.values
    if document.problems or set(values) != set(_KEYS):
        keys = f"{label_of(path)}: got {', '.join(values)}, expected {', '.join(_KEYS)}"
        raise ConfigError(*(document.problems or [keys]))
    return ReleasedModel(
        name=path.stem,
        description=values["description"],
        hub=values["hub"],
        source=values["source"],
        parameters=values["parameters"],
        config=values["model"],
    )
