"""The files of a model as Hugging Face lays them out: configuration and headers of weights.

A folder on disk is read here; a repository on the Hub answers the same questions (`hub`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tritter_mem.errors import InputError
from tritter_mem.models.byte_source import ByteSource, LocalFile
from tritter_mem.models.json_objects import read_object
from tritter_mem.models.safetensors_header import (
    SafetensorsHeader,
    StoredTensor,
    read_index,
    read_safetensors,
)
from tritter_mem.text import printable
from tritter_mem.units import MiB

CONFIG = "config.json"
QUANTIZATION = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 16 * MiB
_MAX_SHARDS = 10_000
_MAX_TENSORS = 2_000_000
_READERS = 4
_LISTED = 2000
_SHOWN = 5
# A file that is there by this name, passed for the configuration, and the key that gives it away.
_OTHER_FILES = {
    "tokenizer_class": "a tokenizer_config.json",
    "_from_model_config": "a generation_config.json",
    "weight_map": "a model.safetensors.index.json",
    "image_processor_type": "a preprocessor_config.json",
    "feature_extractor_type": "a preprocessor_config.json",
    "processor_class": "a processor_config.json",
    "peft_type": "an adapter_config.json, of a LoRA adapter; name the model that it adapts",
    "added_tokens": "a tokenizer.json",
    "_diffusers_version": "of a diffusers pipeline, not of a language model",
}
Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many files are done, and how many there are."""


class ModelFiles(Protocol):
    """Where the files of one model are.

    Attributes:
        label: what messages call the place.
    """

    label: str

    def names(self) -> Collection[str]:
        """Names of the files that are there, as far as they are known."""

    def open(self, name: str) -> ByteSource | None:
        """Open a file; None where there is no such one.

        Raises:
            InputError: it is there, and cannot be opened.
        """


@dataclass(frozen=True)
class ModelConfig:
    """What a model's configuration files say.

    Attributes:
        config: the keys of `config.json`.
        quantization: the keys of `hf_quant_config.json`; None where there is no such file.
    """

    config: Mapping[str, Any]
    quantization: Mapping[str, Any] | None


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model as its files store them.

    Attributes:
        weight_bytes: of all tensors.
        tensors: by name; empty where only the index could be read.
        files: names of the files that hold them.
        from_headers: whether `weight_bytes` is the sum of the files' headers; else it is the
            `total_size` that the index states.
    """

    weight_bytes: int
    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]
    from_headers: bool


class FolderFiles:
    """The files of a folder on disk."""

    def __init__(self, folder: Path) -> None:
        """Name a folder; it is looked at when files are asked for."""
        self.label = printable(folder, 300)
        self._folder = folder

    def names(self) -> Collection[str]:
        """List the folder, its first 2,000 names.

        Raises:
            InputError: there is no such folder, or it cannot be listed.
        """
        try:
            with os.scandir(self._folder) as entries:
                return [entry.name for entry in islice(entries, _LISTED)]
        except FileNotFoundError:
            raise InputError(f"{self.label}: no such folder") from None
        except (OSError, ValueError) as error:
            said = error.strerror if isinstance(error, OSError) else "its name holds a null byte"
            raise InputError(f"{self.label}: cannot be listed: {said}") from None

    def open(self, name: str) -> ByteSource | None:
        """Open a file of the folder; None where there is no such one."""
        path = self._folder / name
        return LocalFile(path) if os.path.lexists(path) else None


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a `config.json` that is named by itself.

    Raises:
        InputError: it cannot be read, has more than 16 MiB, is no JSON object, or is another file
            of a model, such as its `tokenizer_config.json`.
    """
    with LocalFile(path) as source:
        return _config(source)


def read_model_config(files: ModelFiles) -> ModelConfig:
    """Read the configuration of a model, with `hf_quant_config.json` where it has one.

    Raises:
        InputError: there is no `config.json`, or one of the two cannot be read.
    """
    source = files.open(CONFIG)
    if source is None:
        raise InputError(f"{files.label}: {_without_config(files.names())}")
    with source:
        config = _config(source)
    source = files.open(QUANTIZATION)
    if source is None:
        return ModelConfig(config, None)
    with source:
        return ModelConfig(config, read_object(source, MAX_CONFIG_BYTES))


