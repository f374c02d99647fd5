"""The bundled model really runs on the CPU, and what is reported is what it allocated."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from tritter_mem.errors import MeasureError
from tritter_mem.measure import child, cpu_run
from tritter_mem.measure.child import ChildJob, run_in_child
from tritter_mem.measure.workload import to_plain
from tritter_mem.results.run import MemoryUse
from tritter_mem.units import MiB
from tritter_model.config import ModelConfig, RunConfig

MODEL = ModelConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=128, vocab_size=256,
)  # fmt: skip
INFERENCE = RunConfig(model=MODEL, context=64, prefill_chunk=16, new_tokens=4)
TRAINING = replace(INFERENCE, mode="training")


@pytest.fixture(scope="module", params=["inference", "training"])
def case(request: pytest.FixtureRequest) -> tuple[RunConfig, MemoryUse]:
    run = replace(INFERENCE, mode=request.param)
    return run, cpu_run.measure(run, time_limit_seconds=120)


def test_components_sum_to_the_peak_and_the_peak_is_that_of_a_phase(
    case: tuple[RunConfig, MemoryUse],
) -> None:
    _, measured = case
    assert measured.components.total_bytes == measured.allocated_peak_bytes
    assert measured.allocated_peak_bytes == max(p.allocated_peak_bytes for p in measured.phases)


def test_phases_are_the_runs_without_its_warm_up(case: tuple[RunConfig, MemoryUse]) -> None:
    run, measured = case
    expected = {
        "inference": ["load", "prefill", "decode"],
        "training": ["load", "forward", "backward", "optimizer"],
    }
    assert [phase.name for phase in measured.phases] == expected[run.mode]
    assert all(phase.seconds and phase.seconds > 0 for phase in measured.phases)
    assert measured.tokens_per_second is not None


def test_only_what_a_cpu_has_is_claimed(case: tuple[RunConfig, MemoryUse]) -> None:
    _, measured = case
    assert measured.device == "cpu"
    assert measured.reserved_peak_bytes is None
    assert measured.context_bytes is None
    assert measured.device_peak_bytes is None
    assert measured.fragmentation is None


def test_resident_memory_holds_pytorch(case: tuple[RunConfig, MemoryUse]) -> None:
    _, measured = case
    assert measured.resident_peak_bytes is not None
    assert 100 * MiB < measured.resident_peak_bytes < 2000 * MiB


def test_resident_memory_is_the_childs_own() -> None:
    """The kernel hands a parent's peak on to its children in `ru_maxrss`."""
    ballast = b"x" * (300 * MiB)
    resident = run_in_child(
        ChildJob(
            function="tritter_mem.measure.cpu_run:resident_peak_bytes",
            arguments={},
            time_limit_seconds=60,
        )
    )
    assert 5 * MiB < resident < len(ballast)


def test_bytes_are_the_same_each_time(case: tuple[RunConfig, MemoryUse]) -> None:
    run, first = case
    second = cpu_run.run_case(to_plain(run))
    assert asdict(first.components) == second["components"]
    assert first.timeline is not None
    assert asdict(first.timeline) == second["timeline"]


def test_weights_follow_the_architecture(case: tuple[RunConfig, MemoryUse]) -> None:
    """The embedding and the output projection: two tables, and nothing else carries the label."""
    run, measured = case
    per_value = 2 if run.mode == "inference" else 4
    tables = 2 * MODEL.vocab_size * MODEL.hidden_size * per_value
    assert measured.components.embeddings_bytes == tables


def test_time_limit_holds() -> None:
    with pytest.raises(MeasureError, match=r"ended at its time limit of 0\.05 s"):
        cpu_run.measure(INFERENCE, time_limit_seconds=0.05)


def test_failing_run_says_what_failed() -> None:
    broken = replace(INFERENCE, model=replace(MODEL, embedding_dtype="float3"))
    with pytest.raises(MeasureError, match=r"the run failed with exit code 1: .*float3"):
        cpu_run.measure(broken, time_limit_seconds=120)


@pytest.mark.parametrize("answer", [{}, {"device": "cpu"}, [], 3, {"device": 3, "phases": "x"}])
def test_result_that_is_none_is_an_error(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "run_in_child", lambda job: answer)
    with pytest.raises(MeasureError, match="the run left a result that cannot be read"):
        cpu_run.measure(INFERENCE, time_limit_seconds=1)
