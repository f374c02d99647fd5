"""JSON Schema of profiles, for editors that check and complete YAML."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from typing import Any

from tritter_mem.config.fields import Section
from tritter_mem.config.named_profile import NamedProfile
from tritter_mem.config.profile import Profile

DRAFT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = "Another profile, by name or by path from this file; this one's keys go over its keys."


def profile_json_schema() -> dict[str, Any]:
    """Describe what a profile's file may hold: a profile of the bundled model, or of a named one.

    A file that extends another may leave out any key; loading reports what is missing in the end.
    """
    return {
        "$schema": DRAFT,
        "title": "tritter-mem profile",
        "anyOf": [_file(Profile), _file(NamedProfile)],
    }


def _file(profile: type[Section]) -> dict[str, Any]:
    body = _section(profile)
    extends = {"extends": {"type": "string", "description": EXTENDS}}
    return {
        **body,
        "properties": extends | body["properties"],
        "anyOf": [{"required": ["model"]}, {"required": ["extends"]}],
    }


def _section(section: type[Section]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": inspect.getdoc(section),
        "additionalProperties": False,
        "properties": {name: _field(section, name) for name in section.kinds},
    }


def _field(section: type[Section], name: str) -> dict[str, Any]:
    kind = section.kinds[name]
    text = field_documentation(section)[name]
    if isinstance(kind, type):
        return {**_section(kind), "description": text or inspect.getdoc(kind)}
    described = {**kind.json_schema(), "description": text}
    return described | ({"default": getattr(section, name)} if hasattr(section, name) else {})


@cache
def _documentation(module: str) -> dict[str, dict[str, str]]:
    """Section and field name to the text that stands below the field in its module."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {found.name: _texts(found.body) for found in classes}


def _texts(body: list[ast.stmt]) -> dict[str, str]:
    return {
        field.target.id: inspect.cleandoc(below.value.value).replace("\n", " ")
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }  # fmt: skip


def field_documentation(section: type[Section]) -> dict[str, str]:
    """What each field of a section is, by name; empty where its section says it all."""
    texts = _documentation(section.__module__)[section.__name__]
    return {name: texts.get(name, "") for name in section.kinds}
