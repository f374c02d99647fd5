"""The table of cards: one YAML file a card, read when that card is asked for."""

# No `from __future__ import annotations`: the annotations are read as objects, not as text.
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from tritter_mem import torch_release
from tritter_mem.config.bundled_files import label_of, near_names, profiles_root
from tritter_mem.config.fields import Choice, Many, Real, Section, Text, Whole, shown
from tritter_mem.config.reading import read_document
from tritter_mem.errors import ConfigError, SimulationError
from tritter_mem.text import either
from tritter_mem.units import GiB, MiB

_BUDGET_STEP = 512 * MiB


def default_budget_bytes(total_bytes: int) -> int:
    """95% of a card's memory, rounded down to half a GiB.

    The margin is for the display, the driver and other processes. An RTX 5080 with 16,303 MiB
    gets 15 GiB, an H100 with 81,559 MiB 75.5 GiB.
    """
    return total_bytes * 95 // 100 // _BUDGET_STEP * _BUDGET_STEP


AMD_CAVEAT = (
    "this is an AMD card. Tensors are counted as on an NVIDIA card, 512 MiB are assumed for ROCm's "
    "context, and workspaces of hipBLASLt and AOTriton are not counted. No plan was compared with "
    "a run on ROCm yet"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCard:
    """A card.

    Attributes:
        name: how `--gpu` calls it.
        title: how the driver calls it.
        vendor: `nvidia` or `amd`; of AMD's cards PyTorch's ROCm build runs the same code.
        total_bytes: memory as `nvidia-smi` shows it.
        bandwidth_bytes_per_second: of the card's memory, as published.
        compute_capability: major and minor.
        multiprocessors: their number.
        context_bytes: what the CUDA context and loaded modules take, outside PyTorch's allocator.
        source: where these numbers are from.
        context_source: where `context_bytes` is from; it is assumed unless it begins `measured:`.
        measured_cublas_bytes: workspace of a cuBLAS handle, where it was measured on such a card.
        cublas_source: where that is from.
    """

    name: str
    title: str
    total_bytes: int
    bandwidth_bytes_per_second: int
    compute_capability: tuple[int, int]
    multiprocessors: int
    context_bytes: int
    source: str
    context_source: str
    vendor: str = "nvidia"
    measured_cublas_bytes: int | None = None
    cublas_source: str | None = None

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of one cuBLAS handle and stream, inside PyTorch's allocator: measured, else assumed."""
        assumed = torch_release.cublas_workspace_bytes(self.compute_capability)
        return self.measured_cublas_bytes or assumed

    @property
    def caveat(self) -> str:
        """What a reader must know of figures for this card; empty: nothing."""
        return AMD_CAVEAT if self.vendor == "amd" else ""

    def require_cuda(self) -> None:
        """Refuse a simulation on a card that does not run CUDA.

        Raises:
            SimulationError: it is an AMD card.
        """
        if self.vendor != "nvidia":
            raise SimulationError(
                f"{self.name} is an AMD card, and the simulation follows CUDA's libraries and "
                "kernels; `tritter-mem plan` plans it by formula"
            )

    @property
    def context_measured(self) -> bool:
        """Whether the context was measured on such a card."""
        return self.context_source.startswith("measured:")

    @property
    def default_budget_bytes(self) -> int:
        """What may be used where the profile names no budget."""
        return default_budget_bytes(self.total_bytes)


class CardFile(Section):
    """One card of the table, in the units that its sources use; the file's name is its name."""

    title: Annotated[str, Text(1, 100)]
    """The driver's name for it, as `nvidia-smi` and PyTorch show it."""
    memory_mib: Annotated[int, Whole(1024, 1 << 24)]
    """Total memory as `nvidia-smi` shows it, in MiB."""
    bandwidth_gb_per_s: Annotated[float, Real(0, 1e5)]
    """Published memory bandwidth, in 10⁹ bytes a second."""
    compute_capability: Annotated[tuple[int, ...], Many(Whole(0, 99))]
    """Major and minor."""
    multiprocessors: Annotated[int, Whole(1, 1024)]
    """Streaming multiprocessors."""
    context_mib: Annotated[int, Whole(0, 4096)]
    """CUDA context and loaded modules of one process, in MiB."""
    vendor: Annotated[str, Choice(("nvidia", "amd"))] = "nvidia"
    """Who makes it: nvidia (CUDA) or amd (ROCm)."""
    aliases: Annotated[tuple[str, ...], Many(Text(1, 100))] = ()
    """Other names that people use."""
    source: Annotated[str, Text(1, 1000)]
    """Where the numbers are from."""
    context_source: Annotated[str, Text(1, 1000)]
    """Where `context_mib` is from."""
    cublas_workspace_bytes: Annotated[int, Whole(0, 1 << 32)] | None = None
    """Workspace of a cuBLAS handle, where it was measured; default: by the capability."""
    cublas_source: Annotated[str, Text(1, 1000)] | None = None
    """Where `cublas_workspace_bytes` is from."""

    def card(self, name: str) -> GpuCard:
        """The card, in bytes."""
        major, minor = self.compute_capability
        return GpuCard(
            name=name,
            title=self.title,
            total_bytes=self.memory_mib * MiB,
            bandwidth_bytes_per_second=round(self.bandwidth_gb_per_s * 10**9),
            compute_capability=(major, minor),
            multiprocessors=self.multiprocessors,
            context_bytes=self.context_mib * MiB,
            source=self.source,
            context_source=self.context_source,
            vendor=self.vendor,
            measured_cublas_bytes=self.cublas_workspace_bytes,
            cublas_source=self.cublas_source,
        )


AUTO = "auto"
_LONGEST = 200
# Words that people leave out: "NVIDIA GeForce RTX 5080", "RTX 5080" and "5080" are one card.
_NOISE = {"nvidia", "geforce", "tesla", "rtx", "gpu", "generation", "amd", "instinct", "radeon"}


def card_names() -> tuple[str, ...]:
    """Names of all cards in the table."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


def all_cards() -> list[GpuCard]:
    """Every card of the table."""
    return [read_card(name) for name in card_names()]


def find_card(name: str) -> GpuCard:
    """Look a card of the table up by name, alias or the driver's name.

    Raises:
        ConfigError: there is no such card; near names are suggested.
    """
    known = known_as(name)
    if known is None:
        raise ConfigError(f"gpu: {unknown_card(name)}")
    return read_card(known)


def unknown_card(name: str) -> str | None:
    """Say that a name is of no card, and which it may have meant; None where all is well."""
    if name == AUTO or known_as(name) is not None:
        return None
    several = _that_begin(name)
    if len(several) > 1:
        return f"{shown(name)} could be {either(several)}; name one of them"
    near = several or near_names(name.lower(), card_names())
    every = "`tritter-mem gpus` lists the cards; auto is the one in this machine"
    advice = f"did you mean {either(near)}?" if near else every
    return f"{shown(name)} is not a known card; {advice}"


def _that_begin(name: str) -> list[str]:
    """Cards with a name that begins with what was written, and goes on with another word."""
    start = _words(name)
    if not start:
        return []
    return [card for card in card_names() if _words(_read_file(card).title)[: len(start)] == start]


def known_as(name: str) -> str | None:
    """Turn what people and drivers call a card into its name in the table, if it is there.

    Case, spaces and hyphens do not matter, nor do the maker and the series: `RTX 4090`, `rtx4090`
    and `4090` are one card. The card's memory may follow: `4090 24GB`.
    """
    file_name = slug(name)
    if file_name and len(file_name) <= 100 and _path(file_name).is_file():
        return file_name
    words = _words(name)
    return _names_by_key().get("".join(words)) or _with_its_memory(words)


def _with_its_memory(words: Sequence[str]) -> str | None:
    """The card of a name that its memory follows, in GB as it is sold."""
    *card_words, size, unit = words if len(words) > 2 else ("", "", "")
    card = _names_by_key().get("".join(card_words)) if unit in ("g", "gb") else None
    if card is None or not size.isdecimal():
        return None
    return card if abs(int(size) - read_card(card).total_bytes / GiB) < 1.5 else None


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
    return "".join(_words(name))


def _words(name: str) -> list[str]:
    words = re.findall("[a-z]+|[0-9]+", name[:_LONGEST].lower())
    return [word for word in words if word not in _NOISE]


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
