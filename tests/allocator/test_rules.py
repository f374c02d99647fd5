"""The size rules, by worked examples."""

import pytest

from tritter_mem.allocator.rules import (
    division_interval,
    round_request,
    round_to_division,
    segment_bytes,
    smallest_remainder,
)
from tritter_mem.units import GiB, KiB, MiB

FOUR_STEPS = (4,) * 16


@pytest.mark.parametrize(
    ("asked", "block"),
    [(0, 512), (1, 512), (512, 512), (513, 1024), (MiB, MiB), (MiB + 1, MiB + 512)],
)
def test_requests_round_up_to_512_bytes(asked: int, block: int) -> None:
    assert round_request(asked) == block


@pytest.mark.parametrize(
    ("asked", "divisions", "rounded"),
    [
        (1200, 4, 1280),  # PyTorch's own example: steps of 256 from 1024
        (1024, 4, 1024),
        (1025, 4, 1280),
        (1793, 4, 2048),
        (3 * MiB, 2, 3 * MiB),  # steps of 1 MiB from 2 MiB
        (3 * MiB + 1, 2, 4 * MiB),
        (5, 8, 8),  # more divisions than bytes: the next power of two
    ],
)
def test_power_of_two_divisions(asked: int, divisions: int, rounded: int) -> None:
    assert round_to_division(asked, divisions) == rounded


def test_divisions_leave_small_sizes_to_the_512_byte_rule() -> None:
    assert round_request(2048, FOUR_STEPS) == 2048
    assert round_request(2049, FOUR_STEPS) == 2560  # beyond 4 x 512: steps of 512 from 2048
    assert round_request(5 * MiB + 1, FOUR_STEPS) == 6 * MiB
    assert round_request(5 * MiB + 1, (1,) * 16) == 5 * MiB + 512


def test_each_interval_of_sizes_has_its_own_divisions() -> None:
    assert [division_interval(size) for size in (1, MiB, 2 * MiB - 1)] == [0, 0, 0]
    assert [division_interval(size) for size in (2 * MiB, 256 * MiB, GiB)] == [1, 8, 10]
    assert division_interval(1000 * GiB) == 15
    only_gigabytes = (0,) * 10 + (2,) * 6
    assert round_request(700 * MiB, only_gigabytes) == 700 * MiB
    assert round_request(1100 * MiB, only_gigabytes) == 1536 * MiB


@pytest.mark.parametrize(
    ("block", "segment"),
    [
        (512, 2 * MiB),
        (MiB, 2 * MiB),
        (MiB + 512, 20 * MiB),
        (10 * MiB - 512, 20 * MiB),
        (10 * MiB, 10 * MiB),
        (10 * MiB + 512, 12 * MiB),
        (100 * MiB, 100 * MiB),
    ],
)
def test_segments_by_size_of_the_block(block: int, segment: int) -> None:
    assert segment_bytes(block) == segment


def test_the_large_segment_is_a_setting() -> None:
    assert segment_bytes(2 * MiB, large_segment_bytes=64 * MiB) == 64 * MiB
    assert segment_bytes(512, large_segment_bytes=64 * MiB) == 2 * MiB
    assert segment_bytes(30 * MiB, large_segment_bytes=64 * MiB) == 30 * MiB


def test_what_is_left_over_is_split_off_from_512_bytes_or_above_1_mib() -> None:
    assert smallest_remainder(small=True, expandable=False) == 512
    assert smallest_remainder(small=False, expandable=False) == 1024 * KiB + 1
    assert smallest_remainder(small=False, expandable=True) == 512
