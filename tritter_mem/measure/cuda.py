"""A case measured on a CUDA device, in child processes with allocator settings of their own.

One process measures. A second runs the same under the recorder, with the allocator's history on:
that tells where the bytes are and how they lie at the peak. Where PyTorch's snapshot is wanted, a
third writes it, with the lines of code that asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tritter_mem.config.gpus import AUTO, GpuCard, known_as, read_card
from tritter_mem.config.present import ASSUMED_CONTEXT_BYTES, ASSUMED_SOURCE
from tritter_mem.errors import MeasureError
from tritter_mem.measure.assemble import with_components, with_fragmentation
from tritter_mem.measure.child import Job, run_in_child
from tritter_mem.measure.cpu import read_estimate
from tritter_mem.measure.cuda_case import Place
from tritter_mem.measure.target import Target
from tritter_mem.measure.work import Work, to_plain
from tritter_mem.results import DeviceRun, Estimate, OutOfMemory
from tritter_mem.units import format_bytes

_UNSET = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
)
"""What is inherited and would change the memory: what the profile says counts alone."""


def environment(allocator_conf: str) -> dict[str, str | None]:
    """The variables of a process that measures; None removes one.

    PyTorch reads PYTORCH_ALLOC_CONF, and where that is not set its older names. Devices are
    numbered as the driver and `nvidia-smi` do.
    """
    return {
        **dict.fromkeys(_UNSET),
        "PYTORCH_ALLOC_CONF": allocator_conf or None,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def measure(work: Work, target: Target) -> Estimate:
    """Run a case in a process of its own; components are not known yet.

    Raises:
        MeasureError: the run failed, or other processes left too little memory; says how.
    """
    found = read_estimate(_run("run_case", work, target))
    if found.out_of_memory is not None and found.run is not None:
        _refuse_if_crowded(found.out_of_memory, found.run, found.context_bytes)
    return found


def with_recorded_components(measured: Estimate, work: Work, target: Target) -> Estimate:
    """Run the case once more, recorded: where the bytes are, and how they lie at the peak.

    Where either is not known, the estimate says why.
    """
    try:
        recorded = read_estimate(_run("record_case", work, target))
    except MeasureError as error:
        why = str(error)
        run = measured.run and replace(
            measured.run, components_reason=why, fragmentation_reason=why
        )
        return replace(measured, run=run)
    return with_fragmentation(with_components(measured, recorded), recorded)


def save_snapshot(work: Work, target: Target) -> None:
    """Run the case once more with the allocator's history on, and write PyTorch's snapshot.

    Raises:
        MeasureError: the run failed, or the file cannot be written.
    """
    if target.asked.snapshot is not None:
        _run("snapshot_case", work, target, path=str(target.asked.snapshot.resolve()))


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


def _run(function: str, work: Work, target: Target, **more: str) -> Any:
    place = Place(
        index=target.index,
        budget_bytes=target.budget_bytes,
        assumed_context_bytes=target.card.context_bytes if target.card else ASSUMED_CONTEXT_BYTES,
    )
    arguments = {"work": to_plain(work), "place": asdict(place), **more}
    limit = target.asked.time_limit_seconds
    return run_in_child(_job(function, arguments, limit, target.allocator_conf))


def _job(function: str, arguments: Mapping[str, Any], limit: float, allocator_conf: str) -> Job:
    return Job(
        function=f"tritter_mem.measure.cuda_case:{function}",
        arguments=arguments,
        time_limit_seconds=limit,
        environment=environment(allocator_conf),
    )


def _refuse_if_crowded(refused: OutOfMemory, run: DeviceRun, context_bytes: int | None) -> None:
    """An error below the limit says that the device was full, and nothing of the case.

    Raises:
        MeasureError: says who holds the rest.
    """
    outside = 0 if run.allocator_limit_bytes is not None else context_bytes or 0
    wanted = refused.reserved_bytes + refused.requested_bytes + outside
    if not refused.requested_bytes or wanted > refused.limit_bytes:
        return
    others = run.other_processes_bytes
    held = "" if others is None else f", of which other processes hold {format_bytes(others)}"
    raise MeasureError(
        f"the device refused {format_bytes(refused.requested_bytes)} with "
        f"{format_bytes(refused.reserved_bytes)} reserved, below the limit of "
        f"{format_bytes(refused.limit_bytes)}: it has {format_bytes(run.total_bytes)}{held}; end "
        "those, choose another device (--device cuda:1), or lower the budget (--budget)"
    )
