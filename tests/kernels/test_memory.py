"""No weight is ever there in full precision, and no launch allocates anything."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import tritter_model
from tritter_mem.simulation.events import Event
from tritter_mem.simulation.recorder import Recorder
from tritter_model.config import CacheConfig, ModelConfig, RunConfig, TrainingConfig
from tritter_model.ops.angles import rotary_angles
from tritter_model.ops.layer_norm import layer_norm
from tritter_model.ops.registry import Operator
from tritter_model.ops.rms_norm import add_rms_norm_rows
from tritter_model.run import run

CASE = RunConfig(
    model=ModelConfig(
        hidden_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=1376,
        vocab_size=67,
    ),
    training=TrainingConfig(loss_chunk=16),
    context=40,
    prefill_chunk=16,
    new_tokens=3,
)
SMALLEST_WEIGHT_BYTES = 512 * 512 * 2
"""The output projection's in bfloat16; all that few tokens need is smaller."""


def recorded(case: RunConfig) -> list[Event]:
    with Recorder("meta") as recorder:
        run(case, "meta", recorder.phase)
    return [event for event in recorder.log if event.kind == "alloc"]


@pytest.mark.parametrize("form", ["ternary-2bit", "ternary-1.6bit"])
def test_inference_never_holds_a_weight_in_full_precision(form: str) -> None:
    events = recorded(replace(CASE, model=replace(CASE.model, weight_format=form)))
    assert max(event.bytes for event in events) < SMALLEST_WEIGHT_BYTES
    assert {event.phase for event in events} >= {"load", "prefill", "decode"}


def test_bfloat16_weights_would_be_seen() -> None:
    """What the test above looks for is there where weights are not packed."""
    events = recorded(replace(CASE, model=replace(CASE.model, weight_format="bfloat16")))
    large = [event for event in events if event.bytes >= SMALLEST_WEIGHT_BYTES]
    assert len(large) == 4 * CASE.model.num_hidden_layers


def test_training_holds_gradients_in_full_precision_and_no_other_weight() -> None:
    events = recorded(replace(CASE, mode="training"))
    large = Counter(
        event.category
        for event in events
        if event.phase in ("forward", "backward") and event.bytes >= SMALLEST_WEIGHT_BYTES
    )
    assert large == {"gradients": 4 * CASE.model.num_hidden_layers}


SMALL = replace(
    CASE,
    model=replace(
        CASE.model, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, intermediate_size=48,
    ),
    cache=CacheConfig(dtype="int4", group_size=8, attention_sinks=2),
    training=TrainingConfig(loss_chunk=8),
    context=14,
    prefill_chunk=9,
    new_tokens=2,
)  # fmt: skip
TRAINED = replace(SMALL, mode="training")
RUNS = (
    SMALL,
    replace(SMALL, model=replace(SMALL.model, weight_format="int4")),
    TRAINED,
    None,
    replace(TRAINED, training=replace(TRAINED.training, optimizer="adamw-8bit")),
    replace(TRAINED, model=replace(SMALL.model, weight_format="bfloat16")),
)
"""Together they run every kernel; None stands for operators that none of the others calls."""


def run_one(case: RunConfig | None, device: str) -> None:
    if case is not None:
        run(case, device, Recorder("meta").phase)
        return
    x = torch.randn(3, 768, device=device)
    layer_norm(x, torch.ones_like(x[0]), torch.ones_like(x[0]), 1e-6)
    add_rms_norm_rows(x, torch.ones_like(x), torch.ones_like(x[0]), 1e-6)
    rotary_angles(torch.zeros(1, dtype=torch.int32, device=device), 3, 64, 10_000.0)


def operators_with_kernels() -> dict[str, Operator]:
    """Of all modules of the model, whether or not anything has imported them."""
    root = Path(tritter_model.__file__).parent
    paths = [path.relative_to(root.parent).with_suffix("") for path in root.rglob("*.py")]
    modules = [import_module(".".join(path.parts)) for path in paths]
    found = [value for module in modules for value in vars(module).values()]
    return {o.name: o for o in found if isinstance(o, Operator) and o.launch is not None}


def launched(
    case: RunConfig | None, device: str, allocated: Callable[[Callable[[], object]], int]
) -> dict[str, int]:
    """What the first launch of each operator allocates in a run; results are the reference's."""
    found: dict[str, int] = {}

    def counted(operator: Operator, launch: Callable[..., None], *args: Any) -> None:
        if operator.name not in found:
            found[operator.name] = allocated(lambda: launch(*args))
        operator.reference(*args)

    with ExitStack() as patches:
        for operator in operators_with_kernels().values():
            replaced = partial(counted, operator, operator.launch)
            patches.enter_context(patch.object(operator, "launch", replaced))
        run_one(case, device)
    return found


def assert_no_launch_allocates(
    device: str, allocated: Callable[[Callable[[], object]], int]
) -> None:
    """In any run; an operator with a kernel that is in none of them fails too."""
    runs = [launched(case, device, allocated) for case in RUNS]
    assert {name for found in runs for name in found} == operators_with_kernels().keys()
    assert [name for found in runs for name, size in found.items() if size] == []


def allocated_on_the_cpu(call: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator on the CPU hands out, whether or not they come back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    return sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")


def allocated_on_the_gpu(call: Callable[[], object]) -> int:
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    return int(torch.cuda.memory_stats()["allocation.all.allocated"] - before)


def launch_on_the_cpu(launch: Callable[[], object]) -> int:
    """Of the launch alone: the interpreter, which a GPU has none of, allocates for itself."""
    with patch("triton.runtime.interpreter.GridExecutor.__call__") as run_kernel:
        made = allocated_on_the_cpu(launch)
    assert run_kernel.called
    return made


def test_what_a_launch_would_allocate_is_seen() -> None:
    x = torch.ones(256)
    assert allocated_on_the_cpu(x.neg_) == 0
    assert allocated_on_the_cpu(lambda: (x.neg(), x.neg())) == 2048


@pytest.mark.usefixtures("kernels")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the same test runs compiled")
def test_no_launch_allocates_and_every_kernel_is_among_them() -> None:
    assert_no_launch_allocates("cpu", launch_on_the_cpu)


@pytest.mark.gpu
def test_no_launch_allocates_on_a_gpu_and_every_kernel_is_among_them() -> None:
    assert_no_launch_allocates("cuda", allocated_on_the_gpu)
