"""Warm-up launches every variant of a kernel that a measured phase does: nothing compiles in one.

Triton compiles a kernel anew for other constants and types, for a number that is one, and where a
number or an address stops or begins to be a multiple of 16. The runs are the model's on the CPU;
what a GPU would launch is written down beside them.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

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
    unspecialised, unaligned = (
        kernel.kwargs[name] or ()
        for name in ("do_not_specialize", "do_not_specialize_on_alignment")
    )
    parts: list[Any] = [sorted(options.items())]
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        free = name not in unspecialised, name not in unaligned
        parts.append((name, jit.native_specialize_impl(jit.BaseBackend, value, False, *free)))
    return str(parts)


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
    """Of six blocks, behind more sinks than a chunk has tokens, before one last token."""
    for sinks, chunk, prompt in ((0, 16, 80), (1, 9, 81), (4, 27, 82), (9, 6, 62)):
        model = replace(SMALL.model, num_hidden_layers=2, sliding_window=window)
        cache = CacheConfig(dtype=dtype, group_size=8, attention_sinks=sinks)
        case = replace(SMALL, model=model, cache=cache, prefill_chunk=chunk, new_tokens=3)
        case = replace(case, model=replace(model, global_attention_every=2))
        assert_warm(launches(replace(case, context=prompt + 3)))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("last", [1, 2, 8, 16])
def test_a_last_chunk_of_another_size_compiles_nothing(
    launches: Callable[[RunConfig], Keys], last: int, batch: int
) -> None:
    case = replace(SMALL, batch=batch, prefill_chunk=17, new_tokens=4, context=34 + last + 4)
    assert_warm(launches(case))


@pytest.mark.parametrize("prompt", [3, 9, 12])
def test_a_short_prompt_compiles_nothing(
    launches: Callable[[RunConfig], Keys], prompt: int
) -> None:
    assert_warm(launches(replace(SMALL, new_tokens=3, context=prompt + 3)))
