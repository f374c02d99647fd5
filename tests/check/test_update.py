"""What an update writes: new figures, what was set by hand, and entries of other machines."""

from dataclasses import replace

from tests.check.build import EXACT, entry, figures
from tests.report.records import training_1b
from tritter_mem.check.compare import Rules
from tritter_mem.check.tasks import (
    Profiled,
    Task,
    from_file,
    listed_tasks,
    outcomes_of,
    update,
    updated,
)
from tritter_mem.results.baseline import CHECKED_KINDS, PROFILED_KINDS, Baseline, Case
from tritter_mem.results.check import CheckReport
from tritter_mem.units import GiB

TASK = Task(case=Case(config="1b"), kinds=PROFILED_KINDS)


def test_each_kind_is_an_entry_and_then_nothing_differs() -> None:
    profiled = [Profiled(task=TASK, result=training_1b())]
    baseline, outcomes = update(Baseline(), profiled)
    assert baseline is not None
    assert [(e.kind, e.gpu) for e in baseline.entries] == [
        ("measured", "NVIDIA H100 80GB HBM3"), ("simulated", "rtx-5080"),
    ]  # fmt: skip
    assert [outcome.status for outcome in outcomes] == ["added", "added"]
    checked = outcomes_of(profiled, baseline, Rules(relative=0.0, absolute_bytes=0))
    assert [outcome.status for outcome in checked] == ["ok", "ok"]
    again, unchanged = update(baseline, profiled)
    assert again == baseline
    assert [outcome.status for outcome in unchanged] == ["ok", "ok"]


def test_where_one_kind_is_missing_there_is_no_new_baseline() -> None:
    unmeasured = replace(training_1b(), measured=None, measured_reason="no CUDA device")
    baseline, outcomes = update(Baseline(), [Profiled(task=TASK, result=unmeasured)])
    assert baseline is None
    assert [(o.status, o.message) for o in outcomes] == [
        ("added", ""), ("failed", "no CUDA device"),
    ]  # fmt: skip
    assert CheckReport(baseline="", outcomes=outcomes).exit_code == 3


def test_what_was_set_by_hand_stays_and_goes_over_to_another_torch() -> None:
    before = entry(gate="reserved", tolerance=EXACT)
    now = entry(figures=figures(mlp=GiB))
    same, other = (
        updated(Baseline(entries=(before,)), [one]) for one in (now, replace(now, torch="2.14.0"))
    )
    assert same.entries == (replace(now, gate="reserved", tolerance=EXACT),)
    assert other.entries == (
        before, replace(now, torch="2.14.0", gate="reserved", tolerance=EXACT),
    )  # fmt: skip


def test_entries_that_were_not_made_anew_stay() -> None:
    others = (entry("125m"), entry("7b", gpu="l4"), entry("7b", kind="measured"))
    found = updated(Baseline(entries=others), [entry("7b")])
    assert len(found.entries) == 4
    assert all(other in found.entries for other in others)


def test_a_case_is_run_once_for_all_that_is_listed_of_it() -> None:
    entries = (entry(), entry(torch="2.9.0"), entry(kind="measured", gpu="l4"), entry("tiny"))
    baseline = Baseline(entries=entries)
    assert [(task.case.label, task.kinds) for task in listed_tasks(baseline, CHECKED_KINDS)] == [
        ("7b", ["simulated", "measured"]), ("tiny", ["simulated"]),
    ]  # fmt: skip
    assert [task.kinds for task in listed_tasks(baseline, ["measured"])] == [["measured"]]


def test_a_result_of_a_file_finds_its_case_by_content_then_by_a_name_that_is_alone() -> None:
    result = training_1b()
    by_content = entry("mine.yaml", profile_hash=result.profile_hash, fast=True)
    found = from_file(Baseline(entries=(entry("tiny"), by_content)), result)
    assert found.task.case == by_content.case
    named = entry("configs/1b-training.yaml")
    assert from_file(Baseline(entries=(named,)), result).task.case == named.case
    twice = replace(named, settings={"workload.batch": 2})
    found = from_file(Baseline(entries=(named, twice)), result)
    assert found.task.case == Case(config="1b-training")
