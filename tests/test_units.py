"""Sizes are read exactly or refused, and what is shown can be read back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.units import GiB, MiB, format_bytes, format_count, parse_bytes, parse_count

COUNTS = st.integers(min_value=0, max_value=1 << 50)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15 GiB", 15 * GiB),
        ("15GB", 15 * 10**9),
        ("1.5 gib", 3 * GiB // 2),
        ("0.5KiB", 512),
        (" 16303 MiB ", 16303 * MiB),
        ("1,024", 1024),
        ("8_519_680 B", 8_519_680),
        ("2tb", 2 * 10**12),
        ("7", 7),
        (7, 7),
    ],
)
def test_memory_sizes_are_read_by_their_unit(text: str | int, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("128k", 131072), ("128K", 131072), ("1M", 1 << 20), ("1.5k", 1536), ("4096", 4096), (5, 5)],
)
def test_counts_take_k_for_1024(text: str | int, expected: int) -> None:
    assert parse_count(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "k", "GiB", "-1", "+1", "1e3", "0x10", "1 2", "1..5", "1.", ".5", "15 GiBs", "15 Gi", "1k",
     "٣ GiB", "1,02", "1,,024", "nan", "9" * 60, "1 GiB\n2"],
)  # fmt: skip
def test_what_is_no_memory_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a memory size such as '15 GiB'"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "128kb", "1G", "12 tokens", "1.0001k", "-5", "k128", "1 k k"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a count such as 4096, '128k' or '1M'"):
        parse_count(text)


@pytest.mark.parametrize("value", [1.5, True, None, b"15 GiB"])
def test_values_of_other_types_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a memory size"):
        parse_bytes(value)  # type: ignore[arg-type]


def test_parts_of_a_byte_are_refused_rather_than_rounded() -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        parse_bytes("1.3 KiB")


@given(COUNTS)
def test_a_shown_count_reads_back_exactly(count: int) -> None:
    assert parse_count(format_count(count)) == count


@given(COUNTS, st.sampled_from(["GiB", "GB"]))
def test_shown_bytes_read_back_within_their_last_digit(count: int, units: str) -> None:
    shown = format_bytes(count, units)
    number, unit = shown.split()
    digits = len(number.partition(".")[2])
    half_a_digit = parse_bytes(f"1 {unit}") / 10**digits / 2
    back = float(number.replace(",", "")) * parse_bytes(f"1 {unit}")
    assert abs(back - count) <= half_a_digit * 1.001


@given(COUNTS, COUNTS)
def test_text_keeps_the_order_of_whole_gibibytes(first: int, second: int) -> None:
    small, large = sorted((first, second))
    assert parse_bytes(f"{small} GiB") <= parse_bytes(f"{large} GiB")


@given(st.integers(0, 10**9), st.integers(0, 999))
def test_decimals_are_exact(whole: int, thousandths: int) -> None:
    assert parse_bytes(f"{whole}.{thousandths:03} GB") == whole * 10**9 + thousandths * 10**6


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_with_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_count):
        with suppress(ValueError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("count", "units", "shown"),
    [
        (0, "GiB", "0 B"),
        (1023, "GiB", "1023 B"),
        (1024, "GiB", "1.0 KiB"),
        (8_519_680, "GiB", "8.1 MiB"),
        (17_094_934_528, "GiB", "15.92 GiB"),
        (17_094_934_528, "GB", "17.09 GB"),
        (3 << 40, "GiB", "3,072.00 GiB"),
        (-GiB, "GiB", "-1.00 GiB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_fits(count: int, units: str, shown: str) -> None:
    assert format_bytes(count, units) == shown


@pytest.mark.parametrize(
    ("count", "shown"), [(131072, "128K"), (1 << 20, "1M"), (3072, "3K"), (4097, "4,097"), (0, "0")]
)
def test_counts_are_shown_with_k_where_that_is_exact(count: int, shown: str) -> None:
    assert format_count(count) == shown
