"""Where to measure, and under which conditions; or why nowhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritter_mem.config.cards import AUTO, GpuCard, known_as, read_card
from tritter_mem.devices.environment import cuda_of_torch
from tritter_mem.devices.nvml import ASSUMED_CONTEXT_BYTES, ASSUMED_SOURCE, find_gpu, present_card
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure.child import _job, run_in_child
from tritter_mem.measure.failures import NO_CUDA, NO_CUDA_BUILD


def probe(index: int, card: GpuCard | None, time_limit_seconds: float) -> GpuCard:
    """Ask PyTorch, in a process of its own, whether it can use a device.

    Args:
        index: of the device.
        card: what the driver says of it; None: nothing.
        time_limit_seconds: for the answer.

    Returns:
        The card, with the capability and the multiprocessors that PyTorch sees.

    Raises:
        MeasureError: it cannot; says why.
    """
    found = run_in_child(_job("probe", {"index": index}, time_limit_seconds, ""))
    return seen_by_pytorch(card or _told_by_pytorch(found), found)


def _told_by_pytorch(found: Mapping[str, Any]) -> GpuCard:
    """The card where NVML cannot be asked: of the table, by the name that PyTorch gives it.

    One that the table lacks is what PyTorch says of it, two transfers a clock on every line of the
    bus; its context is assumed.
    """
    title, total = str(found["title"]), int(found["total_bytes"])
    known = known_as(title)
    if known is not None:
        return replace(read_card(known), title=title, total_bytes=total)
    transfers_per_second = 2 * int(found["memory_kilohertz"]) * 1000
    return GpuCard(
        name=AUTO,
        title=title,
        total_bytes=total,
        bandwidth_bytes_per_second=transfers_per_second * int(found["memory_bus_lines"]) // 8,
        compute_capability=(0, 0),
        multiprocessors=0,
        context_bytes=ASSUMED_CONTEXT_BYTES,
        source="read from PyTorch",
        context_source=ASSUMED_SOURCE,
    )


def seen_by_pytorch(card: GpuCard, found: Mapping[str, Any]) -> GpuCard:
    """The card as `cuda_case.probe` found it."""
    major, minor = found["compute_capability"]
    return replace(
        card, compute_capability=(major, minor), multiprocessors=int(found["multiprocessors"])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where to measure, or why nowhere; and the cards that the answer is about.

    Attributes:
        target: None where nothing can be measured.
        reason: why not.
        fitted: the card to fit.
        simulated: the card to plan and simulate for: the one that measures, where one does.
    """

    target: Target | None
    reason: str | None
    fitted: GpuCard
    simulated: GpuCard


def find_where(asked: Asked, gpu: str, allocator_conf: str, budget_bytes: int | None) -> Where:
    """Look for the device that was asked for.

    Args:
        asked: how to measure.
        gpu: name of the card to fit; `auto`: the one that measures, else the one present.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: memory that may be used, where it was named: the cap of a run on CUDA.

    Raises:
        ConfigError: there is no such card.
        MeasureError: the card is `auto`, and there is none.
    """
    try:
        card = locate(asked)
    except MeasureError as error:
        fitted = find_gpu(gpu)
        return Where(target=None, reason=str(error), fitted=fitted, simulated=fitted)
    return where_on(card, asked, gpu, allocator_conf, budget_bytes)


def where_on(
    card: GpuCard | None, asked: Asked, gpu: str, allocator_conf: str, budget_bytes: int | None
) -> Where:
    """The same where the device was found already.

    Args:
        card: what `locate` found; None: the CPU.
        asked: how to measure.
        gpu: name of the card to fit; `auto`: the one that measures, else the one present.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: memory that may be used, where it was named: the cap of a run on CUDA.

    Raises:
        ConfigError: there is no card of the name `gpu`.
    """
    fitted = card if card is not None and gpu == AUTO else find_gpu(gpu)
    target = Target(card=card, index=asked.index, asked=asked, allocator_conf=allocator_conf,
                    budget_bytes=None if card is None else budget_bytes)  # fmt: skip
    simulated = target.simulated_card(fitted)
    return Where(target=target, reason=None, fitted=fitted, simulated=simulated)


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

    return probe(asked.index, card, asked.time_limit_seconds)


def _described(index: int) -> GpuCard | None:
    """What the driver says of a device; None where it cannot be asked."""
    try:
        return present_card(index)
    except MeasureError:
        return None
