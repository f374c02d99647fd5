"""Every file of the corpus, and what fuzzing found before, is read or refused in order."""

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, run

FILES = sorted(path for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_of_the_corpus(path: Path) -> None:
    run(TARGETS[path.parent.name], path.read_bytes())


def test_every_target_has_files() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
