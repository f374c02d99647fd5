"""Kernels are held against their references: interpreted on the CPU, compiled on a GPU.

Every test that takes `device` runs in both ways. Where there is no CUDA device the kernels are
interpreted, which has to be said before Triton is first imported; where there is one, they are
compiled.
"""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

if not torch.cuda.is_available():
    assert "triton" not in sys.modules, "a test imported Triton before it could be interpreted"
    os.environ["TRITON_INTERPRET"] = "1"

from tests.seeds import seed_of
from tritter_model.ops.registry import use_kernels

DEVICES = [
    pytest.param("cpu", id="interpreted"),
    pytest.param("cuda", id="compiled", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="session", autouse=True)
def types_made_once() -> None:
    """Interpreted kernels take two thirds of the time that they took."""
    if not torch.cuda.is_available() and find_spec("triton") is not None:
        from tests.kernels import interpreter_types

        interpreter_types.remember()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run; what is made in the test is made there."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("a CUDA device is here: the same test runs compiled")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """What random tensors are made from."""
    number = seed_of(request.node.name)
    torch.manual_seed(number)
    if "device" in request.fixturenames:
        with torch.device(request.getfixturevalue("device")):
            yield number
    else:
        yield number


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill every uninitialised tensor with NaN (integers: their largest number) when it is made."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


class WithinArguments:
    """What Triton's interpreter reads and writes memory with, held to a kernel's own arguments.

    On a GPU an address beside them may be another tensor's, or nobody's and end the run; on the CPU
    it goes unseen. Masked elements touch nothing.
    """

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.arguments: list[range] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def load(self, at: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check(at, mask, np.dtype(dtype).itemsize)
        return self.memory.load(at, mask, other, dtype)

    def store(self, at: Any, value: Any, mask: Any) -> Any:
        self.check(at, mask, value.dtype.itemsize)
        return self.memory.store(at, value, mask)

    def check(self, at: Any, mask: Any, size: int) -> None:
        """An access is to one argument: `at` holds addresses, whose elements have `size` bytes."""
        touched = at[np.broadcast_to(mask, at.shape).astype(bool)]
        if touched.size:
            first, last = int(touched.min()), int(touched.max()) + size - 1
            if not any(first in argument and last in argument for argument in self.arguments):
                raise IndexError(f"bytes {first} to {last} of memory are of no argument")

    def hold_to(self, arguments: Any) -> None:
        """Allow the bytes from each tensor's first element to its last."""
        self.arguments = [
            bytes_of(x) for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)
        ]


def bytes_of(x: torch.Tensor) -> range:
    steps = zip(x.shape, x.stride(), strict=True)
    elements = 1 + sum((size - 1) * stride for size, stride in steps) if x.numel() else 0
    return range(x.data_ptr(), x.data_ptr() + elements * x.element_size())


@pytest.fixture(autouse=True)
def within_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted kernels touch no memory but that of their arguments."""
    if torch.cuda.is_available() or find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    memory = WithinArguments(interpreter._interpreter)
    make = interpreter.GridExecutor._init_args_hst

    def held(executor: Any, args: Any, kwargs: Any) -> Any:
        made = make(executor, args, kwargs)
        memory.hold_to(made)
        return made

    monkeypatch.setattr(interpreter, "_interpreter", memory)
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", held)


@pytest.fixture
def both() -> Iterator[Callable[[Callable[[], Any]], tuple[Any, Any]]]:
    """`both(compute)`: what the kernels and what the references make of a computation."""

    def run(compute: Callable[[], Any]) -> tuple[Any, Any]:
        results = []
        for choice in (True, False):
            use_kernels(choice)
            results.append(compute())
        return results[0], results[1]

    yield run
    use_kernels(None)


@pytest.fixture
def kernels() -> Iterator[None]:
    """Every operator that has a kernel takes it."""
    use_kernels(True)
    yield
    use_kernels(None)
