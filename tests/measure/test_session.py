"""The cap on PyTorch's allocator: what a budget leaves beside the context."""

import pytest

from tritter_mem.errors import EXIT_NOT_MEASURED, MeasureError
from tritter_mem.measure.session import allocator_limit_bytes
from tritter_mem.units import GiB, MiB


def test_limit_and_context_together_are_the_budget() -> None:
    assert allocator_limit_bytes(15 * GiB, 500 * MiB, 80 * GiB) + 500 * MiB == 15 * GiB


def test_limit_is_at_most_the_device() -> None:
    assert allocator_limit_bytes(90 * GiB, 500 * MiB, 80 * GiB) == 80 * GiB


def test_budget_below_the_context_is_an_error() -> None:
    with pytest.raises(MeasureError, match="the CUDA context alone takes") as caught:
        allocator_limit_bytes(500 * MiB, 500 * MiB, 80 * GiB)
    assert caught.value.exit_code == EXIT_NOT_MEASURED
