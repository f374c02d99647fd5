"""A run on a device, the device's allocator and driver simulated: what is read, capped and said."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.measure.simulated_gpu import (
    CREATED,
    FIRST_KERNEL,
    LOADED,
    OTHERS,
    SimulatedDriver,
    SimulatedGpu,
)
from tritter_mem.devices.nvml import Usage
from tritter_mem.errors import MeasureError, OutputError
from tritter_mem.measure import cpu_run, cuda_run
from tritter_mem.measure.out_of_memory import culprit
from tritter_mem.measure.recorded_run import with_components, with_fragmentation
from tritter_mem.measure.session import DeviceSession, context_by_nvml
from tritter_mem.measure.workload import Work, to_plain
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.from_json import from_plain
from tritter_mem.results.run import Components, Fragmentation, MemoryUse
from tritter_mem.units import GiB, MiB
from tritter_model.config import ModelConfig, RunConfig

MODEL = ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=128, vocab_size=256,
)  # fmt: skip
INFERENCE = RunConfig(model=MODEL, context=64, prefill_chunk=16, new_tokens=4)
TRAINING = replace(INFERENCE, mode="training")


@contextmanager
def session(
    total_bytes: int = GiB,
    budget_bytes: int | None = None,
    inside: Callable[[SimulatedGpu, str], None] = lambda gpu, operator: None,
) -> Iterator[DeviceSession]:
    driver, gpu = SimulatedDriver(), SimulatedGpu(total_bytes, inside)

    def opened() -> SimulatedGpu:
        driver.gpu = gpu
        return gpu

    with gpu:
        yield DeviceSession(
            opened, driver.usage, budget_bytes=budget_bytes, assumed_context_bytes=500 * MiB
        )


def measured(work: Work, loads: bool = True, **limits: int) -> tuple[MemoryUse, SimulatedGpu]:
    with session(**limits) as found:
        gpu = found.device
        assert isinstance(gpu, SimulatedGpu)
        if loads:
            gpu.synchronize = lambda: setattr(gpu, "context_bytes", LOADED)  # type: ignore[method-assign]
        return cuda_run.measure(work, found), gpu


@pytest.fixture(scope="module", params=["inference", "training"])
def case(request: pytest.FixtureRequest) -> tuple[RunConfig, MemoryUse]:
    work = replace(INFERENCE, mode=request.param)
    return work, measured(work)[0]


def test_peak_asked_for_is_that_of_the_recorded_tensors(case: tuple[RunConfig, MemoryUse]) -> None:
    """The warm-up's peak does not count; the recorder of the CPU's own run says the same."""
    work, found = case
    assert found.run is not None
    recorded = cuda_case_record(work)
    assert found.run.allocator.requested_peak_bytes == recorded.allocated_peak_bytes
    by_name = {phase.name: phase.allocated_peak_bytes for phase in recorded.phases}
    asked = {p.name: p.allocator.requested_peak_bytes for p in found.phases if p.allocator}
    assert asked == by_name


def cuda_case_record(work: Work) -> MemoryUse:
    return from_plain(MemoryUse, cpu_run.run_case(to_plain(work)))


def test_rounding_and_cache_are_told_apart(case: tuple[RunConfig, MemoryUse]) -> None:
    _, found = case
    assert found.run is not None
    assert found.run.allocator.requested_peak_bytes < found.allocated_peak_bytes
    assert found.run.allocator.active_peak_bytes == found.allocated_peak_bytes
    assert found.reserved_peak_bytes is not None
    assert found.allocated_peak_bytes < found.reserved_peak_bytes
    assert found.run.allocator.segment_allocations > 0
    assert found.run.allocator.retries == 0


def test_segments_of_the_warm_up_are_counted_once(case: tuple[RunConfig, MemoryUse]) -> None:
    _, found = case
    assert found.run is not None
    own = sum(phase.allocator.segment_allocations for phase in found.phases if phase.allocator)
    assert own <= found.run.allocator.segment_allocations
    load = found.phases[0].allocator
    assert load is not None
    assert load.segment_allocations > 0


def test_context_is_read_as_it_grows_and_others_are_not_counted(
    case: tuple[RunConfig, MemoryUse],
) -> None:
    _, found = case
    run = found.run
    assert run is not None
    assert (run.context_created_bytes, run.context_first_kernel_bytes) == (CREATED, FIRST_KERNEL)
    assert found.context_bytes == LOADED
    assert found.device_peak_bytes == (found.reserved_peak_bytes or 0) + LOADED
    assert run.other_processes_bytes == OTHERS
    assert run.device_used_bytes == (run.process_bytes or 0) + OTHERS


def test_phases_have_seconds_and_speed(case: tuple[RunConfig, MemoryUse]) -> None:
    _, found = case
    assert all(phase.seconds and phase.seconds > 0 for phase in found.phases)
    assert found.tokens_per_second is not None


def recorded(work: Work, **limits: int) -> MemoryUse:
    """The second run, on a GPU of its own, whose allocator keeps its history."""
    with session(**limits) as found:
        return cuda_run.record(work, found)


def test_second_run_tells_all_that_the_allocator_of_the_first_does_not(
    case: tuple[RunConfig, MemoryUse],
) -> None:
    """The two go the same way to the byte, so every figure of the second is one of the first."""
    work, found = case
    assert not found.components_known
    second = recorded(work)
    whole = with_fragmentation(with_components(found, second), second)
    assert whole.run is not None
    assert (whole.run.components_reason, whole.run.fragmentation_reason) == (None, None)
    assert second.reserved_peak_bytes == found.reserved_peak_bytes
    assert whole.fragmentation == second.fragmentation
    assert whole.fragmentation is not None
    unused = whole.fragmentation.reserved_not_allocated_bytes
    assert 0 < unused <= (found.reserved_peak_bytes or 0)
    held = sum(holding.allocated_bytes for holding in whole.held_at_peak)
    assert whole.components.total_bytes == held == found.allocated_peak_bytes
    tensors = cuda_case_record(work).components
    assert replace(whole.components, rounding_bytes=0) == tensors
    assert whole.library_workspace_bytes == 0  # the CPU has none
    assert [p.allocated_peak_bytes for p in second.phases] == [
        p.allocated_peak_bytes for p in found.phases
    ]


def test_runs_that_reserve_otherwise_leave_fragmentation_unknown(
    case: tuple[RunConfig, MemoryUse],
) -> None:
    work, found = case
    other = replace(recorded(work), reserved_peak_bytes=1)
    whole = with_fragmentation(found, other)
    assert whole.fragmentation is None
    assert whole.run is not None
    assert "reserved 1 bytes, the measured one" in str(whole.run.fragmentation_reason)


GROWING = ModuleCase(
    path=str(Path(__file__).parents[2] / "docs" / "examples" / "growing_cache.py"),
    function="build", arguments={"layers": 6, "tokens": 24}, warmup=0, steps=1,
)  # fmt: skip
"""The case of docs/fragmentation.md, smaller."""


def test_fragmentation_is_that_of_the_moment_of_the_peak_not_of_the_end() -> None:
    """At the end all is free in whole segments; at the peak parts of every segment are.

    The figures were recorded from PyTorch 2.11's CUDA allocator, without a device that computes.
    """
    second = recorded(GROWING)
    assert second.allocated_peak_bytes == 91_015_168
    assert second.fragmentation == Fragmentation(
        reserved_not_allocated_bytes=15_939_584, ratio=15_939_584 / 106_954_752,
        largest_free_block_bytes=13_844_480, inactive_split_bytes=15_939_584,
    )  # fmt: skip


def test_parts_are_those_of_the_allocated_peak_where_the_most_was_asked_for_at_another() -> None:
    """Rounding lets the two peaks fall apart; figures recorded as above."""
    found = measured(GROWING)[0]
    assert found.run is not None
    assert found.run.allocator.requested_peak_bytes == 90_628_096
    whole = with_components(found, recorded(GROWING))
    assert whole.components == Components(
        activations_bytes=89_997_312, rounding_bytes=91_015_168 - 89_997_312
    )


LIBRARY = """
import torch

