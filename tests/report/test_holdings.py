"""The peak explained: the same module of every layer in one row, most first, nothing lost."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import planned_7b, training_1b
from tritter_mem.report.tables import MOST_MODULES, holdings_table
from tritter_mem.results.run import COMPONENTS, Holding, Result, held_by_same


def holding(module: str, size: int, component: str = "activations") -> Holding:
    return Holding(module=module, component=component, allocated_bytes=size)


def held_by(*holdings: Holding) -> Result:
    result = training_1b()
    assert result.simulated
    return replace(result, simulated=replace(result.simulated, held_at_peak=holdings))


def test_layers_are_joined_and_counted_and_their_numbers_become_a_star() -> None:
    layers = [holding(f"Transformer.layers.{i}.mlp", 100 + i) for i in range(12)]
    (row,) = held_by_same(layers)
    assert (row.module, row.count, row.allocated_bytes) == ("Transformer.layers.*.mlp", 12, 1266)


def test_numbers_inside_of_names_and_other_components_stay_apart() -> None:
    found = held_by_same([holding("block1.fc2", 1), holding("block2.fc2", 2),
                          holding("block2.fc2", 3, "gradients")])  # fmt: skip
    assert [(h.module, h.component) for h in found] == [
        ("block2.fc2", "gradients"), ("block2.fc2", "activations"), ("block1.fc2", "activations"),
    ]  # fmt: skip


modules = st.sampled_from(["", "a", "a.0", "a.1", "a.1.b", "a.2.b", "c3"])
some = st.lists(st.builds(holding, modules, st.integers(0, 10**12), st.sampled_from(COMPONENTS)))


@given(some)
def test_bytes_are_kept_and_most_comes_first(holdings: list[Holding]) -> None:
    found = held_by_same(holdings)
    sizes = [held.allocated_bytes for held in found]
    assert sum(sizes) == sum(h.allocated_bytes for h in holdings)
    assert sizes == sorted(sizes, reverse=True)


def test_what_is_not_shown_is_summed_in_the_last_row() -> None:
    table = holdings_table(held_by(*(holding(f"m{'x' * i}", 100 - i) for i in range(20))), "GiB")
    assert table
    assert len(table.rows) == MOST_MODULES + 1
    assert table.rows[-1].cells[0].text == "8 others"
    assert sum(row.bar_bytes or 0 for row in table.rows) == sum(100 - i for i in range(20))


def test_what_no_module_allocated_says_so_and_a_hostile_name_is_printable() -> None:
    table = holdings_table(held_by(holding("", 2), holding("\u202e<script>", 1)), "GiB")
    assert table
    assert [row.cells[0].text for row in table.rows] == ["outside any module", "\\u202e<script>"]


def test_without_modules_there_is_no_table() -> None:
    assert holdings_table(planned_7b(), "GiB") is None
