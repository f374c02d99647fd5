"""Runs one function in a fresh process, so that a crash, a hang or lack of memory ends that alone.

A separate process is also what makes measurements independent: nothing is cached or fragmented
from before, and the allocator reads its settings from the environment once, at the start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

from tritter_mem import errors
from tritter_mem.child_process import python_path, python_running
from tritter_mem.errors import MeasureError, TritterMemError
from tritter_mem.results.from_json import from_plain, parse_json
from tritter_mem.temporary import temporary_folder

T = TypeVar("T")
GRACE_SECONDS = 5.0
"""How long a process group that reached its time limit has from SIGTERM to SIGKILL."""
_POLL_SECONDS = 0.02
_TAIL_BYTES, _SHOWN_BYTES = 8192, 1 << 20
_ANNOUNCED = ("what():", "Fatal Python error:")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildJob:
    """What a child process runs.

    Attributes:
        function: `package.module:name`; it takes `arguments` by keyword and returns plain data.
        arguments: plain data, which travels as JSON.
        time_limit_seconds: from the start of the process to its end.
        environment: variables beside those of this process; None removes one.
        shows_output: whether what it printed is shown on standard error, once it has ended.
    """

    function: str
    arguments: Mapping[str, Any]
    time_limit_seconds: float
    environment: Mapping[str, str | None] = field(default_factory=dict)
    shows_output: bool = False


class EndedError(MeasureError):
    """The process ended without an answer: killed, crashed, failed, or out of time.

    Attributes:
        code: its exit code; negative: the signal.
    """

    def __init__(self, problem: str, code: int) -> None:
        super().__init__(problem)
        self.code = code


class ReportedError(MeasureError):
    """The function raised an error of ours; `original` is that error."""

    def __init__(self, original: TritterMemError) -> None:
        super().__init__(*original.problems)
        self.original = original


_UNSET = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "TORCH_CUBLASLT_UNIFIED_WORKSPACE",
)
"""What is inherited and would change the memory: only what the profile says counts."""


def measuring_environment(allocator_conf: str = "") -> dict[str, str | None]:
    """The variables of a process that measures; None removes one.

    PyTorch reads PYTORCH_ALLOC_CONF, and where that is not set its older names. Devices are
    numbered as the driver and `nvidia-smi` do.
    """
    return {
        **dict.fromkeys(_UNSET),
        "PYTORCH_ALLOC_CONF": allocator_conf or None,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }


def answer_of(job: ChildJob, kind: type[T]) -> T:
    """Run a job in a separate process, and read the dataclass that its function returned as data.

    Raises:
        MeasureError: as `run_in_child`, and where the answer is no such dataclass.
    """
    answer = run_in_child(job)
    try:
        return from_plain(kind, answer)
    except ValueError as error:
        raise MeasureError(f"the run left a result that cannot be read: {error}") from error


def run_in_child(job: ChildJob) -> Any:
    """Run a job in a separate process group and return what its function returned.

    Whatever happens, a KeyboardInterrupt too, no process of the group outlives the call.

    Raises:
        EndedError: the process was killed, crashed, failed or ran out of time. The last lines that
            it printed are a note of the error.
        ReportedError: its function raised a TritterMemError.
        MeasureError: it left no readable answer, or temporary files cannot be written.
    """
    with _folder() as folder:
        request, answer = folder / "request.json", folder / "answer.json"
        with _writing(folder):
            request.write_text(json.dumps(_request(job)))
            output = (folder / "output.txt").open("w+b")
        with output:
            end = _run(job, [str(request), str(answer)], output)
            if job.shows_output:
                sys.stderr.write(_tail(output, _SHOWN_BYTES))
        problem = _problem(end, job) or _silence(answer)
        if problem:
            error = EndedError(problem, end.code)
            error.add_note(f"It last printed:\n{end.tail}")
            raise error
        return _read(answer)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for a job, which is gone afterwards."""
    with ExitStack() as stack:
        with _writing(Path(tempfile.gettempdir())):
            folder = stack.enter_context(temporary_folder())
        yield folder


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what to do where a folder takes no files.

    Raises:
        MeasureError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise MeasureError(
            f"{folder}: cannot be written: {error.strerror}; free some space, or name another "
            "folder for temporary files (TMPDIR)"
        ) from error


def _request(job: ChildJob) -> dict[str, Any]:
    return {"function": job.function, "arguments": job.arguments, "parent": os.getpid()}