def build(device):
    x = torch.ones(1 << 10, 1 << 10, device=device)
    return lambda: torch.relu(x @ x)
"""


def test_what_a_library_takes_stands_where_its_operator_ran(tmp_path: Path) -> None:
    """As cuBLAS's workspace: no tensor holds it, and it stays; the rows sum to the peak."""
    path = tmp_path / "library.py"
    path.write_text(LIBRARY)
    work = ModuleCase(path=str(path), function="build", warmup=0, steps=1)
    taken: list[int] = []

    def first_product(gpu: SimulatedGpu, operator: str) -> None:
        if operator == "aten.mm.default" and not taken:
            taken.append(8 * MiB)
            gpu.allocate_inside(8 * MiB)

    with session(inside=first_product) as found:
        second = cuda_run.record(work, found)
    held = {(h.module, h.component): h.allocated_bytes for h in second.held_at_peak}
    assert held == {("", "workspace"): 8 * MiB, ("", "activations"): 12 * MiB}
    assert second.components.workspace_bytes == second.library_workspace_bytes == 8 * MiB
    assert second.allocated_peak_bytes == 20 * MiB
    assert second.peak_at == "step (aten.relu.default)"


def test_out_of_memory_has_the_fragmentation_up_to_there() -> None:
    second = recorded(GROWING, budget_bytes=FIRST_KERNEL + 100 * MiB)
    assert second.run is not None
    assert second.run.fragmentation_reason is None
    assert second.fragmentation is not None
    assert second.reserved_peak_bytes is not None
    assert 50 * MiB < second.reserved_peak_bytes <= 100 * MiB


