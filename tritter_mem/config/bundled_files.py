"""Where profiles are: paths that people give, and the profiles, models and cards bundled here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tritter_mem.errors import ConfigError
from tritter_mem.input_files import is_folder, is_there
from tritter_mem.text import either

_LONGEST_NAME = 200


@cache
def profiles_root() -> Path:
    """The bundled profiles: in an installed package beside its modules, else in the repository.

    Raises:
        ConfigError: the installation is broken, neither is there.
    """
    package = Path(__file__).parent.parent
    for root in (package / "profiles", package.parent / "profiles"):
        if (root / "models").is_dir():
            return root
    raise ConfigError(f"{package / 'profiles'}: no bundled profiles; install tritter-mem again")


def bundled_profiles() -> tuple[str, ...]:
    """Names of the bundled profiles: the models, then what is run with them."""
    root = profiles_root()
    return tuple(path.stem for folder in (root / "models", root) for path in _yaml_files(folder))


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.yaml"))


def released_names() -> tuple[str, ...]:
    """Names of the bundled models that others have released, such as `qwen3-32b`."""
    return tuple(sorted((path.stem for path in _yaml_files(_released())), key=_numbers_as_such))


def find_released(name: str) -> Path | None:
    """The file of a released model, whatever the case of its name; None where it is none's."""
    path = _released() / f"{name.lower()}.yaml"
    return path if path.name == f"{name.lower()}.yaml" and is_there(path) else None


def _released() -> Path:
    return profiles_root() / "released"


def _numbers_as_such(name: str) -> list[tuple[float, str]]:
    """2b before 27b."""
    parts = re.findall(r"(\d+(?:\.\d+)?)|(\D+)", name)
    return [(float(number) if number else -1.0, text) for number, text in parts]


def find_profile(name: str, beside: Path | None = None) -> Path:
    """Resolve a path, else a bundled profile's name, with or without `.yaml`.

    Args:
        name: what the user wrote.
        beside: the folder that a relative path starts from; default: the current one.

    Raises:
        ConfigError: it is neither; near names are suggested.
    """
    cut = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
    shown = cut if cut.isprintable() and cut else ascii(cut)
    path = (beside or Path()) / name
    if is_there(path) and not is_folder(path):
        return path
    bundled = _bundled(name)
    if bundled is not None:
        return bundled
    if name and is_there(path):
        raise ConfigError(f"{shown}: got a directory, expected a YAML file")
    if "/" in name:
        raise ConfigError(f"{shown}: no such file")
    raise ConfigError(f"{shown}: {_unknown(name)}")


def _bundled(name: str) -> Path | None:
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    root = profiles_root()
    paths = (folder / f"{stem}.yaml" for folder in (root, root / "models"))
    return next((path for path in paths if path.name == f"{stem}.yaml" and is_there(path)), None)


def _unknown(name: str) -> str:
    if find_released(name) is not None:
        return f"a model, not a profile; `tritter-mem plan {name}` plans it"
    if name.endswith(".py"):
        return f"Python code is simulated with --module {name}:FUNCTION of `tritter-mem profile`"
    if name.endswith((".safetensors", ".bin", ".pt")):
        return "a file of weights; name the folder that holds it and its config.json"
    near = near_names(name, bundled_profiles()) or near_names(name.lower(), released_names())
    if near:
        return f"no bundled model and no file of this name; did you mean {either(near)}?"
    return "no bundled model and no file of this name; `tritter-mem models` lists what is bundled"


def label_of(path: Path) -> str:
    """What messages call a profile: `profiles/7b.yaml` for a bundled one, else its path."""
    root = profiles_root()
    return f"profiles/{path.relative_to(root)}" if path.is_relative_to(root) else str(path)


def near_names(wanted: str, names: Sequence[str]) -> list[str]:
    """Up to three names that begin with what was wanted, or else look like it."""
    from difflib import get_close_matches  # only what is wrong needs it

    longer = [name for name in names if wanted and name.startswith(wanted)]
    alike = [name for name in get_close_matches(wanted, names, cutoff=0.5) if name not in longer]
    return (longer + alike)[:3]
