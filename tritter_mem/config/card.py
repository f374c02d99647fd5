"""What a card is, and what its file in the table holds."""

# No `from __future__ import annotations`: the annotations are read as objects, not as text.
from dataclasses import dataclass
from typing import Annotated

from tritter_mem.config import pytorch
from tritter_mem.config.kinds import Many, Real, Text, Whole
from tritter_mem.config.sections import Section
from tritter_mem.units import MiB

_BUDGET_STEP = 512 * MiB


def default_budget_bytes(total_bytes: int) -> int:
    """95% of a card's memory, rounded down to half a GiB.

    The margin is for the display, the driver and other processes. An RTX 5080 with 16,303 MiB
    gets 15 GiB, an H100 with 81,559 MiB 75.5 GiB.
    """
    return total_bytes * 95 // 100 // _BUDGET_STEP * _BUDGET_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCard:
    """A card.

    Attributes:
        name: how `--gpu` calls it.
        title: how the driver calls it.
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
    measured_cublas_bytes: int | None = None
    cublas_source: str | None = None

    @property
    def cublas_workspace_bytes(self) -> int:
        """Of one cuBLAS handle and stream, inside PyTorch's allocator: measured, else assumed."""
        assumed = pytorch.cublas_workspace_bytes(self.compute_capability)
        return self.measured_cublas_bytes or assumed

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
            measured_cublas_bytes=self.cublas_workspace_bytes,
            cublas_source=self.cublas_source,
        )
