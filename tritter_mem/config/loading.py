"""Loading a profile: its file, what it extends, the user's overrides, and every problem at once."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tritter_mem.config.bundled_files import bundled_profiles, find_profile, label_of
from tritter_mem.config.cards import AUTO, find_card, known_as, unknown_card
from tritter_mem.config.fields import OR_NULL, KeyPath, Problem, build, check, set_value
from tritter_mem.config.named_profile import AnyProfile, NamedProfile, is_named
from tritter_mem.config.options import CHECKPOINT_NUMBER, KEYS
from tritter_mem.config.profile import Profile
from tritter_mem.config.reading import NUMBER, Document, read_document, read_stream
from tritter_mem.errors import ConfigError
from tritter_mem.units import format_bytes

MAX_EXTENDS = 8
STDIN = "-"
DTYPE = KEYS["dtype"]
_DTYPE_OF_BUNDLED = (
    "the bundled model has weights.format instead; use --set weights.format=bfloat16"
)
_CHECKPOINTS_OF_NAMED = (
    "a named model takes none or every-layer, which is what gradient_checkpointing_enable() does"
)
# A profile that extends another is another one: it does not take over what it is called.
_NOT_INHERITED = ("name", "description")


def load_profile(
    name_or_path: str,
    overrides: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Profile:
    """Load a profile of the bundled model, resolve what it extends, and apply overrides.

    Args:
        name_or_path: a YAML file, `-` for standard input, else the name of a bundled profile.
        overrides: values by dotted key (`workload.context`), applied last; sizes may be text.
        labels: what messages call an override, by dotted key; default: `--set KEY`.

    Raises:
        ConfigError: with one line for each problem, that names the file and line or the override,
            the key, what was found and what is allowed.
    """
    found = load_any(name_or_path, overrides, labels)
    if isinstance(found, NamedProfile):
        raise ConfigError(
            f"{name_or_path}: got a model that transformers runs, expected a profile of the "
            "bundled model, such as 7b"
        )
    return found


def load_any(
    model: str,
    overrides: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> AnyProfile:
    """Load a profile, or make one of a model that is named.

    Args:
        model: a YAML file, `-` for standard input, the name of a bundled profile or model, a
            folder, a `config.json`, a GGUF file, or `org/name` on the Hub.
        overrides: values by dotted key (`workload.context`), applied last; sizes may be text.
        labels: what messages call an override, by dotted key; default: `--set KEY`.

    Raises:
        ConfigError: with one line for each problem, that names the file and line or the override,
            the key, what was found and what is allowed.
    """
    document = _read(model) if _is_profile(model) else _of_model(model)
    kind: type[AnyProfile] = Profile
    if is_named(document.values.get("model")):
        kind = NamedProfile
    paths = {key: tuple(key.split(".")) for key in overrides or {}}
    problems = [
        problem
        for key, value in (overrides or {}).items()
        for problem in set_value(document.values, paths[key], value)
    ]
    if kind is Profile and DTYPE in paths:
        del document.values["weights"]["dtype"]
        problems.append(Problem(paths[DTYPE], _DTYPE_OF_BUNDLED))
    if kind is NamedProfile and CHECKPOINT_NUMBER in paths:
        del document.values["training"]["checkpointing"]
        problems.append(Problem(paths[CHECKPOINT_NUMBER], _CHECKPOINTS_OF_NAMED))
    typed = document.values.get("gpu")
    values, wrong = check(kind, document.values)
    problems += [*wrong, *_card_problems(values, typed)]
    if document.problems or problems:
        names = {paths[key]: (labels or {}).get(key, f"--set {key}") for key in paths}
        sources = _Sources(document.places, names)
        raise ConfigError(*document.problems, *map(sources.line, problems))
    values["gpu"]["name"] = known_as(values["gpu"]["name"]) or AUTO
    return build(kind, values)


def _is_profile(model: str) -> bool:
    """Whether a name is that of a profile, and not of a model; a wrong name is taken for one."""
    if model == STDIN or model.endswith((".yaml", ".yml")) or model in bundled_profiles():
        return True
    from tritter_mem.models.named_model import is_model_name  # a bundled profile does without

    return not is_model_name(model)


def _read(model: str) -> Document:
    if model == STDIN:
        return _model_resolved(_read_stdin(), Path())
    path = find_profile(model)
    document = _resolve(path, read_document(path, label_of(path)), [path])
    document.values.setdefault("name", path.stem)
    return _model_resolved(document, path.parent)


def _read_stdin() -> Document:
    """A profile, or the keys of a `config.json`, from standard input."""
    document = read_stream(sys.stdin.buffer, "standard input")
    if "model_type" in document.values:
        document = Document({"model": document.values}, {(): "standard input"}, document.problems)
    if "extends" in document.values:
        here = Path("standard input")
        document = _resolve(here, document, [here])
    document.values.setdefault("name", "stdin")
    return document


def _model_resolved(document: Document, folder: Path) -> Document:
    """A `model` that is text names a bundled profile, or is a path from the profile's folder."""
    name = document.values.get("model")
    if not isinstance(name, str):
        return document
    if name in bundled_profiles():
        path = find_profile(name)
        document.values["model"] = read_document(path, label_of(path)).values["model"]
    elif (folder / name).exists():
        document.values["model"] = str(folder / name)
    return document


