"""A model as people name it: a folder, a file, a bundled model's name, or one on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritter_mem.config.bundled_files import find_released
from tritter_mem.errors import InputError
from tritter_mem.input_files import is_folder, is_there
from tritter_mem.models.gguf import GgufHeader, config_keys, read_gguf_file, read_gguf_model
from tritter_mem.models.huggingface import HuggingFaceModel, read_config
from tritter_mem.models.model_files import (
    FolderFiles,
    ModelFiles,
    Progress,
    read_checkpoint,
    read_config_file,
    read_model_config,
)
from tritter_mem.models.quantization import of_gguf
from tritter_mem.models.released import read_released, released_from


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """What was found under a name.

    Attributes:
        name: as it was given.
        model: what its configuration describes.
        config: the keys of that configuration, as `config.json` has them.
        stored_bytes: of all tensors, as the headers of its files or their index have them; None
            where there is no such file.
    """

    name: str
    model: HuggingFaceModel
    config: Mapping[str, Any]
    stored_bytes: int | None = None


def is_model_name(name: str) -> bool:
    """Whether a name is one that `find_model` reads: the form of it, not whether it is there."""
    path = Path(name)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False
    if is_folder or path.suffix in (".json", ".gguf") or find_released(name) is not None:
        return True
    if exists or "/" not in name:
        return False
    from tritter_mem.models.hub import parse_hub_name  # imports what speaks HTTP

    return parse_hub_name(name) is not None


def short_name(name: str) -> str:
    """What reports call a model: `org/name` whole, of a path its last part."""
    path = Path(name)
    if path.name == "config.json":
        return path.resolve().parent.name
    if path.is_dir() or path.suffix in (".json", ".gguf"):
        return path.resolve().stem if path.is_file() else path.resolve().name
    return name


def find_model(name: str, progress: Progress | None = None) -> NamedModel | None:
    """Read what a name stands for; None where it is neither of these, such as a profile's.

    Only configurations and headers are read, never weights, and no code of a model is run.

    Args:
        name: a folder, a JSON file, a `.gguf` file, a bundled model's name in whatever case,
            `org/name[@revision]` or `org/name:file.gguf`.
        progress: called while headers are read.

    Raises:
        InputError: what is there cannot be read.
        ConfigError: it does not describe a language model.
    """
    path = Path(name)
    if is_folder(path):
        return _of_files(name, FolderFiles(path), progress)
    if path.name == "config.json":
        if not is_there(path):
            raise InputError(f"{name}: no such file")
        return _of_files(name, FolderFiles(path.parent), progress)
    if path.suffix == ".json":
        return of_keys(name, read_config_file(path))
    if path.suffix == ".gguf" and (is_there(path) or ":" not in name):
        return _of_gguf(name, read_gguf_file(path, progress))
    return None if is_there(path) else _bundled(name) or _on_the_hub(name, progress)


def _bundled(name: str) -> NamedModel | None:
    released = read_released(name)
    return None if released is None else of_keys(name, released.config)


def of_keys(name: str, config: Mapping[str, Any]) -> NamedModel:
    """A model whose configuration is at hand.

    Raises:
        ConfigError: it does not describe a language model.
    """
    return NamedModel(name=name, model=read_config(config), config=config)


def _on_the_hub(name: str, progress: Progress | None) -> NamedModel | None:
    from tritter_mem.models.hub import HubFiles, parse_hub_name

    hub = parse_hub_name(name)
    if hub is None:
        return None
    try:
        files = HubFiles(hub)
        if hub.file:
            return _of_gguf(name, read_gguf_model(files, hub.file, progress))
        return _of_files(name, files, progress)
    except InputError as error:
        released = None if hub.file else released_from(hub.repository)
        if released is None:
            raise
        *before, last = error.problems
        bundled = f"{last}; {released.name} is bundled and needs no network"
        raise InputError(*before, bundled) from None


def _of_files(name: str, files: ModelFiles, progress: Progress | None) -> NamedModel:
    found = read_model_config(files)
    model = read_config(found.config, found.quantization)
    checkpoint = read_checkpoint(files, progress)
    stored = None if checkpoint is None else checkpoint.weight_bytes
    return NamedModel(name=name, model=model, config=found.config, stored_bytes=stored)


def _of_gguf(name: str, header: GgufHeader) -> NamedModel:
    found, stored = of_keys(name, config_keys(header)), header.weight_bytes
    model = replace(found.model, quantization=of_gguf(stored))
    return replace(found, model=model, stored_bytes=stored)
