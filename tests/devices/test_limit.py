"""The cap that lets a large card stand for a small one."""

from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.devices.cuda import memory_fraction
from tritter_mem.units import GiB

TOTALS = st.integers(1 * GiB, 300 * GiB)


@given(st.integers(1, 300 * GiB), TOTALS)
def test_fraction_gives_the_limit_to_the_byte_as_pytorch_computes_it(
    limit: int, total: int
) -> None:
    fraction = memory_fraction(min(limit, total), total)
    assert 0 < fraction <= 1
    assert int(fraction * total) == min(limit, total)
