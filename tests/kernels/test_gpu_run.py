"""How `make gpu` runs its parts: limits, figures row by row, ends, and going on."""

import io
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, rows
from benchmarks.card import Card, standing_for
from benchmarks.evidence import part_line, summary
from benchmarks.gpu_tests import MEASURING, TESTS
from benchmarks.records import Records
from benchmarks.rows import RESTART, Refused, Row, run
from tritter_mem.errors import MeasureError

ROOT = Path(__file__).parents[2]
TAKEN_WITH = {"code": "abc", "card": "card", "torch": "2"}
MINUTES = 300.0


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "figures.jsonl", "first", TAKEN_WITH)


def card(name: str, standin: bool = False) -> Card:
    return Card(name, 90, 132, 50 << 20, standin=standin)


def later(records: Records, **changes: Any) -> Records:
    return Records(**{**vars(records), "call": "second", **changes})


def fails() -> dict[str, Any]:
    raise ValueError("no such shape")


def of(part: list[Row], records: Records) -> list[tuple[str, str]]:
    """Rows and events that a call has written of a part, beginnings aside."""
    lines = (x for x in records.lines() if x["call"] == records.call and "row" in x)
    return [(x["row"], x["event"]) for x in lines if x["event"] != "begins"]


def test_limits_of_all_parts_come_to_eight_minutes() -> None:
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 480
    assert all(part.seconds > gpu.GRACE_SECONDS + 1 for part in gpu.PARTS.values())


def test_what_is_worth_most_comes_first() -> None:
    assert list(gpu.PARTS) == [
        "compile", "smoke", "step", "linears", "attention", "scripts", "validate", "variants",
        "tests", "probes", "fragmentation", "snapshots", "gemlite",
    ]  # fmt: skip


def test_a_failing_row_records_its_error_and_loses_itself_alone(records: Records) -> None:
    seen: list[list[tuple[str, str]]] = []

    def looks() -> dict[str, Any]:
        seen.append(of([], records))
        return {"us": 1}

    part = [Row("a", lambda: {"us": 2}), Row("b", fails), Row("c", looks)]
    assert run("part", part, records) == 1
    assert seen == [[("a", "finished"), ("b", "failed")]]  # before the row after them has ended
    lines = records.rows("part")
    assert lines["a"]["figures"] == {"us": 2}
    assert lines["b"]["error"] == "ValueError: no such shape"
    assert lines["c"]["figures"] == {"us": 1}


