"""The baseline's file: the same text for the same content, and every problem of a wrong one."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.check.build import EXACT, entry, held
from tests.report.records import HOSTILE_NAMES
from tritter_mem.check.baseline_file import baseline_text, read_baseline
from tritter_mem.errors import InputError
from tritter_mem.results.baseline import Baseline, Case, Figures

FULL = Baseline(
    gate="reserved",
    entries=(
        entry("7b", settings={"workload.mode": "training", "gpu.budget": None}, fast=True),
        entry("tiny", gate="allocated", tolerance=EXACT),
        entry("125m", kind="measured", gpu="cpu"),
        entry("", command=("torchrun", "train.py"), gpus=2, kind="rehearsed"),
    ),
)


def read(tmp_path: Path, text: str) -> Baseline:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    return read_baseline(file)


def problems(tmp_path: Path, record: Any) -> list[str]:
    with pytest.raises(InputError) as error:
        read(tmp_path, record if isinstance(record, str) else json.dumps(record))
    return [line.removeprefix(f"{tmp_path / 'baseline.json'}: ") for line in error.value.problems]


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    found = read(tmp_path, baseline_text(FULL))
    assert sorted(found.entries, key=lambda e: e.key) == sorted(FULL.entries, key=lambda e: e.key)
    assert (found.gate, found.tolerance) == (FULL.gate, FULL.tolerance)
    assert baseline_text(found) == baseline_text(FULL)


def test_the_order_of_entries_makes_no_difference() -> None:
    turned = Baseline(gate="reserved", entries=FULL.entries[::-1])
    assert baseline_text(turned) == baseline_text(FULL)


def test_a_module_is_one_line_and_what_says_nothing_is_left_out() -> None:
    text = baseline_text(Baseline(entries=(entry(),)))
    lines = [line for line in text.splitlines() if '"module"' in line]
    assert len(lines) == 3
    assert all(json.loads(line.strip().rstrip(",")) for line in lines)
    assert not {"fast", "settings", "gate"} & set(json.loads(text)["entries"][0])
    assert text.endswith("}\n")


@given(
    module=st.text(max_size=200) | st.sampled_from(HOSTILE_NAMES),
    sizes=st.dictionaries(st.text(max_size=20), st.integers(0, 1 << 50), max_size=9),
)
def test_any_names_and_sizes_survive_as_plain_json(module: str, sizes: dict[str, int]) -> None:
    module = module.encode(errors="replace").decode()
    sizes = {name.encode(errors="replace").decode(): size for name, size in sizes.items()}
    kept = Figures(
        allocated_peak_bytes=1, components=sizes, held_at_peak=(held(module, "weights", 1),)
    )
    record = json.loads(baseline_text(Baseline(entries=(entry(figures=kept),))))
    told = record["entries"][0]["figures"]
    assert told["held_at_peak"][0]["module"] == module
    assert told.get("components", {}) == sizes


def test_an_entry_is_of_a_configuration_or_of_a_command(tmp_path: Path) -> None:
    wrong = (
        entry(""),
        entry("7b", command=("a",), kind="rehearsed"),
        entry("", command=("b",), kind="simulated"),
    )
    record = json.loads(baseline_text(Baseline(entries=wrong)))
    found = [line.partition(": ") for line in problems(tmp_path, record)]
    assert sorted(words for _, _, words in found) == [
        "got 'simulated', expected 'rehearsed' of a command",
        "got config and command, expected one of them",
        "got neither config nor command, expected one of them",
    ]


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (Case(config="1b"), "--config 1b"),
        (
            Case(command=("python", "a b.py"), gpu="h100"),
            """--rehearse "python 'a b.py'" --gpu h100""",
        ),
        (
            Case(command=("torchrun", "a.py"), gpu="l4", gpus=2),
            "--rehearse 'torchrun a.py' --gpu l4 --gpus 2",
        ),
    ],
)
def test_a_case_says_how_check_names_it(case: Case, options: str) -> None:
    assert shlex.split(case.options) == shlex.split(options)


def test_every_problem_is_named_with_its_place(tmp_path: Path) -> None:
    record = json.loads(baseline_text(FULL))
    record["tolerence"] = {}
    record["entries"][0]["figures"]["allocated_peak_bytes"] = "8 GiB"
    record["entries"][1]["kind"] = "planned"
    del record["entries"][2]["torch"]
    assert sorted(problems(tmp_path, record)) == [
        "entries[0].figures.allocated_peak_bytes: got '8 GiB', expected a valid integer",
        "entries[1].kind: got 'planned', expected 'simulated', 'rehearsed' or 'measured'",
        "entries[2].torch: missing",
        "tolerence: unknown key",
    ]


def test_what_has_the_right_type_and_cannot_be_is_named_too(tmp_path: Path) -> None:
    record = json.loads(baseline_text(FULL))
    record["entries"] *= 2
    record["tolerance"]["relative"] = 1.5
    record["entries"][0]["figures"]["reserved_peak_bytes"] = -1
    lines = problems(tmp_path, record)
    assert lines[0] == "tolerance.relative: got 1.5, expected 0 to 1, 0.01 is 1%"
    assert lines[1] == "entries: got 2 of 125m, measured, cpu, 2.13.0; keep one"
    assert "entries[0].figures.reserved_peak_bytes: got -1, expected 0 or more" in lines


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<<<<<<< HEAD\n{}", "no JSON"),
        ("[]", "schema: got None, expected 'tritter-mem.baseline/1'"),
        ('{"schema": "tritter-mem.result/1"}', "schema: got 'tritter-mem.result/1'"),
    ],
)
def test_what_is_no_baseline_says_so(tmp_path: Path, text: str, words: str) -> None:
    assert problems(tmp_path, text)[0].startswith(words)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such baseline.*--update-baseline --config NAME"):
        read_baseline(tmp_path / "none.json")


def test_the_projects_own_baseline_is_as_it_would_be_written() -> None:
    file = Path(__file__).parents[2] / "reports" / "baseline.json"
    assert baseline_text(read_baseline(file)) == file.read_text()


@pytest.mark.parametrize("size", [-1, (1 << 62) + 1, 10**400])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(baseline_text(Baseline(entries=(entry(),))))
    record = json.loads(path.read_text())
    record["entries"][0]["figures"]["allocated_peak_bytes"] = size
    record["tolerance"] = {"relative": 0.5, "absolute_bytes": size}
    path.write_text(json.dumps(record))
    with pytest.raises(InputError) as caught:
        read_baseline(path)
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "tolerance.absolute_bytes", "entries[0].figures.allocated_peak_bytes",
    ]  # fmt: skip
