"""Each kind of value reads what it allows, refuses the rest, and describes both."""

import re
from typing import Any

import pytest

from tritter_mem.config.fields import (
    Choice,
    Flag,
    Kind,
    Many,
    OrNull,
    Real,
    Size,
    Text,
    Whole,
    count,
    memory,
)

READS: list[tuple[Kind, object, Any]] = [
    (Whole(1, 8), 8, 8),
    (count(1, 1 << 20), "128k", 131072),
    (count(1, 1 << 20), 5, 5),
    (memory(1, 1 << 50), "15 GiB", 15 << 30),
    (Real(0, 1), "1e-5", 1e-5),
    (Real(0, 10), 3, 3.0),
    (Text(1, 9), "a b", "a b"),
    (Flag(), False, False),
    (Choice(("a", "b")), "b", "b"),
    (Many(Whole(0, 9)), [1, 2], (1, 2)),
    (OrNull(Whole(1, 8)), None, None),
    (OrNull(Whole(1, 8)), 2, 2),
]
REFUSES: list[tuple[Kind, object]] = [
    (Whole(1, 8), 0),
    (Whole(1, 8), 9),
    (Whole(1, 8), True),
    (Whole(1, 8), 4.0),
    (Whole(1, 8), "4"),
    (Whole(1, 8), None),
    (count(1, 1 << 20), "2M"),
    (count(1, 1 << 20), "-1"),
    (count(1, 1 << 20), "128q"),
    (memory(1, 1 << 50), "0"),
    (Real(0, 1), 0),
    (Real(0, 1), 1),
    (Real(0, 1), "nan"),
    (Real(0, 1), 10**400),
    (Real(0, 1), -(10**400)),
    (Real(0, 1), float("inf")),
    (Real(0, 1), True),
    (Real(0, 1), "small"),
    (Text(1, 9), ""),
    (Text(1, 9), "0123456789"),
    (Text(1, 9), "a\nb"),
    (Text(1, 9), "\x1b[31m"),
    (Text(1, 9), "a\u202eb"),
    (Text(1, 9), 5),
    (Flag(), 1),
    (Flag(), "true"),
    (Choice(("a", "b")), "c"),
    (Choice(("a", "b")), ["a"]),
    (Many(Whole(0, 9)), [1, 10]),
    (Many(Whole(0, 9)), 1),
]


@pytest.mark.parametrize(("kind", "value", "expected"), READS)
def test_reads_what_it_allows(kind: Kind, value: object, expected: object) -> None:
    read = kind.read(value)
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(("kind", "value"), REFUSES)
def test_refuses_the_rest(kind: Kind, value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        kind.read(value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Whole(1, 4096), "a whole number from 1 to 4,096"),
        (count(1, 8), "a whole number such as 4096, 128k or 1M, from 1 to 8"),
        (Real(0, 1), "a number above 0 and below 1"),
        (Choice(("a", "b", "c")), "a, b or c"),
        (OrNull(Flag()), "true or false, or null"),
        (Many(Flag()), "a list, each item true or false"),
    ],
)
def test_says_what_is_allowed(kind: Kind, words: str) -> None:
    assert kind.allowed == words


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Whole(1, 8), {"type": "integer", "minimum": 1, "maximum": 8}),
        (Real(0, 1), {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}),
        (Text(1, 9), {"type": "string", "minLength": 1, "maxLength": 9}),
        (Flag(), {"type": "boolean"}),
        (Choice(("a",)), {"enum": ["a"]}),
        (Many(Flag()), {"type": "array", "items": {"type": "boolean"}}),
        (OrNull(Flag()), {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
    ],
)
def test_describes_itself_to_editors(kind: Kind, schema: dict[str, Any]) -> None:
    assert kind.json_schema() == schema


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (count(1, 1 << 30), "128k"),
        (count(1, 1 << 30), " 1.5 M "),
        (count(1, 1 << 30), "131,072"),
        (memory(1, 1 << 50), "15 GiB"),
        (memory(1, 1 << 50), "15GB"),
        (memory(1, 1 << 50), "0.5 kb"),
        (memory(1, 1 << 50), "8_519_680 B"),
    ],
)
def test_editors_accept_text_that_is_read(kind: Size, text: str) -> None:
    assert kind.read(text) > 0
    assert re.search(kind.pattern, text)


@pytest.mark.parametrize("text", ["", "k", "-1", "128q", "1e3", "1 2"])
def test_editors_refuse_text_that_is_not_read(text: str) -> None:
    assert not re.search(count(1, 1 << 30).pattern, text)
    assert not re.search(memory(1, 1 << 50).pattern, text)
