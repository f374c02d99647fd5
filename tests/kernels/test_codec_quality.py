"""The table of what quantising the cache costs, and the limits that it has to keep."""

from pathlib import Path

import pytest

from benchmarks.codec_quality import CASES, CONTRAST, SEED, Quality, quality, rows

PAGE = Path(__file__).parents[2] / "docs/kv-cache.md"
LIMITS = {"Gaussian": Quality(0.16, 0.988), "four channels x10": Quality(0.22, 0.98)}
"""For every type of at least 4 bits."""


def printed() -> dict[tuple[str, str], Quality]:
    """The table's figures for the first seed."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    return {(name, case): Quality(float(error), float(cosine))
            for name, case, error, _, cosine, _ in cells[2:]}  # fmt: skip


def test_the_page_has_every_row() -> None:
    assert list(printed()) == rows()


@pytest.mark.parametrize(("name", "case"), rows(), ids=str)
def test_the_table_is_what_comes_out(name: str, case: str) -> None:
    found, stated = quality(name, CASES[case], SEED), printed()[name, case]
    assert found.error == pytest.approx(stated.error, abs=2e-3)
    assert found.cosine == pytest.approx(stated.cosine, abs=1e-3)
    keeps = found.error <= LIMITS[case].error and found.cosine >= LIMITS[case].cosine
    assert keeps == (name != "int2" and (name != CONTRAST or case == "Gaussian"))
