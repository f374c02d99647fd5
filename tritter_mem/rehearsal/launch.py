"""Start a command over the stand-ins, in the environment that it would have run in."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tritter_mem.config.cards import GpuCard
from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.rehearsal.build import libraries_of, stand_ins_for
from tritter_mem.rehearsal.engines import ENGINES, LINE, address_of, ask, engine_of
from tritter_mem.units import MiB

INSIDE = Path(__file__).parent / "inside"
SESSION = "STANDIN_SESSION"
CACHES = (
    "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT", "SGLANG_CACHE_DIR",
    "FLASHINFER_AUTOTUNE_CACHE_DIR", "QUACK_CACHE_DIR",
)  # fmt: skip
"""Where compiled code is kept, with what autotuners chose and servers measured. A rehearsal has its
own, which do not stay: no GPU may run what was chosen by times that mean nothing, and a first run
takes memory that later ones do not (https://github.com/vllm-project/vllm/issues/54122)."""
MOST_DEVICES = 16
_SEEN_MIB = {"h100": 81_079}
"""What CUDA shows of a card, where it was seen."""
_NOT_SHOWN = 0.015
"""Of the memory that nvidia-smi lists, PyTorch's errors show 0.6% to 2% less: RTX 3090 and 4090,
A100, H100, L4, L40S, T4, RTX 5090, in published out-of-memory messages."""
_ASK = """
import sys
sys.path[:] = [path for path in sys.path if path]  # `-c` puts first the folder that we are in
import importlib.util, json, re
spec = importlib.util.find_spec("torch")
found = {"python": sys.executable, "torch": None, "version": None, "cuda": None}
if spec and spec.submodule_search_locations:
    folder = list(spec.submodule_search_locations)[0]
    found["torch"] = folder
    try:
        text = open(folder + "/version.py").read()
        version = re.search(r"__version__ = '([^']+)'", text)
        cuda = re.search(r"cuda(?:: [^=]+)? = '([^']+)'", text)
        found["version"], found["cuda"] = version and version[1], cuda and cuda[1]
    except OSError:
        pass
print(json.dumps(found))
"""
_GRACE_SECONDS = 10.0
_LONGEST_PIECE = 1 << 16
_OFTEN_SECONDS = 0.2
UNTIL, HOST_LIMIT = "--until", "--host-limit"
_HELD = re.compile(rb"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)


def shown_bytes(card: GpuCard) -> int:
    """A card's memory as CUDA shows it: what was seen, else 1.5% less than nvidia-smi lists."""
    seen = _SEEN_MIB.get(card.name)
    return seen * MiB if seen else int(card.total_bytes * (1 - _NOT_SHOWN)) // MiB * MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchThere:
    """An environment's Python and its torch.

    Attributes:
        torch: the folder of the package; None where there is none.
        cuda: the release of CUDA that it is built for; None for a build for the CPU.
    """

    python: str
    torch: Path | None
    version: str | None
    cuda: str | None


def torch_of(python: str) -> TorchThere:
    """Ask a Python for its torch, without importing it.

    Raises:
        UsageError: it is no Python that runs.
    """
    try:
        asked = subprocess.run(  # noqa: S603  (the user's own Python)
            [python, "-c", _ASK], check=False, capture_output=True, text=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{python}: cannot be run: {error}") from error
    if asked.returncode:
        raise UsageError(f"{python}: {asked.stderr.strip().splitlines()[-1:]}")
    found = json.loads(asked.stdout.splitlines()[-1])
    return TorchThere(
        python=found["python"],
        torch=Path(found["torch"]) if found["torch"] else None,
        version=found["version"],
        cuda=found["cuda"],
    )


def program_of(command: Sequence[str], path: str | None = None) -> Path:
    """The file that a command runs.

    Raises:
        UsageError: there is no such command.
    """
    found = shutil.which(command[0], path=path)
    if found is None:
        raise UsageError(f"{command[0]}: no such command")
    return Path(found)


def python_of(program: Path) -> str:
    """The Python that a program runs in: itself, its first line's, else `python` of the path."""
    if re.match(r"python[\d.]*$", program.name):
        return str(program)
    with program.open("rb") as file:
        first = file.readline(300)
    if first.startswith(b"#!"):
        words = shlex.split(first[2:].decode(errors="replace"))
        named = words[1:2] if words and words[0].endswith("/env") else words[:1]
        if named and re.search(r"python[\d.]*$", named[0]):
            return shutil.which(named[0]) or named[0]
    return shutil.which("python") or shutil.which("python3") or sys.executable


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine that is pretended.

    Attributes:
        memory_bytes: of each device, as CUDA shows it.
        rank: which one of `world_size` processes is rehearsed alone; None: all that there are.
        world_size: how many processes there would be.
    """

    card: GpuCard
    devices: int
    memory_bytes: int
    rank: int | None = None
    world_size: int = 1

    def environment(self) -> dict[str, str]:
        """As `driver/driver.c` reads it."""
        major, minor = self.card.compute_capability
        return {
            "STANDIN_NAME": self.card.title,
            "STANDIN_DEVICES": str(self.devices),
            "STANDIN_MEMORY_MIB": str(self.memory_bytes // MiB),
            "STANDIN_LISTED_MIB": str(self.card.total_bytes // MiB),
            "STANDIN_CONTEXT_MIB": str(self.card.context_bytes // MiB),
            "STANDIN_CAPABILITY": f"{major}.{minor}",
            "STANDIN_MULTIPROCESSORS": str(self.card.multiprocessors),
        } | self._alone()

    def _alone(self) -> dict[str, str]:
        """What torchrun would set for the rank, and what makes its process group a fake one."""
        if self.rank is None:
            return {}
        rank, size = str(self.rank), str(self.world_size)
        return {
            "STANDIN_RANK": rank, "STANDIN_WORLD_SIZE": size, "RANK": rank, "WORLD_SIZE": size,
            "LOCAL_RANK": str(self.rank % self.devices), "LOCAL_WORLD_SIZE": str(self.devices),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
        }  # fmt: skip


def environment_for(machine: Machine, libraries: Path, session: Path,
                    folder: Path | None) -> dict[str, str]:  # fmt: skip
    """The environment of a command.

    Args:
        machine: what is pretended.
        libraries: the folder of the stand-ins.
        session: where the processes leave what they know.
        folder: the root of another environment whose programs come first.
    """
    found = dict(os.environ)
    preloaded = [str(path) for path in libraries_of(libraries)]
    found["LD_PRELOAD"] = ":".join([*preloaded, *filter(None, [found.get("LD_PRELOAD")])])
    # What is looked up by its name rather than loaded: Triton links to the driver's file.
    found["TRITON_LIBCUDA_PATH"] = str(libraries)
    found["PYTHONPATH"] = os.pathsep.join([str(INSIDE), *filter(None, [found.get("PYTHONPATH")])])
    found["TORCH_CUDNN_V8_API_DISABLED"] = "1"  # its plans cannot be answered; older calls can
    found.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # it compiles with CUDA's headers
    found |= {name: str(session / "caches" / name.lower()) for name in CACHES}
    found["TRITTER_MEM_HISTORY"] = "off"
    found[SESSION] = str(session)
    found["STANDIN_DROPS"] = os.pathsep.join(path for one in ENGINES for path in one.drops)
    if folder is not None:
        found["PATH"] = os.pathsep.join([str(folder / "bin"), found.get("PATH", os.defpath)])
        found["VIRTUAL_ENV"] = str(folder)
    return found | machine.environment()


def stand_ins_of(
    command: Sequence[str], folder: Path | None, made: Path
) -> tuple[Path, Path | None]:
    """The stand-ins for what a command runs in, and the environment to put first, if any.

    Args:
        command: what is to run.
        folder: the environment that was named.
        made: the environment that `--setup` makes; it is taken where the user's torch has no CUDA.

    Raises:
        UsageError: the command is not there.
        MeasureError: no CUDA build of torch is there, or the stand-ins cannot be built.
    """
    if folder is not None:
        there = torch_of(str(folder / "bin" / "python"))
        program_of(command, os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")]))
    elif shutil.which(command[0]) is None and shutil.which(command[0], path=str(made / "bin")):
        folder, there = made, torch_of(str(made / "bin" / "python"))  # it is installed there alone
    else:
        there = torch_of(python_of(program_of(command)))
        if there.cuda is None and (made / "bin" / "python").exists():
            folder, there = made, torch_of(str(made / "bin" / "python"))
    if there.torch is None or there.cuda is None:
        what = f"has torch {there.version}, a build for the CPU" if there.torch else "has no torch"
        raise MeasureError(
            f"{there.python} {what}; a rehearsal needs a CUDA build: `tritter-mem rehearse "
            "--setup` makes an environment with one, without CUDA itself"
        )
    return stand_ins_for(there.torch), folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Until:
    """When a command is ended that would not end: at a text in its output, or after seconds.

    Attributes:
        ask: the address of a server that is sent one small request before.
        host_bytes: also once all of its processes together hold more of the host's memory.
    """

    text: str = ""
    seconds: float | None = None
    ask: str = ""
    host_bytes: int | None = None


def until_ready(command: Sequence[str]) -> Until:
    """When a command of a known server is ended; of any other: at its own end."""
    engine = engine_of(command)
    if engine is None:
        return Until()
    return Until(text=engine.ready, ask=address_of(engine, command))


@dataclass(slots=True)
class Ended:
    """How a command ended.

    Attributes:
        exit_code: negative: the number of a signal.
        by: `--until` or `--host-limit` where it was ended for that.
        lines: what it printed of an engine's figures, where its output was watched.
        asked_at: when that request was sent, in seconds since the epoch.
        unanswered: why a request to it was not answered; empty: it was, or none was sent.
    """

    exit_code: int
    seconds: float
    by: str = ""
    interrupted: bool = False
    lines: tuple[str, ...] = ()
    unanswered: str = ""
    asked_at: float | None = None


def run(command: Sequence[str], environment: dict[str, str], until: Until,
        output: IO[bytes] | None) -> Ended:  # fmt: skip
    """Run a command to its end, or until what was asked for; what it leaves running is ended.

    Args:
        command: what to run.
        environment: of the process.
        until: when to end it.
        output: where its standard output goes; None: to this process's.

    Raises:
        UsageError: it cannot be started.
    """
    start = time.monotonic()
    watched = bool(until.text)
    try:
        process = subprocess.Popen(  # noqa: S603  (what the user asked for)
            command,
            env=environment,
            stdout=subprocess.PIPE if watched else output,
            stderr=subprocess.PIPE if watched else None,
        )
    except OSError as error:
        raise UsageError(f"{command[0]}: cannot be started: {error.strerror}") from error
    watch = _Watch(process, until, output) if watched else None
    ended = Ended(0, 0.0)
    try:
        ended.by = _wait(process, until, watch, start, environment[SESSION])
    except KeyboardInterrupt:
        ended.interrupted = True
        _end(process, signal.SIGINT)
    if ended.by:
        if until.ask and watch is not None and watch.seen.is_set():
            ended.asked_at = time.time()
            ended.unanswered = ask(until.ask)
        _end(process, signal.SIGTERM)
    if watch is not None:
        watch.join()
        ended.lines = tuple(watch.lines)
    ended.exit_code = process.returncode
    ended.seconds = time.monotonic() - start
    end_what_is_left(environment[SESSION])
    return ended


def _wait(process: subprocess.Popen[bytes], until: Until, watch: _Watch | None,
          start: float, session: str) -> str:  # fmt: skip
    often = _OFTEN_SECONDS if watch is not None or until.host_bytes is not None else None
    while True:
        if watch is not None and watch.seen.is_set():
            return UNTIL
        if until.host_bytes is not None and _host_bytes(session) > until.host_bytes:
            return HOST_LIMIT
        left = None if until.seconds is None else start + until.seconds - time.monotonic()
        if left is not None and left <= 0:
            return UNTIL
        try:
            process.wait(min(filter(None, (often, left)), default=None))
        except subprocess.TimeoutExpired:
            continue
        return ""


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """End a process politely, then not; an interrupt has reached it already from the terminal."""
    try:
        if how is not signal.SIGINT or not sys.stdin.isatty():
            process.send_signal(how)
        process.wait(_GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


class _Watch:
    """Passes a command's output on, looks for a text in it, and keeps an engine's figures."""

    def __init__(self, process: subprocess.Popen[bytes], until: Until,
                 output: IO[bytes] | None) -> None:  # fmt: skip
        self.seen = threading.Event()
        self.lines: list[str] = []
        self._text = until.text.encode()
        pairs = (
            (process.stdout, output or sys.stdout.buffer),
            (process.stderr, sys.stderr.buffer),
        )
        self._threads = [
            threading.Thread(target=self._pass_on, args=pair, daemon=True) for pair in pairs
        ]
        for thread in self._threads:
            thread.start()

    def _pass_on(self, source: IO[bytes], to: IO[bytes]) -> None:
        before = b""
        # A line without an end comes in pieces, over which the text may lie.
        for line in iter(lambda: source.readline(_LONGEST_PIECE), b""):
            try:
                to.write(line)
                to.flush()
            except OSError:  # nobody reads any more: nor does the command find anybody who does
                source.close()
                return
            if LINE.search(text := line.decode(errors="replace")):
                self.lines.append(text)
            if self._text in before + line:
                self.seen.set()
            before = b"" if line.endswith(b"\n") else (before + line)[-len(self._text) :]

    def join(self) -> None:
        """Wait for what is left of the output; children may keep it open."""
        for thread in self._threads:
            thread.join(_GRACE_SECONDS)


def end_what_is_left(session: str) -> None:
    """End what is left of a session's processes: daemons, workers of a launcher that was killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        left = list(_processes_of(session))
        for process in left:
            try:
                os.kill(process, how)
            except OSError:
                continue
        for _ in range(30):
            if not any(Path(f"/proc/{process}").exists() for process in left):
                return
            time.sleep(0.1)


def _host_bytes(session: str) -> int:
    """What a session's processes hold of the host's memory, but for what files have."""
    found = 0
    for process in _processes_of(session):
        try:
            status = Path(f"/proc/{process}/status").read_bytes()
        except OSError:
            continue
        found += sum(int(size) for size in _HELD.findall(status)) << 10
    return found


def _processes_of(session: str) -> Iterator[int]:
    """Those with its variable.

    A process that names itself anew may write over that: it is told by the table that it shares.
    """
    mark, table = f"{SESSION}={session}".encode(), f"{session}/processes".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            is_own = mark in (entry / "environ").read_bytes().split(b"\0")
            is_own = is_own or table in (entry / "maps").read_bytes()
        except OSError:
            continue
        if is_own:
            yield int(entry.name)
