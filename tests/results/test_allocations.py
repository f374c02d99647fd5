"""Who allocated what: alike paths joined, long lists shortened, no byte lost."""

from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.results.allocations import (
    Allocation,
    Allocations,
    Frame,
    joined,
    shortened,
)
from tritter_mem.results.run import Holding, by_module

names = st.sampled_from("abc")
frames = st.builds(Frame, name=names, file=st.sampled_from(["x.py", "y.py"]), line=st.just(1))
allocations = st.lists(
    st.builds(
        Allocation,
        path=st.lists(frames, max_size=6).map(tuple),
        allocated_bytes=st.integers(1, 1 << 40),
        count=st.integers(1, 9),
    ),
    max_size=40,
)


def path(*names: str) -> tuple[Frame, ...]:
    return tuple(Frame(name=name, file="train.py", line=1) for name in names)


@given(allocations)
def test_joining_keeps_every_byte_and_has_each_path_once(found: list[Allocation]) -> None:
    made = joined(found)
    assert sum(one.allocated_bytes for one in made) == sum(one.allocated_bytes for one in found)
    assert sum(one.count for one in made) == sum(one.count for one in found)
    assert len({one.path for one in made}) == len(made)
    sizes = [one.allocated_bytes for one in made]
    assert sizes == sorted(sizes, reverse=True)


@given(allocations, st.integers(12, 30))
def test_shortening_keeps_every_byte_and_what_holds_most(
    found: list[Allocation], most: int
) -> None:
    whole = Allocations(by="stack", allocations=joined(found))
    short = shortened(whole, most)
    assert short.total_bytes == whole.total_bytes
    # At most four outermost frames and those without one.
    assert len(short.allocations) <= most
    kept = {one.path: one.allocated_bytes for one in short.allocations}
    for one in whole.allocations[: most // 2]:
        assert kept[one.path] >= one.allocated_bytes


def test_shortening_takes_no_more_frames_than_it_must() -> None:
    deep = [
        Allocation(path=path("main", f"step {n}", f"op {op}"), allocated_bytes=100 - n)
        for n in range(4)
        for op in range(4)
    ]
    short = shortened(Allocations(by="stack", allocations=joined(deep)), 12)
    assert {len(one.path) for one in short.allocations} == {2, 3}


def test_modules_that_differ_in_their_numbers_are_one_path() -> None:
    found = by_module([
        Holding(module=f"Net.layers.{layer}.mlp", component="weights", allocated_bytes=7)
        for layer in range(3)
    ] + [Holding(module="", component="workspace", allocated_bytes=1)])  # fmt: skip
    first, second = found.allocations
    assert [frame.name for frame in first.path] == ["Net", "layers.*", "mlp"]
    assert (first.allocated_bytes, first.count, first.component) == (21, 3, "weights")
    assert (second.path, second.component) == ((), "workspace")
    assert found.total_bytes == 22