def test_runs_that_disagree_leave_components_unknown(case: tuple[RunConfig, MemoryUse]) -> None:
    work, found = case
    other = replace(work, batch=2)
    whole = with_components(found, recorded(other))
    assert not whole.components_known
    assert whole.run is not None
    assert "took another path" in str(whole.run.components_reason)


def test_budget_caps_what_is_reserved_and_anew_once_kernels_are_loaded() -> None:
    budget = 700 * MiB
    found, gpu = measured(INFERENCE, budget_bytes=budget)
    assert gpu.limits == [budget - FIRST_KERNEL, budget - LOADED]
    assert found.run is not None
    assert found.run.allocator_limit_bytes == budget - LOADED
    assert found.footprint_bytes <= budget


def test_without_a_budget_there_is_no_cap() -> None:
    found, gpu = measured(INFERENCE)
    assert gpu.limits == []
    assert found.run is not None
    assert found.run.allocator_limit_bytes is None


def test_budget_that_the_context_takes_is_an_error() -> None:
    with pytest.raises(MeasureError, match=r"got 200\.0 MiB, of which the CUDA context alone"):
        measured(INFERENCE, budget_bytes=200 * MiB)


def test_out_of_memory_is_an_answer_with_the_figures_up_to_there() -> None:
    big = replace(TRAINING, model=replace(MODEL, vocab_size=1 << 16))
    budget = FIRST_KERNEL + 48 * MiB
    found, _ = measured(big, loads=False, budget_bytes=budget)
    refused = found.out_of_memory
    assert refused is not None
    assert (refused.limit_bytes, refused.phase) == (48 * MiB, "warmup")
    assert refused.reserved_bytes + refused.requested_bytes > refused.limit_bytes
    assert 0 < refused.allocated_bytes <= refused.reserved_bytes
    assert found.phases[0].name == "load"
    assert found.reserved_peak_bytes is not None
    assert 0 < found.reserved_peak_bytes <= refused.limit_bytes


def test_recorded_run_ends_where_memory_does() -> None:
    big = replace(TRAINING, model=replace(MODEL, vocab_size=1 << 16))
    with session(budget_bytes=FIRST_KERNEL + 48 * MiB) as found:
        recorded = cuda_run.record(big, found)
    assert recorded.phases[0].name == "load"
    assert 0 < recorded.allocated_peak_bytes < 48 * MiB


CODE = """
import torch
from torch import nn

class Wide(nn.Module):
    def forward(self, x):
        return torch.cat([x] * 64)

def build(device):
    model, x = nn.Sequential(nn.Identity(), Wide()), torch.zeros(1 << 20, device=device)
    return lambda: model(x)

def broken(device):
    return lambda: 1 / 0
"""


@pytest.fixture
def third_party(tmp_path: Path) -> Callable[[str], ModuleCase]:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    return lambda function: ModuleCase(path=str(path), function=function)


def test_third_party_code_goes_the_same_way(third_party: Callable[[str], ModuleCase]) -> None:
    found, _ = measured(third_party("build"))
    assert [phase.name for phase in found.phases] == ["load", "step"]
    assert found.run is not None
    assert found.run.allocator.requested_peak_bytes == 65 * 4 * MiB
    assert found.tokens_per_second is None


