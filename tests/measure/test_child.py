"""A job in a child process: its answer comes back; what goes wrong is said and cleaned up."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tritter_mem.errors import EXIT_NOT_MEASURED, MeasureError
from tritter_mem.measure import child
from tritter_mem.measure.child import ChildJob, run_in_child

JOBS = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from tritter_mem.errors import MeasureError

    def add(a, b): return {"sum": a + b, "pid": os.getpid()}
    def variable(name): return os.environ.get(name)
    def fail(): raise RuntimeError("no such \\x1b[31mtensor")
    class AcceleratorError(RuntimeError): pass
    def break_device():
        raise AcceleratorError(
            "CUDA error: an illegal memory access was encountered\\n"
            "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\\n"
            "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\\n"
        )
    def say_nothing(): raise KeyError
    def abort():
        print("terminate called after throwing an instance of 'c10::Error'")
        print("  what():  CUDA error: misaligned address")
        print("frame #0: c10::Error::Error + 0x80 (0x7f in libc10.so)", flush=True)
        os.abort()
    def refuse(): raise MeasureError("no device here", "and no driver")
    def leave(): os._exit(0)
    def exit_with(code): sys.exit(code)
    def die_by(number): os.kill(os.getpid(), number)
    def talk(): print("x" * 1_000_000); raise SystemExit(7)
    def unserialisable(): return object()

    def hang(pids):
        Path(pids).write_text(str(os.getpid()))
        time.sleep(600)

    def hang_with_helper(pids, deaf):
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen(["sleep", "600"])
        Path(pids).write_text(f"{os.getpid()} {helper.pid}")
        time.sleep(600)

    def leave_a_helper_behind(pids):
        helper = subprocess.Popen(["sleep", "600"])
        Path(pids).write_text(str(helper.pid))

    def garble(text):
        Path(sys.argv[2]).write_text(text)
        os._exit(0)
"""


@pytest.fixture(autouse=True)
def _jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs.py").write_text(textwrap.dedent(JOBS))
    monkeypatch.syspath_prepend(tmp_path)


def run(job: str, limit: float = 60, **arguments: object) -> object:
    return run_in_child(
        ChildJob(function=f"jobs:{job}", arguments=arguments, time_limit_seconds=limit)
    )