@dataclass(frozen=True, slots=True)
class _End:
    """How a process ended.

    Attributes:
        code: its exit code; negative: the signal.
        timed_out: whether it was ended at its time limit.
        kernel_killed: whether the kernel killed a process meanwhile for lack of memory; None where
            it does not say.
        tail: the last of what it printed.
        failure: the error that ended it, as the worker says; empty where it does not.
    """

    code: int
    timed_out: bool
    kernel_killed: bool | None
    tail: str
    failure: str

    def words(self) -> str:
        """Why it ended, in one line that is safe to print."""
        line = self.failure or _telling_line(self.tail)
        return "".join(filter(str.isprintable, line.strip()))[:300]


def _run(job: ChildJob, arguments: list[str], output: IO[bytes]) -> _End:
    kills = _kernel_kills()
    with _process_group(job, arguments, output) as process:
        timed_out = not _ends_within(process, job.time_limit_seconds)
        if timed_out:
            os.killpg(process.pid, signal.SIGTERM)
            _ends_within(process, GRACE_SECONDS)
    return _End(
        process.returncode,
        timed_out,
        None if kills is None else (_kernel_kills() or 0) > kills,
        _tail(output, _TAIL_BYTES).strip(),
        _failure(Path(arguments[1])),
    )


@contextmanager
def _process_group(
    job: ChildJob, arguments: list[str], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """The worker, and the end of it and of all that it started."""
    process = subprocess.Popen(  # noqa: S603  (our own module, with paths that we made)
        python_running("tritter_mem.measure.worker", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=_environment(job),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # Not yet waited for, the process keeps its number: the signal cannot reach another group.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(job: ChildJob) -> dict[str, str]:
    changed = {**os.environ, "PYTHONPATH": python_path(), **job.environment}
    return {name: value for name, value in changed.items() if value is not None}


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of the process, without releasing its number."""
    deadline = time.monotonic() + seconds
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, process.pid, options) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _kernel_kills() -> int | None:
    """How often the kernel has killed a process for lack of memory; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _tail(output: IO[bytes], most_bytes: int) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - most_bytes))
    return output.read().decode(errors="replace")


def _problem(end: _End, job: ChildJob) -> str | None:
    """What went wrong, in one line, and what to do."""
    if end.timed_out:
        return (
            f"the run was ended at its time limit of {job.time_limit_seconds:g} s: give it more "
            "time (--time-limit), or a smaller workload (a shorter context, a smaller batch)"
        )
    if end.code < 0:
        return _killed(-end.code, end)
    if end.code > 0:
        return f"the run failed with exit code {end.code}: {end.words()}"
    return None


def _silence(answer: Path) -> str | None:
    """What is wrong where a process ended well and left no answer."""
    if answer.exists():
        return None
    return "the run ended with exit code 0 and no result: does its code call os._exit?"


def _killed(number: int, end: _End) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    if number != signal.SIGKILL:
        return f"the run was killed by {name}: {end.words()}"
    if end.kernel_killed is False:
        return (
            "the run was killed by SIGKILL from outside, and not by the kernel for lack of memory: "
            "run it again; a container or a scheduler kills what goes over its limits"
        )
    why = "was" if end.kernel_killed else "was most likely"
    return (
        f"the run was killed by SIGKILL; the kernel's out-of-memory killer {why} at work: give it "
        "more memory, or a smaller workload (a shorter context, a smaller batch)"
    )


def _telling_line(tail: str) -> str:
    """The line that says what a crash was: C++ and Python announce it, else it is the last."""
    lines = [line.strip() for line in tail.splitlines()] or ["it printed nothing"]
    return next((line for line in lines if line.startswith(_ANNOUNCED)), lines[-1])


def _failure(answer: Path) -> str:
    """The error that the worker says it ended with; empty where it says none."""
    try:
        return str(parse_json(answer.read_bytes())["failure"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _read(answer: Path) -> Any:
    """What the worker wrote: `{"value": …}`, or the name and the problems of an error it knows."""
    try:
        found = parse_json(answer.read_bytes())
        if "problems" in found:
            raise ReportedError(_known_error(found["error"])(*found["problems"]))
        return found["value"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MeasureError(
            f"the run ended without a readable result ({error!r}): run it again, and report it "
            "if it stays so"
        ) from error


def _known_error(name: str) -> type[TritterMemError]:
    """The error of that name; of one that only its own module knows, the base of all."""
    found = getattr(errors, name, TritterMemError)
    return found if issubclass(found, TritterMemError) else TritterMemError
