"""What a test over its budget or its baseline says, and the table at the end."""

from dataclasses import replace

from tests.check.build import every_status, regression
from tests.report.records import planned_7b
from tritter_mem.report.budget_report import UPDATE, against_baseline, over_budget, summary
from tritter_mem.report.words import MINUS
from tritter_mem.results.run import Result, Verdict
from tritter_mem.units import GiB, MiB


def simulated(need_bytes: int, budget_bytes: int) -> Result:
    """The planned 7B, said to be simulated with another need."""
    planned = planned_7b()
    assert planned.planned is not None
    use = replace(
        planned.planned, reserved_peak_bytes=need_bytes - 512 * MiB, device_peak_bytes=need_bytes
    )
    headroom = budget_bytes - need_bytes
    verdict = Verdict(
        fits=headroom >= 0, budget_bytes=budget_bytes, headroom_bytes=headroom, basis="simulated"
    )
    return replace(planned, simulated=use, verdict=verdict)


def test_the_figure_is_the_device_peak_and_its_parts_are_said() -> None:
    result = simulated(23 * GiB, 22 * GiB)
    assert result.verdict is not None
    text = over_budget(result, result.verdict)
    assert text.splitlines()[:3] == [
        "does not fit: needs 23.00 GiB (simulated), 1.00 GiB over the budget of 22.00 GiB",
        "  the need is the device peak: 22.50 GiB reserved by PyTorch, 512.0 MiB CUDA context",
        "  component KV cache: 17.00 GiB of 19.81 GiB allocated at the peak",
    ]


def test_what_the_plan_has_nothing_against_is_said_and_only_then() -> None:
    said = "`plan` suggests nothing: by its formulas 20.33 GiB, which fits"
    for budget, expected in ((22 * GiB, True), (18 * GiB, False)):
        result = simulated(23 * GiB, budget)
        assert result.verdict is not None
        assert (said in over_budget(result, result.verdict)) is expected


def test_a_regression_names_what_grew_and_all_else_says_how_to_accept_it() -> None:
    grew = against_baseline(regression())
    assert grew.startswith("regression: allocated peak 8.00 GiB → 8.50 GiB, +512.0 MiB")
    assert "\n  component Activations: 2.00 GiB → 2.50 GiB" in grew
    assert "\n  module Transformer.layers.*.mlp (Activations)" in grew
    told = {o.status: against_baseline(o) for o in every_status().outcomes if o.exit_code == 2}
    assert set(told) == {"no entry", "other torch", "other profile"}
    for status, text in told.items():
        assert text.startswith(f"{status}: ")
        assert text.endswith(f"; if that is intended: {UPDATE}")
        assert "check --update-baseline" not in text


def test_the_table_uses_the_width_and_counts_gains() -> None:
    result = simulated(7 * GiB, 8 * GiB)
    gains = {o.label: o for o in every_status(result.name).outcomes if o.status == "gain"}
    narrow, wide = summary([result], gains, 80), summary([result], gains, 120)
    assert not any("simulated" in line for line in narrow)
    assert any("simulated  rtx-5080" in line for line in wide)
    assert all(len(line) <= 80 for line in narrow[:-1])
    assert narrow[-1].startswith("1 smaller than the baseline: tighten it")
    assert any(line.endswith(f"{MINUS}1.00 GiB gain") for line in narrow)
