"""A profile's answers side by side, and the reason for each that is missing."""

import json
import os
import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

import tritter_mem
from tritter_mem.config.loading import load_profile, profile_hash
from tritter_mem.config.profile import Profile
from tritter_mem.errors import ConfigError, MeasureError, UsageError
from tritter_mem.measure.target import MeasureOptions, Target, find_target
from tritter_mem.planner.compose import plan
from tritter_mem.planner.solve import context_curves
from tritter_mem.profiling.checkpointing import checkpointing_trade_off, measured_trade_off
from tritter_mem.profiling.profiler import MeasurementFailedError, ProfileInterrupted, profile
from tritter_mem.results.run import MemoryUse, Result
from tritter_mem.simulation.progress import Progress
from tritter_mem.units import GiB
from tritter_model.config import RunConfig

TINY = load_profile("tiny")


@pytest.fixture(scope="module")
def measured() -> Result:
    return profile(TINY, device="cpu")


@pytest.fixture
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def _card(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlSystemGetDriverVersion=lambda: "580.65",
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: "NVIDIA GeForce RTX 5080",
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=16 * GiB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_record_says_what_it_was_made_of(measured: Result) -> None:
    assert measured.profile == TINY.model_dump()
    assert measured.profile_hash == profile_hash(TINY)
    assert measured.tool_version == tritter_mem.__version__
    assert measured.environment.torch is not None
    age = datetime.now(UTC) - datetime.fromisoformat(measured.created)
    assert abs(age.total_seconds()) < 3600


def test_measured_stands_beside_planned(measured: Result) -> None:
    assert set(measured.by_kind()) == {"planned", "simulated", "measured"}
    assert measured.measured_reason is None
    assert measured.simulated_reason is None
    names = [difference.name for difference in measured.differences]
    assert names[-2:] == ["allocated_peak", "reserved_peak"]
    weights = next(d for d in measured.differences if d.name == "weights")
    assert weights.planned_bytes == weights.measured_bytes


def test_a_run_on_the_cpu_does_not_judge_the_card(measured: Result) -> None:
    """It has no context and no workspaces of cuBLAS, so it would let through what does not fit."""
    assert measured.verdict is not None
    assert measured.planned is not None
    assert measured.simulated is not None
    assert measured.verdict.basis == "simulated"
    budget = measured.verdict.budget_bytes
    assert measured.verdict.headroom_bytes == budget - measured.simulated.footprint_bytes


def test_record_that_will_be_drawn_has_its_curves(measured: Result) -> None:
    assert measured.context_curves == context_curves(TINY)


def test_record_is_plain_json(measured: Result) -> None:
    text = json.dumps(measured.to_dict(), allow_nan=False)
    assert json.loads(text)["measured"]["device"] == "cpu"


def test_budget_of_the_profile_decides() -> None:
    tight = load_profile("tiny", {"gpu.budget": "1 MiB"})
    verdict = profile(tight, device="none").verdict
    assert verdict is not None
    assert (verdict.fits, verdict.budget_bytes) == (False, 1 << 20)


def test_device_none_measures_nothing_and_says_so() -> None:
    result = profile(TINY, device="none")
    assert result.measured is None
    assert result.measured_reason == "measurement was turned off (--device none)"
    assert set(result.by_kind()) == {"planned", "simulated"}


@pytest.mark.usefixtures("_no_card")
def test_auto_without_a_card_measures_nothing_and_says_so() -> None:
    result = profile(TINY)
    assert result.measured is None
    assert result.measured_reason == "no CUDA device: nothing was measured"


@pytest.mark.usefixtures("_card")
@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_auto_with_a_card_and_a_pytorch_without_cuda_says_so() -> None:
    result = profile(TINY)
    assert result.environment.gpu == "NVIDIA GeForce RTX 5080"
    assert result.measured is None
    assert "this PyTorch is built without CUDA" in str(result.measured_reason)


@pytest.mark.usefixtures("_no_card")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_named_cuda_device_that_is_missing_is_an_error(device: str) -> None:
    with pytest.raises(MeasureError, match=f"device {device}: no CUDA device"):
        profile(TINY, device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "", "cuda:1\n"])
