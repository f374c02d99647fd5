"""Measuring on CUDA: environment, what may go wrong, and, where there is a device, real runs."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tritter_mem.config.loading import load_profile
from tritter_mem.devices.cuda import DeviceProperties, explain_cuda
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import EXIT_NOT_MEASURED, MeasureError
from tritter_mem.measure import child, runs, target
from tritter_mem.measure.child import ChildJob, run_in_child
from tritter_mem.measure.target import (
    LocatedDevice,
    MeasureOptions,
    Target,
    find_target,
)
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.profiling import profiler
from tritter_mem.profiling.profiler import (
    MeasurementFailedError,
    ModuleProfile,
    profile,
    profile_module,
)
from tritter_mem.results.run import (
    AllocatorStats,
    Components,
    DeviceRun,
    MemoryUse,
    OutOfMemory,
    Result,
)
from tritter_mem.units import GiB, MiB
from tritter_model.config import ModelConfig, RunConfig

H100 = find_gpu("h100")
TINY = load_profile("tiny", {"gpu.name": "rtx-5080"})
WORK = RunConfig(model=ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=128, vocab_size=256,
))  # fmt: skip
STATS = AllocatorStats(
    requested_peak_bytes=1, active_peak_bytes=1, inactive_split_peak_bytes=0, retries=0,
    segment_allocations=1, segment_releases=0,
)  # fmt: skip


def test_profile_settings_alone_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"):
        monkeypatch.setenv(name, "inherited")
    monkeypatch.setenv("TRITTER_KERNELS", "triton")
    job = ChildJob(
        function="os:getenv",
        arguments={"key": "PYTORCH_ALLOC_CONF"},
        time_limit_seconds=60,
        environment=child.measuring_environment("expandable_segments:True"),
    )
    assert run_in_child(job) == "expandable_segments:True"
    assert run_in_child(replace(job, arguments={"key": "PYTORCH_CUDA_ALLOC_CONF"})) is None
    assert run_in_child(replace(job, environment=child.measuring_environment(""))) is None
    assert run_in_child(replace(job, arguments={"key": "TRITTER_KERNELS"})) == "triton"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "The NVIDIA driver on your system is too old (got version 11040). Please update",
            r"the NVIDIA driver \(470.57\) is too old for this PyTorch, .*: update the driver",
        ),
        ("No CUDA GPUs are available", "no CUDA device"),
        ("CUDA error: invalid device ordinal", "there is no cuda:3: `nvidia-smi -L` lists"),
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
            "cuda:3 is busy: another process has it to itself",
        ),
        ("CUDA error: out of memory", "cuda:3 is full: other processes leave no memory"),
        ("Torch not compiled with CUDA enabled", "this PyTorch is built without CUDA"),
        ("Invalid device id", "there is no cuda:3: `nvidia-smi -L` lists"),
        (
            "CUDA error: odd\nCompile with `TORCH_USE_CUDA_DSA`",
            "CUDA cannot be used: CUDA error: odd$",
        ),
    ],
)
def test_trouble_says_what_to_do(said: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritter_mem.devices.cuda.driver_version", lambda: "470.57")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(explain_cuda(said, 3))


@pytest.mark.parametrize("visible", ["", "3"])
def test_devices_that_are_hidden_are_said_to_be(
    visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shows = f"among those that CUDA_VISIBLE_DEVICES={visible!r} shows"
    said = explain_cuda("No CUDA GPUs are available")
    assert said == f"no CUDA device {shows}: nothing was measured"
    assert f"there is no cuda:1 {shows}" in explain_cuda("invalid device ordinal", 1)


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_child_that_finds_no_cuda_says_so_in_one_line() -> None:
    with pytest.raises(MeasureError, match="this PyTorch is built without CUDA") as caught:
        target.located_by_pytorch(0, H100, 60)
    assert caught.value.exit_code == EXIT_NOT_MEASURED


def refused(reserved: int, limit: int) -> OutOfMemory:
    return OutOfMemory(
        operator="", module="", phase="load", requested_bytes=GiB, allocated_bytes=reserved,
        reserved_bytes=reserved, limit_bytes=limit,
    )  # fmt: skip


def out_of_memory(reserved: int, limit: int, capped: bool) -> MemoryUse:
    run = DeviceRun(allocator=STATS, total_bytes=80 * GiB, other_processes_bytes=70 * GiB,
                    allocator_limit_bytes=limit if capped else None)  # fmt: skip
    return MemoryUse(
        device="cuda:0", components=Components(), phases=(), allocated_peak_bytes=reserved,
        reserved_peak_bytes=reserved, context_bytes=GiB, device_peak_bytes=reserved + GiB, run=run,
        out_of_memory=refused(reserved, limit),
    )  # fmt: skip


def on(card: Any = H100, **settings: Any) -> Target:
    return Target(device="cuda", card=card, fitted=find_gpu("rtx-5080"), **settings)


@pytest.mark.parametrize(
    ("reserved", "limit", "capped"),
    [(14 * GiB + 1, 15 * GiB, True), (78 * GiB + 1, 80 * GiB, False)],
    ids=["at the cap", "at the end of the device"],
)
def test_out_of_memory_at_the_limit_is_an_answer(
    reserved: int, limit: int, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = out_of_memory(reserved, limit, capped)
    monkeypatch.setattr(runs, "answer_of", lambda job, kind: found)
    assert runs.measure_once(WORK, on()) == found


@pytest.mark.parametrize(("limit", "capped"), [(15 * GiB, True), (80 * GiB, False)])
def test_out_of_memory_below_the_limit_says_who_holds_the_rest(
    limit: int, capped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = out_of_memory(8 * GiB, limit, capped)
    monkeypatch.setattr(runs, "answer_of", lambda job, kind: found)
    with pytest.raises(MeasureError, match=r"has 80.00 GiB, of which other processes hold 70.00"):
        runs.measure_once(WORK, on())


def test_failed_recording_leaves_the_measured_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(job: object) -> None:
        raise MeasureError("the run was killed by SIGKILL")

    monkeypatch.setattr(child, "run_in_child", killed)
    measured = replace(out_of_memory(8, 15 * GiB, True), out_of_memory=None)
    found = runs.with_recorded_components(measured, WORK, on())
    assert found.allocated_peak_bytes == measured.allocated_peak_bytes
    assert found.run is not None
    assert found.run.components_reason == "the run was killed by SIGKILL"


def test_simulated_card_is_the_one_that_measures_with_the_budget_for_its_memory() -> None:
    rtx = find_gpu("rtx-5080")
    assert on(budget_bytes=15 * GiB).simulated == replace(H100, total_bytes=15 * GiB)
    assert on().simulated == H100
    assert on(None).simulated == rtx


SEEN = DeviceProperties(
    title="NVIDIA H100 80GB HBM3", compute_capability=(9, 0), multiprocessors=114,
    total_bytes=79 * GiB, memory_kilohertz=2_619_000, memory_bus_lines=5120, standin=False,
)  # fmt: skip


def seen_by_pytorch(monkeypatch: pytest.MonkeyPatch, found: DeviceProperties, card: Any) -> Any:
    """The card, where the child process has found these properties."""
    monkeypatch.setattr(child, "run_in_child", lambda job: asdict(found))
    return target.located_by_pytorch(0, card, 60).card


def test_pytorch_has_the_last_word_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_by_pytorch(monkeypatch, SEEN, H100) == replace(H100, multiprocessors=114)


def test_card_that_nvml_does_not_describe_is_found_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = seen_by_pytorch(monkeypatch, SEEN, None)
    assert (card.name, card.total_bytes) == ("h100", 79 * GiB)


def test_card_that_neither_nvml_nor_the_table_knows_is_what_pytorch_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = DeviceProperties(
        title="NVIDIA Something New", compute_capability=(12, 1), multiprocessors=96,
        total_bytes=24 * GiB, memory_kilohertz=14_000_000, memory_bus_lines=256, standin=False,
    )  # fmt: skip
    card = seen_by_pytorch(monkeypatch, found, None)
    assert (card.name, card.title, card.total_bytes) == ("auto", "NVIDIA Something New", 24 * GiB)
    assert (card.compute_capability, card.multiprocessors) == ((12, 1), 96)
    assert card.bandwidth_bytes_per_second == 896_000_000_000
    assert card.context_source.startswith("assumed, not measured")


# A whole profile, with the device's answers made up.


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """An H100 that measures: what it is asked."""
    asked: list[Target] = []

    def measured(work: RunConfig, on: Target) -> MemoryUse:
        asked.append(on)
        return out_of_memory(14 * GiB + 1, 15 * GiB, True)

    monkeypatch.setattr(target, "locate", lambda options: LocatedDevice(card=H100))
    monkeypatch.setattr(profiler.runs, "measure", measured)
    return asked


def test_h100_stands_for_a_smaller_card(h100: list[Target]) -> None:
    smaller = load_profile("tiny", {"gpu.name": "rtx-5080", "gpu.budget": "15 GiB"})
    result = profile(smaller, device="cuda")
    assert h100[0].budget_bytes == 15 * GiB
    assert result.simulated is not None
    assert result.planned is not None
    assert (result.planned.device, result.simulated.device) == ("h100", "h100")
    assert result.verdict is not None
    assert result.verdict.budget_bytes == 15 * GiB


def test_out_of_memory_does_not_fit_and_needs_the_refused_request_too(h100: list[Target]) -> None:
    result = profile(load_profile("tiny", {"gpu.budget": "15 GiB"}), device="cuda")
    verdict = result.verdict
    assert verdict is not None
    assert (verdict.basis, verdict.fits) == ("measured", False)
    assert verdict.headroom_bytes == 15 * GiB - (14 * GiB + 1) - GiB - GiB
    assert json.loads(json.dumps(result.to_dict()))["measured"]["out_of_memory"]["phase"] == "load"


def test_without_a_budget_of_its_own_a_profile_is_not_capped(h100: list[Target]) -> None:
    profile(TINY, device="cuda")
    assert h100[0].budget_bytes is None


def test_auto_card_is_the_one_that_measures(h100: list[Target]) -> None:
    assert find_target(MeasureOptions(device="cuda:1"), "auto").fitted == H100


@pytest.fixture
def _old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card with a driver that the child's PyTorch refuses."""

    def probe(*args: object) -> None:
        raise MeasureError("the NVIDIA driver (470.57) is too old for this PyTorch")

    nvml = SimpleNamespace(
        NVMLError=type("NVMLError", (Exception,), {}),
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "470.57",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA H100 80GB HBM3",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=81559 * MiB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(target, "cuda_of_torch", lambda: "12.8")
    monkeypatch.setattr(target, "located_by_pytorch", probe)


@pytest.mark.usefixtures("_old_driver")
def test_old_driver_is_a_reason_for_auto_and_an_error_for_a_named_device() -> None:
    result = profile(TINY)
    assert result.measured_reason == "the NVIDIA driver (470.57) is too old for this PyTorch"
    with pytest.raises(MeasurementFailedError, match="device cuda: the NVIDIA driver") as caught:
        profile(TINY, device="cuda")
    assert caught.value.result.simulated is not None
    assert caught.value.result.environment.driver == "470.57"


# On a device.

SMALL = load_profile("tiny", {"workload.context": "4k"})


def ran(result: Result) -> MemoryUse:
    """What was measured; over stand-ins for CUDA's libraries, what was rehearsed."""
    found = result.measured or result.rehearsed
    assert found is not None
    return found


@pytest.fixture(scope="module")
def measured() -> Result:
    return profile(SMALL, device="cuda", repeat=2)


@pytest.mark.gpu
def test_measured_is_simulated(measured: Result) -> None:
    assert measured.simulated is not None
    allocated = measured.simulated.allocated_peak_bytes
    assert ran(measured).allocated_peak_bytes == pytest.approx(allocated, rel=0.005)
    reserved = measured.simulated.reserved_peak_bytes
    assert ran(measured).reserved_peak_bytes == pytest.approx(reserved, rel=0.01)


@pytest.mark.gpu
def test_device_tells_its_own_figures(measured: Result) -> None:
    found = ran(measured)
    assert found.run is not None
    assert found.run.allocator.segment_allocations > 0
    assert found.run.allocator.retries == 0
    assert found.context_bytes is None or 100 * MiB < found.context_bytes < 2 * GiB
    assert found.tokens_per_second is not None
    assert found.spread is not None
    assert found.spread.minimum.allocated_peak_bytes == found.spread.maximum.allocated_peak_bytes


@pytest.mark.gpu
def test_components_sum_to_the_measured_peak(measured: Result) -> None:
    found = ran(measured)
    assert found.run is not None
    assert found.run.components_reason is None
    assert found.components.total_bytes == found.allocated_peak_bytes


@pytest.mark.gpu
def test_expandable_segments_reach_the_run() -> None:
    expanding = load_profile("tiny", {"allocator.conf": "expandable_segments:True"})
    found = ran(profile(expanding, device="cuda"))
    assert found.run is not None
    assert found.reserved_peak_bytes is not None
    assert found.allocated_peak_bytes <= found.reserved_peak_bytes
    assert found.run.allocator.segment_allocations > 0


@pytest.mark.gpu
def test_budget_that_is_too_small_is_out_of_memory_on_a_device() -> None:
    capped = load_profile("1b", {"gpu.budget": "1 GiB"})
    result = profile(capped, device="cuda")
    assert ran(result).out_of_memory is not None
    assert ran(result).footprint_bytes <= GiB
    assert result.verdict is not None
    assert not result.verdict.fits


@pytest.mark.gpu
def test_snapshot_of_a_device_replays(tmp_path: Path) -> None:
    from tritter_mem.recordings.replay_snapshot import replay

    path = tmp_path / "snapshot.pickle"
    profile(load_profile("tiny"), device="cuda", snapshot=path)
    [device] = [d for d in replay(path).devices if d.recorded.allocations]
    assert device.fidelity.segments_missed == device.fidelity.segments_extra == 0


@pytest.mark.gpu
def test_third_party_code_on_a_device() -> None:
    code = Path(__file__).parents[2] / "docs" / "examples" / "gpt.py"
    arguments = {"layers": 2, "width": 128, "tokens": 128, "batch": 2}
    case = ModuleCase(path=str(code), function="build", arguments=arguments)
    result = profile_module(ModuleProfile(case=case, gpu="auto"), device="cuda")
    assert result.simulated is not None
    simulated = result.simulated.allocated_peak_bytes
    assert ran(result).allocated_peak_bytes == pytest.approx(simulated, rel=0.005)
