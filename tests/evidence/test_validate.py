"""The list that is validated, what finished figures depend on, and cases that fail."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.records import record
from tritter_mem.config.loading import load_profile, profile_hash
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError, MeasureError, SimulationError
from tritter_mem.evidence import validate as module
from tritter_mem.evidence.validate import (
    CASES,
    Conditions,
    bundled,
    code_digest,
    conditions_on,
    figure_sources,
    named,
    that_fit,
    validate,
)
from tritter_mem.measure.target import LocatedDevice, MeasureOptions, locate
from tritter_mem.profiling.profiler import MeasurementFailedError
from tritter_mem.results.run import Result
from tritter_mem.results.validation import Validated

HERE = Conditions(
    device="NVIDIA H100", torch="2.11.0", driver="580.1", tool_version="0.1", code="0" * 16
)
CPU = MeasureOptions(device="cpu")
H100 = find_gpu("h100")


def none_kept(name: str, key: str) -> None:
    """Nothing was finished before."""


def run(cases: list[Profile], kept: Any = none_kept) -> list[Validated]:
    return list(validate(cases, HERE, kept, options=CPU, device=LocatedDevice(card=None)))


def test_every_case_of_the_list_is_a_profile_of_its_own() -> None:
    cases = bundled(H100, None)
    assert len({case.name for case in cases}) == len(cases) == len(CASES)
    assert len({profile_hash(case) for case in cases}) == len(cases)


def test_the_list_has_every_cache_type_optimizer_and_size() -> None:
    cases = bundled(H100, None)
    tiny = {c.kv_cache.dtype for c in cases if c.name.startswith("tiny")}
    assert tiny == {"bfloat16", "float16", "fp8", "int8", "int4", "int2"}
    trained = [case for case in cases if case.workload.mode == "training"]
    assert {case.training.optimizer for case in trained} == {"adamw", "adamw-8bit", "sgd"}
    assert len({case.training.checkpointing.policy for case in trained}) >= 5
    sizes = {case.name.partition("-")[0] for case in cases}
    assert sizes == {"tiny", "125m", "1b", "3b"}


def test_on_the_cpu_the_list_is_what_it_runs_in_seconds() -> None:
    assert {case.model.hidden_size for case in bundled(None, None)} == {128}


def test_a_large_card_holds_the_whole_list_and_a_small_one_leaves_out() -> None:
    cases = bundled(H100, None)
    assert that_fit(cases, H100) == (cases, ())
    fitting, left = that_fit(cases, find_gpu("rtx-4060"))
    assert {one.name for one in left} | {case.name for case in fitting} == {c.name for c in cases}
    assert left
    assert all(one.needs_bytes > one.budget_bytes for one in left)


def test_a_budget_is_one_of_the_card_that_measures() -> None:
    (case,) = named(["7b-128k-gqa"], H100, "60GiB")  # more than the profile's card has
    assert (case.gpu.name, case.gpu.budget) == ("auto", 60 * 2**30)
    _, left = that_fit(bundled(H100, "2GiB"), H100)
    assert {one.budget_bytes for one in left} == {2 * 2**30}


def test_every_wrong_profile_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        named(["nonesuch", "tiny", "nothing"], None, None)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("field", [field.name for field in fields(Conditions)])
def test_key_depends_on_every_condition(field: str) -> None:
    tiny = load_profile("tiny")
    assert replace(HERE, **{field: "another"}).key(tiny) != HERE.key(tiny)


def test_key_depends_on_the_profile_s_content_and_not_on_its_name() -> None:
    tiny = load_profile("tiny")
    assert HERE.key(load_profile("tiny", {"name": "same"})) == HERE.key(tiny)
    assert HERE.key(load_profile("tiny", {"workload.context": 256})) != HERE.key(tiny)


def test_code_that_figures_come_from_is_a_condition_and_code_that_shows_them_is_not() -> None:
    root = Path(module.__file__).parents[1]
    inside = [path for path in figure_sources() if path.is_relative_to(root)]
    parts = {path.relative_to(root).parts[0] for path in inside}
    assert {"allocator", "config", "devices", "measure", "models", "planner", "simulation"} < parts
    assert "torch_release.py" in parts
    assert not {"cli", "report", "evidence"} & parts
    assert any(path.name == "transformer.py" for path in figure_sources())


def test_the_driver_is_no_condition_of_the_cpu() -> None:
    found = conditions_on(None, 0)
    assert (found.device, found.driver, found.code) == ("cpu", None, code_digest())


def test_one_failed_case_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    partly = record("a", measured_reason="killed")
    ends: dict[str, Any] = {
        "a": MeasurementFailedError("killed", result=partly),
        "b": SimulationError("cannot be simulated"),
        "c": MeasureError("no device"),
        "d": ZeroDivisionError("division by zero"),
        "e": record("e"),
    }

    def answer(case: Profile, **how: Any) -> Result:
        end = ends[case.name]
        if isinstance(end, Exception):
            raise end
        assert isinstance(end, Result)
        return end

    monkeypatch.setattr(module, "profile", answer)
    found = run([load_profile("tiny", {"name": name}) for name in ends])
    assert [case.problem for case in found] == [
        "killed", "cannot be simulated", "no device", "ZeroDivisionError: division by zero", "",
    ]  # fmt: skip
    assert [case.result for case in found] == [partly, None, None, None, ends["e"]]


def test_what_is_finished_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "profile", None)
    case = load_profile("tiny")
    finished = {("tiny", HERE.key(case)): record("tiny")}
    (found,) = run([case], lambda name, key: finished.get((name, key)))
    assert found.kept
    assert found.result == record("tiny")


def test_cases_come_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(case: Profile, **how: Any) -> Result:
        asked.append(case.name)
        return record(case.name)

    monkeypatch.setattr(module, "profile", answer)
    cases = [load_profile("tiny", {"name": name}) for name in "ab"]
    next(validate(cases, HERE, none_kept, options=CPU, device=LocatedDevice(card=None)))
    assert asked == ["a"]


@pytest.mark.gpu
def test_tiny_on_a_gpu_is_within_the_tolerances() -> None:
    options = MeasureOptions(device="cuda")
    device = locate(options)
    card = device.card
    cases = [case for case in bundled(card, None) if case.name == "tiny-int4"]
    (found,) = validate(cases, conditions_on(card, 0), none_kept, options=options, device=device)
    assert found.status == "within", (found.problem, list(found.errors()))
