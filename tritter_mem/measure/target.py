"""Where to measure, and under which conditions; or why nowhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from tritter_mem.config.gpus import GpuCard
from tritter_mem.config.present import present_card
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure.environment import cuda_of_torch
from tritter_mem.measure.trouble import NO_CUDA, NO_CUDA_BUILD

DEFAULT_TIME_LIMIT_SECONDS = 300.0
MOST_RUNS = 100
_DEVICES = re.compile(r"auto|none|cpu|cuda(:\d{1,3})?")
_NONE = "nothing was to be measured (--device none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How to measure, as a caller asks for it.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `none`.
        time_limit_seconds: for each run.
        repeat: runs, each in a process of its own.
        snapshot: where to write PyTorch's snapshot of one more run, on CUDA.

    Raises:
        UsageError: with everything that is wrong.
    """

    device: str = "auto"
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS
    repeat: int = 1
    snapshot: Path | None = None

    def __post_init__(self) -> None:
        problems = []
        if not _DEVICES.fullmatch(self.device):
            problems.append(
                f"device: found {self.device!r}; allowed: auto, cuda, cuda:1, cpu, none"
            )
        if not 0 < self.time_limit_seconds <= 1e6:
            problems.append(
                f"time limit: found {self.time_limit_seconds:g} s; "
                "allowed: above 0, up to 1,000,000 s"
            )
        if not 1 <= self.repeat <= MOST_RUNS:
            problems.append(f"repeat: found {self.repeat}; allowed: 1 to {MOST_RUNS}")
        if self.snapshot is not None and self.device in ("cpu", "none"):
            problems.append(
                f"snapshot: found --device {self.device}; allowed: auto, cuda, cuda:1, because "
                "PyTorch keeps the history of a CUDA device alone"
            )
        if problems:
            raise UsageError(*problems)

    @property
    def index(self) -> int:
        """Of the CUDA device."""
        return int(self.device.partition(":")[2] or 0)

    @property
    def must(self) -> bool:
        """Whether not measuring is an error: a device was named, or a snapshot is wanted."""
        return self.device not in ("auto", "none") or self.snapshot is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a run needs to know beside its work.

    Attributes:
        card: that is measured; None: the CPU.
        index: of the CUDA device.
        asked: time limit, repetitions, snapshot.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: a cap on the whole process; None: none.
    """

    card: GpuCard | None
    index: int
    asked: Asked
    allocator_conf: str = ""
    budget_bytes: int | None = None

    def simulated_card(self, otherwise: GpuCard) -> GpuCard:
        """The card to plan and simulate for, so that like is held against like.

        It is the one that measures: cuBLAS workspaces, context and the split of attention are its
        own. Under a budget it has no more memory than that.

        Args:
            otherwise: the card where none measures.
        """
        if self.card is None:
            return otherwise
        most = self.budget_bytes or self.card.total_bytes
        return replace(self.card, total_bytes=min(self.card.total_bytes, most))


def locate(asked: Asked) -> GpuCard | None:
    """The card to measure on; None: the CPU.

    A process of its own asks PyTorch whether the device can be used.

    Raises:
        MeasureError: there is nowhere to measure; says why.
    """
    if asked.device == "cpu":
        return None
    if asked.device == "none":
        raise MeasureError(_NONE)
    card = _described(asked.index)
    if cuda_of_torch() is None:
        raise MeasureError(NO_CUDA if card is None else NO_CUDA_BUILD)
    from tritter_mem.measure.cuda import probe

    return probe(asked.index, card, asked.time_limit_seconds)


def _described(index: int) -> GpuCard | None:
    """What the driver says of a device; None where it cannot be asked."""
    try:
        return present_card(index)
    except MeasureError:
        return None
