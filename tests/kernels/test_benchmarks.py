"""The logic of the kernels' benchmarks, on the CPU with tiny shapes and clocks that are given."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import linears, smoke, step, timing, variants
from benchmarks.card import Card, standing_for
from benchmarks.rows import Refused
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.bundled import run_settings
from tritter_model.ops.registry import Operator, _library

ROOT = Path(__file__).parents[2]
ON_CPU = Card("CPU", 0, 4, 0, device="cpu")
ON_META = replace(ON_CPU, device="meta")
TINY = smoke.Sizes(
    hidden=64, intermediate=48, vocabulary=96, tokens=17, loss_chunk=8, heads=4, kv_heads=2,
    width=32, context=300, behind=140,
)  # fmt: skip

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run compiled here")


@pytest.fixture
def on_cpu() -> Iterator[None]:
    with standing_for(ON_CPU):
        yield


@pytest.mark.parametrize(("each", "wanted"), [(0.02, 3), (1.0, 1)])
def test_a_card_is_warm_after_so_much_time_and_one_launch_at_least(
    each: float, wanted: int
) -> None:
    moments = [0.0]
    timing.warm(lambda: moments.append(moments[-1] + each), lambda: None, lambda: moments[-1])
    assert len(moments) - 1 == wanted
    assert moments[-1] >= timing.WARM_SECONDS >= 0.05


@pytest.mark.parametrize(
    ("inputs", "each_us", "launched"),
    [(1, 7, 16), (3, 7, 16), (40, 7, 40), (1, 2000, 1), (3, 2000, 3)],
)
def test_a_graph_has_sixteen_short_launches_at_least_and_every_input(
    monkeypatch: pytest.MonkeyPatch, inputs: int, each_us: float, launched: int
) -> None:
    captured: list[Any] = []

    class Graph:
        def replay(self) -> None:
            """Nothing: its time is given."""

    def capture(launches: list[Any]) -> Graph:
        captured.extend(launches)
        return Graph()

    monkeypatch.setattr(timing, "_captured", capture)
    monkeypatch.setattr(timing, "_elapsed_us", lambda launch: each_us)
    monkeypatch.setattr(timing, "_runs", lambda launch: [launched * 7.0] * 5)
    launches = [lambda i=i: i for i in range(inputs)]
    with standing_for(replace(ON_CPU, device="cuda")):
        assert timing.time_graph(launches) == timing.Timing(7.0, 7.0, 7.0)
    assert len(captured) == launched
    assert {launch() for launch in captured} == set(range(inputs))


@pytest.mark.parametrize(("each_us", "runs"), [(10.0, 25), (40_000.0, 13), (9e6, 5)])
def test_long_runs_are_fewer(each_us: float, runs: int) -> None:
    assert len(list(timing._as_many_as_fit(lambda: each_us))) == runs


def test_what_cannot_be_timed_is_launched_once_and_has_no_time(on_cpu: None) -> None:
    launched: list[int] = []
    found = timing.time_graph([lambda: launched.append(1), lambda: launched.append(2)])
    assert launched == [1]
    assert found.median_us != found.median_us


@interpreted
@pytest.mark.parametrize("case", list(smoke.cases(TINY)), ids=lambda case: case.name)
def test_every_operator_passes_where_its_kernel_is_right(on_cpu: None, case: smoke.Case) -> None:
    figures = smoke.check(case)
    assert figures["differences"]


@interpreted
def test_a_kernel_that_computes_something_else_is_named(
    on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritter_model.ops import gated_relu2

    right = gated_relu2._gated_relu2_rows.launch
    assert right is not None

    def wrong(x: Any, codes: Any, scale: Any, total: Any) -> None:
        right(x, codes, scale, total)
        codes[0, 3] += 5

    monkeypatch.setattr(gated_relu2._gated_relu2_rows, "launch", wrong)
    [case] = [case for case in smoke.cases(TINY) if case.name == "gate, quantised, 17 tokens"]
    with pytest.raises(Refused, match=r"MISMATCH: gate, quantised, 17 tokens: .* of \[17.*off by"):
        smoke.check(case)


def test_results_that_are_no_numbers_differ() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert smoke.difference(nan, torch.ones(2))["relative_error"] == float("inf")
    assert smoke.difference(torch.ones(2), torch.ones(2))["relative_error"] == 0


def test_over_stand_ins_nothing_is_compared(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "chosen", lambda kernels, compute: {})
    with standing_for(replace(ON_CPU, standin=True)):
        found = smoke.check(next(smoke.cases(TINY)))
    assert found == {"compared": "not compared: nothing computes here"}


def launched_on_meta(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Operators that are called where tensors have no memory."""
    called: set[str] = set()

    def call(operator: Operator, *args: Any) -> None:
        called.add(operator.name)
        operator.overload(*args)

    monkeypatch.setattr(Operator, "__call__", call)
    with standing_for(ON_META):
        work()
    return called


