"""YAML is read within limits, with lines, and nothing that it holds gets out of hand."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritter_mem.config import reading
from tritter_mem.config.reading import MAX_BYTES, MAX_VALUES, read_document, read_value
from tritter_mem.errors import ConfigError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def write(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "p.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_document(path, "p.yaml")
    return list(caught.value.problems)


def test_values_come_with_the_line_of_their_key(tmp_path: Path) -> None:
    document = read_document(write(tmp_path, "# a comment\na:\n  b: 1\nc: [x, {d: 2}]\n"), "p.yaml")
    assert document.values == {"a": {"b": 1}, "c": ["x", {"d": 2}]}
    assert document.places == {
        (): "p.yaml",
        ("a",): "p.yaml:2",
        ("a", "b"): "p.yaml:3",
        ("c",): "p.yaml:4",
        ("c", "1", "d"): "p.yaml:4",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("128k", "128k"),
        ("15 GiB", "15 GiB"),
        ("true", True),
        ("null", None),
        ("", None),
        ("1.5", 1.5),
        ("'32'", "32"),
        ("2026-01-22", "2026-01-22"),
        ("{dtype: int8}", {"dtype": "int8"}),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_single_values_are_read_as_yaml_would(text: str, value: Any) -> None:
    assert read_value(text, "--set a.b") == value


@pytest.mark.parametrize("text", ["[1, 2", "*x", "!!str 5", "{a: 1, a: 2}", "1\n---\n2"])
def test_a_wrong_single_value_is_named_by_its_option(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_value(text, "--set a.b")
    assert caught.value.problems == (
        f"--set a.b: got {text!r}, expected one YAML value; quote text that holds brackets, "
        "braces, colons or other YAML syntax",
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "p.yaml: got nothing, expected a mapping of keys to values"),
        ("# only a comment\n", "p.yaml: got nothing, expected a mapping of keys to values"),
        ("- a\n- b\n", "p.yaml: got a list, expected a mapping of keys to values"),
        ("7b\n", "p.yaml: got a single value, expected a mapping of keys to values"),
        (b"PK\x03\x04\0\0", "p.yaml: got a binary file, expected YAML, as UTF-8 text"),
        (b"a: 1\nb: caf\xe9\n", "p.yaml:2: got the byte 0xe9, expected UTF-8 text"),
        ("a: !!python/object/apply:os.system [ls]\n", "p.yaml:1: tags are not allowed, got"),
        ("a: !!str 5\n", "p.yaml:1: tags are not allowed, got 'tag:yaml.org,2002:str'; write"),
        ("a: &x 1\nb: *x\n", "p.yaml:2: aliases are not allowed, got *x; write the value out"),
        ("? [a, b]\n: 1\n", "p.yaml:1: a key is not plain text"),
        ('"\\e[31m": 1\n', "p.yaml:1: a key is not plain text"),
        ("a: [1, 2\nb: 3\n", "p.yaml:2: not YAML: "),
        ("a:\n\tb: 1\n", "p.yaml:2: not YAML: "),
        ("a: \x07\n", "p.yaml: not YAML: "),
        ("[" * 100_000, "p.yaml:1: more than 16 levels of nesting"),
        (BOMB, "p.yaml:2: aliases are not allowed, got *a; write the value out"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_plain_mapping_is_refused(
    tmp_path: Path, content: str | bytes, problem: str
) -> None:
    [found] = refused(write(tmp_path, content))
    assert found.startswith(problem)
    assert "\n" not in found


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_document(write(tmp_path, b"\xef\xbb\xbfa: 1\n"), "p.yaml").values == {"a": 1}


def test_duplicate_keys_and_second_documents_are_all_reported(tmp_path: Path) -> None:
    content = "a: 1\nb: {c: 1, c: 2}\na: 3\n---\nd: 4\n"
    assert read_document(write(tmp_path, content), "p.yaml").problems == [
        "p.yaml:2: b.c: duplicate key, first at p.yaml:2",
        "p.yaml:3: a: duplicate key, first at p.yaml:1",
        "p.yaml:4: got a second document, expected only one",
    ]


def test_files_beyond_the_limit_are_refused_without_reading_on(tmp_path: Path) -> None:
    [found] = refused(write(tmp_path, "a: 1\n" + "#" * MAX_BYTES))
    assert found == "p.yaml: got more than 1,048,576 bytes, expected a YAML profile"


def test_an_endless_file_is_refused() -> None:
    assert refused(Path("/dev/zero")) == [
        "p.yaml: got more than 1,048,576 bytes, expected a YAML profile"
    ]


def test_more_values_than_any_profile_has_are_refused(tmp_path: Path) -> None:
    content = "".join(f"k{i}: 1\n" for i in range(MAX_VALUES + 1))
    [found] = refused(write(tmp_path, content))
    assert found == "p.yaml:1000: more than 1,000 values"


def test_a_missing_file_a_folder_and_a_file_in_a_file_are_named(tmp_path: Path) -> None:
    inside_a_file = write(tmp_path, "a: 1") / "p.yaml"
    assert refused(tmp_path / "none.yaml") == ["p.yaml: no such file"]
    assert refused(tmp_path) == ["p.yaml: got a directory, expected a YAML file"]
    assert refused(inside_a_file) == ["p.yaml: cannot be read: Not a directory"]


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, who may read everything, so the refusal is the open's own."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "open_input", refuse)
    assert refused(tmp_path / "p.yaml") == ["p.yaml: cannot be read: Permission denied"]


def test_the_quick_loader_is_the_one_in_use() -> None:
    assert reading._Loader.__name__ == "CSafeLoader"


@settings(deadline=None)  # files, on a machine that may be busy
@given(st.binary(max_size=200) | st.text("ab:-[]{}&*!|>'\"#%@`,? \n\t\\0123.", max_size=60))
def test_any_file_is_read_or_refused_in_plain_lines(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = write(tmp_path_factory.getbasetemp(), content)
    values: object = {}
    problems: Sequence[str] = []
    try:
        values = read_document(path, "p.yaml").values
    except ConfigError as error:
        problems = error.problems or ["no problem at all"]
    assert isinstance(values, dict)
    assert all(problem.startswith("p.yaml") and "\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("010", 10), ("-007", -7), ("+12", 12), ("0o17", 15), ("0x1F", 31), ("1e5", 1e5),
        ("1E-5", 1e-5), (".5", 0.5), ("1.", 1.0), ("-1.5e3", -1500.0), (".inf", math.inf),
        ("-.INF", -math.inf), ("1e400", math.inf), ("9" * 400, int("9" * 400)),
        ("9" * 400 + ".5", math.inf), ("0", 0), ("-0", 0),
    ],
)  # fmt: skip
def test_numbers_are_those_of_yaml_1_2(text: str, number: float) -> None:
    found = read_value(text, "it")
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize(
    "text",
    ["1:00:00.5", "1:30", "190:20:30", "0b101", "1_000", "0o9", "0xg", "1e", ".", "e5", "+.",
     "1.5.2", "0x-1", "12e03.5", "inf", "nan", "\uff11\uff12", "9" * 5000],
)  # fmt: skip
def test_what_is_no_number_of_yaml_1_2_is_text(text: str) -> None:
    assert read_value(text, "it") == text


@pytest.mark.parametrize("text", ["'010'", '"1e5"', "'null'", '".5"'])
def test_what_is_quoted_is_text(text: str) -> None:
    assert read_value(text, "it") == text[1:-1]


def test_nan_is_read_as_such() -> None:
    assert math.isnan(read_value(".nan", "it"))
