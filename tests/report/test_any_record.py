"""Whatever a file holds, it is refused with its problems or drawn; it never breaks a reporter."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.report.records import curves, training_1b
from tritter_mem.errors import InputError
from tritter_mem.report.html import render_html
from tritter_mem.report.terminal import make_console, render_results
from tritter_mem.results.record_file import read_results

GOOD = json.dumps(replace(training_1b(), context_curves=curves("int4", "int2")).to_dict())
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every key and every item, a few of each list."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:3]
    return [p for key, part in items for p in [(*path, key), *places(part, (*path, key))]]


PLACES = places(json.loads(GOOD))


def draw(path: Path) -> None:
    """Read a file as the command does; draw it both ways if it is a result."""
    try:
        results = read_results(path)
    except InputError:
        return
    for shown in (results, results * 2):
        render_results(shown, make_console(io.StringIO()))
        render_html(shown, plotlyjs="directory")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=values)
def test_one_changed_value(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    record = json.loads(GOOD)
    part = record
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    draw(path)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=200), at=st.integers(0, len(GOOD)))
def test_damaged_bytes(tmp_path: Path, data: bytes, at: int) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(GOOD.encode()[:at] + data)
    draw(path)
