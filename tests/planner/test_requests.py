"""What the plan of each family asks for, beside what it asked for when it was compared.

`test_transformers_engine.py` compares it with a simulation; this is quick. After a change that the
simulation bears out, `python -m tests.planner.test_requests` writes the table anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny_models import tiny_config
from tests.planner.test_transformers_engine import (
    BESIDE_FLOAT16,
    CARD,
    OTHERS,
    PLANNED,
    QUANTISED,
    RUN_WHOLE,
    RUNS,
    TRAINED_NOT,
    a_run,
    other_run,
    served,
)
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.transformers_engine import play_run

TABLE = Path(__file__).parent / "requests.json"
Requests = dict[str, list[int]]


def requests(run: TransformersRun) -> Requests:
    """Of each phase: how many storages, their bytes, and the sum of what lives with each."""
    played = play_run(run, CARD)
    found = {}
    for name, first, last in played.spans:
        asked = served(played.requests.events[first:last], played.requests.sizes)
        sizes, live = zip(*asked, strict=True) if asked else ((), ())
        found[name or "warm-up"] = [len(sizes), sum(sizes), sum(live)]
    return found


def of_family(name: str) -> dict[str, Requests]:
    """Of each kind of run that is planned."""
    values = tiny_config(name, 0) | {"attention_dropout": 0.0}
    runs = {kind: a_run(values, **changes) for kind, changes in RUNS.items()}
    runs["other configuration"] = a_run(tiny_config(name, 2) | {"attention_dropout": 0.0})
    if name in BESIDE_FLOAT16:
        runs["float16"] = a_run(values, dtype="float16")
    return {
        kind: requests(run)
        for kind, run in runs.items()
        if not ((run.trains and name in TRAINED_NOT) or (run.prefill_chunk and name in RUN_WHOLE))
    }


def of_quantised(stored: str) -> dict[str, Requests]:
    """Of a model whose linear layers have biases."""
    values = tiny_config("qwen2", 0) | {"attention_dropout": 0.0}
    run = a_run(values | {"quantization_config": QUANTISED[stored]}, **RUNS["chunks"])
    return {"chunks": requests(run)}


@pytest.mark.parametrize("name", PLANNED)
def test_a_family_asks_for_what_it_was_compared_with(name: str) -> None:
    assert of_family(name) == json.loads(TABLE.read_text())[name]


@pytest.mark.parametrize("stored", QUANTISED)
def test_quantised_weights_ask_for_what_they_were_compared_with(stored: str) -> None:
    assert of_quantised(stored) == json.loads(TABLE.read_text())[stored]


def test_what_is_done_seldom_asks_for_what_it_was_compared_with() -> None:
    table = json.loads(TABLE.read_text())
    for what in OTHERS:
        assert {"whole": requests(other_run(what))} == table[what]


def test_a_mask_with_a_window_is_one_for_all_sequences() -> None:
    """[1, 1, T, K] of booleans; where chunks begin differs between sequences."""
    window = {"sliding_window": 16, "attention_chunk_size": 16, "attention_dropout": 0.0}
    work = {"batch": 3, "context": 51, "new_tokens": 1}
    for name, masks in (("mistral", {1}), ("llama4_text", {1, 3})):
        sizes = play_run(a_run(tiny_config(name, 0) | window, work=work), CARD).requests.sizes
        assert {count for count in (1, 2, 3) if count * 50 * 50 in sizes} == masks


def write() -> None:
    """The table."""
    found = {name: of_family(name) for name in PLANNED}
    found |= {stored: of_quantised(stored) for stored in QUANTISED}
    found |= {what: {"whole": requests(other_run(what))} for what in OTHERS}
    lines = [f" {json.dumps(name)}: {json.dumps(runs)}" for name, runs in found.items()]
    TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write()
