"""The functions of Python: a model by its name, with the options of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models.tiny_models import tiny_config
from tritter_mem import plan, profile, simulate
from tritter_mem.config.cards import find_card
from tritter_mem.config.loading import load_profile
from tritter_mem.errors import ConfigError, UsageError


def test_a_bundled_name_is_planned_with_options() -> None:
    use = plan("7b-128k-gqa", gpu="h100", context="32k")
    same = load_profile("7b-128k-gqa", {"gpu.name": "h100", "workload.context": "32k"})
    assert use == plan(same) == plan(same, find_card("h100"))
    assert use.device == "h100"


def test_options_change_a_profile_too() -> None:
    given = load_profile("tiny")
    assert plan(given, batch=2) == plan("tiny", batch=2) != plan(given)


def test_all_three_take_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", 1)))
    found = profile(tmp_path, device="none", context=256, gpu="h100")
    assert found.planned == plan(tmp_path, context=256, gpu="h100")
    assert found.simulated == simulate(tmp_path, context=256, gpu="h100")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contxt": 3}, "contxt: no such option; the options are context, batch"),
        ({"checkpoint": "every-nth:x"}, "checkpoint"),
        ({"context": "much"}, "context: got 'much'"),
    ],
)
def test_a_wrong_option_is_one_clear_error(options: dict[str, object], words: str) -> None:
    with pytest.raises((ConfigError, UsageError), match=words):
        plan("tiny", **options)  # type: ignore[arg-type]


def test_a_named_model_always_runs_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", 1)))
    with pytest.raises(UsageError, match="fast"):
        simulate(tmp_path, fast=True)
