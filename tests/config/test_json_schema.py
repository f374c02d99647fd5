"""The JSON Schema for editors says what loading accepts, field by field, in words too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tritter_mem.config.fields import Section
from tritter_mem.config.json_schema import field_documentation, profile_json_schema
from tritter_mem.config.named_profile import NamedProfile
from tritter_mem.config.profile import Profile

SCHEMA, NAMED = profile_json_schema()["anyOf"]
DOCS = Path(__file__).parents[2] / "docs" / "profiles.md"


def sections(section: type[Section], path: str = "") -> Iterator[tuple[str, type[Section]]]:
    yield path, section
    for name, kind in section.kinds.items():
        if isinstance(kind, type):
            yield from sections(kind, f"{path}.{name}".strip("."))


FIELDS = [
    (section, name)
    for profile in (Profile, NamedProfile)
    for _, section in sections(profile)
    for name in section.kinds
]
FIELD_PATHS = [(path, name) for path, section in sections(Profile) for name in section.kinds]


def objects(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for inner in schema["properties"].values():
        if "properties" in inner:
            yield from objects(inner)


def test_it_names_every_section_and_field() -> None:
    assert list(SCHEMA["properties"]) == ["extends", *Profile.kinds]
    assert list(NAMED["properties"]) == ["extends", *NamedProfile.kinds]
    for whole, profile in ((SCHEMA, Profile), (NAMED, NamedProfile)):
        for schema, (_, section) in zip(objects(whole), sections(profile), strict=True):
            assert set(section.kinds) <= set(schema["properties"])
            assert schema["additionalProperties"] is False


def test_a_named_model_is_text_or_keys() -> None:
    text, keys = NAMED["properties"]["model"]["anyOf"]
    assert text["type"] == "string"
    assert keys["required"] == ["model_type"]


def test_every_field_has_words() -> None:
    for schema in (*objects(SCHEMA), *objects(NAMED)):
        for name, field in schema["properties"].items():
            assert field["description"], name


def test_sizes_may_be_text() -> None:
    context = SCHEMA["properties"]["workload"]["properties"]["context"]
    number, text = context["anyOf"]
    assert number == {"type": "integer", "minimum": 1, "maximum": 1 << 30}
    assert text["type"] == "string"
    assert context["default"] == 4096


def test_defaults_are_those_of_loading() -> None:
    weights = SCHEMA["properties"]["weights"]["properties"]
    assert weights["format"]["default"] == "ternary-2bit"
    assert SCHEMA["properties"]["gpu"]["properties"]["budget"]["default"] is None


def test_a_file_needs_a_model_or_something_to_extend() -> None:
    assert SCHEMA["anyOf"] == [{"required": ["model"]}, {"required": ["extends"]}]


@pytest.mark.parametrize(("path", "name"), FIELD_PATHS)
def test_the_manual_has_every_field_in_its_section(path: str, name: str) -> None:
    chapters = dict(chapter.split("\n", 1) for chapter in DOCS.read_text().split("\n## "))
    chapter = chapters[f"`{path}`" if path else "The file"]
    assert f"\n| `{name}` | " in chapter


NAMED_PATHS = [
    f"{path}.{name}".strip(".")
    for path, section in sections(NamedProfile)
    for name, kind in section.kinds.items()
    if path and not isinstance(kind, type) and path not in ("gpu", "allocator")
]


@pytest.mark.parametrize("path", NAMED_PATHS)
def test_the_manual_has_every_field_of_named_models(path: str) -> None:
    chapters = dict(chapter.split("\n", 1) for chapter in DOCS.read_text().split("\n## "))
    assert f"\n| `{path}` | " in chapters["A named model"]


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=str)
def test_the_source_documents_every_field(section: type[Section], name: str) -> None:
    kind = section.kinds[name]
    words = (kind.__doc__ or "") if isinstance(kind, type) else field_documentation(section)[name]
    assert len(words) > 10
