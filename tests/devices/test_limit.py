"""The cap that lets a large card stand for a small one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.devices.cuda import allocator_limit_bytes, memory_fraction
from tritter_mem.errors import EXIT_NOT_MEASURED, MeasureError
from tritter_mem.units import GiB, MiB

TOTALS = st.integers(1 * GiB, 300 * GiB)


@given(st.integers(1, 300 * GiB), TOTALS)
def test_fraction_gives_the_limit_to_the_byte_as_pytorch_computes_it(
    limit: int, total: int
) -> None:
    fraction = memory_fraction(min(limit, total), total)
    assert 0 < fraction <= 1
    assert int(fraction * total) == min(limit, total)


def test_limit_and_context_together_are_the_budget() -> None:
    assert allocator_limit_bytes(15 * GiB, 500 * MiB, 80 * GiB) + 500 * MiB == 15 * GiB


def test_limit_is_at_most_the_device() -> None:
    assert allocator_limit_bytes(90 * GiB, 500 * MiB, 80 * GiB) == 80 * GiB


def test_budget_below_the_context_is_an_error() -> None:
    with pytest.raises(MeasureError, match="the CUDA context alone takes") as caught:
        allocator_limit_bytes(500 * MiB, 500 * MiB, 80 * GiB)
    assert caught.value.exit_code == EXIT_NOT_MEASURED