def _of_model(model: str) -> Document:
    from tritter_mem.models.named_model import short_name

    return Document({"name": short_name(model), "model": model}, {(): model})


def _card_problems(values: Mapping[str, Any], typed: object) -> list[Problem]:
    """What is wrong with the card and the budget on it; a card that is present is not looked at.

    Args:
        values: what was read.
        typed: the section as it was written, whose units messages use.
    """
    gpu = values.get("gpu", {})
    name, budget = gpu.get("name", AUTO), gpu.get("budget")
    text = unknown_card(name)
    if text:
        return [Problem(("gpu", "name"), text)]
    if name == AUTO or budget is None or budget <= find_card(name).total_bytes:
        return []
    written = str(typed.get("budget") if isinstance(typed, Mapping) else budget)
    units = "GB" if re.search("[kmgt]b *$", written, re.IGNORECASE) else "GiB"
    total = format_bytes(find_card(name).total_bytes, units)
    return [Problem(("gpu", "budget"), f"got {written}, but {name} has {total} of memory")]


def _resolve(path: Path, document: Document, chain: list[Path]) -> Document:
    """Lay a profile over the one that it extends, over the one that that extends."""
    if "extends" not in document.values:
        return document
    wanted, place = document.values.pop("extends"), document.places[("extends",)]
    base_path = _base(wanted, place, path, chain)
    base = read_document(base_path, label_of(base_path))
    base = _resolve(base_path, base, [*chain, base_path])
    for key in _NOT_INHERITED:
        base.values.pop(key, None)
    return Document(
        merged(base.values, document.values),
        base.places | document.places,
        base.problems + document.problems,
    )


def _base(wanted: Any, place: str, path: Path, chain: list[Path]) -> Path:
    """Find the profile that another extends; ConfigError where that cannot end well."""
    if not isinstance(wanted, str):
        raise ConfigError(f"{place}: extends: not text, expected a profile's name or path")
    try:
        base = find_profile(wanted, beside=path.parent)
    except ConfigError as error:
        raise ConfigError(*(f"{place}: extends: {problem}" for problem in error.problems)) from None
    shown = " -> ".join(label_of(link) for link in [*chain, base])
    if base.resolve() in [link.resolve() for link in chain]:
        raise ConfigError(f"{place}: extends: it extends itself: {shown}")
    if len(chain) > MAX_EXTENDS:
        raise ConfigError(f"{place}: extends: more than {MAX_EXTENDS} in a row: {shown}")
    return base


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `over` over `base`, mappings key by key, all else as a whole."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = merged(base[key], value) if both else value
    return result


@dataclass(frozen=True)
class _Sources:
    """Where the values of a profile came from: places in files, and labels of overrides."""

    places: Mapping[KeyPath, str]
    labels: Mapping[KeyPath, str]

    def line(self, problem: Problem) -> str:
        """Say what is wrong, after the override or the place of the value, else of its section."""
        if (label := self.labels.get(problem.path)) is not None:
            # `null` can be written in a file and behind --set, not behind another option.
            text = problem.text if label.startswith("--set") else problem.text.removesuffix(OR_NULL)
            return f"{label}: {text}"
        above = (problem.path[:length] for length in range(len(problem.path), -1, -1))
        known = (self.labels.get(path) or self.places.get(path) for path in above)
        return f"{next(filter(None, known))}: {problem}"


def profile_hash(profile: AnyProfile, model: Mapping[str, Any] | None = None) -> str:
    """Name a resolved profile by its content, whatever it is called: 16 hex digits of SHA-256.

    Args:
        profile: a resolved profile.
        model: for a named model the keys of its configuration, which the name does not tell.
    """
    content = profile.model_dump()
    for key in _NOT_INHERITED:
        del content[key]
    if model is not None:
        content["model"] = model
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def profile_yaml(profile: AnyProfile) -> str:
    """Write a profile as YAML, every default filled in; loading it gives the same profile."""
    plain = profile.model_dump()
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Quotes text that our reader would take for a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"({NUMBER.pattern})$"), list("-+.0123456789")
)
