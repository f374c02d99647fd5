"""The segment map draws every byte of every segment once, free space under the blocks."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import planned_7b, training_1b
from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.segment_map import segment_map
from tritter_mem.results.run import Result, Segment, SegmentBlock
from tritter_mem.units import MiB


def segment(*blocks: tuple[int, str]) -> Segment:
    return Segment(
        size_bytes=sum(size for size, _ in blocks),
        blocks=tuple(SegmentBlock(size_bytes=size, component=name) for size, name in blocks),
    )


def holding(*segments: Segment) -> Result:
    result = training_1b()
    assert result.simulated
    return replace(result, simulated=replace(result.simulated, segments=segments))


def drawn(*segments: Segment) -> Chart:
    result = holding(*segments)
    chart = segment_map(result, "GiB", result)
    assert chart
    return chart


def trace(chart: Chart, name: str) -> dict[str, Any]:
    return next(t for t in chart.figure["data"] if t["name"] == name)


MIXED = segment((2 * MiB, "weights"), (6 * MiB, ""), (12 * MiB, "kv_cache"))


def test_a_segment_is_a_row_largest_first_and_blocks_lie_where_they_begin() -> None:
    chart = drawn(segment((2 * MiB, "logits")), MIXED, MIXED)
    assert trace(chart, "segment of")["x"] == [20.0, 20.0, 2.0]
    cache = trace(chart, "KV cache")
    assert (cache["y"], cache["base"], cache["x"]) == ([0, 1], [8.0, 8.0], [12.0, 12.0])
    assert trace(chart, "Logits")["y"] == [2]


def test_a_segment_far_longer_than_most_goes_on_in_the_next_rows() -> None:
    chart = drawn(segment((160 * MiB, "embeddings")), *[MIXED] * 9)
    assert trace(chart, "Embeddings")["x"] == [80.0, 80.0]
    assert "continues in the next row" in chart.title
    assert "continues" not in drawn(MIXED).title


blocks = st.lists(
    st.tuples(st.integers(1, 400).map(lambda n: n * MiB), st.sampled_from(["", "weights"])),
    min_size=1, max_size=5,
)  # fmt: skip


@given(st.lists(blocks, min_size=1, max_size=12))
def test_every_byte_is_drawn_once(found: list[list[tuple[int, str]]]) -> None:
    segments = [segment(*one) for one in found]
    chart = drawn(*segments)
    unit = 1024**3 if chart.figure["layout"]["xaxis"]["title"]["text"] == "GiB" else MiB
    for name, keep in (("segment of", {"", "weights"}), ("Weights", {"weights"})):
        size = sum(size for one in found for size, part in one if part in keep)
        traces = [t for t in chart.figure["data"] if t["name"] == name]
        assert abs(sum(sum(t["x"]) for t in traces) - size / unit) < 1e-3


def test_the_table_joins_segments_of_one_size_and_the_sentence_counts_what_is_free() -> None:
    chart = drawn(MIXED, MIXED, segment((2 * MiB, "logits")))
    first = [cell.text for cell in chart.table.rows[0].cells]
    assert first == ["20.0 MiB", "2", "4", "28.0 MiB", "12.0 MiB"]
    assert "3 segments, 42.0 MiB together; 12.0 MiB of it is free." in chart.description


def test_where_only_the_largest_are_drawn_it_says_so() -> None:
    chart = segment_map(holding(MIXED), "GiB", holding(MIXED, MIXED))
    assert chart
    assert chart.description.startswith("The 1 largest of 2 segments")


def test_without_segments_there_is_no_map() -> None:
    assert segment_map(planned_7b(), "GiB", planned_7b()) is None


def test_a_map_of_full_segments_is_small_and_no_map_is_very_tall() -> None:
    full = segment((19 * MiB, "weights"), (1, ""))
    assert drawn(*[full] * 300).height <= 200
    assert drawn(*[MIXED] * 300).height == 80 + 640
    assert drawn(MIXED).height < 120
