"""Small probes of what a simulation assumes: context, libraries' workspaces, operators' scratch.

Each is a reading of PyTorch's allocator, or of the driver, around one call. They run in a
fresh process, before which nothing was allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import unified_diff
from typing import TYPE_CHECKING, Any, NamedTuple

from tritter_mem import torch_release
from tritter_mem.allocator.rules import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES, round_request
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.cuda import open_cuda
from tritter_mem.devices.device import Device
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError
from tritter_mem.measure.child import ChildJob, answer_of, measuring_environment
from tritter_mem.measure.cuda_run import session_on
from tritter_mem.measure.phases import Stopwatch
from tritter_mem.measure.session import DeviceSession
from tritter_mem.measure.workload import perform
from tritter_mem.results.from_json import from_plain
from tritter_mem.simulation.cuda.scratch import peak_bytes, scratch_bytes
from tritter_mem.units import KiB, MiB

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT = "CUDA context, kernels loaded"
CUBLAS = "cuBLAS workspace, first product"
MEASURED = "measured: "
EXPANDABLE = "expandable_segments:True"
TIME_LIMIT_SECONDS = 120.0
TINY = {"workload.context": 64, "workload.prefill_chunk": 32, "workload.new_tokens": 4,
        "training.loss_chunk": 32}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReading:
    """One probe.

    Attributes:
        name: what was probed.
        measured_bytes: None where it could not be read.
        assumed_bytes: what a simulation takes; None where it takes nothing.
    """

    name: str
    measured_bytes: int | None
    assumed_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReadings:
    """What a child process answers."""

    readings: tuple[ProbeReading, ...]


class Beyond(NamedTuple):
    """What a call takes beyond what it returns: at its peak, and what stays."""

    peak_bytes: int
    kept_bytes: int


def beyond(device: Device, call: Callable[[], Any]) -> Beyond:
    """Read the allocator around a call.

    Args:
        device: where it runs.
        call: returns a tensor, or several; what is no tensor counts nothing.
    """
    device.synchronize()
    before = device.stats()["allocated_bytes.all.current"]
    device.reset_peaks()
    returned = call()
    device.synchronize()
    stats = device.stats()
    base = before + _blocks(returned)
    return Beyond(
        stats["allocated_bytes.all.peak"] - base, stats["allocated_bytes.all.current"] - base
    )


def _blocks(returned: Any) -> int:
    """Bytes of the blocks that returned tensors are in, each storage once."""
    import torch

    found = returned if isinstance(returned, tuple) else (returned,)
    tensors = [value for value in found if isinstance(value, torch.Tensor) and value.numel()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(map(round_request, storages.values()))


def probe(card: GpuCard, index: int = 0) -> list[ProbeReading]:
    """Make every probe on a device.

    Args:
        card: the device, whose assumed figures stand beside the readings.
        index: of the device.

    Raises:
        MeasureError: a probe failed; says how.
    """
    found = _in_child("probe_device", {"index": index, "card": asdict(card)}, "")
    found += _in_child("probe_pages", {"index": index}, EXPANDABLE)
    assumed = {CONTEXT: card.context_bytes, CUBLAS: card.cublas_workspace_bytes}
    return [replace(r, assumed_bytes=assumed.get(r.name, r.assumed_bytes)) for r in found]


def _in_child(
    function: str, arguments: dict[str, Any], allocator_conf: str
) -> tuple[ProbeReading, ...]:
    job = ChildJob(
        function=f"tritter_mem.evidence.probes:{function}",
        arguments=arguments,
        time_limit_seconds=TIME_LIMIT_SECONDS,
        environment=measuring_environment(allocator_conf),
    )
    return answer_of(job, ProbeReadings).readings


def probe_device(index: int, card: dict[str, Any]) -> dict[str, Any]:
    """The job that probes libraries, operators and, last, what all of that loads."""
    session = session_on(index)
    operators = _operators(session.device, from_plain(GpuCard, card))
    readings = (*_libraries(session.device), *operators, *_context(session))
    return asdict(ProbeReadings(readings=readings))


def probe_pages(index: int) -> dict[str, Any]:
    """The job that probes what expandable segments map at least; its allocator is set so."""
    return asdict(ProbeReadings(readings=tuple(pages(open_cuda(index)))))


def pages(device: Device) -> Iterator[ProbeReading]:
    """What one small, and one large request reserves."""
    import torch

    held = []
    for name, size, assumed in (
        ("expandable segment's page, small", 512, SMALL_SEGMENT_BYTES),
        ("expandable segment's page, large", 2 * MiB, LARGE_SEGMENT_BYTES),
    ):
        before = device.stats()["reserved_bytes.all.current"]
        held.append(torch.empty(size, dtype=torch.uint8, device=device.name))
        found = device.stats()["reserved_bytes.all.current"] - before
        yield ProbeReading(name=name, measured_bytes=found, assumed_bytes=assumed)


def _libraries(device: Device) -> Iterator[ProbeReading]:
    """Each product is the first of its handle and stream; a workspace then stays."""
    import torch

    def ones(*shape: int, grad: bool = False) -> Tensor:
        return torch.ones(shape, dtype=torch.bfloat16, device=device.name, requires_grad=grad)

    a, b, weight, bias = ones(256, 256), ones(256, 256), ones(256, 256, grad=True), ones(256)

    def backward() -> Tensor | None:
        (a @ weight).sum().backward()
        return weight.grad

    def other_stream() -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream(device.name)):
            return a @ b

    first = beyond(device, lambda: a @ b).peak_bytes
    stays = first if torch_release.keeps_workspaces() else 0
    yield ProbeReading(name=CUBLAS, measured_bytes=first)
    again = beyond(device, lambda: a @ b).kept_bytes
    yield ProbeReading(
        name="cuBLAS workspace, second product", measured_bytes=again, assumed_bytes=0
    )
    for name, call in (("backward thread", backward), ("second stream", other_stream)):
        found = beyond(device, call).kept_bytes
        yield ProbeReading(
            name=f"cuBLAS workspace, {name}", measured_bytes=found, assumed_bytes=stays
        )
    with_bias = torch_release.cublaslt_workspace_bytes() if stays else 0
    for which, assumed in (("first", with_bias), ("second", 0)):
        found = beyond(device, lambda: torch.addmm(bias, a, b)).kept_bytes
        name = f"cuBLASLt workspace, {which} product with a bias"
        yield ProbeReading(name=name, measured_bytes=found, assumed_bytes=assumed)


def _operators(device: Device, card: GpuCard) -> Iterator[ProbeReading]:
    for name, make in OPERATORS.items():
        operator, args = make(device.name)
        assumed = peak_bytes(scratch_bytes(card, str(operator), args, {}))
        found = beyond(device, lambda operator=operator, args=args: operator(*args))  # type: ignore[misc]
        yield ProbeReading(name=name, measured_bytes=found.peak_bytes, assumed_bytes=assumed)


def _context(session: DeviceSession) -> Iterator[ProbeReading]:
    """The context as it grew; at the end with the kernels of a small inference and training run."""
    from tritter_mem.models.bundled import run_settings

    yield ProbeReading(name="CUDA context as made", measured_bytes=session.context.created_bytes)
    first = session.context.first_kernel_bytes
    yield ProbeReading(name="CUDA context, first kernel", measured_bytes=first)
    yield ProbeReading(name="CUDA context, cuBLAS loaded", measured_bytes=session.context_bytes())
    for mode in ("inference", "training"):
        profile = load_profile("tiny", {**TINY, "workload.mode": mode})
        work = run_settings(profile, find_gpu(profile.gpu.name))
        perform(work, session.device.name, Stopwatch())
    yield ProbeReading(name=CONTEXT, measured_bytes=session.context_bytes())


def _embedding(device: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    indices = torch.arange(8 * KiB, device=device) % 1000
    grad = torch.ones(8 * KiB, 256, dtype=torch.bfloat16, device=device)
    operator = torch.ops.aten.embedding_dense_backward.default
    return operator, (grad, indices, 1000, -1, False)


def _heads(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of 8 heads, keys and values: [1, 8, 1024, 64] in bfloat16."""
    import torch

    q, k, v = (torch.ones(1, 8, 1024, 64, dtype=torch.bfloat16, device=device) for _ in range(3))
    return q, k, v


