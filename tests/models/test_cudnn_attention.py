"""cuDNN's attention, beside what a GPU was asked for."""

from __future__ import annotations

import json
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from tritter_mem.models import cudnn_attention

MEASURED = json.loads(Path(__file__).with_name("cudnn_attention.json").read_text())
CALLS: list[dict[str, Any]] = MEASURED["calls"]
MULTIPROCESSORS = 132


def _sizes(call: dict[str, Any]) -> cudnn_attention.Call:
    return cudnn_attention.Call(**{f.name: call[f.name] for f in fields(cudnn_attention.Call)})


def _asked(events: list[int]) -> list[int]:
    return list(takewhile(lambda size: size > 0, events))


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_it_takes_the_calls_that_pytorch_gave_it(call: dict[str, Any]) -> None:
    assert cudnn_attention.suits(_sizes(call)) == (call["backend"] == "cudnn")


@pytest.mark.parametrize("call", [x for x in CALLS if x["backend"] == "cudnn"], ids=str)
def test_workspace_of_a_forward_pass_is_as_measured(call: dict[str, Any]) -> None:
    found = cudnn_attention.forward_bytes(_sizes(call), MULTIPROCESSORS)
    after_mask = call["forward"][call["forward"].index(cudnn_attention.SCALAR_BYTES) :]
    rows = call["batch"] * call["heads"] * call["queries"]
    sums = [rows * 4] if "backward" in call else []
    wanted = [8, 8, rows * call["value_width"] * 2, *sums, *([found] if found else [])]
    assert _asked(after_mask) == wanted


@pytest.mark.parametrize("call", [x for x in CALLS if "backward" in x], ids=str)
def test_workspace_of_a_backward_pass_is_as_measured(call: dict[str, Any]) -> None:
    found = cudnn_attention.backward_bytes(_sizes(call))
    assert _asked(call["backward"])[-1] == found
