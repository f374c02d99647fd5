"""A stand-in for CUDA's libraries says what it is, and what runs over it is rehearsed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritter_mem.check import budget
from tritter_mem.config.loading import load_profile
from tritter_mem.devices import cuda
from tritter_mem.devices.cuda import STANDIN_VERSION, CudaDevice
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.evidence.validate import refuse_rehearsed_evidence
from tritter_mem.measure import runs, target
from tritter_mem.measure.target import STANDIN, LocatedDevice
from tritter_mem.profiling import profiler
from tritter_mem.profiling.profiler import MeasurementFailedError, ProfileInterrupted, profile
from tritter_mem.results.run import Components, MemoryUse, Phase

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tritter_mem/rehearsal/driver"
ASK = """
import ctypes, sys
from tritter_mem.devices.cuda import is_standin
before = is_standin()
ctypes.CDLL(sys.argv[1])
print(before, is_standin())
"""
TINY = load_profile("tiny")
RAN = MemoryUse(
    device="cuda:0", components=Components(weights_bytes=1000),
    phases=(Phase(name="decode", allocated_peak_bytes=1000, seconds=1.0),),
    allocated_peak_bytes=1000, reserved_peak_bytes=2000, context_bytes=10,
)  # fmt: skip


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("function", "after"), [(STANDIN_VERSION, "True"), ("cuInit", "False")], ids=["standin", "cuda"]
)
def test_the_driver_s_library_is_asked_once_it_is_loaded(
    function: str, after: str, tmp_path: Path
) -> None:
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(f"int {function}(void) {{ return 1; }}\n")
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(source)], check=True)
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(library)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert asked.stdout.split() == ["False", after]


def test_the_stand_in_has_the_function_that_is_looked_for() -> None:
    assert f"int {STANDIN_VERSION}(void)" in (DRIVER / "driver.c").read_text()


@pytest.mark.parametrize(("standin", "kind"), [(True, "rehearsed"), (False, "measured")])
def test_a_cuda_device_says_what_its_figures_are(
    standin: bool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "is_standin", lambda: standin)
    assert CudaDevice(0).kind == kind
    assert budget._record(RAN).by_kind() == {kind: RAN}


@pytest.fixture
def _over_standin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in is found, and each run on it comes to the same."""
    found = LocatedDevice(card=find_gpu("h100"), standin=True)
    monkeypatch.setattr(target, "locate", lambda options: found)
    monkeypatch.setattr(runs, "measure", lambda work, target: RAN)
    monkeypatch.setattr(runs, "measure_once", lambda work, target: RAN)


@pytest.mark.usefixtures("_over_standin")
def test_a_profile_over_stand_ins_is_rehearsed_and_says_why_it_is_not_measured() -> None:
    result = profile(TINY, device="cuda")
    assert result.rehearsed == RAN
    assert (result.measured, result.measured_reason) == (None, STANDIN)
    assert result.verdict is not None
    assert result.verdict.basis == "rehearsed"
    assert any(row.simulated_vs_rehearsed is not None for row in result.differences)


@pytest.mark.usefixtures("_over_standin")
def test_a_rehearsal_that_fails_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(work: object, target: object) -> None:
        raise MeasureError("the run was killed")

    monkeypatch.setattr(profiler.runs, "measure", fail)
    with pytest.raises(MeasurementFailedError, match="the run was killed") as caught:
        profile(TINY, device="cuda")
    result = caught.value.result
    assert (result.rehearsed, result.rehearsed_reason) == (None, "the run was killed")
    assert (result.measured, result.measured_reason) == (None, STANDIN)


@pytest.mark.usefixtures("_over_standin")
def test_policies_and_ladders_over_stand_ins_are_not_called_measured() -> None:
    small = {"workload.mode": "training", "workload.context": 64, "gpu.budget": "1 MiB"}
    result = profile(load_profile("tiny", small), device="cuda", checkpointing=True, ladder=True)
    assert {case.measured_reason for case in result.checkpointing} == {STANDIN}
    assert {case.measured_allocated_peak_bytes for case in result.checkpointing} == {None}
    assert [ladder.kind for ladder in result.ladders] == ["simulated", "rehearsed"]


def test_an_interruption_elsewhere_has_nothing_to_say_of_a_rehearsal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiler, "simulate", interrupt)
    with pytest.raises(ProfileInterrupted) as caught:
        profile(TINY, device="none")
    assert caught.value.result.rehearsed_reason is None


@pytest.mark.parametrize("folder", ["reports", "reports/nvidia-h100", "out/../reports/x"])
def test_what_is_rehearsed_stays_out_of_the_reports(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"--output: got .*, expected a folder outside of reports"):
        refuse_rehearsed_evidence(Path(folder))
    refuse_rehearsed_evidence(Path("out/standin"))
