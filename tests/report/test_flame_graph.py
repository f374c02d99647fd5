"""The flame graph: its frames sum to the peak, and the lines that hold most are named."""

import json
from collections import defaultdict
from typing import Any

from hypothesis import given

from tests.report.records import training_1b
from tests.report.test_charts import with_colors
from tests.results.test_allocations import allocations
from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.flame_graph import MOST_FRAMES, flame_graph, top_allocators
from tritter_mem.results.allocations import Allocation, Allocations, Frame, joined
from tritter_mem.results.run import by_module
from tritter_mem.units import GiB, MiB

MODULE_PY = "/usr/lib/python3.11/site-packages/torch/nn/modules/module.py"
TRAIN = Frame(name="<module>", file="/home/me/train.py", line=90)
STEP = Frame(name="train_step", file="/home/me/train.py", line=41)
WRAPPED = Frame(name="_wrapped_call_impl", file=MODULE_PY, line=1751)
CALL = Frame(name="_call_impl", file=MODULE_PY, line=1762)
FORWARD = Frame(name="forward", file="/home/me/model.py", line=12)
LINEAR = Frame(
    name="forward", file="/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py", line=134
)
INIT = Frame(name="build", file="/home/me/model.py", line=5)


def by_stack(*found: Allocation) -> Allocations:
    return Allocations(by="stack", allocations=joined(found))


def training() -> Allocations:
    """4 GiB: 1 of weights, 2.5 of activations, the rest by autograd's thread."""
    through = (TRAIN, STEP, WRAPPED, CALL, FORWARD, WRAPPED, CALL, LINEAR)
    return by_stack(
        Allocation(path=(TRAIN, INIT), allocated_bytes=GiB, count=12),
        Allocation(path=through, allocated_bytes=2 * GiB, count=48),
        Allocation(path=(TRAIN, STEP, WRAPPED, CALL, FORWARD), allocated_bytes=512 * MiB, count=3),
        Allocation(path=(), allocated_bytes=512 * MiB, count=7),
    )


def trace(chart: Chart | None) -> dict[str, Any]:
    assert chart
    (drawn,) = chart.figure["data"]
    return dict(drawn)


def sizes(chart: Chart | None) -> dict[str, int]:
    drawn = trace(chart)
    return dict(zip(drawn["labels"], drawn["values"], strict=True))


def below(chart: Chart | None) -> dict[str, int]:
    """What the frames below each sum to."""
    drawn, found = trace(chart), defaultdict[str, int](int)
    for parent, size in zip(drawn["parents"], drawn["values"], strict=True):
        found[parent] += size
    return found


def test_frames_sum_to_the_peak() -> None:
    chart = flame_graph(training(), "GiB")
    assert sizes(chart) == {
        "4.00 GiB at the peak": 4 * GiB,
        "&lt;module&gt;:90": 3 * GiB + 512 * MiB,
        "no Python call recorded": 512 * MiB,
        "train_step:41": 2 * GiB + 512 * MiB,
        "build:5": GiB,
        "forward:12": 2 * GiB + 512 * MiB,
        "linear.py:134": 2 * GiB,
    }


@given(allocations)
def test_no_frame_is_smaller_than_those_below_it(found: list[Allocation]) -> None:
    chart = flame_graph(by_stack(*found), "GiB")
    if chart is None:
        assert not any(one.path for one in found)
        return
    drawn = trace(chart)
    total = sum(one.allocated_bytes for one in found)
    assert drawn["values"][0] == total
    assert len(set(drawn["ids"])) == len(drawn["ids"])
    for parent, size in below(chart).items():
        assert size <= (drawn["values"][int(parent)] if parent else total)
    # What is left out is thinner than a pixel.
    assert total - below(chart)["0"] <= len(found) * total / 2000
    json.dumps(chart.figure, allow_nan=False)


def test_the_largest_frames_are_drawn_of_very_many() -> None:
    # Two thousand frames of the same size would all be wide enough.
    many = by_stack(*(
        Allocation(path=(TRAIN, Frame(name=f"f{n}", file="a.py", line=n)), allocated_bytes=MiB)
        for n in range(2000)
    ))  # fmt: skip
    drawn = trace(flame_graph(many, "GiB"))
    assert len(drawn["values"]) == MOST_FRAMES
    assert drawn["values"][:2] == [2000 * MiB] * 2


def test_very_deep_calls_do_not_make_a_chart_without_end() -> None:
    deep = tuple(Frame(name="recurse", file="a.py", line=n) for n in range(5000))
    chart = flame_graph(by_stack(Allocation(path=deep, allocated_bytes=7)), "GiB")
    assert chart
    assert chart.height < 1000
    assert trace(chart)["values"][-1] == 7


def test_modules_end_in_what_they_hold() -> None:
    use = training_1b().simulated
    assert use
    chart = flame_graph(by_module(use.held_at_peak), "GiB")
    held = sum(one.allocated_bytes for one in use.held_at_peak)
    assert chart
    assert trace(chart)["values"][0] == held
    assert {"Weights", "Activations", "Transformer", "layers.*", "mlp"} <= sizes(chart).keys()
    assert ("--c-activations", "Activations") in chart.legend


def test_the_lines_that_hold_most_are_those_of_the_users_code() -> None:
    table = top_allocators(training(), "GiB", 2)
    rows = [[cell.text for cell in row.cells] for row in table.rows]
    assert rows == [
        ["forward (me/model.py:12)", "forward (modules/linear.py:134)", "2.00 GiB", "48"],
        ["build (me/model.py:5)", "", "1.00 GiB", "12"],
        ["2 others", "", "1.00 GiB", "10"],
    ]
    assert sum(row.bar_bytes or 0 for row in table.rows) == 4 * GiB


def test_the_chart_says_who_holds_most() -> None:
    chart = flame_graph(training(), "GiB")
    assert chart
    assert chart.description == (
        "A flame graph of 4.00 GiB by call stack; most, 2.00 GiB, is allocated by "
        "forward (me/model.py:12)."
    )
    assert chart.table.rows


def test_without_any_frame_there_is_no_chart() -> None:
    assert flame_graph(by_stack(Allocation(path=(), allocated_bytes=9)), "GiB") is None
    assert flame_graph(by_stack(), "GiB") is None


def test_markup_in_a_name_is_escaped() -> None:
    bad = Frame(name="<b>", file="</script>", line=1)
    labels = trace(flame_graph(by_stack(Allocation(path=(bad,), allocated_bytes=9)), "GiB"))
    assert "<" not in json.dumps(labels["labels"])


def test_plotly_knows_every_attribute() -> None:
    from plotly.graph_objects import Figure

    chart = flame_graph(training(), "GiB")
    assert chart
    figure = with_colors(chart.figure)
    figure["data"][0]["textfont"]["color"] = "#123456"
    Figure(figure)