def test_smoke_has_every_operator_and_so_has_what_is_compiled_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = launched_on_meta(
        lambda: [smoke.check(case) for case in smoke.cases(smoke.Sizes())], monkeypatch
    )
    registered = {name.partition("::")[2] for name in _library._op_defs}
    assert registered
    assert called == registered


def test_every_row_runs_where_nothing_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is how kernels are compiled ahead: at full size, without memory."""
    from benchmarks import attention

    def work() -> None:
        for module in (linears, attention, step):
            for row in module.rows(Path("unused")):
                row.take()

    monkeypatch.setattr(step, "model", step.model.__wrapped__)
    called = launched_on_meta(work, monkeypatch)
    assert {"ternary_linear", "decode_attention", "prefill_attention", "argmax"} <= called


def test_rows_with_a_target_come_first() -> None:
    names = [row.name for row in linears.rows(Path("unused"))]
    wanted = len(linears.WANTED)
    assert all(", 1 token" in n or ", 2,048 tokens" in n for n in names[:wanted])
    assert next(step.rows(Path("unused"))).name == "decode step behind 131,072 tokens, CUDA graph"


def test_the_step_s_model_is_the_profile_s() -> None:
    profile = load_profile("7b-128k-gqa")
    assert run_settings(profile, find_gpu("h100")).model == step.CONFIG


def test_bytes_of_a_step_are_all_but_the_table() -> None:
    run = run_settings(load_profile("tiny"), find_gpu("rtx-5080"))
    model = step.Transformer(run.model, torch.device("cpu"))
    everything = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    table = sum(t.nbytes for t in model.embedding.state_dict().values())
    tied = run.model.tie_word_embeddings
    assert step.read_bytes(model) == everything - (0 if tied else table)


def test_a_variant_has_both_times_and_their_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work runs with the default and with the other value, which is taken back."""
    from contextlib import contextmanager
    from types import SimpleNamespace

    now = SimpleNamespace(many_rows_stages=3)

    @contextmanager
    def tuned(**changes: Any) -> Iterator[None]:
        before = dict(vars(now))
        vars(now).update(changes)
        yield
        vars(now).update(before)

    fake = ModuleType(variants.TUNING)
    fake.__dict__.update(tuning=lambda: now, tuned=tuned)
    monkeypatch.setitem(sys.modules, variants.TUNING, fake)
    us = {3: 12.0, 2: 24.0}
    figures = variants.compared(
        "many_rows_stages", 2, lambda: timing.Timing(*[us[now.many_rows_stages]] * 3)
    )
    assert figures["times_faster"] == 0.5
    assert figures["default"]["value"] == 3
    assert figures["changed"] == {"value": 2, "median_us": 24.0, "low_us": 24.0, "high_us": 24.0}


def test_every_field_of_the_tuning_has_a_row_for_each_other_value() -> None:
    tuning = pytest.importorskip(variants.TUNING)
    assert set(variants.FIELDS) == set(vars(tuning.tuning()))
    names = [row.name for row in variants.rows(Path("unused"))]
    for field, (values, works) in variants.FIELDS.items():
        others = [v for v in values if v != getattr(tuning.tuning(), field)]
        assert len([n for n in names if n.startswith(f"{field} ")]) == len(others) * len(works)
        assert len(others) < len(values), field


COMPILE = """
import json, sys
from benchmarks import compile_ahead, smoke
from benchmarks.card import Card
from benchmarks.rows import compilations
cases = [c for c in smoke.cases(smoke.Sizes()) if c.name in ("argmax", "layer norm")]
compile_ahead.work = lambda: ((c.name, lambda c=c: smoke.check(c)) for c in cases)
with compilations() as compiled:
    found = compile_ahead.compile_shard(Card("card", 90, 132, 50 << 20), 0, 1)
print(json.dumps([found, compiled]))
"""


def test_what_was_compiled_ahead_is_found_in_the_cache(tmp_path: Path) -> None:
    """By another process, for the same card; nothing is compiled a second time."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    found = []
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(ran.stdout.splitlines()[-1]))
    assert found[0][0] == found[1][0] == [2, {}]
    assert sorted(found[0][1]) == ["_argmax_kernel", "_layer_norm_kernel"]
    assert found[1][1] == []
