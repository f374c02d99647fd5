"""Where to measure, and under which conditions; or why nowhere."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tritter_mem.config.cards import AUTO, GpuCard, known_as, read_card
from tritter_mem.devices.cuda import NO_CUDA, NO_CUDA_BUILD, DeviceProperties
from tritter_mem.devices.environment import cuda_of_torch
from tritter_mem.devices.nvml import ASSUMED_CONTEXT_BYTES, ASSUMED_SOURCE, find_gpu, present_card
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.measure.child import ChildJob, answer_of, measuring_environment
from tritter_mem.results.run import Kind

DEFAULT_TIME_LIMIT_SECONDS = 300.0
MOST_RUNS = 100
_DEVICES = re.compile(r"auto|none|cpu|cuda(:\d{1,3})?")
_NONE = "measurement was turned off (--device none)"
STANDIN = "CUDA's libraries are stand-ins here: the run was rehearsed, and nothing was measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How to measure, as a caller asks for it.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `none`.
        time_limit_seconds: for each run.
        repeat: runs, each in a separate process.
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
            problems.append(f"device: got {self.device!r}, expected auto, cuda, cuda:1, cpu, none")
        if not 0 < self.time_limit_seconds <= 1e6:
            problems.append(
                f"time limit: got {self.time_limit_seconds:g} s, "
                "expected above 0, up to 1,000,000 s"
            )
        if not 1 <= self.repeat <= MOST_RUNS:
            problems.append(f"repeat: got {self.repeat}, expected 1 to {MOST_RUNS}")
        if self.snapshot is not None and self.device in ("cpu", "none"):
            problems.append(
                f"snapshot: got --device {self.device}, expected auto, cuda, cuda:1, because "
                "PyTorch keeps the history of a CUDA device alone"
            )
        if problems:
            raise UsageError(*problems)

    @property
    def index(self) -> int:
        """Of the CUDA device."""
        return int(self.device.partition(":")[2] or 0)

    @property
    def required(self) -> bool:
        """Whether not measuring is an error: a device was named, or a snapshot is wanted."""
        return self.device not in ("auto", "none") or self.snapshot is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedDevice:
    """A device that runs can be made on.

    Attributes:
        card: None: the CPU.
        standin: whether CUDA's libraries are stand-ins, over which a run is rehearsed.
    """

    card: GpuCard | None
    standin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target(MeasureOptions):
    """The device that was found for the options, and what a case is run with there.

    Attributes:
        fitted: the card to fit.
        reason: why nothing can be measured; None where it can.
        card: the card that measures; None: the CPU, or nothing.
        standin: whether it is a stand-in, over which a run is rehearsed.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: a cap on the whole process, on CUDA; None: no cap.
    """

    fitted: GpuCard
    reason: str | None = None
    card: GpuCard | None = None
    standin: bool = False
    allocator_conf: str = ""
    budget_bytes: int | None = None

    @property
    def runs(self) -> bool:
        """Whether a run can be made."""
        return self.reason is None

    @property
    def kind(self) -> Kind:
        """What a run's figures are."""
        return "rehearsed" if self.standin else "measured"

    @property
    def simulated(self) -> GpuCard:
        """The card to plan and simulate for, so that like is compared with like.

        It is the one that measures: cuBLAS workspaces, context and the split of attention are those
        of that card. Under a budget it has at most that much memory. Where none measures, it is the
        card to fit.
        """
        if self.card is None:
            return self.fitted
        most = self.budget_bytes or self.card.total_bytes
        return replace(self.card, total_bytes=min(self.card.total_bytes, most))


def find_target(
    options: MeasureOptions, gpu: str, allocator_conf: str = "", budget_bytes: int | None = None
) -> Target:
    """Look for the device that was asked for.

    Args:
        options: how to measure.
        gpu: name of the card to fit; `auto`: the one that measures, else the one present.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        budget_bytes: memory that may be used, where it was named: the cap of a run on CUDA.

    Raises:
        ConfigError: there is no such card.
        MeasureError: the card is `auto`, and there is none.
    """
    try:
        device = locate(options)
    except MeasureError as error:
        return Target(**_fields(options), fitted=find_gpu(gpu), reason=str(error))
    return target_on(device, options, gpu, allocator_conf, budget_bytes)


def target_on(
    device: LocatedDevice,
    options: MeasureOptions,
    gpu: str,
    allocator_conf: str = "",
    budget_bytes: int | None = None,
) -> Target:
    """The same where the device was found already.

    Args:
        device: what `locate` found.
        options: how to measure.
        gpu: as in `find_target`.
        allocator_conf: as in `find_target`.
        budget_bytes: as in `find_target`.

    Raises:
        ConfigError: there is no card of the name `gpu`.
    """
    card = device.card
    return Target(
        **_fields(options),
        fitted=card if card is not None and gpu == AUTO else find_gpu(gpu),
        card=card,
        standin=device.standin,
        allocator_conf=allocator_conf,
        budget_bytes=None if card is None else budget_bytes,
    )


def _fields(options: MeasureOptions) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(MeasureOptions)}


def locate(options: MeasureOptions) -> LocatedDevice:
    """The device to measure on.

    A separate process asks PyTorch whether the device can be used.

    Raises:
        MeasureError: there is nowhere to measure; says why.
    """
    if options.device == "cpu":
        return LocatedDevice(card=None)
    if options.device == "none":
        raise MeasureError(_NONE)
    card = _card_by_nvml(options.index)
    if cuda_of_torch() is None:
        raise MeasureError(NO_CUDA if card is None else NO_CUDA_BUILD)
    return located_by_pytorch(options.index, card, options.time_limit_seconds)


def _card_by_nvml(index: int) -> GpuCard | None:
    """What the driver says of a device; None where it cannot be asked."""
    try:
        return present_card(index)
    except MeasureError:
        return None


def located_by_pytorch(
    index: int, card: GpuCard | None, time_limit_seconds: float
) -> LocatedDevice:
    """Ask PyTorch, in a separate process, whether it can use a device.

    Args:
        index: of the device.
        card: what the driver says of it; None: nothing.
        time_limit_seconds: for the answer.

    Returns:
        The card, with the capability and the multiprocessors that PyTorch sees, and whether it is
        a stand-in.

    Raises:
        MeasureError: it cannot; says why.
    """
    job = ChildJob(
        function="tritter_mem.measure.cuda_run:describe_device",
        arguments={"index": index},
        time_limit_seconds=time_limit_seconds,
        environment=measuring_environment(),
    )
    found = answer_of(job, DeviceProperties)
    major, minor = found.compute_capability
    seen = replace(
        card or _described(found),
        compute_capability=(major, minor),
        multiprocessors=found.multiprocessors,
    )
    return LocatedDevice(card=seen, standin=found.standin)


def _described(found: DeviceProperties) -> GpuCard:
    """The card where NVML cannot be asked: of the table, by the name that PyTorch gives it.

    One that the table lacks is what PyTorch says of it, two transfers a clock on every line of the
    bus; its context is assumed.
    """
    known = known_as(found.title)
    if known is not None:
        return replace(read_card(known), title=found.title, total_bytes=found.total_bytes)
    transfers_per_second = 2 * found.memory_kilohertz * 1000
    return GpuCard(
        name=AUTO,
        title=found.title,
        total_bytes=found.total_bytes,
        bandwidth_bytes_per_second=transfers_per_second * found.memory_bus_lines // 8,
        compute_capability=(0, 0),
        multiprocessors=0,
        context_bytes=ASSUMED_CONTEXT_BYTES,
        source="read from PyTorch",
        context_source=ASSUMED_SOURCE,
    )
