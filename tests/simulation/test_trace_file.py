"""A trace in a file comes back as it was, is the same for the same run, and refused if damaged."""

from __future__ import annotations

import gc
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.trace_reader import load_log
from tests.planner.cases import card, tiny
from tritter_mem.config.profile import Profile
from tritter_mem.errors import InputError, OutputError
from tritter_mem.results.run import COMPONENTS
from tritter_mem.simulation.events import EventLog, Span
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.simulate import bundled_workload, trace
from tritter_mem.simulation.trace_file import save_log

IN_TMP = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = st.text(max_size=12)


@st.composite
def logs(draw: st.DrawFn) -> EventLog:
    """Any log: storages that come and perhaps go, phases anywhere, notes."""
    log, live = EventLog(), []
    for frees in draw(st.lists(st.booleans(), max_size=30)):
        if frees and live:
            log.free(live.pop(draw(st.integers(0, len(live) - 1))), module=draw(NAMES))
        else:
            live.append(
                log.alloc(
                    draw(st.integers(0, 1 << 62)), operator=draw(NAMES), module=draw(NAMES),
                    category=draw(st.sampled_from(COMPONENTS)),
                )
            )  # fmt: skip
    bounds = sorted(draw(st.lists(st.integers(0, len(log)), max_size=6)))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    log.spans = [Span(draw(NAMES), start, end) for start, end in pairs]
    log.notes = draw(st.dictionaries(NAMES, st.integers(0, 9), max_size=3))
    log.emptied = sorted(draw(st.lists(st.integers(0, len(log)), max_size=2)))
    return log


@IN_TMP
@given(log=logs())
def test_what_was_saved_comes_back(log: EventLog, tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    save_log(log, path)
    back = load_log(path)
    assert list(back) == list(log)
    assert (back.spans, back.notes, back.emptied) == (log.spans, log.notes, log.emptied)


def recorded(profile: Profile) -> EventLog:
    return trace(bundled_workload(profile, card(), Progress()), card())


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_same_profile_gives_the_same_bytes(mode: str, tmp_path: Path) -> None:
    """Whatever the file is called, and whenever Python collects its garbage."""
    profile = tiny(workload__mode=mode, workload__context=64)
    save_log(recorded(profile), tmp_path / "one.gz")
    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        save_log(recorded(profile), tmp_path / "other.gz")
    finally:
        gc.set_threshold(*thresholds)
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "other.gz").read_bytes()


def test_any_tool_can_read_it(tmp_path: Path) -> None:
    log = EventLog()
    log.free(log.alloc(64, operator="aten.mm.default", module="Net.out", category="weights"),
             module="Net")  # fmt: skip
    log.spans = [Span("prefill", 0, 2)]
    save_log(log, tmp_path / "log.gz")
    lines = gzip.decompress((tmp_path / "log.gz").read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"schema": "tritter-mem.trace/1", "events": 2, "phases": [["prefill", 0, 2]], "notes": {}},
        {"alloc": 0, "bytes": 64, "category": "weights", "operator": "aten.mm.default",
         "module": "Net.out"},
        {"free": 0, "module": "Net"},
    ]  # fmt: skip


HEADER: dict[str, Any] = {
    "schema": "tritter-mem.trace/1", "events": 1, "phases": [], "notes": {},
}  # fmt: skip
ALLOC: dict[str, Any] = {
    "alloc": 0, "bytes": 8, "category": "weights", "operator": "", "module": "",
}  # fmt: skip
FREE: dict[str, Any] = {"free": 0, "module": ""}


def written(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_bytes(gzip.compress("".join(f"{text}\n" for text in texts).encode()))
    return path


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 0: got an empty file"),
        ([HEADER], "line 1: got the end after 0 of 1 events"),
        ([HEADER, ALLOC, FREE], "got the end after 2 of 1 events"),
        ([{**HEADER, "schema": "other/1"}], "line 1: schema: got 'other/1'"),
        ([[]], "line 1: got .*, expected an object"),
        (["{"], "line 1: no JSON"),
        (["[" * 100_000], "line 1: no JSON"),
        ([{**HEADER, "events": -1}], "events: got -1, expected 0 to"),
        ([{**HEADER, "phases": [["x", 1, 0]]}], "phases: got .* within 0 and 1"),
        ([{**HEADER, "phases": [["x", 0, 2]]}], "phases: got"),
        ([{**HEADER, "phases": 3}], "phases: got 3, expected a list"),
        ([{**HEADER, "notes": {"a": "b"}}], "a: got 'b'"),
        ([HEADER, {**ALLOC, "alloc": 1}], "line 2: alloc: got storage 1, expected 0"),
        ([HEADER, {**ALLOC, "bytes": True}], "line 2: bytes: got True"),
        ([HEADER, {**ALLOC, "category": "weihgts"}], "line 2: .*'weihgts', expected weights"),
        ([HEADER, {**ALLOC, "operator": None}], "line 2: operator: got None, expected a str"),
        ([HEADER, FREE], "line 2: free: got storage 0, which is not allocated"),
        ([HEADER, ALLOC, FREE, FREE], "line 4: free: got storage 0, which is not allocated"),
        ([HEADER, {}], "line 2: free: got None"),
    ],
)
def test_what_is_no_trace_is_refused(lines: list[object], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "log.gz", *lines)
    with pytest.raises(InputError, match=message) as caught:
        load_log(path)
    assert str(path) in str(caught.value)


@IN_TMP
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read(at: int, byte: int, tmp_path: Path) -> None:
    """A changed byte of the gzip header may mean nothing; no other error escapes."""
    whole = bytearray(written(tmp_path / "log.gz", HEADER, ALLOC).read_bytes())
    whole[at % len(whole)] = byte
    (tmp_path / "log.gz").write_bytes(whole)
    try:
        load_log(tmp_path / "log.gz")
    except InputError:
        return


@pytest.mark.parametrize("content", [b"", b"{}\n", gzip.compress(b"", mtime=0)[:-9]])
def test_what_is_no_whole_gzip_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"log.gz: (no whole gzip file|line 0: got an empty)"):
        load_log(tmp_path / "log.gz")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_log(tmp_path / "log.gz")


def test_a_place_that_takes_no_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    for path in (tmp_path, tmp_path / "file" / "log.gz"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_log(EventLog(), path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "here"


def test_a_failure_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    class Failing(EventLog):
        def __len__(self) -> int:
            raise KeyboardInterrupt

    save_log(EventLog(), tmp_path / "log.gz")
    before = (tmp_path / "log.gz").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        save_log(Failing(), tmp_path / "log.gz")
    assert (tmp_path / "log.gz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["log.gz"]
