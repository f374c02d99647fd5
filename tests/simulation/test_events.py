"""The log keeps events as they happened, in few bytes."""

import sys

import pytest

from tritter_mem.simulation.events import Event, EventLog, Span


def test_events_read_back_as_written() -> None:
    log = EventLog()
    first = log.alloc(10, operator="aten.empty", module="Model", category="weights")
    second = log.alloc(20, operator="aten.mm", module="", category="activations")
    log.free(first, module="Model.mlp")
    log.spans = [Span("load", 0, 1), Span("forward", 2, 3)]
    assert list(log) == [
        Event("alloc", first, 10, "aten.empty", "Model", "load", "weights"),
        Event("alloc", second, 20, "aten.mm", "", "", "activations"),
        Event("free", first, 10, "", "Model.mlp", "forward", "weights"),
    ]
    assert list(log.changes()) == [(0, 10), (4, 20), (0, -10)]
    assert (len(log), log.storages) == (3, 2)


def test_recategorised_storage_changes_all_its_events() -> None:
    log = EventLog()
    storage = log.alloc(8, operator="aten.mm", module="", category="activations")
    log.free(storage, module="")
    log.recategorise(storage, "gradients")
    assert [event.category for event in log] == ["gradients", "gradients"]


def test_renamed_storage_changes_its_allocation_and_not_where_it_was_freed() -> None:
    log = EventLog()
    storage = log.alloc(8, operator="aten.empty", module="", category="weights")
    log.free(storage, module="Model.out")
    log.rename(storage, "Model.mlp")
    assert [event.module for event in log] == ["Model.mlp", "Model.out"]
    assert (log.module(storage), log.category(storage)) == ("Model.mlp", "weights")


def test_unknown_category_names_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match=r"'weihgts', expected weights, embeddings"):
        EventLog().alloc(8, operator="", module="", category="weihgts")


def test_notes_are_counted() -> None:
    log = EventLog()
    log.note("sparse")
    log.note("sparse")
    assert log.notes == {"sparse": 2}


def test_event_takes_about_25_bytes() -> None:
    """Half a million events, as a long prefill has, must stay far below the model they describe."""
    log = EventLog()
    for _ in range(10_000):
        log.free(
            log.alloc(512, operator="aten.mm", module="Model", category="workspace"), module=""
        )
    columns = [value for value in vars(log).values() if hasattr(value, "typecode")]
    assert sum(map(sys.getsizeof, columns)) < 30 * len(log)
