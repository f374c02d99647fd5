"""Warm-up launches every variant of a kernel that a measured phase does: nothing compiles in one.

Triton compiles a kernel anew for other constants and types, for a number that is one, and where a
number or an address stops or begins to be a multiple of 16. The runs are the model's on the CPU;
what a GPU would launch is written down beside them.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kernels.test_memory import SMALL
from tritter_model.config import CacheConfig, RunConfig
from tritter_model.ops import prefill_attention
from tritter_model.ops.registry import Operator, use_kernels
from tritter_model.run import run

jit = pytest.importorskip("triton.runtime.jit")
CACHES = ["bfloat16", "fp8", "int8", "int4", "int2"]
WINDOWS = [None, 23, 40]
BLOCK = 16

Keys = dict[str, set[tuple[str, str]]]


def key(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """What Triton chooses the compiled kernel by."""
    bound = inspect.signature(kernel.fn).bind(
        *arguments, **{k: v for k, v in options.items() if k in kernel.arg_names}
    )
    whatever = kernel.kwargs["do_not_specialize"] or ()
    unaligned = kernel.kwargs["do_not_specialize_on_alignment"] or ()
    parts = []
    for name, value in bound.arguments.items():
        parameter = inspect.signature(kernel.fn).parameters[name]
        if "constexpr" in str(parameter.annotation):
            parts.append((name, value))
            continue
        free = name not in whatever, name not in unaligned
        found = jit.native_specialize_impl(jit.BaseBackend, value, False, *free)
        parts.append((name, *found))
    return str(parts + [(k, v) for k, v in options.items() if k not in kernel.arg_names])


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[RunConfig], Keys]]:
    """`launches(case)`: the kernels of each phase, with their keys, while references compute."""
    phases: list[str] = []
    found: Keys = defaultdict(set)

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            found[phases[-1]].add((kernel.fn.__name__, key(kernel, arguments, options)))

        return launch

    def call(operator: Operator, *args: Any) -> None:
        assert operator.launch is not None
        operator.launch(*args)
        operator.reference(*args)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        phases.append(name)
        yield

    def record(case: RunConfig) -> Keys:
        found.clear()
        run(case, "cpu", phase)
        return found

    monkeypatch.setattr(jit.KernelInterface, "__getitem__", launcher)
    monkeypatch.setattr(Operator, "__call__", call)
    monkeypatch.setattr(prefill_attention, "HISTORY_BLOCK", BLOCK)
    use_kernels(False)
    yield record
    use_kernels(None)


def assert_warm(found: Keys) -> None:
    assert found["warmup"]
    for phase in ("prefill", "decode"):
        assert found[phase]
        assert sorted(found[phase] - found["warmup"]) == []


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", CACHES)
def test_a_long_history_compiles_nothing(
    launches: Callable[[RunConfig], Keys], dtype: str, window: int | None
) -> None:
    """Of up to eight blocks, and a last chunk of one token to a whole one."""
    for sinks, chunk, prompt in ((0, 16, 112), (1, 9, 99), (4, 9, 100), (5, 4, 66), (4, 37, 101)):
        model = replace(SMALL.model, sliding_window=window, global_attention_every=2)
        model = replace(model, num_hidden_layers=2)
        cache = CacheConfig(dtype=dtype, group_size=8, attention_sinks=sinks)
        case = replace(SMALL, model=model, cache=cache, prefill_chunk=chunk, new_tokens=5)
        assert_warm(launches(replace(case, context=prompt + 5)))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("last", [1, 2, 8, 16])
def test_a_last_chunk_of_its_own_size_compiles_nothing(
    launches: Callable[[RunConfig], Keys], last: int, batch: int
) -> None:
    case = replace(SMALL, batch=batch, prefill_chunk=17, new_tokens=4, context=34 + last + 4)
    assert_warm(launches(case))


@pytest.mark.parametrize("prompt", [3, 9, 12])
def test_a_short_prompt_compiles_nothing(
    launches: Callable[[RunConfig], Keys], prompt: int
) -> None:
    assert_warm(launches(replace(SMALL, new_tokens=3, context=prompt + 3)))
