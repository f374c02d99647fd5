"""What a page cannot hold is cut; the peaks, the largest segments and the first holdings stay."""

from dataclasses import replace

from tests.report.records import training_1b
from tritter_mem.report.html import BLOCKS, HOLDINGS, cut_result, fit_page
from tritter_mem.results.run import Holding, Result, Segment, SegmentBlock


def heavy() -> Result:
    """A simulated result with more segments and holdings than a page takes."""
    result = training_1b()
    assert result.simulated
    block = SegmentBlock(size_bytes=2, component="weights")
    segments = tuple(Segment(size_bytes=2 * n, blocks=(block,) * n) for n in range(1, 200))
    holdings = tuple(
        Holding(module=f"m.{n}", component="weights", allocated_bytes=9000 - n)
        for n in range(2 * HOLDINGS)
    )
    return replace(
        result, simulated=replace(result.simulated, segments=segments, held_at_peak=holdings)
    )


def test_every_timeline_of_a_result_is_thinned_and_nothing_else() -> None:
    result = cut_result(training_1b(), rows=20, blocks=10, holdings=10)
    rows = [len(e.timeline.rows) for e in result.by_kind().values() if e.timeline]
    assert rows
    assert max(rows) <= 20
    assert result.verdict == training_1b().verdict


def test_the_largest_segments_are_kept_while_their_blocks_fit_the_page() -> None:
    (cut,) = fit_page([heavy()])
    assert cut.simulated
    sizes = [segment.size_bytes for segment in cut.simulated.segments]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 2 * 199
    assert 0 < sum(len(segment.blocks) for segment in cut.simulated.segments) <= BLOCKS


def test_one_segment_is_kept_however_many_blocks_it_has() -> None:
    cut = cut_result(heavy(), rows=20, blocks=5, holdings=1)
    assert cut.simulated
    assert [segment.size_bytes for segment in cut.simulated.segments] == [2 * 199]


def test_several_results_share_the_page() -> None:
    cut = fit_page([heavy()] * 4)
    holdings = [len(r.simulated.held_at_peak) for r in cut if r.simulated]
    assert holdings == [HOLDINGS // 4] * 4
