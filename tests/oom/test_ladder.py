"""The ladder itself: which rungs there are, and in which order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritter_mem.errors import UsageError
from tritter_mem.oom.ladder import AS_IT_IS, CLEAR_CACHE, Offers, Settings, rungs

OFFERS = st.builds(
    Offers,
    training=st.booleans(),
    checkpoint_every=st.sets(st.integers(1, 9)).map(lambda n: tuple(sorted(n, reverse=True))),
    batch=st.integers(1, 70),
    window=st.none() | st.integers(1, 9000),
    truncate_training=st.booleans(),
)
STARTS = st.builds(
    Settings,
    checkpoint_every=st.none() | st.integers(1, 9),
    micro_batch=st.none() | st.integers(1, 70),
    window=st.none() | st.integers(1, 9000),
)


def test_order_is_the_specifications() -> None:
    offers = Offers(checkpoint_every=(4, 1), batch=6, window=4096)
    assert [rung.name for rung in rungs(offers)] == [
        "as it is",
        CLEAR_CACHE,
        "checkpoint every 4th layer",
        "checkpoint every layer",
        "3 of 6 sequences at a time",
        "2 of 6 sequences at a time",
        "1 of 6 sequences at a time",
        "truncate to the last 4096 tokens",
    ]


def test_each_rung_keeps_what_the_ones_before_gave_up() -> None:
    *_, last = rungs(Offers(checkpoint_every=(2,), batch=2, window=8))
    assert last.settings == Settings(checkpoint_every=2, micro_batch=1, window=8)
    assert last.changes_result


@given(OFFERS, STARTS)
def test_no_settings_come_twice(offers: Offers, start: Settings) -> None:
    first, cleared, *others = rungs(offers, start)
    assert first.settings == cleared.settings == start
    found = [start, *(rung.settings for rung in others)]
    assert len(found) == len(set(found))


@given(OFFERS, STARTS)
def test_nothing_that_was_given_up_comes_back(offers: Offers, start: Settings) -> None:
    found = [rung.settings for rung in rungs(offers, start)]
    for before, after in pairwise(found):
        for name, value in before.given_up().items():
            assert after.given_up()[name] <= value


@given(OFFERS)
def test_training_truncates_only_where_it_is_asked_to(offers: Offers) -> None:
    for rung in rungs(offers):
        truncates = rung.settings.window is not None
        assert rung.changes_result == truncates
        assert rung.refused == (truncates and offers.training and not offers.truncate_training)


def test_a_job_that_offers_nothing_clears_the_cache() -> None:
    assert [rung.settings for rung in rungs(Offers())] == [AS_IT_IS, AS_IT_IS]


def test_wrong_offers_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        Offers(batch=0, window=0, checkpoint_every=(1, 2))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "batch",
        "window",
        "checkpoint_every",
    ]
