"""A marked test on its way: what holds before its body runs."""

from __future__ import annotations

import sys
import weakref

import pytest

from tritter_mem.check.budget import Budgeted, read_mark


class Held:
    """What a test has when it fails."""


def failed_holding() -> tuple[AssertionError, weakref.ref[Held]]:
    held = Held()
    try:
        raise AssertionError
    except AssertionError as error:
        return error, weakref.ref(held)


def test_what_an_earlier_test_held_when_it_failed_is_gone_before_the_peak_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pytest has laid the failure into `sys` for debuggers."""
    error, held = failed_holding()
    monkeypatch.setitem(vars(sys), "last_type", type(error))
    monkeypatch.setitem(vars(sys), "last_value", error)
    monkeypatch.setitem(vars(sys), "last_traceback", error.__traceback__)
    del error
    assert held() is not None
    budgeted = Budgeted(name="test", asked=read_mark(("1 GiB",), {"device": "cpu"}))
    with budgeted.around_body(None):
        assert held() is None
