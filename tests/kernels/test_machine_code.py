"""Every kernel, compiled ahead of time for cards that are not there: registers, spills, memory."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tritter_model.ops.jit

ROOT = Path(__file__).parents[2]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 120: 99 * 1024}
"""What a program may ask for at its launch, by compute capability (CUDA's programming guide)."""

Reading = dict[str, Any]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton and its compiler"
)


@pytest.mark.parametrize("capability", SHARED_BYTES, ids=lambda c: f"sm_{c}")
def test_every_kernel_keeps_to_registers_and_reads_wide(capability: int, tmp_path: Path) -> None:
    readings = compiled(capability, tmp_path)
    assert {reading["kernel"] for reading in readings} == kernels_in_the_sources()
    for reading in readings:
        keeps_to_registers_and_fits_the_card(reading)
    for reading in of(readings, "ternary-2bit, 1 x"):
        reads_16_bytes_and_multiplies_four_weights_at_once(reading, instructions=1.0)
    for tokens in (16, 32, 128, 2048):
        for reading in of(readings, f"ternary-2bit, {tokens} x"):
            multiplies_on_tensor_cores_from_wide_copies(reading, tokens)
    for reading in of(readings, "ternary-1.6bit, 1 x"):
        reads_16_bytes_and_multiplies_four_weights_at_once(reading, instructions=2.0)
    for case, products, instructions in DECODE_LOOPS[capability == 90]:
        reads_the_cache_by_wide_copies(split_of(readings, case), products, instructions)
    pairs_take_half_of_the_shared_memory(readings)
    they_multiply_while_they_copy(readings)


def test_no_two_kernels_have_one_name() -> None:
    """A profile names kernels, not modules."""
    names = [name for found in kernels_by_module().values() for name in found]
    assert sorted(names) == sorted(set(names))


def kernels_in_the_sources() -> set[str]:
    return {name for found in kernels_by_module().values() for name in found}


def kernels_by_module() -> dict[str, list[str]]:
    sources = Path(tritter_model.ops.jit.__file__).parent.glob("*.py")
    return {
        path.stem: re.findall(r"@jit(?:\(.*\))?\ndef (\w+_kernel)\(", path.read_text())
        for path in sources
    }


def compiled(capability: int, cache: Path) -> list[Reading]:
    """The readings of `machine_code.py` for one card; a new process compiles the kernels."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TRIT")}
    command = [sys.executable, "-m", "tests.kernels.machine_code", str(capability)]
    environment = kept | {"TRITON_CACHE_DIR": str(cache)}
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    readings: list[Reading] = json.loads(ran.stdout)
    return readings


def of(readings: list[Reading], case: str) -> list[Reading]:
    """The readings of cases whose name begins so; there must be some."""
    found = [reading for reading in readings if reading["case"].startswith(case)]
    assert found
    return found


def keeps_to_registers_and_fits_the_card(reading: Reading) -> None:
    assert reading["spilled_bytes"] == 0, reading
    assert 0 < reading["registers"] <= 255, reading
    assert reading["shared_bytes"] <= SHARED_BYTES[reading["capability"]], reading


def reads_16_bytes_and_multiplies_four_weights_at_once(
    reading: Reading, instructions: float
) -> None:
    assert set(reading["loop"]) == {"IDP", "LDG.128"}, reading
    assert reading["instructions_a_weight"] < instructions, reading


_ALIKE = [("decode, int4", 48, 6.8), ("decode, int4, decode_pairs False", 32, 6.4)]
DECODE_LOOPS = {
    True: [*_ALIKE, ("decode, int4, decode_warps 2", 64, 4.6)],
    False: [*_ALIKE, ("decode, int4, decode_warps 2", 48, 6.8)],
}
"""Products of a trip, and instructions a byte, on Hopper and on other cards."""


def reads_the_cache_by_wide_copies(reading: Reading, products: int, instructions: float) -> None:
    """Keys and values come 16 bytes a thread, a scale and a minimum of a value two bytes each."""
    trips = 2 if products == 64 else 1  # a thread's share of a tile, which two warps have alone
    assert reading["loop"]["LDGSTS.128"] == 8 * trips, reading
    assert {name for name in reading["loop"] if name.startswith("LDG.")} == {"LDG.U16"}
    assert reading["loop"]["LDG.U16"] == 2 * trips, reading
    assert reading["loop"]["HMMA"] == products, reading
    assert reading["instructions_a_byte"] < instructions, reading


def pairs_take_half_of_the_shared_memory(readings: list[Reading]) -> None:
    """And fewer instructions with int8, whose bytes are enough for all warps."""
    for dtype, fewer in (("int4", 1.1), ("int8", 0.85)):
        pairs = split_of(readings, f"decode, {dtype}")
        words = split_of(readings, f"decode, {dtype}, decode_pairs False")
        assert pairs["loop"]["LDGSTS.128"] == 8, pairs
        assert pairs["shared_bytes"] < 0.55 * words["shared_bytes"]
        assert pairs["instructions_a_byte"] < fewer * words["instructions_a_byte"], pairs


def split_of(readings: list[Reading], case: str) -> Reading:
    """The kernel that reads a share of the cache."""
    [found] = [x for x in readings if x["case"] == case and "split" in x["kernel"]]
    return found


TRIPS_AHEAD = {
    "ternary-2bit, 128 x": 2,
    "ternary-2bit, 2048 x": 1,
    "ternary-1.6bit, 2048 x": 1,
    "attention, backward": 1,
    "vision, backward": 1,
}


def they_multiply_while_they_copy(readings: list[Reading]) -> None:
    """A trip's copies are under way while another's products run; of small tiles, two trips' are.

    With two stages the loop waits for all of its copies. Two barriers keep a tile from being read
    too early and written over too early; gradients of keys turn some of theirs through memory.
    """
    for case, ahead in TRIPS_AHEAD.items():
        for reading in of(readings, case):
            assert reading["trips_ahead"] == ahead, reading
            turns = reading["kernel"] == "_attention_backward_keys_kernel"
            assert reading["barriers"] <= (5 if turns and reading["capability"] != 90 else 2)


def multiplies_on_tensor_cores_from_wide_copies(reading: Reading, tokens: int) -> None:
    """Hopper's own products take one of two operands from shared memory; others load both."""
    hopper = reading["capability"] == 90 and tokens > 32
    assert reading["loop"]["IGMMA" if hopper else "IMMA"] >= 8, reading
    assert reading["loop"]["LDGSTS.128"] >= 10, reading
    assert reading["instructions_a_weight"] < (2.0 if hopper or tokens <= 32 else 3.0), reading
    if hopper and "many_rows_tile 256" in reading["case"]:
        assert reading["loop"]["IGMMA"] == 16, reading
        assert reading["registers"] <= 210, reading
        assert reading["shared_bytes"] == 131_072, reading
        assert reading["instructions_a_weight"] < 1.1, reading
