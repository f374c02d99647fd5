"""The mark's arguments are read with every problem named."""

from pathlib import Path
from typing import Any

import pytest

from tritter_mem.check.budget_mark import read_mark
from tritter_mem.errors import UsageError
from tritter_mem.units import GiB


def problems(*arguments: Any, **keywords: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_mark(arguments, keywords)
    return str(caught.value)


def test_a_size_in_text_and_in_bytes_are_the_same() -> None:
    assert read_mark(("15 GiB",), {}).budget_bytes == read_mark((15 * GiB,), {}).budget_bytes


def test_shortcuts_and_settings_change_the_profile_and_the_marks_budget_replaces_its_own() -> None:
    mark = read_mark(
        ("1 GiB",),
        {"profile": "tiny", "context": "2k", "gpu": "h100", "settings": {"workload.context": "1k"}},
    )
    assert mark.overrides() == {
        "gpu.budget": None, "gpu.name": "h100", "workload.context": "1k",
    }  # fmt: skip
    assert mark.labels()["workload.context"] == "settings workload.context"
    assert mark.labels()["gpu.name"] == "gpu"


@pytest.mark.parametrize(
    ("arguments", "keywords", "expected"),
    [
        ((), {}, "missing a required argument: 'budget', expected a budget, such as '15 GiB'"),
        (("1 GiB", "2 GiB"), {}, "too many positional arguments"),
        (("1 GiB",), {"contxt": 1}, "unexpected keyword argument 'contxt', expected a budget"),
        (("15 G",), {}, "budget: got '15 G', expected a memory size such as '15 GiB'"),
        ((0,), {}, "budget: got 0, expected a size above 0"),
        ((1.5,), {}, "budget: got 1.5, expected a memory size"),
        ((10**400,), {}, "budget: got a number of more than 77 digits, expected a size above 0"),
        ((10**5000,), {}, "budget: got a number of more than 77 digits, expected a size above 0"),
        (("9" * 18 + "TiB",), {}, "expected a size above 0 and up to 4,611,686,018,427,387,904"),
        (("1 GiB",), {"profile": 10**5000}, "profile: got a number of more than 77 digits"),
        (("1 GiB",), {"profile": "7b", "kind": "x" * 9999}, "…, expected simulated, measured"),
        (("1 GiB",), {"module": "a\nb:f"}, "module: a\\x0ab: there is no such file in "),
        (("1 GiB",), {"profile": 7}, "profile: got 7, expected a bundled profile's name"),
        (("1 GiB",), {"profile": ""}, "profile: got ''"),
        (("1 GiB",), {"profile": "7b", "kind": "guessed"}, "got 'guessed', expected simulated"),
        (("1 GiB",), {"profile": "7b", "fast": 1}, "fast: got 1, expected True or False"),
        (("1 GiB",), {"profile": "7b", "settings": {1: 2}}, "settings: got {1: 2}"),
        (("1 GiB",), {"device": "gpu"}, "device: got 'gpu', expected cpu, cuda or cuda:1"),
        (("1 GiB",), {"module": "train.py"}, "module: got 'train.py', expected FILE.py:FUNCTION"),
        (("1 GiB",), {"module": "no.py:build"}, "module: no.py: there is no such file in "),
        (("1 GiB",), {"profile": "7b", "module": f"{__file__}:f"}, "profile and module cannot"),
        (("1 GiB",), {"rehearse": 1}, "rehearse: got 1, expected True or False"),
        (("1 GiB",), {"rehearse": True, "device": "cpu"}, "device: not for a test that is reh"),
        (("1 GiB",), {"profile": "7b", "rehearse": True}, "rehearse: not for profile"),
        (("1 GiB",), {"profile": "7b", "kind": "rehearsed"}, "expected simulated, measured"),
        (("1 GiB",), {"context": 4096}, "context: not for the test's own body; for profile"),
        (("1 GiB",), {"profile": "7b", "device": "cpu"}, "device: not for profile; for the test's"),
    ],
)
def test_what_is_wrong_is_said_with_what_is_allowed(
    arguments: tuple[Any, ...], keywords: dict[str, Any], expected: str
) -> None:
    assert expected in problems(*arguments, **keywords)


def test_arguments_of_a_module_are_what_json_can_hold(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    module = f"{tmp_path / 'train.py'}:build"
    assert read_mark((1,), {"module": module, "args": {"layers": 2}}).subject == "module"
    assert "args: Object of type set is not JSON" in problems(1, module=module, args={"a": {1}})
    assert "args: got {1: 2}, expected arguments" in problems(1, module=module, args={1: 2})


def test_every_problem_is_named_at_once() -> None:
    found = problems("15 G", profile=7, kind="guessed", fast=1).splitlines()
    assert [line.partition(":")[0] for line in found] == ["budget", "profile", "fast", "kind"]