def test_unknown_device_names_the_allowed_ones(device: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cuda, cuda:1, cpu, none"):
        profile(TINY, device=device)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_time_limit_must_be_a_time(limit: float) -> None:
    with pytest.raises(UsageError, match=r"time limit: got .* s, expected above 0"):
        profile(TINY, device="none", time_limit_seconds=limit)


def test_unknown_card_is_an_error() -> None:
    with pytest.raises(ConfigError, match="rtx-9999"):
        profile(Profile.model_validate({**TINY.model_dump(), "gpu": {"name": "rtx-9999"}}))


def test_hang_on_the_cpu_is_an_error() -> None:
    with pytest.raises(MeasureError, match="time limit"):
        profile(TINY, device="cpu", time_limit_seconds=0.05)


def test_plan_in_the_record_is_the_public_plan(measured: Result) -> None:
    from tritter_mem.devices.nvml import find_gpu

    assert measured.planned == plan(TINY, find_gpu(TINY.gpu.name))


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Profile:
    """A training profile with two policies to compare."""
    policies = (("none", 1), ("every-layer", 1))
    monkeypatch.setattr("tritter_mem.profiling.checkpointing.POLICIES", policies)
    return load_profile("tiny", {"workload.mode": "training", "workload.context": 64})


def test_policy_is_measured_in_a_process_of_its_own_beside_what_is_simulated(
    training: Profile,
) -> None:
    simulated = checkpointing_trade_off(training)
    target = find_target(MeasureOptions(device="cpu"), "rtx-5080")
    cases, problems = next(measured_trade_off(training, simulated, target, Progress()))
    assert not problems
    first, second = cases
    assert first.policy == "none"
    assert first.measured_allocated_peak_bytes is not None
    assert first.measured_allocated_peak_bytes < first.allocated_peak_bytes  # without cuBLAS
    assert first.measured_seconds is not None
    assert first.measured_reason is None
    assert second.measured_seconds is None


def test_failed_policy_does_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, training: Profile, measured: Result
) -> None:
    from tritter_mem.measure import runs

    use = measured.measured
    assert use is not None

    def killed_at_none(work: RunConfig, target: Target) -> MemoryUse:
        if work.training.checkpointing == "none":
            raise MeasureError("the run was killed by SIGKILL")
        return use

    monkeypatch.setattr(runs, "measure_once", killed_at_none)
    with pytest.raises(MeasurementFailedError, match="none: the run was killed") as caught:
        profile(training, device="cpu", checkpointing=True)
    first, second = caught.value.result.checkpointing
    assert first.measured_reason == "the run was killed by SIGKILL"
    assert second.measured_seconds is not None


def test_interruption_while_policies_run_keeps_those_before(
    monkeypatch: pytest.MonkeyPatch, training: Profile, measured: Result
) -> None:
    from tritter_mem.measure import runs

    assert measured.measured is not None
    answers = [measured.measured, measured.measured]  # the profile's own, and the first policy's

    def interrupted(work: RunConfig, target: Target) -> MemoryUse:
        if not answers:
            raise KeyboardInterrupt
        return answers.pop()

    monkeypatch.setattr(runs, "measure_once", interrupted)
    with pytest.raises(ProfileInterrupted) as caught:
        profile(training, device="cpu", checkpointing=True)
    first, second = caught.value.result.checkpointing
    assert first.measured_allocated_peak_bytes is not None
    assert second.measured_allocated_peak_bytes is None
    assert caught.value.result.measured is not None
    assert caught.value.result.verdict is not None


def is_worker(process: str) -> bool:
    """Whether a process is a measurement's, and not the browser of other tests, or gone."""
    try:
        return b"measure.worker" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def test_outside_kill_is_said_and_the_rest_is_kept() -> None:
    """As when an administrator ends the child: by its number, from another thread."""

    def kill_worker() -> None:
        own = Path(f"/proc/{os.getpid()}/task/{main}/children")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in own.read_text().split():
                if is_worker(child):
                    os.kill(int(child), signal.SIGKILL)
                    return
            time.sleep(0.01)

    main = threading.get_native_id()
    killer = threading.Thread(target=kill_worker)
    killer.start()
    with pytest.raises(MeasurementFailedError, match="killed by SIGKILL") as caught:
        profile(TINY, device="cpu")
    killer.join()
    assert caught.value.result.simulated is not None
    assert "killed by SIGKILL" in str(caught.value.result.measured_reason)
