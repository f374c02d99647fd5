"""What is a regression, what is a gain, what is neither, and why."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.check.build import PEAK, checked, entry, every_status, figures, regression
from tests.report.records import record, training_1b, training_use
from tritter_mem.check.compare import Rules, entry_of, explain, figures_of
from tritter_mem.results.baseline import Case, Entry, Tolerance
from tritter_mem.results.check import CheckReport
from tritter_mem.results.run import HeldBySame, Holding
from tritter_mem.units import GiB, MiB


def grown(by: int) -> Entry:
    return entry(figures=figures(mlp=2 * GiB + by))


@given(peak=st.integers(0, 1 << 45), percent=st.integers(0, 100), absolute=st.integers(0, 1 << 40))
def test_a_peak_may_move_by_the_larger_of_the_two(peak: int, percent: int, absolute: int) -> None:
    allowed = Tolerance(relative=percent / 100, absolute_bytes=absolute).of(peak)
    assert allowed == pytest.approx(max(peak * percent / 100, absolute), abs=1)
    assert allowed >= absolute


def test_growth_up_to_the_tolerance_is_none_and_a_byte_more_is() -> None:
    allowed = int(0.01 * PEAK)
    assert checked(grown(allowed), entry()).status == "ok"
    assert checked(grown(allowed + 1), entry()).status == "regression"
    assert checked(grown(-allowed), entry()).status == "ok"
    assert checked(grown(-allowed - 1), entry()).status == "gain"


def test_only_a_regression_of_those_exits_1() -> None:
    codes = [outcome.exit_code for outcome in every_status().outcomes]
    statuses = [outcome.status for outcome in every_status().outcomes]
    assert dict(zip(statuses, codes, strict=True)) == {
        "ok": 0, "regression": 1, "gain": 0, "no entry": 2, "other torch": 2, "other profile": 2,
        "failed": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("dropped", "code"),
    [((), 1), (("regression",), 3), (("regression", "failed"), 2)],
)
def test_the_gravest_outcome_gives_the_exit_code(dropped: tuple[str, ...], code: int) -> None:
    outcomes = tuple(o for o in every_status().outcomes if o.status not in dropped)
    assert CheckReport(baseline="", outcomes=outcomes).exit_code == code


def test_the_tolerance_of_the_command_line_comes_before_the_entrys_and_the_baselines() -> None:
    strict = Tolerance(relative=0.0, absolute_bytes=0)
    own = entry(tolerance=Tolerance(relative=0.5))
    assert checked(grown(1), entry(), tolerance=strict).status == "regression"
    assert checked(grown(1), own, tolerance=strict).status == "ok"
    rules = Rules(relative=0.0, absolute_bytes=0)
    assert checked(grown(1), own, rules=rules).status == "regression"


def test_the_reserved_peak_informs_unless_it_is_told_to_decide() -> None:
    now = entry(figures=figures(reserved=12 * GiB))
    assert checked(now, entry()).status == "ok"
    assert checked(now, entry(), gate="reserved").status == "regression"
    assert checked(now, entry(gate="reserved")).status == "regression"
    assert checked(now, entry(gate="reserved"), rules=Rules(gate="allocated")).status == "ok"


def test_a_gate_that_the_figures_lack_is_no_pass() -> None:
    bare = entry(figures=replace(figures(), reserved_peak_bytes=None))
    outcome = checked(bare, bare, gate="reserved")
    assert (outcome.status, outcome.exit_code) == ("failed", 2)


def test_another_torch_is_held_against_the_newest_and_decides_nothing() -> None:
    old, newer = entry(torch="2.9.1"), entry(torch="2.12.0")
    outcome = checked(grown(GiB), old, newer, entry(torch="2.13.0", gpu="l4"))
    assert outcome.status == "other torch"
    assert "the baseline is of torch 2.12.0, this is 2.13.0" in outcome.message
    assert outcome.allocated is not None
    assert outcome.allocated.growth_bytes == GiB


def test_an_entry_for_another_gpu_is_no_entry_and_is_named() -> None:
    outcome = checked(entry(), entry(gpu="NVIDIA H100 80GB HBM3"))
    assert outcome.status == "no entry"
    assert outcome.message.startswith("the baseline has it for NVIDIA H100 80GB HBM3 alone")


def test_what_grew_is_named_by_component_phase_and_module() -> None:
    found = {(r.group, r.name, r.component): r.change.growth_bytes for r in regression().reasons}
    assert found == {
        ("component", "activations", ""): 512 * MiB,
        ("phase", "prefill", ""): 512 * MiB,
        ("module", "Transformer.layers.*.mlp", "activations"): 512 * MiB,
    }


def test_what_moved_the_peak_most_comes_first() -> None:
    before = figures()
    after = replace(before, allocated_peak_bytes=PEAK + GiB, components={
        "activations": 4 * GiB, "weights": 5 * GiB + 1, "logits": 7,
    })  # fmt: skip
    names = [r.name for r in explain(before, after, "allocated") if r.group == "component"]
    assert names == ["activations", "logits", "weights", "kv_cache"]
    shrunk = [r.name for r in explain(after, before, "allocated") if r.group == "component"]
    assert shrunk == ["activations", "logits", "weights", "kv_cache"]


def test_modules_are_not_compared_where_one_side_knows_none() -> None:
    bare = replace(figures(), held_at_peak=())
    assert not [r for r in explain(bare, figures(), "allocated") if r.group == "module"]


def test_figures_keep_the_layers_of_a_model_together() -> None:
    use = replace(
        training_1b().by_kind()["simulated"],
        peak_at="backward: Transformer.layers.17.down (aten.mm)",
        held_at_peak=tuple(
            Holding(module=f"Transformer.layers.{i}", component="kv_cache", allocated_bytes=i)
            for i in range(4)
        ),
    )
    kept = figures_of(use)
    assert kept.peak_at == "backward: Transformer.layers.*.down (aten.mm)"
    assert kept.held_at_peak == (
        HeldBySame(module="Transformer.layers.*", component="kv_cache", count=4, allocated_bytes=6),
    )
    assert sum(kept.components.values()) == use.components.total_bytes
    assert set(kept.phases) == {"forward", "backward", "optimizer"}


def test_an_entry_is_named_by_the_card_it_ran_on_and_by_torch_without_its_build() -> None:
    result = training_1b()
    simulated = entry_of(Case(config="1b"), "simulated", result)
    measured = entry_of(Case(config="1b"), "measured", result)
    assert simulated.key == ("1b", "simulated", "rtx-5080", "2.13.0")
    assert measured.key == ("1b", "measured", "NVIDIA H100 80GB HBM3", "2.13.0")
    parts = training_1b().by_kind()["measured"].components
    on_cpu = record(measured=training_use("cpu", parts, None))
    assert entry_of(Case(config="1b"), "measured", on_cpu).gpu == "cpu"


def test_a_case_is_called_by_its_profile_and_its_settings_in_order() -> None:
    case = Case(config="1b", settings={"workload.mode": "training", "gpu.budget": None})
    assert case.label == "1b gpu.budget=null workload.mode=training"