def _config(source: ByteSource) -> dict[str, Any]:
    found = read_object(source, MAX_CONFIG_BYTES)
    if "model_type" not in found and "architectures" not in found:
        for key, what in _OTHER_FILES.items():
            if key in found:
                raise source.wrong(f"no model's config.json: this is {what}")
    return found


def _without_config(names: Collection[str]) -> str:
    """Say that a place has no configuration, and what it has instead."""
    if gguf := sorted(name for name in names if name.endswith(".gguf")):
        return f"no {CONFIG}, but GGUF files; name one of them, such as {printable(gguf[0], 100)}"
    if "params.json" in names:
        return f"no {CONFIG}, but params.json: the original format; convert it to Hugging Face's"
    if "adapter_config.json" in names:
        return f"no {CONFIG}, but a LoRA adapter; name the model that it adapts"
    if "model_index.json" in names:
        return f"no {CONFIG}: this is a diffusers pipeline, not a language model"
    return f"no {CONFIG}, expected a model as Hugging Face stores it, or a GGUF file"


def missing_file(files: ModelFiles, name: str) -> InputError:
    """An error about a file that is not there, with names that are close to its own."""
    problem = f"{files.label}: no such file: {printable(name, 100)}"
    if close := close_names(name, files.names()):
        return InputError(f"{problem}; did you mean {' or '.join(close)}?")
    ending = os.path.splitext(name)[1]  # noqa: PTH122  (a name in a repository is no path)
    same = sorted(other for other in files.names() if ending and other.endswith(ending))
    if same:
        shown = ", ".join(printable(other, 100) for other in same[:_SHOWN])
        return InputError(f"{problem}; there are {shown}{', …' if same[_SHOWN:] else ''}")
    return InputError(problem)


def close_names(wanted: str, names: Iterable[str]) -> list[str]:
    """Names that somebody may have meant, the closest first, made safe to show; at most 3."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in islice(names, _LISTED)}
    close = get_close_matches(wanted.lower(), by_lower, n=3, cutoff=0.7)
    return [printable(by_lower[name], 120) for name in close]


def read_checkpoint(files: ModelFiles, progress: Progress | None = None) -> Checkpoint | None:
    """Sum the weights of a model by the headers of its safetensors files.

    Args:
        files: the model.
        progress: called after each file.

    Returns:
        The weights: by headers where all files are there, else by the total that the index states;
        None where the model has neither an index nor a `model.safetensors`.

    Raises:
        InputError: a file is there and is wrong, or files are missing and the index states no
            total.
    """
    source = files.open(INDEX)
    if source is None:
        return _from_headers(files, [WEIGHTS], progress)
    with source:
        index = read_index(source)
        if len(index.shards) > _MAX_SHARDS:
            raise source.wrong(f"names {len(index.shards):,} files; at most {_MAX_SHARDS:,}")
    found = _from_headers(files, index.shards, progress)
    if found is not None:
        return found
    if index.total_bytes is None:
        raise source.wrong("files that it names are missing, and it states no total_size")
    return Checkpoint(index.total_bytes, {}, tuple(index.shards), from_headers=False)


def _from_headers(
    files: ModelFiles, names: list[str], progress: Progress | None
) -> Checkpoint | None:
    """Read the headers of files, several at once, since a server takes its time for each."""
    from concurrent.futures import ThreadPoolExecutor

    def read(name: str) -> SafetensorsHeader | None:
        source = files.open(name)
        if source is None:
            return None
        with source:
            return read_safetensors(source)

    tensors: dict[str, StoredTensor] = {}
    weight_bytes = 0
    pool = ThreadPoolExecutor(min(_READERS, len(names) or 1))
    try:
        for done, header in enumerate(pool.map(read, names), start=1):
            if header is None:
                return None
            if progress is not None:
                progress(names[done - 1], done, len(names))
            tensors |= header.tensors
            weight_bytes += header.data_bytes
            if len(tensors) > _MAX_TENSORS:
                raise InputError(f"{files.label}: got more than {_MAX_TENSORS:,} tensors")
    finally:
        pool.shutdown(cancel_futures=True)
    return Checkpoint(weight_bytes, tensors, tuple(names), from_headers=True)
