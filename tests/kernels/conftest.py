"""Kernels are held against their references: interpreted on the CPU, compiled on a GPU.

Every test that takes `device` runs in both ways. Where there is no CUDA device the kernels are
interpreted, which has to be said before Triton is first imported; where there is one, they are
compiled.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tritter_model.ops.registry import use_kernels

DEVICES = [
    pytest.param("cpu", id="interpreted"),
    pytest.param("cuda", id="compiled", marks=pytest.mark.gpu),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the kernels run; what is made in the test is made there."""
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("a CUDA device is here: the same test runs compiled")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    """A fresh seed each run. It is printed, so a failure shows it; TRITTER_TEST_SEED repeats it."""
    number = int(os.environ.get("TRITTER_TEST_SEED") or secrets.randbits(31))
    print(f"TRITTER_TEST_SEED={number}")
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
