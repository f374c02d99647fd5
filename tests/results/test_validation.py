"""How a case of a validation ends, and what a whole one exits with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.report.records import record
from tritter_mem.results.run import Components, Environment, MemoryUse, OutOfMemory
from tritter_mem.results.validation import SCHEMA, Validated, Validation
from tritter_mem.results.verdict import compare
from tritter_mem.units import GiB, MiB

REFUSED = OutOfMemory(
    operator="aten.mm", module="m", phase="prefill", requested_bytes=MiB, allocated_bytes=GiB,
    reserved_bytes=GiB, limit_bytes=GiB,
)  # fmt: skip


def use(allocated: int, reserved: int | None = None, device: str = "cuda:0") -> MemoryUse:
    return MemoryUse(
        device=device, components=Components(weights_bytes=allocated), phases=(),
        allocated_peak_bytes=allocated, reserved_peak_bytes=reserved,
    )  # fmt: skip


def validated(
    planned: int = GiB, simulated: int = GiB, measured: int | None = GiB, *,
    reserved: tuple[int, int] = (2 * GiB, 2 * GiB), name: str = "tiny-int4", **parts: Any,
) -> Validated:  # fmt: skip
    """A case with these peaks."""
    found = {"planned": use(planned), "simulated": use(simulated, reserved[0])}
    if measured is not None:
        found["measured"] = use(measured, reserved[1])
    result = record(name, **found, differences=compare(found))  # type: ignore[arg-type]
    return Validated(name=name, key="0123456789abcdef", result=result, **parts)


def validation(*cases: Validated, **parts: Any) -> Validation:
    made = {"created": "2026-01-02T03:04:05+00:00", "tool_version": "0", "device": "NVIDIA H100"}
    return Validation(cases=cases, environment=Environment(python="3.12"), **(made | parts))


@pytest.mark.parametrize(
    ("case", "status"),
    [
        (validated(), "within"),
        (validated(measured=GiB + GiB // 250), "within"),
        (validated(planned=GiB, simulated=GiB, measured=GiB + GiB // 150), "beyond"),
        (validated(planned=GiB - GiB // 40), "beyond"),
        (validated(planned=GiB - GiB // 60), "within"),
        (validated(reserved=(2 * GiB, 2 * GiB + GiB // 60)), "within"),
        (validated(reserved=(2 * GiB, 2 * GiB + GiB // 40)), "beyond"),
        (validated(measured=None), "not measured"),
        (validated(problem="killed"), "not measured"),
        (Validated(name="a", key="b", result=None, problem="no such card"), "not measured"),
    ],
)
def test_a_case_ends_by_its_worst_error(case: Validated, status: str) -> None:
    assert case.status == status


def test_more_and_less_than_measured_are_alike_beyond() -> None:
    assert validated(simulated=GiB + GiB // 100).status == "beyond"
    assert validated(simulated=GiB - GiB // 100).status == "beyond"


def test_out_of_memory_is_an_answer_and_not_within() -> None:
    case = validated()
    assert case.result is not None
    assert case.result.measured is not None
    measured = replace(case.result.measured, out_of_memory=REFUSED)
    ended = replace(case, result=replace(case.result, measured=measured))
    assert ended.status == "out of memory"
    assert validation(ended).exit_code == 1


@pytest.mark.parametrize(
    ("cases", "code"),
    [
        ([], 0),
        ([validated()], 0),
        ([validated(), validated(simulated=2 * GiB)], 1),
        ([validated(), validated(measured=None)], 3),
        ([validated(measured=None), validated(simulated=2 * GiB)], 1),
    ],
)
def test_exit_code_is_that_of_the_worst_case(cases: list[Validated], code: int) -> None:
    assert validation(*cases).exit_code == code


def test_document_has_the_figures_and_not_the_records() -> None:
    document = validation(validated(measured=GiB + GiB // 100)).to_dict()
    assert document["schema"] == SCHEMA
    assert document["tolerances"] == {
        "planned_vs_measured": 0.02, "simulated_vs_measured": 0.005, "reserved": 0.01,
    }  # fmt: skip
    (case,) = document["cases"]
    assert case["status"] == "beyond"
    assert [peak["name"] for peak in case["peaks"]] == ["allocated_peak", "reserved_peak"]
    assert case["peaks"][0]["simulated_vs_measured"] == pytest.approx(0.01)
    assert "result" not in case