def test_a_row_that_cannot_be_run_here_is_skipped_which_is_no_failure(
    records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    part = [Row("a", dict), Row("b", fails, skipped="no such package")]
    assert run("part", part, records) == 0
    assert sorted(of(part, records)) == [("a", "finished"), ("b", "skipped")]
    assert "1 row skipped: no such package\n" in capsys.readouterr().out
    assert records.skipped("part") == {"b": "no such package"}
    assert records.remaining("part") == []
    records.append("part", "ended", passed=True, seconds=1, note="")
    text = summary(records, {"part": MINUTES})
    assert "part           passed      1 s  1 of 2 rows, 1 skipped: no such package" in text
    assert text[-1] == "nothing remains"
    later_part = [Row("a", dict), Row("b", dict), Row("c", fails)]  # where it can be run since
    assert run("part", later_part, later(records)) == 1
    assert records.skipped("part") == {}
    assert records.remaining("part") == ["c"]


@pytest.mark.parametrize(("other", "how"), [("why", "skipped"), ("", "passed")])
def test_a_part_is_skipped_where_all_of_it_is(records: Records, other: str, how: str) -> None:
    run("part", [Row("a", dict, skipped="why"), Row("b", dict, skipped=other)], records)
    records.append("part", "ended", passed=True, seconds=1, note="")
    assert part_line(records, "part").split()[1] == how


def test_a_failure_beside_what_is_skipped_is_a_failure(records: Records) -> None:
    assert run("part", [Row("a", fails), Row("b", dict, skipped="no such package")], records) == 1
    assert records.remaining("part") == ["a"]


def test_a_line_that_was_cut_off_is_left_out(records: Records) -> None:
    run("part", [Row("a", lambda: {"us": 2})], records)
    whole = list(records.lines())
    with records.path.open("a") as file:
        file.write('{"part": "part", "row"')
    assert list(records.lines()) == whole


def test_a_second_call_takes_what_is_new_and_then_what_failed(records: Records) -> None:
    taken: list[str] = []

    def row(name: str) -> Row:
        return Row(name, lambda: taken.append(name) or {})

    run("part", [row("a"), Row("b", fails)], records)
    assert run("part", [row("a"), row("b"), row("c")], later(records)) == 0
    assert taken == ["a", "c", "b"]


@pytest.mark.parametrize("changed", ["code", "card", "torch"])
def test_figures_of_other_code_cards_and_versions_do_not_count(
    records: Records, changed: str
) -> None:
    run("part", [Row("a", dict)], records)
    other = later(records, taken_with=TAKEN_WITH | {changed: "other"})
    assert other.finished("part") == {}
    assert other.remaining("part") is None
    assert later(records).remaining("part") == []
    assert later(records, again=True).remaining("part") is None


def test_a_row_that_loses_the_device_ends_the_process_and_is_not_tried_again(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_device_is_lost", lambda: True)
    part = [Row("a", fails), Row("b", dict)]
    assert run("part", part, records) == RESTART
    assert of(part, records) == [("a", "failed")]
    assert run("part", part, records) == 0
    assert of(part, records) == [("a", "failed"), ("b", "finished")]


def test_rows_that_run_together_are_all_recorded(records: Records) -> None:
    part = [Row(str(i), dict, together=True) for i in range(5)] + [Row("last", dict)]
    assert run("part", part, records) == 0
    assert len(records.finished("part")) == 6
    assert of(part, records)[-1] == ("last", "finished")


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


PARENT = """
    import subprocess, sys, time, pathlib
    apart = {"start_new_session": True}
    children = [subprocess.Popen([sys.executable, "-c", CHILD], **how) for how in ({}, apart)]
    print("figures", flush=True)
    pathlib.Path(sys.argv[1]).write_text(" ".join(str(child.pid) for child in children))
    END
"""
IGNORING = """import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
time.sleep(600)"""


def part_with_children(folder: Path, end: str) -> tuple[list[str], Path]:
    """A command with a child in its group and one in another session; both hold its output."""
    code = textwrap.dedent(PARENT).replace("CHILD", repr(IGNORING)).replace("END", end)
    pids = folder / "pids"
    return [sys.executable, "-c", code, str(pids)], pids


@pytest.mark.parametrize(
    ("end", "over_time"),
    [("", False), ("raise SystemExit(4)", False), ("time.sleep(600)", True), (IGNORING, True)],
    ids=["ends", "fails", "hangs", "hangs and ignores an interrupt"],
)
def test_nothing_that_a_part_started_is_left(tmp_path: Path, end: str, over_time: bool) -> None:
    """The clock stands still until the part has started its children, then jumps at each look."""
    command, pids = part_with_children(tmp_path, end)
    looks = 0

    def clock() -> float:
        nonlocal looks
        if over_time and pids.exists() and pids.read_text().count(" ") == 1:
            looks += 1
        return looks * MINUTES

    raw, shown = tmp_path / "raw.log", io.StringIO()
    show = gpu.Log(tmp_path / "log.txt", shown).follow(raw)
    ended = gpu.supervise(command, raw, MINUTES, show, clock)
    assert ended.over_time is over_time
    assert (ended.code == 0) is (end == "")
    assert "figures\n" in shown.getvalue()
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


def test_a_part_that_is_interrupted_has_time_to_write(tmp_path: Path) -> None:
    written = tmp_path / "written"
    code = (
        "import pathlib, sys, time\nprint('ready', flush=True)\n"
        "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n"
        "    pathlib.Path(sys.argv[1]).write_text('kept')\n"
    )
    raw = tmp_path / "raw.log"

    def clock() -> float:
        """Past the first limit once the part is ready; the second is never reached."""
        return MINUTES - 1 if raw.exists() and b"ready" in raw.read_bytes() else 0.0

    ended = gpu.supervise(
        [sys.executable, "-c", code, str(written)], raw, MINUTES, lambda: None, clock
    )
    assert ended.over_time
    assert written.read_text() == "kept"


def test_the_log_is_shown_in_whole_lines_without_the_checkout_s_path(tmp_path: Path) -> None:
    raw, shown = tmp_path / "raw", io.StringIO()
    log = gpu.Log(tmp_path / "log.txt", shown)
    raw.write_text(f"{ROOT}/model/a.py: er")
    show = log.follow(raw)
    show()
    assert shown.getvalue() == ""
    with raw.open("a") as file:
        file.write("ror\nmore\n")
    show()
    assert shown.getvalue() == log.path.read_text() == "model/a.py: error\nmore\n"


MODULE = """
import os, signal
from benchmarks.rows import Row

def crash():
    os.kill(os.getpid(), signal.SIGSEGV)

def keep(files):
    (files / "case.json").write_text("kept")
    return {"us": 1}

def rows(files):
    yield Row("a", dict)
    yield Row("b", lambda: 1 / 0)
    yield Row("c", crash)
    yield Row("d", lambda: keep(files))
"""


@pytest.fixture
def call(tmp_path: Path, records: Records, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a call of `make gpu` whose part `part` is a module in `tmp_path`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(module: str, **changes: Any) -> gpu.Call:
        (tmp_path / "made_part.py").write_text(module)
        monkeypatch.setattr(gpu, "PARTS", {"part": gpu.Part("made_part", MINUTES)})
        folder = tmp_path / str(time.monotonic_ns())
        folder.mkdir()
        files = gpu.Files(tmp_path / "files.tar.gz", folder)
        files.unpack()
        log = gpu.Log(tmp_path / "log.txt", io.StringIO())
        return gpu.Call(later(records, **changes), card("H100"), log, files)

    return make


def test_a_part_goes_on_after_a_crash_and_keeps_what_came_before(call: Callable[..., Any]) -> None:
    made = call(MODULE)
    assert not made.run("part")
    lines = made.records.rows("part")
    assert [(row, line["event"]) for row, line in lines.items()] == [
        ("a", "finished"), ("b", "failed"), ("c", "failed"), ("d", "finished"),
    ]  # fmt: skip
    assert lines["c"]["error"] == "ended before it had"
    assert made.records.remaining("part") == ["b", "c"]
    text = "\n".join(summary(made.records, {"part": MINUTES}))
    assert "FAILED" in text
    assert "2 of 4 rows  2 rows failed" in text
    assert "FAILED part: b: ZeroDivisionError: division by zero" in text
    assert "remains: part, 2 rows" in text
    again = call(MODULE.replace("1 / 0", "{}").replace("os.kill", "str"), call="third")
    assert (again.files.folder / "case.json").read_text() == "kept"
    assert not again.run("part")  # `c` now fails on its own, for `str` takes no numbers
    assert again.records.remaining("part") == ["c"]


@pytest.mark.parametrize(("rows_done", "note"), [(["a", "b"], ""), (["a"], "over time")])
def test_a_part_that_ends_in_its_last_seconds_has_ended(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, rows_done: list[str], note: str
) -> None:
    made = call("")

    def supervised(*_: Any) -> gpu.End:
        made.records.append("part", "planned", rows=["a", "b"])
        for row in rows_done:
            made.records.append("part", "finished", row=row, seconds=1, figures={})
        return gpu.End(130, True)

    monkeypatch.setattr(gpu, "supervise", supervised)
    assert made.run("part") is (note == "")
    assert list(made.records.lines())[-1]["note"] == note


def test_a_part_whose_module_does_not_load_fails(call: Callable[..., Any]) -> None:
    made = call("import there_is_no_such_module")
    assert not made.run("part")
    assert "ModuleNotFoundError" in made.log.path.read_text()
    [end] = [x for x in made.records.lines() if x["event"] == "ended"]
    assert (end["passed"], end["note"]) == (False, "exit 1")


def test_what_parts_leave_of_their_time_goes_to_those_that_take_it(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = call("")
    limits: list[float] = []
    monkeypatch.setattr(gpu, "PARTS", {
        "quick": gpu.Part("m", 100), "other": gpu.Part("m", 50),
        "taking": gpu.Part("m", 10, takes_rest=True),
    })  # fmt: skip

    def supervised(_command: Any, _raw: Path, seconds: float, _show: Any) -> gpu.End:
        limits.append(seconds)
        return gpu.End(0, False)

    monkeypatch.setattr(gpu, "supervise", supervised)
    assert list(gpu.run_all(made, ["quick", "other", "taking"])) == []
    assert [round(limit, -1) for limit in limits] == [100, 50, 160]


@pytest.mark.parametrize(("standin", "times"), [(False, 1), (True, gpu.TIMES_OVER_STANDINS)])
def test_limits_are_those_of_a_card_and_longer_over_stand_ins(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, standin: bool, times: int
) -> None:
    made = call("")
    made.card = card("card", standin)
    limits: list[float] = []
    monkeypatch.setattr(
        gpu, "PARTS", {"quick": gpu.Part("m", 100), "taking": gpu.Part("m", 10, True)}
    )

    def supervised(_command: Any, _raw: Path, seconds: float, _show: Any) -> gpu.End:
        limits.append(seconds)
        return gpu.End(0, False)

    monkeypatch.setattr(gpu, "supervise", supervised)
    assert list(gpu.run_all(made, ["quick", "taking"])) == []
    assert [round(limit, -1) for limit in limits] == [100 * times, 110 * times]


def test_nothing_runs_after_a_kernel_that_computes_something_else(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = call("")
    ran: list[str] = []
    parts = {name: gpu.Part("m", 10) for name in ("smoke", "linears")}
    monkeypatch.setattr(gpu, "PARTS", parts)

    def differs() -> dict[str, Any]:
        raise Refused("MISMATCH: norm: rows of [1, 8] is off by 3", {"differences": {}})

    def running(_self: gpu.Call, name: str) -> bool:
        ran.append(name)
        return run(name, [Row("norm", differs)], made.records) == 0

    monkeypatch.setattr(gpu.Call, "run", running)
    assert list(gpu.run_all(made, list(parts))) == ["smoke"]
    assert ran == ["smoke"]
    assert "nothing runs after smoke" in made.log.path.read_text()


def test_the_summary_has_targets_failures_and_what_remains(records: Records) -> None:
    goal = {"what": "step, of its roofline", "wanted": 0.5, "got": 0.41, "reached": False}
    records.append("step", "planned", rows=["a", "b", "c"])
    for row in ("a", "b"):
        figures = {"target": goal} if row == "a" else {}
        records.append("step", "finished", row=row, seconds=4.0, figures=figures)
    records.append("step", "failed", row="c", seconds=1.0, error="first\nValueError: odd")
    records.append("step", "ended", passed=False, seconds=9.4, note="1 row failed")
    records.append("variants", "planned", rows=["a"])
    records.append("variants", "finished", row="a", seconds=1, figures={"times_faster": 1.25})
    text = summary(records, {"step": 40.0, "variants": 45.0, "gemlite": 20.0})
    assert text[0] == "taken with: abc, card, 2"
    assert "step           FAILED      9 s  2 of 3 rows  1 row failed" in text
    assert "gemlite        not run" in text
    [reached] = [line for line in text if line.startswith("step, of")]
    assert reached.endswith("wanted 0.50, got 0.41 NOT REACHED")
    assert any(line.startswith("a ") and line.endswith("1.250 times as fast") for line in text)
    assert text[-4:] == [
        "FAILED step: c: ValueError: odd",
        "remains: step, 1 rows, about 4 s",
        "remains: gemlite, all rows, about 20 s",
        "remains in all: about 24 s",
    ]


def test_over_stand_ins_the_summary_has_no_times(records: Records) -> None:
    goal = {"what": "step, of its roofline", "wanted": 0.5, "got": 0.51, "reached": True}
    for row, figures in (("a", {"target": goal}), ("b", {"times_faster": 1.25})):
        records.append("step", "finished", row=row, seconds=1, figures=figures)
    assert (
        len([x for x in summary(records, {"step": 40.0}) if "reached" in x or "as fast" in x]) == 2
    )
    records.append("all", "begins", on={"standin": True})
    text = "\n".join(summary(records, {"step": 40.0}))
    assert "none means anything" in text
    assert not any(word in text for word in ("roofline", "reached", "as fast"))


@pytest.mark.parametrize("standin", [True, False])
def test_what_needs_a_device_is_skipped_over_stand_ins(standin: bool) -> None:
    from benchmarks import gpu_tests, probes

    with standing_for(card("card", standin)):
        assert [bool(row.skipped) for row in probes.rows(Path("x"))] == [standin]
        skipped = {row.name: row.skipped for row in gpu_tests.rows(Path("x"))}
    assert not any(skipped[path] for path in MEASURING)
    kernels = [why for path, why in skipped.items() if path.startswith("tests/kernels")]
    assert len(kernels) > 10
    assert all(bool(why) is standin for why in kernels)


@pytest.fixture
def one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`make gpu` of a part that has figures at once, after one that always runs; what ran."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "made_part.py").write_text(
        MODULE.split("def rows", maxsplit=1)[0]
        + ("def rows(files):\n    yield Row('a', lambda: print('taken') or {})\n")
    )
    always, part = (gpu.Part("made_part", MINUTES, always=kind) for kind in (True, False))
    parts = {"always": always, "part": part}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "card_here", lambda: (card("H100", standin=True), "2.11"))
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    ran: list[str] = []
    run_part = gpu.Call.run
    monkeypatch.setattr(gpu.Call, "run", lambda c, name: ran.append(name) or run_part(c, name))
    return ran


def test_a_second_call_repeats_nothing_unless_it_is_told_to(
    tmp_path: Path, one_part: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ["--output", str(tmp_path / "evidence")]
    for arguments, wanted in (
        ([], ["always", "part"]), ([], []), (["--again"], ["always", "part"]),
        (["always"], ["always"]),
    ):  # fmt: skip
        one_part.clear()
        monkeypatch.setattr(sys, "argv", ["gpu", *arguments, *folder])
        assert gpu.main() == 0
        assert one_part == wanted
    said = (tmp_path / "evidence/summary.txt").read_text()
    assert "nothing remains" in said
    assert "none means anything" in said
    names = {path.name for path in (tmp_path / "evidence").iterdir()}
    assert names <= {"figures.jsonl", "log.txt", "summary.txt", "files.tar.gz"}


def test_a_stand_in_s_run_writes_nothing_under_reports(
    one_part: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert one_part == []


def test_without_a_gpu_it_is_said_and_the_exit_code_is_3(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(tmp_path / "figures")]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, cwd=ROOT, env=hidden, capture_output=True, text=True, check=False)
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr.startswith("no CUDA device")
    assert not any(tmp_path.iterdir())


def test_an_unknown_part_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.parse(["kernel"])
    assert ended.value.code == 2
    assert "got part kernel, expected compile, smoke, step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [(None, False), (ROOT / "reports", False), (ROOT / "reports/a/b", False), (ROOT / "out", True)],
)
def test_evidence_of_a_stand_in_does_not_lie_under_reports(
    asked: Path | None, allowed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (gpu.folder_for(card("H100", standin=True), asked) is not None) is allowed
    assert ("nothing is measured" in capsys.readouterr().err) is not allowed


def test_evidence_lies_by_the_name_of_the_card() -> None:
    folder = gpu.folder_for(card("NVIDIA H100 80GB HBM3"), None)
    assert folder == ROOT / "reports" / "nvidia-h100-80gb-hbm3"


def test_code_is_told_apart_by_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a.py").write_text("a = 1")
    before = gpu.code_of(tmp_path)
    (tmp_path / "model/notes.md").write_text("words")
    assert gpu.code_of(tmp_path) == before
    (tmp_path / "model/a.py").write_text("a = 2")
    assert gpu.code_of(tmp_path) != before


def test_neither_pydantic_nor_plotly_is_needed_to_list_the_rows(tmp_path: Path) -> None:
    """What a bare machine lacks is blocked."""
    blocked = "import sys\nfor name in ('pydantic', 'plotly'):\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    modules = [part.module for part in gpu.PARTS.values()]
    code = (
        "import importlib, json, pathlib, sys\nassert sys.modules['pydantic'] is None\n"
        "from benchmarks.card import Card, standing_for\n"
        "with standing_for(Card('card', 90, 132, 50 << 20)):\n"
        "    listed = {m: [r.name for r in importlib.import_module(m).rows(pathlib.Path('x'))]"
        f" for m in {modules!r}}}\nprint(json.dumps(listed))"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "model")])
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    listed = json.loads(ran.stdout)
    for module, names in listed.items():
        assert len(names) == len(set(names)), module
    assert listed["benchmarks.validations"][:4] == [
        "7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k",
    ]  # fmt: skip
    assert len(listed["benchmarks.validations"]) == 7


def test_a_validation_needs_neither_pydantic_nor_plotly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command as on a card, for the CPU."""
    from benchmarks import validations

    blocked = "import sys\nfor name in ('pydantic', 'plotly'):\n    sys.modules[name] = None\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "model")])
    monkeypatch.setenv("PYTHONPATH", paths)

    def on_the_cpu(arguments: list[str], allowed: Any) -> tuple[int, str]:
        return rows.command(["cpu" if a == "cuda" else a for a in arguments], allowed)

    monkeypatch.setattr(validations, "command", on_the_cpu)
    figures = validations.validate("tiny", tmp_path / "validation")
    assert figures["exit"] in {0, 1}
    assert [case["name"] for case in figures["cases"]] == ["tiny"]
    assert figures["lines"][0].startswith("validated    ")


@pytest.mark.parametrize("written", [True, False])
def test_probes_of_a_card_that_the_table_lacks_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Exit code 3 says so, and also that there is no card: then nothing new is there to keep."""
    from benchmarks import probes

    output = tmp_path / "probes.json"
    output.write_text('{"readings": "of an earlier call"}')

    def command(_arguments: list[str], allowed: tuple[int, ...]) -> tuple[int, str]:
        assert 3 in allowed
        if written:
            output.write_text('{"readings": [1]}')
        return 3, "the table has no such card"

    monkeypatch.setattr(probes, "command", command)
    if written:
        kept = {"printed": "the table has no such card", "readings": [1]}
        assert probes.kept(output) == kept
    else:
        with pytest.raises(MeasureError, match="no such card"):
            probes.kept(output)


def test_tests_of_a_gpu_are_all_named() -> None:
    """Every file with a test that is marked `gpu` is among those that `make gpu` runs."""
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    named = [ROOT / name for name in TESTS + MEASURING]
    for path in marked:
        if path != Path(__file__):
            assert any(path == name or name in path.parents for name in named), path
