"""What a command line says of third-party code, and how that code is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tritter_mem.errors import InputError, UsageError
from tritter_mem.models.user_code import explained, load, read_case

CODE = """
SIZE = 3

def build(device, width=64, depth=2):
    return device, width, depth

def plain(device):
    return device
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "third_party_code.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("third_party_code", None)


def test_a_case_holds_what_is_said(code: Path) -> None:
    case = read_case(f"{code}:build", '{"width": 8}', warmup=0, steps=3)
    assert (case.path, case.function, case.arguments) == (str(code), "build", {"width": 8})
    assert (case.warmup, case.steps, case.name) == (0, 3, "third_party_code.py:build")
    assert (read_case(f"{code}:build").warmup, read_case(f"{code}:build").steps) == (1, 1)


@pytest.mark.parametrize(
    ("module", "arguments", "warmup", "steps", "said"),
    [
        ("train.py", "{}", 1, 1, "--module: got 'train.py', expected FILE.py:FUNCTION"),
        (":build", "{}", 1, 1, "--module: got ':build', expected FILE.py:FUNCTION"),
        ("{code}:2", "{}", 1, 1, "third_party_code.py:2', expected FILE.py:FUNCTION"),
        ("none.py:build", "{}", 1, 1, "--module: none.py: there is no such file"),
        ("{code}:build", "[1]", 1, 1, "--args: got '[1]', expected a JSON object"),
        ("{code}:build", "{'a'}", 1, 1, "--args: got \"{'a'}\", which is not JSON"),
        ("{code}:build", "{}", -1, 1, "--warmup: got -1, expected 0 or more"),
        ("{code}:build", "{}", 1, 0, "--steps: got 0, expected 1 or more"),
        ("{code}:build", "{}", 1, -3, "--steps: got -3, expected 1 or more"),
    ],
)
def test_what_is_wrong_is_said(
    code: Path, module: str, arguments: str, warmup: int, steps: int, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_case(module.replace("{code}", str(code)), arguments, warmup=warmup, steps=steps)
    (problem,) = caught.value.problems
    assert said in problem


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        read_case("none.py:build", "3", warmup=-1, steps=0)
    assert len(caught.value.problems) == 4


def test_the_function_is_that_of_the_file(code: Path) -> None:
    build = load(read_case(f"{code}:build", '{"width": 8}'))
    assert build("meta", width=8) == ("meta", 8, 2)


@pytest.mark.parametrize(
    ("function", "arguments", "taken"),
    [("build", '{"wide": 8}', "width, depth"), ("plain", '{"wide": 8}', "none")],
)
def test_arguments_that_a_function_does_not_take_are_said_with_those_that_it_does(
    code: Path, function: str, arguments: str, taken: str
) -> None:
    with pytest.raises(UsageError, match=f"'wide'; arguments that it takes: {taken}$"):
        load(read_case(f"{code}:{function}", arguments))


def test_a_function_that_is_not_there_is_said_with_those_that_are(code: Path) -> None:
    for name in ("built", "SIZE"):
        with pytest.raises(InputError, match=f"no function '{name}'; its functions: build, plain"):
            load(read_case(f"{code}:{name}"))
    code.write_text("SIZE = 3")
    with pytest.raises(InputError, match="it has no functions"):
        load(read_case(f"{code}:build"))


def test_what_a_file_raises_is_said_in_one_line_with_its_place(code: Path) -> None:
    code.write_text("\nraise ValueError('no\\nsuch ' + 1000 * 'x')\n")
    with pytest.raises(InputError) as caught:
        load(read_case(f"{code}:build"))
    (problem,) = caught.value.problems
    assert "third_party_code.py:2" in problem
    assert "ValueError: no such xxx" in problem
    assert len(problem) < 500 + len(str(code))
    code.write_text("def build(:\n")
    with pytest.raises(InputError, match=r"third_party_code.py:1: SyntaxError"):
        load(read_case(f"{code}:build"))


def test_an_error_of_ones_own_and_an_interrupt_are_left_as_they_are(code: Path) -> None:
    case = read_case(f"{code}:build")
    for error in (UsageError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, explained(case):
            raise error
        assert caught.value is error
