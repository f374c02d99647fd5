"""What is changed in a module, and that the changed module does something else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutate import mutants as m

SOURCE = '''
"""Text of 5 < 6."""

def padded(size: int, unit: int = 8) -> int:
    """The next multiple."""
    if size < 0:
        raise ValueError(f"{size + 1} is below {0}")
    whole = -(-size // unit) * unit
    return max(whole, unit) if size and unit else 0
'''
CHANGES = {
    "8 → 9", "if size < 0 → if not size < 0", "size < 0 → size <= 0", "0 → 1",
    "-(-size // unit) * unit → -(-size // unit) + unit", "-(-size // unit) → -size // unit",
    "-size // unit → -size * unit", "-size → size",
    "max(whole, unit) if size and unit else 0 → 0 if size and unit else max(whole, unit)",
    "max(whole, unit) → min(whole, unit)", "size and unit → size or unit", "0 → 1 #2",
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(m, "ROOT", tmp_path)
    path = tmp_path / "padded.py"
    path.write_text(SOURCE)
    return path


def test_what_is_computed_is_changed_and_no_text(source: Path) -> None:
    found = m.mutants(source)
    assert {mutant.change for mutant in found} == CHANGES
    assert len({mutant.key for mutant in found}) == len(found)
    assert {mutant.function for mutant in found} == {"padded"}


def test_each_change_makes_another_module(source: Path) -> None:
    made = {ast.unparse(m.mutated(source, mutant.index)) for mutant in m.mutants(source)}
    assert len(made) == len(CHANGES)
    assert ast.unparse(ast.parse(SOURCE)) not in made


def test_a_change_of_one_function_leaves_the_sample_of_others(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "files", lambda: [source])
    before = [mutant.key for mutant in m.sample(3, 100)]
    source.write_text(SOURCE + "\n\ndef other(a: int) -> int:\n    return a + a\n")
    after = [mutant.key for mutant in m.sample(3, 100)]
    assert after != before
    assert [key for key in after if " padded" in key] == before


def test_a_seed_chooses_the_same_changes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "files", lambda: [source])
    assert m.sample(3, 5) == m.sample(3, 5) != m.sample(4, 5)
    assert len(m.sample(3, 500)) == len(CHANGES)
