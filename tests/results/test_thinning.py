"""Thinning keeps the ends, the order and the peaks."""

from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import training_1b
from tritter_mem.results.run import Timeline
from tritter_mem.results.thinning import thin

sizes = st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**12)), max_size=300)


@given(sizes, st.integers(4, 60))
def test_thinning_keeps_order_ends_and_peaks(found: list[tuple[int, int]], most: int) -> None:
    rows = tuple((at, *pair) for at, pair in enumerate(found))
    timeline = Timeline(columns=("event", "allocated_bytes", "reserved_bytes"), rows=rows)
    kept = thin(timeline, most).rows
    assert len(kept) <= max(most, 0) or len(rows) <= most
    assert list(kept) == sorted(set(kept))
    assert set(kept) <= set(rows)
    if rows:
        assert (kept[0], kept[-1]) == (rows[0], rows[-1])
        for column in (1, 2):
            assert max(row[column] for row in kept) == max(row[column] for row in rows)


def test_a_short_timeline_is_kept_as_it_is() -> None:
    timeline = training_1b().by_kind()["measured"].timeline
    assert timeline
    assert thin(timeline, len(timeline.rows)) is timeline


def test_a_short_phase_keeps_its_rows() -> None:
    rows = tuple((at, int(at >= 60), at) for at in range(100_000))
    timeline = Timeline(columns=("event", "phase", "allocated_bytes"), rows=rows)
    kept = thin(timeline, 400).rows
    assert len(kept) <= 400
    assert sum(phase == 0 for _, phase, _ in kept) == 60
    assert sum(phase == 1 for _, phase, _ in kept) > 250


def test_more_phases_than_rows_are_thinned_all_the_same() -> None:
    rows = tuple((at, at // 2, at) for at in range(3000))
    timeline = Timeline(columns=("event", "phase", "allocated_bytes"), rows=rows)
    assert 300 < len(thin(timeline, 400).rows) <= 400
