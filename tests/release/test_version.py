"""The version is the tag's, and there is one without tags and without git."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tritter_mem import __version__

ROOT = Path(__file__).parents[2]


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "safe.directory=*")
    done = subprocess.run(
        ["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


def version_of(folder: Path) -> str:
    command = [sys.executable, "-m", "hatchling", "version"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with what decides the version, without a tag."""
    pytest.importorskip("hatch_vcs", reason="the extra `dev` is not installed")
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", ".gitattributes", ".git_archival.txt", "README.md", "LICENSE"):
        (folder / name).write_text((ROOT / name).read_text())
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def unpacked(checkout: Path, ref: str) -> Path:
    """What a tarball of the repository holds."""
    folder = checkout.parent / "tarball"
    folder.mkdir()
    git(checkout, "archive", "--output", str(checkout.parent / "made.tar"), ref)
    subprocess.run(["tar", "xf", "../made.tar"], cwd=folder, check=True)
    return folder


def test_a_tag_gives_the_version(checkout: Path) -> None:
    git(checkout, "tag", "v9.8.7")
    assert version_of(checkout) == "9.8.7"
    assert version_of(unpacked(checkout, "v9.8.7")) == "9.8.7"


def test_without_a_tag_commits_are_counted(checkout: Path) -> None:
    assert version_of(checkout) == "0.0.1.dev1"


def test_a_tarball_without_a_tag_has_a_version(checkout: Path) -> None:
    assert version_of(unpacked(checkout, "HEAD")) in ("0.0", "0.0.0")


def test_what_is_installed_says_its_version() -> None:
    assert __version__ == version("tritter-mem")


def test_a_checkout_that_nothing_installed_has_one_too(tmp_path: Path) -> None:
    copy = tmp_path / "tritter_mem"
    copy.mkdir()
    for name in ("__init__.py", "version.py"):
        (copy / name).write_text((ROOT / "tritter_mem" / name).read_text())
    code = "import tritter_mem; print(tritter_mem.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout == "0+unknown\n"