def failure(job: str, limit: float = 60, **arguments: object) -> MeasureError:
    with pytest.raises(MeasureError) as caught:
        run(job, limit, **arguments)
    assert caught.value.exit_code == EXIT_NOT_MEASURED
    return caught.value


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie, which only waits to be reaped, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids: Path, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    numbers = [int(pid) for pid in pids.read_text().split()]
    while any(map(alive, numbers)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def when_written(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the child never came up"
        time.sleep(0.01)
    return path.read_text()


def test_answer_comes_back_from_another_process() -> None:
    answer = run("add", a=2, b=3)
    assert isinstance(answer, dict)
    assert answer["sum"] == 5
    assert answer["pid"] != os.getpid()


def test_environment_is_set_and_unset_for_the_child_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHERITED", "yes")

    def seen(**environment: str | None) -> object:
        job = ChildJob(
            function="jobs:variable",
            arguments={"name": next(iter(environment), "INHERITED")},
            time_limit_seconds=60,
            environment=environment,
        )
        return run_in_child(job)

    assert seen() == "yes"
    assert seen(INHERITED=None) is None
    assert seen(PYTORCH_CUDA_ALLOC_CONF="expandable_segments:True") == "expandable_segments:True"
    assert os.environ["INHERITED"] == "yes"


def test_working_folder_cannot_stand_in_for_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(folder)
    assert run("variable", name="NOT_SET") is None


def test_error_of_the_run_is_said_in_one_safe_line_with_the_rest_as_a_note() -> None:
    error = failure("fail")
    assert str(error) == "the run failed with exit code 1: RuntimeError: no such [31mtensor"
    assert "Traceback" in error.__notes__[0]


def test_cuda_error_is_its_type_and_first_line_not_the_advice_that_it_ends_with() -> None:
    """The text is PyTorch 2.11's."""
    assert str(failure("break_device")) == (
        "the run failed with exit code 1: AcceleratorError: CUDA error: an illegal memory access "
        "was encountered"
    )


def test_error_without_words_is_its_type() -> None:
    assert str(failure("say_nothing")) == "the run failed with exit code 1: KeyError"


def test_crash_is_the_line_that_announces_it_not_the_stack_behind_it() -> None:
    assert str(failure("abort")) == (
        "the run was killed by SIGABRT: what():  CUDA error: misaligned address"
    )


def test_known_error_passes_through() -> None:
    assert failure("refuse").problems == ("no device here", "and no driver")


@pytest.mark.parametrize(("name", "text"), [("SIGSEGV", "SIGSEGV"), ("SIGTERM", "SIGTERM")])
def test_signal_is_named(name: str, text: str) -> None:
    assert f"killed by {text}" in str(failure("die_by", number=int(signal.Signals[name])))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((3, 4), "the kernel's out-of-memory killer was at work: give it more memory, or a"),
        ((3, 3), "killed by SIGKILL from outside, and not by the kernel for lack of memory: run"),
        ((None, None), "out-of-memory killer was most likely at work: give it more memory, or"),
    ],
    ids=["by the kernel", "from outside", "the kernel does not say"],
)
def test_kill_says_who_killed_as_far_as_is_known(
    counts: tuple[int | None, ...], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(counts)
    monkeypatch.setattr(child, "_kernel_kills", lambda: next(kills))
    assert expected in str(failure("die_by", number=int(signal.SIGKILL)))


def test_exit_code_is_said_and_a_flood_of_output_is_cut() -> None:
    error = str(failure("talk"))
    assert "exit code 7" in error
    assert len(error) < 500


def test_silent_exit_says_that_nothing_was_printed() -> None:
    assert str(failure("exit_with", code=9)).endswith("exit code 9: it printed nothing")


@pytest.mark.parametrize("deaf", [False, True], ids=["ends-at-sigterm", "ignores-sigterm"])
def test_hang_is_ended_with_its_whole_process_group(
    deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "GRACE_SECONDS", 0.2)
    pids = tmp_path / "pids"
    error = str(failure("hang_with_helper", limit=2.5, pids=str(pids), deaf=deaf))
    assert "ended at its time limit of 2.5 s" in error
    assert "--time-limit" in error
    assert all_gone(pids)


def test_helper_left_behind_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    run("leave_a_helper_behind", pids=str(pids))
    assert all_gone(pids)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "{}", '{"problems": 3}'])
def test_garbage_for_an_answer_is_an_error(text: str) -> None:
    assert "without a readable result" in str(failure("garble", text=text))


def test_no_answer_is_an_error() -> None:
    assert "call os._exit?" in str(failure("leave"))


def test_answer_that_is_no_plain_data_is_an_error() -> None:
    assert "not JSON serializable" in str(failure("unserialisable"))


CALLER = """
    import sys
    from tritter_mem.measure.child import ChildJob, run_in_child
    arguments = {"pids": sys.argv[1]}
    run_in_child(ChildJob(function="jobs:hang", arguments=arguments, time_limit_seconds=60))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_end_of_the_caller_ends_the_child(number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C, a cancelled CI job, and a kill that gives the caller no time to clean up."""
    script, pids = tmp_path / "caller.py", tmp_path / "pids"
    script.write_text(textwrap.dedent(CALLER))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, script, pids], env=environment) as caller:
        when_written(pids)
        caller.send_signal(number)
        caller.wait(10)
    assert all_gone(pids)


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    run("add", a=1, b=1)
    failure("die_by", number=int(signal.SIGKILL))
    assert list(folder.iterdir()) == []


def test_full_disk_for_temporary_files_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def full(path: Path, text: str) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    error = failure("add", a=1, b=1)
    assert "cannot be written: No space left on device; free some space" in str(error)
    assert list(folder.iterdir()) == []


def test_missing_folder_for_temporary_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert "cannot be written: No such file or directory" in str(failure("add", a=1, b=1))
