"""Shared options become overrides of every profile asked for, and their messages name them."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tritter_mem.cli import options
from tritter_mem.cli.main import app
from tritter_mem.cli.options import ProfileOptions, complete_gpus, complete_profiles, with_options
from tritter_mem.config.loading import load_profile
from tritter_mem.errors import ConfigError, UsageError

MANUAL = (Path(__file__).parents[2] / "docs" / "profiles.md").read_text()


def overrides(**options: Any) -> dict[str, Any]:
    return ProfileOptions(**options).overrides()


def problems(**options: Any) -> list[str]:
    with pytest.raises((ConfigError, UsageError)) as caught:
        ProfileOptions(**options).profiles()
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"context": "32k"}, {"workload.context": "32k"}),
        ({"batch": "4"}, {"workload.batch": 4}),
        ({"mode": "training"}, {"workload.mode": "training"}),
        ({"budget": "15 GiB"}, {"gpu.budget": "15 GiB"}),
        ({"gpu": "h100"}, {"gpu.name": "h100", "gpu.budget": None}),
        ({"gpu": "h100", "budget": "1GB"}, {"gpu.name": "h100", "gpu.budget": "1GB"}),
        ({"checkpoint": "none"}, {"training.checkpointing.policy": "none"}),
        (
            {"checkpoint": "segments:8"},
            {"training.checkpointing.policy": "segments", "training.checkpointing.n": 8},
        ),
        ({"kv_dtype": "int8"}, {"kv_cache.dtype": "int8"}),
        ({"alloc_conf": "a:b"}, {"allocator.conf": "a:b"}),
        ({"settings": ["model.qk_norm=false"]}, {"model.qk_norm": False}),
        ({"settings": ["allocator.conf=a=b"]}, {"allocator.conf": "a=b"}),
        ({"settings": [" model.vision = null"]}, {"model.vision": None}),
        ({"context": "1k", "settings": ["workload.context=2k"]}, {"workload.context": "2k"}),
    ],
)
def test_options_become_overrides(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert overrides(**options) == expected


def test_every_profile_asked_for_is_loaded_with_the_options() -> None:
    found = ProfileOptions(config=["7b", "tiny"], context="4k").profiles()
    assert [(profile.name, profile.workload.context) for profile in found] == [
        ("7b", 4096),
        ("tiny", 4096),
    ]


def test_a_budget_of_the_profile_does_not_outlive_its_card(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: 7b\ngpu: {budget: 8 GiB}\n")
    [profile] = ProfileOptions(config=[str(path)], gpu="rtx-4090").profiles()
    assert profile.gpu.budget is None


def test_messages_name_the_option_that_was_given() -> None:
    assert problems(
        context="lots",
        batch="0",
        gpu="h1000",
        budget="much",
        mode="dream",
        checkpoint="segments:x",
        kv_dtype="int3",
        settings=["model.hiden_size=3", "weights.format=int5"],
    ) == [
        "--set model.hiden_size: unknown key; did you mean hidden_size?",
        "--set weights.format: got 'int5', expected ternary-2bit, ternary-1.6bit, bfloat16, "
        "float16, float32, int8 or int4",
        "--kv-dtype: got 'int3', expected bfloat16, float16, fp8, int8, int4 or int2",
        "--mode: got 'dream', expected inference or training",
        "--context: got 'lots', expected a whole number such as 4096, 128k or 1M, from 1 to 1024M",
        "--batch: got 0, expected a whole number from 1 to 65,536",
        "--checkpoint: got 'x', expected a whole number from 1 to 4,096",
        "--budget: got 'much', expected a size such as 15GiB or 15GB, from 1 B to 1,024 TiB",
        "--gpu: 'h1000' is not a known card; did you mean h100, h200 or h100-nvl?",
    ]


def test_set_takes_the_blame_where_it_won() -> None:
    [problem] = problems(context="4k", settings=["workload.context=lots"])
    assert problem.startswith("--set workload.context: got 'lots',")


@pytest.mark.parametrize("setting", ["workload.context", "=5", " = 5", ""])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    assert problems(settings=[setting]) == [
        f"--set: got {setting!r}, expected KEY=VALUE, such as workload.context=32k"
    ]


def test_problems_of_several_profiles_come_together_and_once() -> None:
    found = problems(config=["7c", "tiny", "tinny"], batch="0")
    assert [problem.split(":")[0] for problem in found] == ["7c", "--batch", "tinny"]


@with_options
def _command(options: ProfileOptions, twice: bool = False) -> None:
    """Show what was understood."""
    typer.echo(f"{list(options.config)} {options.context} {list(options.settings)} {twice}")


def run(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(_command)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def test_a_command_takes_all_shared_options_as_one_parameter() -> None:
    given = ("--config", "a", "--config", "b", "--context", "1k", "--set", "x=1", "--twice")
    assert run(*given) == "['a', 'b'] 1k ['x=1'] True"
    assert run() == "['7b'] None [] False"


def test_a_command_keeps_its_name_and_its_words() -> None:
    assert _command.__name__ == "_command"
    assert inspect.getdoc(_command) == "Show what was understood."


def test_completion_knows_profiles_cards_and_names_of_the_schema() -> None:
    assert complete_profiles("7b-128k-g") == ["7b-128k-gqa"]
    assert complete_gpus("rtx-508") == ["rtx-5080"]
    assert complete_gpus("au") == ["auto"]


def test_the_manual_has_every_option_and_its_key() -> None:
    table = MANUAL.split("## Overriding")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(--[a-z-]+).*\| `([a-z_.]+)`", table, re.MULTILINE))
    given = ProfileOptions(
        context="1", batch="1", gpu="a", budget="1", mode="a", checkpoint="a:1", kv_dtype="a",
        alloc_conf="a",
    )  # fmt: skip
    labels = {label: key for key, label in reversed(given.labels().items())}
    assert shown == {**labels, "--set": "weights.format"}


def test_the_first_example_of_the_manual_loads(tmp_path: Path) -> None:
    path = tmp_path / "my-7b.yaml"
    path.write_text(MANUAL.split("```yaml\n")[1].split("```")[0])
    assert load_profile(str(path)).gpu.name == "rtx-4090"


def test_the_wrong_example_of_the_manual_is_refused_as_shown(tmp_path: Path) -> None:
    """The manual shows lines 4, 5 and 9 of a file; these are those lines."""
    text = "name: wrong\nextends: 7b\nmodel:\n  num_key_value_heads: 7\n  hiden_size: 4096\n\n"
    path = tmp_path / "wrong.yaml"
    path.write_text(text + "workload:\n  context: 64k\n  batch: -1\n")
    shown = re.findall(r"^error: (.*)$", MANUAL, re.MULTILINE)
    assert [p.removeprefix(f"{tmp_path}/") for p in problems(config=[str(path)])] == shown


def test_a_page_without_plotly_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["profile", "--config", "tiny", "--html", "never.html"])
    assert done.exit_code == 2
    assert "--html needs plotly, which is not installed: pip install plotly" in done.stderr
    assert not Path("never.html").exists()
