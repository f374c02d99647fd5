"""Every launch of a run on a GPU passes its own checks: told on `meta`, without the kernels."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings

from tests.planner.cases import KV_TYPES, card, profiles, tiny
from tritter_mem.config.profile import Profile
from tritter_mem.models.bundled import run_settings
from tritter_model.ops import dependent
from tritter_model.ops.registry import Operator
from tritter_model.ops.tuning import tuned
from tritter_model.run import run


@pytest.fixture(scope="module", autouse=True)
def launches() -> Iterator[None]:
    """Operators do on `meta` what they do on a GPU, up to the kernel itself."""
    jit = pytest.importorskip("triton.runtime.jit")

    def call(operator: Operator, *args: Any) -> None:
        assert operator.launch is not None
        operator.overload(*args)
        operator.launch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit.KernelInterface, "__getitem__", lambda kernel, grid: _nothing)
        patch.setattr(Operator, "__call__", call)
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of a kernel."""


def launched(profile: Profile) -> None:
    run(run_settings(profile, card()), "meta", lambda _: nullcontext())


@settings(max_examples=80, deadline=None)
@given(profiles())
def test_every_launch_takes_what_the_model_gives_it(profile: Profile) -> None:
    launched(profile)


@settings(max_examples=20, deadline=None)
@given(profiles())
def test_fused_launches_take_what_the_model_gives_them(profile: Profile) -> None:
    with tuned(angles_once=True, fused_merge=True, fused_add_norm=True, decode_programs=3):
        launched(profile)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_last_chunk_of_one_token_a_sequence_is_taken(kv_type: str) -> None:
    """Its ids lie a whole prompt apart."""
    launched(tiny(workload__batch=3, workload__context=76, workload__prefill_chunk=37,
                  workload__new_tokens=1, kv_cache__dtype=kv_type))  # fmt: skip


@pytest.mark.parametrize(("graph", "capability", "early"), [
    (True, 90, True), (True, 120, True), (True, 89, False), (False, 90, False),
])  # fmt: skip
def test_only_a_captured_step_starts_kernels_before_the_one_ahead_has_ended(
    monkeypatch: pytest.MonkeyPatch, graph: bool, capability: int, early: bool
) -> None:
    """Elsewhere weights may just have been written."""
    jit = pytest.importorskip("triton.runtime.jit")
    started: list[bool] = []

    def launch(*_: Any, **options: Any) -> None:
        started.append(options.get("launch_pdl", False))
        assert options.get("DEPENDENT", False) == started[-1]

    monkeypatch.setattr(jit.KernelInterface, "__getitem__", lambda kernel, grid: launch)
    monkeypatch.setattr(dependent, "capability", lambda: capability)
    launched(tiny(workload__cuda_graph=graph, workload__new_tokens=3))
    assert any(started) == early
    assert not all(started)
