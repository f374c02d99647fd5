"""What has to round and add alike does so in compiled code too, at the widths of a 7B model.

The interpreter cannot show it: it contracts nothing, and it adds in NumPy's order.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton and its compiler"
)


@pytest.fixture(scope="module", params=[80, 90, 120], ids=lambda c: f"sm_{c}")
def readings(request: pytest.FixtureRequest, tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What `arithmetic.py` reads for one card, compiled anew."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIT")}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.kernels.arithmetic", str(request.param)],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=kept | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def test_every_product_is_rounded_before_it_is_added(readings: list[dict[str, Any]]) -> None:
    for reading in readings:
        assert reading["products"] > 0
        assert reading["fused"] == 0, reading
        if "8 bits" not in reading["case"]:  # how its codes are read is not promised bit for bit
            assert reading["rounded"] >= reading["products"], reading


def test_norms_add_two_numbers_at_a_time(readings: list[dict[str, Any]]) -> None:
    """So the order is the program's, whatever a thread holds of the row."""
    norms = [reading for reading in readings if "norm" in reading["case"]]
    assert len(norms) == 9
    for reading in norms:
        assert set(reading["sums"]) == {2}, reading
        assert 2 ** len(reading["sums"]) == (4096 if "4096" in reading["case"] else 16384), reading


def test_other_operators_on_rows_add_no_floats(readings: list[dict[str, Any]]) -> None:
    """A maximum and a sum of integers are the same in every order."""
    others = [r for r in readings if r["case"].startswith(("gate", "quantise"))]
    assert len(others) == 9
    assert [reading["case"] for reading in others if reading["sums"]] == []


def test_nothing_spills(readings: list[dict[str, Any]]) -> None:
    """Rows are quantised for ternary weights alone, whose activations are bfloat16."""
    used = [r for r in readings if not ("quantise" in r["case"] and "float32" in r["case"])]
    assert [reading for reading in used if reading["spilled"]] == []
