"""Structures with any values in place of the right ones: profiles, configurations, records, …

`make fuzz` runs these with a seed, each for FUZZ_TEST_SECONDS.
"""

import json
import os
import time
from collections.abc import Callable
from io import StringIO
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.allocator.build import BASE
from tests.fuzz.targets import CORPUS, TARGETS, check, run
from tritter_mem.allocator.snapshot import devices_of
from tritter_mem.config.loading import load_profile
from tritter_mem.config.profile import Profile
from tritter_mem.errors import TritterMemError
from tritter_mem.recordings.replay_snapshot import replay
from tritter_mem.report.replay_report import render_replay, render_replay_html
from tritter_mem.units import MiB

SECONDS = float(os.environ.get("FUZZ_TEST_SECONDS", "0"))
SEED = os.environ.get("FUZZ_SEED", "")
fuzzed = settings(
    max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def hold(strategy: st.SearchStrategy[Any], run: Callable[[Any], None]) -> None:
    """Run 30 examples, or, under `make fuzz`, rounds of 30 until the time is over."""
    if not SECONDS:
        fuzzed(given(strategy)(run))()
    end = time.monotonic() + SECONDS
    for number in count():
        if time.monotonic() >= end:
            break
        seed(f"{SEED} {number}")(fuzzed(given(strategy)(run)))()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(),
    st.sampled_from([1 << 31, 1 << 53, 1 << 62, 1 << 63, 10**400, -(10**400), 1e308, 5e-324]),
    st.text(max_size=20), st.sampled_from(["128k", "1e400", "010", "x" * 5000, "a\nb", "\u202e"]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in items:
        found.append((value, key))
        if isinstance(part, dict | list):
            found += places(part)
    return found


@st.composite
def changed(draw: Callable[..., Any], whole: Any) -> Any:
    """A structure with up to four values replaced, removed, or put under another key."""
    made = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 4))):
        there = places(made)
        container, key = there[draw(st.integers(0, len(there) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
        if change == "replace":
            container[key] = draw(ODD)
        elif change == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.text(max_size=30))] = draw(ODD)
        if not places(made):
            break
    return made


def structures(kind: str) -> st.SearchStrategy[Any]:
    files = [path.read_bytes() for path in sorted((CORPUS / kind).iterdir())
             if not path.name.startswith("found-")]  # fmt: skip
    wholes = [json.loads(content) for content in [*files, *TARGETS[kind].more()]]
    return st.sampled_from(wholes).flatmap(changed)


def refused(act: Callable[[], object]) -> TritterMemError | None:
    """An error of ours, checked as a command would show it."""
    try:
        act()
    except TritterMemError as error:
        check(error.exit_code, "\n".join(error.problems))
        return error
    return None


PROFILE = load_profile("tiny").model_dump()


def test_profiles() -> None:
    def run_one(made: Any) -> None:
        if isinstance(made, dict):
            refused(lambda: Profile.model_validate(made))

    hold(changed(PROFILE), run_one)


@pytest.mark.parametrize("kind", ["config", "record", "baseline", "index"])
def test_files(kind: str) -> None:
    hold(structures(kind), lambda made: run(TARGETS[kind], json.dumps(made).encode()))


def address(draw: Any) -> int:
    return BASE + draw(st.integers(0, 24)) * MiB


@st.composite
def snapshots(draw: Callable[..., Any]) -> dict[str, Any]:
    """Right in every type, and as contradictory as can be: overlaps, frees of nothing."""
    size = st.one_of(st.integers(1, 40 * MiB), st.sampled_from([1, 512, 2 * MiB, 20 * MiB]))
    requested = st.one_of(st.just(0), size)
    stream = st.sampled_from([0, 0, 0, 7])
    actions = st.sampled_from([
        "alloc", "alloc", "free_requested", "free_completed", "segment_alloc", "segment_free",
        "segment_map", "segment_unmap", "oom",
    ])  # fmt: skip
    segments = []
    for _ in range(draw(st.integers(0, 3))):
        states = st.sampled_from(["active_allocated", "inactive", "active_awaiting_free"])
        blocks = [{"size": draw(size), "state": draw(states), "requested_size": draw(requested)}
                  for _ in range(draw(st.integers(1, 3)))]  # fmt: skip
        segments.append({
            "address": address(draw), "total_size": sum(block["size"] for block in blocks),
            "segment_type": draw(st.sampled_from(["small", "large"])), "stream": draw(stream),
            "is_expandable": draw(st.booleans()), "blocks": blocks,
            "segment_pool_id": draw(st.sampled_from([(0, 0), (0, 0), (1, 2)])),
        })  # fmt: skip
    events = []
    for _ in range(draw(st.integers(0, 25))):
        action = draw(actions)
        events.append({
            "action": action, "device_free" if action == "oom" else "addr": address(draw),
            "size": draw(size), "stream": draw(stream),
        })  # fmt: skip
    conf = draw(st.sampled_from(["", "expandable_segments:True", "max_split_size_mb:21"]))
    return {"segments": segments, "device_traces": [events],
            "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": conf}}  # fmt: skip


def show_replay(made: dict[str, Any]) -> None:
    with patch("tritter_mem.recordings.replay_snapshot.load_snapshot", lambda _: devices_of(made)):
        found = replay("made.pickle", segment_maps=True)
    render_replay(found, Console(file=StringIO()))
    render_replay_html(found)


def test_contradictory_snapshots() -> None:
    def run_one(made: dict[str, Any]) -> None:
        refused(lambda: show_replay(made))

    hold(snapshots(), run_one)