def test_out_of_memory_names_the_module(third_party: Callable[[str], ModuleCase]) -> None:
    found, _ = measured(third_party("build"), loads=False, budget_bytes=FIRST_KERNEL + 64 * MiB)
    assert found.out_of_memory is not None
    assert found.out_of_memory.module == "Sequential.1"
    assert found.out_of_memory.requested_bytes == 256 * MiB


def test_other_errors_are_no_answer(third_party: Callable[[str], ModuleCase]) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        measured(third_party("broken"))


def silent() -> Usage:
    """A driver that cannot be asked, as where NVML is not there."""
    return Usage(unread=("NVML cannot be used: install nvidia-ml-py",))


def unasked(others_bytes: int, budget_bytes: int | None = None) -> MemoryUse:
    gpu = SimulatedGpu(64 * GiB)
    gpu.others_bytes = others_bytes
    with gpu:
        found = DeviceSession(
            lambda: gpu, silent, budget_bytes=budget_bytes, assumed_context_bytes=250 * MiB
        )
        gpu.synchronize = lambda: setattr(gpu, "context_bytes", LOADED)  # type: ignore[method-assign]
        return cuda_run.measure(INFERENCE, found)


def test_without_nvml_the_context_is_what_the_device_has_not_free() -> None:
    found = unasked(others_bytes=0)
    assert found.run is not None
    created = found.run.context_created_bytes, found.run.context_first_kernel_bytes
    assert created == (CREATED, FIRST_KERNEL)
    assert found.context_bytes == LOADED
    assert found.footprint_bytes == (found.reserved_peak_bytes or 0) + LOADED
    assert found.run.unread[0] == "NVML cannot be used: install nvidia-ml-py"
    assert "by what the device has free, as NVML does not say" in found.run.unread[1]


def test_without_nvml_other_processes_are_not_taken_for_the_context() -> None:
    """What is assumed for the card is counted then, and the report says so."""
    found = unasked(others_bytes=20 * GiB)
    assert found.run is not None
    assert found.run.context_created_bytes is None
    assert found.context_bytes == 250 * MiB
    assert found.footprint_bytes == (found.reserved_peak_bytes or 0) + 250 * MiB
    assert (
        "CUDA context: not measured, 250.0 MiB assumed: the device had 20.29 GiB in use"
        in (found.run.unread[1])
    )


def test_without_nvml_the_cap_leaves_room_for_the_context() -> None:
    found = unasked(others_bytes=20 * GiB, budget_bytes=700 * MiB)
    assert found.run is not None
    assert found.run.allocator_limit_bytes == 450 * MiB


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (Usage(device_bytes=100), Usage(device_bytes=700, process_bytes=550), 450),
        (Usage(device_bytes=100), Usage(device_bytes=700), 500),
        (Usage(device_bytes=100), Usage(device_bytes=150), 0),
        (Usage(), Usage(device_bytes=700), None),
        (Usage(device_bytes=100), Usage(), None),
    ],
    ids=["by process", "by device", "others went", "unread before", "unread now"],
)
def test_context_is_what_is_used_beside_the_allocator(
    before: Usage, now: Usage, expected: int | None
) -> None:
    assert context_by_nvml(before, now, 100) == expected


def test_snapshot_is_written_whole_in_the_protocol_that_viewers_read(tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "snapshot.pickle"
    cuda_run.write_snapshot({"segments": [], "device_traces": []}, path)
    assert path.read_bytes()[:2] == b"\x80\x04"
    assert [file.name for file in path.parent.iterdir()] == ["snapshot.pickle"]


def test_full_disk_leaves_no_snapshot_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pickle.dump", full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        cuda_run.write_snapshot({}, tmp_path / "snapshot.pickle")
    assert list(tmp_path.iterdir()) == []


def test_culprit_is_the_last_line_outside_of_pytorch() -> None:
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(nn.Identity(), nn.Linear(2, 2))(torch.ones(3))
    line, module = culprit(caught.value)
    assert line.startswith("test_cuda_run.py:")
    assert module == "Sequential.1"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(-1)
    assert culprit(caught.value)[1] == ""
