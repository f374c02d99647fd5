"""Every operator has a kernel, and nothing that a GPU run calls allocates where none sees it."""

import importlib
import pkgutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

import tritter_model.ops
from tests.kernels.test_memory import CASE
from tritter_mem.simulation.operators import OperatorMode
from tritter_mem.simulation.recorder import Recorder
from tritter_model.config import RunConfig, TrainingConfig
from tritter_model.ops.registry import Operator
from tritter_model.run import run

WITHOUT_KERNEL: dict[str, str] = {}
"""Operators that run as their references on a GPU too, each with the reason."""
ALLOCATE_THEIR_RESULT_ALONE = {
    "_to_copy", "_unsafe_view", "add", "add_", "addmm", "alias", "cat", "clone", "copy_", "detach",
    "empty", "empty_like", "fill_", "gelu", "mm", "mul_", "new_empty", "new_zeros", "normal_",
    "ones", "ones_like", "permute", "random_", "roll", "select", "slice", "split", "t", "view",
    "zero_", "zeros", "zeros_like",
}  # fmt: skip
"""PyTorch's operators that take nothing beside their result on CUDA, cuBLAS's workspace aside.

As their sources have it: `Shape.cu` (`cat` hands its inputs' addresses to the kernel by value),
`TensorTransformations.cu` (`roll` of what is contiguous), `Blas.cpp` (`mm` of rows that may lie
apart), `Copy.cu`, `DistributionTemplates.h`, and TensorIterator for what is element by element.
`argmax`, `sum` and other reductions, sorting and indexing are not among them.
"""


def operators() -> dict[str, Operator]:
    """All of them, by name."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(tritter_model.ops.__path__, "tritter_model.ops.")
    ]
    values = (value for module in modules for value in vars(module).values())
    return {value.name: value for value in values if isinstance(value, Operator)}


def test_operators_are_where_they_are_looked_for() -> None:
    found = operators().keys()
    names = torch._C._dispatch_get_all_op_names()
    assert {f"tritter::{name}" for name in found} == {n for n in names if n.startswith("tritter::")}


def test_every_operator_has_a_kernel() -> None:
    found = {name for name, operator in operators().items() if operator.launch is None}
    assert found == set(WITHOUT_KERNEL)


def test_no_launch_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told on `meta`, at 7B shapes: all of a launch but the kernel itself runs, and is recorded."""
    jit = pytest.importorskip("triton.runtime.jit")
    from benchmarks.machine_code import cases

    monkeypatch.setattr(jit.KernelInterface, "__getitem__", lambda kernel, grid: nothing)
    allocated: dict[str, list[str]] = {}
    for operator in operators().values():
        if operator.launch is not None:
            monkeypatch.setattr(operator, "launch", recorded(operator, allocated))
    for _, launch in cases():
        launch()
    assert allocated == {name: [] for name in operators().keys() - WITHOUT_KERNEL.keys()}


def nothing(*_: Any, **__: Any) -> None:
    """In the place of a kernel."""


def recorded(operator: Operator, allocated: dict[str, list[str]]) -> Callable[..., None]:
    """The operator's launch, which also lists what it allocates under the operator's name."""
    launch = operator.launch

    def run(*args: Any) -> None:
        assert launch is not None
        with Recorder("meta") as recorder:
            launch(*args)
        found = [event.operator for event in recorder.log if event.kind == "alloc"]
        allocated.setdefault(operator.name, []).extend(found)

    return run


TRAINING = replace(CASE, mode="training")
CASES = {
    "ternary, vision": replace(CASE, context=300, model=replace(CASE.model, vision=True)),
    "int8": replace(CASE, model=replace(CASE.model, weight_format="int8", embedding_dtype="int8")),
    "int4": replace(CASE, model=replace(CASE.model, weight_format="int4")),
    "float32": replace(CASE, model=replace(CASE.model, weight_format="float32")),
    "training": replace(TRAINING, context=300, model=replace(CASE.model, vision=True)),
    "training, 8 bits": replace(TRAINING, training=TrainingConfig(optimizer="adamw-8bit")),
    "training, bfloat16": replace(
        TRAINING,
        model=replace(CASE.model, weight_format="bfloat16", tie_word_embeddings=True),
        training=TrainingConfig(optimizer="sgd", checkpointing="selective-matmul"),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_model_calls_of_pytorch_what_allocates_its_result_alone(case: RunConfig) -> None:
    called: set[str] = set()
    with OperatorMode(lambda operator, inputs, result: called.add(operator.name)):
        run(case, "meta", lambda name: nullcontext())
    aten = {name.split(".")[1] for name in called if name.startswith("aten.")}
    assert aten
    assert aten <= ALLOCATE_THEIR_RESULT_ALONE