def _flash(device: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    heads = _heads(device)
    forward = torch.ops.aten._scaled_dot_product_flash_attention.default
    out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = forward(*heads, 0.0, True)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    found = (out, lse, cum_q, cum_k, max_q, max_k)
    return operator, (torch.ones_like(out), *heads, *found, 0.0, True, seed, offset)


def _efficient(device: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    heads = _heads(device)
    forward = torch.ops.aten._scaled_dot_product_efficient_attention.default
    out, lse, seed, offset = forward(*heads, None, True, 0.0, True)
    operator = torch.ops.aten._scaled_dot_product_efficient_attention_backward.default
    wanted = [True, True, True, False]
    grad = torch.ones_like(out)
    return operator, (grad, *heads, None, out, lse, seed, offset, 0.0, wanted, True)


def _index_put(device: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    target = torch.zeros(4096, device=device)
    indices = torch.arange(64 * KiB, device=device) % 4096
    values = torch.ones(64 * KiB, device=device)
    return torch.ops.aten.index_put_.default, (target, [indices], values, True)


def _sort(device: str) -> tuple[Any, tuple[Any, ...]]:
    import torch

    return torch.ops.aten.sort.default, (torch.ones(16, 8 * KiB, device=device), -1, False)


OPERATORS: dict[str, Callable[[str], tuple[Any, tuple[Any, ...]]]] = {
    "embedding_dense_backward, 8,192 tokens": _embedding,
    "flash attention, backward": _flash,
    "efficient attention, backward": _efficient,
    "index_put, accumulating": _index_put,
    "sort, rows of 8,192": _sort,
}
"""By row of `simulation.cuda.scratch`: what makes an operator and its arguments on a device."""


def source_of(torch: str, driver: str | None, date: str) -> str:
    """Where a measured figure is from: `measured: torch 2.11.0, driver 580.1, 2026-01-05`."""
    return f"{MEASURED}torch {torch}, driver {driver or 'unknown'}, {date}"


def updated(entry: str, readings: Sequence[ProbeReading], source: str) -> str:
    """A card's file with what is measured in place of what was assumed.

    What could not be read stays as it is.

    Args:
        entry: the file's text.
        readings: of `probe`.
        source: of `source_of`.

    Raises:
        MeasureError: nothing that the entry holds could be read.
    """
    found = {r.name: r.measured_bytes for r in readings if r.measured_bytes}
    if not found.keys() & {CONTEXT, CUBLAS}:
        raise MeasureError(
            "neither the CUDA context nor cuBLAS's workspace could be read: the card's entry is "
            "unchanged"
        )
    text = entry
    if CONTEXT in found:
        text = with_key(text, "context_mib", str(-(-found[CONTEXT] // MiB)))
        text = with_key(text, "context_source", f'"{source}"')
    if CUBLAS in found:
        text = with_key(text, "cublas_workspace_bytes", str(found[CUBLAS]))
        text = with_key(text, "cublas_source", f'"{source}"')
    return text


def with_key(text: str, key: str, value: str) -> str:
    """A flat YAML mapping's text with one key set; a new key comes last."""
    line = f"{key}: {value}\n"
    block = re.compile(rf"^{re.escape(key)}:.*\n?(?:[ \t]+.*\n?)*", re.MULTILINE)
    if block.search(text):
        return block.sub(lambda _: line, text, count=1)
    return text + ("" if text.endswith("\n") or not text else "\n") + line


def difference(before: str, after: str, name: str) -> str:
    """What changes in the file, as `diff -u` shows it; empty where nothing does."""
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(unified_diff(old, new, f"a/{name}", f"b/{name}"))
