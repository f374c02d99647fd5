"""Names and paths of profiles resolve, and near misses are suggested."""

from pathlib import Path

import pytest

from tritter_mem.config import bundled_files
from tritter_mem.config.bundled_files import (
    bundled_profiles,
    find_profile,
    label_of,
    profiles_root,
)
from tritter_mem.errors import ConfigError


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["7b", "7b.yaml", "7b.yml", "7b-128k-gqa", "tiny"])
def test_bundled_names_are_found_in_both_folders(name: str) -> None:
    assert find_profile(name).is_relative_to(profiles_root())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("7b-128-gqa", "7b-128-gqa: no bundled model and no file of this name; did you mean 7b-"),
        (
            "7b-128k",
            "7b-128k: no bundled model and no file of this name; did you mean 7b-128k-gqa, ",
        ),
        ("tinny", "tinny: no bundled model and no file of this name; did you mean tiny?"),
        ("zzzzz", "zzzzz: no bundled model and no file of this name; `tritter-mem models` lists"),
        ("", "'': no bundled model and no file of this name; `tritter-mem models` lists"),
        ("Qwen3-23B", "Qwen3-23B: no bundled model and no file of this name; did you mean qwen3-3"),
        ("Qwen3-32B", "Qwen3-32B: a model, not a profile; `tritter-mem plan Qwen3-32B` plans it"),
        ("models/7b", "models/7b: no such file"),
        ("../profiles/7b", "../profiles/7b: no such file"),
        ("a\x1b[31mb", r"'a\x1b[31mb': no bundled model and no file of this name;"),
        ("x" * 5000, "x" * 200 + "…: no bundled model and no file of this name;"),
        ("a\0b", r"'a\x00b': no bundled model and no file of this name;"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_unknown_names_say_what_was_looked_for(name: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_profile(name)
    assert caught.value.problems[0].startswith(problem)


def test_a_folder_is_no_profile_but_hides_no_bundled_one() -> None:
    Path("mine").mkdir()
    Path("7b").mkdir()
    with pytest.raises(ConfigError, match="mine: got a directory, expected a YAML file"):
        find_profile("mine")
    assert find_profile("7b").name == "7b.yaml"


def test_a_relative_path_starts_beside_what_names_it() -> None:
    Path("deep").mkdir()
    Path("deep/x.yaml").touch()
    assert find_profile("x.yaml", beside=Path("deep")) == Path("deep/x.yaml")


def test_bundled_profiles_are_called_the_same_wherever_they_are_installed() -> None:
    assert label_of(find_profile("7b")) == "profiles/models/7b.yaml"
    assert label_of(Path("mine.yaml")) == "mine.yaml"


def test_models_are_listed_before_what_is_run_with_them() -> None:
    names = bundled_profiles()
    assert names.index("tiny") < names.index("7b-128k-gqa")
    assert len(set(names)) == len(names)


def test_installed_profiles_come_before_the_repository_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "tritter_mem"
    monkeypatch.setattr(bundled_files, "__file__", str(package / "config" / "finding.py"))
    (tmp_path / "site" / "profiles" / "models").mkdir(parents=True)
    root = profiles_root.__wrapped__
    assert root() == tmp_path / "site" / "profiles"
    (package / "profiles" / "models").mkdir(parents=True)
    assert root() == package / "profiles"


def test_an_installation_without_profiles_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled_files, "__file__", str(tmp_path / "a" / "b" / "finding.py"))
    with pytest.raises(ConfigError, match="no bundled profiles; install tritter-mem again"):
        profiles_root.__wrapped__()
