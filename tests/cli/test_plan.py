"""`tritter-mem plan` and `audit`, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def tritter_mem(
    *arguments: str, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "tritter_mem", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "80", **environment},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def as_json(*arguments: str, code: int = 0) -> Any:
    done = tritter_mem(*arguments, "--json", code=code)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_7b_does_not_fit_a_16_gb_card() -> None:
    record = as_json("plan", "--config", "7b", code=1)
    parts = record["planned"]["components"]
    assert record["schema"] == "tritter-mem.result/1"
    assert parts["embeddings_bytes"] == 1_073_741_824
    assert 18.25e9 <= parts["kv_cache_bytes"] <= 18.40e9
    assert record["verdict"]["fits"] is False
    assert sum(parts.values()) == record["planned"]["allocated_peak_bytes"]


def test_8_kv_heads_fit() -> None:
    assert as_json("plan", "--config", "7b-128k-gqa")["verdict"]["fits"] is True


def test_several_profiles_are_compared() -> None:
    records = as_json("plan", "--config", "7b", "--config", "7b-128k-gqa", code=1)
    assert [record["profile"]["name"] for record in records] == ["7b", "7b-128k-gqa"]
    text = tritter_mem("plan", "--config", "7b", "--config", "7b-128k-gqa", code=1).stdout
    assert "Profiles compared" in text


def test_the_table_says_what_to_change() -> None:
    text = tritter_mem("plan", "--config", "7b", code=1).stdout
    assert "does not fit" in text
    assert "8 KV heads" in text
    assert "--set model.num_key_value_heads=8" in text
    assert max(map(len, text.splitlines())) <= 80


def test_decimal_units() -> None:
    assert "18.28 GB" in tritter_mem("plan", "--config", "7b", "--units", "GB", code=1).stdout


@pytest.mark.parametrize("unknown", ["context", "batch"])
def test_the_largest_that_fits_is_what_plan_says_of_it(unknown: str) -> None:
    found = as_json("plan", "--config", "7b-128k-gqa", "--max", unknown)
    value = found["value"]
    planned = as_json("plan", "--config", "7b-128k-gqa", f"--{unknown}", str(value))
    assert planned["planned"]["device_peak_bytes"] == found["footprint_bytes"]
    as_json("plan", "--config", "7b-128k-gqa", f"--{unknown}", str(value + 1), code=1)


def test_nothing_fits_a_tiny_budget() -> None:
    done = tritter_mem("plan", "--config", "7b", "--budget", "1 GiB", "--max", "context", code=1)
    assert "no context fits" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "7c"], "7b"),
        (["--context", "1000000000000000"], "--context"),
        (["--context", "-5"], "--context"),
        (["--set", "model.num_key_value_heads=7"], "divisor"),
        (["--set", "model.hiden_size=4096"], "hidden_size"),
        (["--gpu", "rtx-5081"], "rtx-5080"),
        (["--max", "width"], "context"),
    ],
)
def test_bad_input_takes_a_clear_line(arguments: list[str], message: str) -> None:
    done = tritter_mem("plan", *arguments, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_file_with_several_problems_reports_them_all(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "extends: 7b\nmodel: {hiden_size: 1, num_key_value_heads: 7}\nworkload: {batch: -1}\n"
    )
    lines = tritter_mem("plan", "--config", str(path), code=2).stderr.splitlines()
    assert len(lines) == 3
    assert all("wrong.yaml:" in line for line in lines)


def test_audit() -> None:
    rows = as_json("audit")["rows"]
    assert len(rows) >= 25
    for width in ("80", "140"):
        text = tritter_mem("audit", COLUMNS=width).stdout
        assert "its own formula gives twice this" in text
