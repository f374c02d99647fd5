"""The local history: every writer's lines whole, broken ones left out, off where it should be."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import HOSTILE_NAMES, planned_7b, record, training_1b
from tritter_mem.results.history import FILE, VARIABLE, read_history, remember

WRITE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.report.records import training_1b
from tritter_mem.results.history import remember
for _ in range(20):
    remember([training_1b()], Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every history is in a folder of its own, outside of git, and is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "on")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(*arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    done = subprocess.run(
        ["git", *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_every_kind_of_number_is_a_line() -> None:
    remember([training_1b(), planned_7b()])
    found = read_history()
    assert [(one.profile, one.kind) for one in found] == [
        ("1b-training", "planned"), ("1b-training", "simulated"), ("1b-training", "measured"),
        ("7b-128k", "planned"),
    ]  # fmt: skip
    measured = training_1b().by_kind()["measured"]
    assert found[2].gpu == "NVIDIA H100 80GB HBM3"
    assert found[2].allocated_peak_bytes == measured.allocated_peak_bytes
    assert found[2].reserved_peak_bytes == measured.reserved_peak_bytes
    assert found[2].commit is None


def test_the_commit_is_kept_and_marked_where_files_differ_from_it(folder: Path) -> None:
    git("init", "-q")
    remember([planned_7b()])  # no commit yet
    (folder / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    remember([planned_7b()])
    (folder / "file").write_text("2")
    remember([planned_7b()])
    assert [one.commit for one in read_history()] == [None, head, f"{head}-dirty"]


def test_git_does_not_see_the_history(folder: Path) -> None:
    git("init", "-q")
    remember([planned_7b()])
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize("word", ["off", "OFF", "0", "no", "false"])
def test_it_can_be_switched_off(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, word)
    remember([planned_7b()])
    assert not FILE.parent.exists()


def test_two_writers_lose_and_mix_nothing(folder: Path) -> None:
    file, root = folder / "history.jsonl", str(Path(__file__).parents[2])
    writer = [sys.executable, "-c", WRITE, root, str(file)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(writer, check=True), range(2)))
    assert len(done) == 2
    lines = file.read_text().splitlines()
    assert len(lines) == len(read_history(file)) == 2 * 20 * 3
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    "broken",
    [b"{", b"\xff\xfe", b"null", b"[]", b'{"profile": 1}', b"[" * 100_000, b"1" * 5000],
    ids=lambda text: repr(text[:8]),
)
def test_a_broken_line_costs_no_other(broken: bytes) -> None:
    remember([planned_7b()])
    FILE.write_bytes(FILE.read_bytes() + broken)  # without an end of line, as a crash leaves it
    remember([planned_7b()])
    assert len(read_history()) == 2


@given(name=st.text(max_size=50) | st.sampled_from(HOSTILE_NAMES))
def test_any_name_is_one_line(name: str) -> None:
    FILE.unlink(missing_ok=True)
    remember([record(name, planned=planned_7b().planned)])
    assert FILE.read_bytes().count(b"\n") == 1
    assert [one.profile for one in read_history()] == [name]


def test_a_history_that_cannot_be_written_is_told_and_fails_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FILE.parent.write_text("in the way")
    remember([planned_7b()])
    assert "the history cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("peak", [-1, (1 << 62) + 1, 10**400])
def test_a_line_with_a_peak_that_cannot_be_is_left_out(folder: Path, peak: int) -> None:
    remember([training_1b()])
    lines = FILE.read_text().splitlines()
    wrong = [json.dumps(json.loads(line) | {"allocated_peak_bytes": peak}) for line in lines]
    FILE.write_text("\n".join([*lines, *wrong]) + "\n")
    assert len(read_history()) == len(lines)
