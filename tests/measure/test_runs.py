"""Repeated runs: the median one, the spread, and what stands when one fails."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import MeasureError
from tritter_mem.measure import runs
from tritter_mem.measure.runs import PartlyMeasuredError, figures_of, measure, together
from tritter_mem.measure.target import Target
from tritter_mem.models.user_code import ModuleCase
from tritter_mem.results.run import Components, MemoryUse, OutOfMemory, Phase

WORK = ModuleCase(path="code.py", function="build")
REFUSED = OutOfMemory(operator="", module="", phase="load", requested_bytes=1, allocated_bytes=0,
                      reserved_bytes=0, limit_bytes=0)  # fmt: skip


def run(allocated: int, seconds: float, reserved: int | None = None) -> MemoryUse:
    phases = (
        Phase(name="load", allocated_peak_bytes=1, seconds=100.0),
        Phase(name="decode", allocated_peak_bytes=allocated, seconds=seconds),
    )
    return MemoryUse(device="cpu", components=Components(), phases=phases,
                    allocated_peak_bytes=allocated, reserved_peak_bytes=reserved)  # fmt: skip


@given(
    st.lists(st.builds(run, st.integers(1, 9), st.floats(0.1, 9), st.integers(1, 9)), min_size=2)
)
def test_median_run_is_one_of_them_and_lies_within_the_spread(found: list[MemoryUse]) -> None:
    whole = together(found)
    assert replace(whole, spread=None) in found
    spread = whole.spread
    assert spread is not None
    assert spread.runs == len(found)
    for name in ("allocated_peak_bytes", "reserved_peak_bytes", "seconds"):
        values = sorted(getattr(figures_of(one), name) for one in found)
        assert getattr(spread.minimum, name) == values[0]
        assert getattr(spread.median, name) == values[(len(values) - 1) // 2]
        assert getattr(spread.maximum, name) == values[-1]


def test_loading_does_not_count_as_the_run() -> None:
    assert figures_of(run(1, 2.5)).seconds == 2.5


def test_equal_bytes_leave_the_choice_to_the_seconds() -> None:
    whole = together([run(5, 3.0), run(5, 1.0), run(5, 2.0)])
    assert whole.phases[1].seconds == 2.0


def test_single_run_has_no_spread() -> None:
    assert together([run(5, 1.0)]).spread is None


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[MemoryUse | MeasureError]:
    """What the runs on the CPU come to, one after another."""
    left: list[MemoryUse | MeasureError] = []

    def answer(work: object, limit: float) -> MemoryUse:
        found = left.pop(0)
        if isinstance(found, MeasureError):
            raise found
        return found

    monkeypatch.setattr(runs.cpu_run, "measure", answer)
    return left


def on_the_cpu(repeat: int) -> Target:
    return Target(device="cpu", repeat=repeat, fitted=find_gpu("h100"))


def test_failed_repetition_keeps_the_runs_before(answers: list[MemoryUse | MeasureError]) -> None:
    answers += [run(5, 1.0), run(5, 2.0), MeasureError("killed by SIGKILL"), run(5, 3.0)]
    with pytest.raises(PartlyMeasuredError, match="run 3 of 4: killed by SIGKILL") as caught:
        measure(WORK, on_the_cpu(4))
    assert caught.value.use.spread is not None
    assert caught.value.use.spread.runs == 2


def test_failed_first_run_is_the_error(answers: list[MemoryUse | MeasureError]) -> None:
    answers += [MeasureError("no memory"), run(5, 1.0)]
    with pytest.raises(MeasureError, match="no memory") as caught:
        measure(WORK, on_the_cpu(2))
    assert not isinstance(caught.value, PartlyMeasuredError)


def test_run_that_goes_out_of_memory_is_the_answer(answers: list[MemoryUse | MeasureError]) -> None:
    answers += [run(5, 1.0), replace(run(4, 1.0), out_of_memory=REFUSED), run(5, 1.0)]
    found = measure(WORK, on_the_cpu(3))
    assert found.out_of_memory is not None
    assert len(answers) == 1


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """What is asked of the device, by name; components come back known."""
    asked: list[str] = []

    def recorded(measured: MemoryUse, work: object, target: object) -> MemoryUse:
        asked.append("record")
        return replace(measured, components=Components(weights_bytes=5))

    def snapshot(work: object, target: object) -> None:
        asked.append("snapshot")
        raise MeasureError("--snapshot: s cannot be written: No space left on device")

    monkeypatch.setattr(runs, "measure_once", lambda *a: asked.append("measure") or run(5, 1.0))
    monkeypatch.setattr(runs, "with_recorded_components", recorded)
    monkeypatch.setattr(runs, "save_snapshot", snapshot)
    return asked


def test_components_and_snapshot_have_runs_of_their_own(on_a_gpu: Sequence[str]) -> None:
    h100 = find_gpu("h100")
    target = Target(device="cuda", repeat=2, card=h100, fitted=h100)
    with pytest.raises(PartlyMeasuredError, match="No space left on device") as caught:
        measure(WORK, target)
    assert on_a_gpu == ["measure", "measure", "record", "snapshot"]
    assert caught.value.use.components_known
