"""What a process of a rehearsal leaves behind: peaks as they rise, events as they come, a snapshot.

Peaks are written into memory that the stand-ins share with the rehearsal, after every operator, so
that they are there however the process ends. Everything else is a file in the session's folder.
"""

import atexit
import ctypes
import json
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

SESSION = "STANDIN_SESSION"
MOST_DEVICES, FIGURES = 16, 8
EVENTS = 400_000
"""Of the allocator's history, for each device; a snapshot of so many is some hundred MB."""
_STATISTICS = ("allocated_bytes", "reserved_bytes", "active_bytes", "requested_bytes")
_NAMED = (
    "torch",
    "triton",
    "transformers",
    "vllm",
    "sglang",
    "accelerate",
    "peft",
    "trl",
    "deepspeed",
)


class Inside(NamedTuple):
    """The other files of this folder and what they need of the models, as modules."""

    true_values: ModuleType
    host_values: ModuleType
    history_lines: ModuleType
    modules: ModuleType
    triton_kernels: ModuleType
    one_rank: ModuleType
    cudnn: ModuleType
    cudnn_attention: ModuleType
    storages: ModuleType


class _Slot(ctypes.Structure):
    """As `struct slot` of `driver/device.h`."""

    _fields_ = (
        ("pid", ctypes.c_uint32),
        ("in_use", ctypes.c_uint32),
        ("used", ctypes.c_uint64 * MOST_DEVICES),
        ("peak", ctypes.c_uint64 * MOST_DEVICES),
        ("torch", (ctypes.c_uint64 * FIGURES) * MOST_DEVICES),
    )


class Process:
    """This process, once it uses a device."""

    def __init__(self, torch: Any, inside: Inside) -> None:
        self._torch = torch
        self._inside = inside
        self._folder = os.environ[SESSION]
        self._pid = os.getpid()
        self._last: dict[int, Any] = {}
        self._attention = inside.cudnn.Attention(torch, inside.cudnn_attention, self.note)
        self._values = inside.true_values.Values(
            torch, inside.host_values, inside.storages.Storages(torch), self.sync, self.note
        )
        self._requests = inside.history_lines.Requests(torch)
        self._count_backward = ctypes.CDLL(None).tritter_standin_backward
        self._backward = inside.history_lines.BackwardPasses(
            torch, self._requests, lambda: self._count_backward(1), self._notice_collectives
        )
        self._modules = inside.modules.Modules(torch, self._requests)
        self._kernels = inside.triton_kernels.TritonKernels(
            torch, self._values.is_known, self._values.forget
        )
        driver = ctypes.CDLL("libcuda.so.1")
        self._number = driver.tritter_standin_device_number
        self._slot = self._own_slot(driver)
        self._written = False

    def _notice_collectives(self) -> None:
        """Let PyTorch's watchdog of NCCL notice the collectives that have ended.

        What only a future was waited for, such as the buckets of DDP, is freed by the first
        collective behind that. The watchdog looks every 100 ms, and a step over stand-ins can be
        shorter: whether it had looked was chance. So it sees none of them end within a backward
        pass, and all of them behind it.
        """
        self._count_backward(-1)
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_initialized():
            return
        for group in [*distributed.distributed_c10d._world.pg_map]:
            with suppress(RuntimeError):  # a group for the host alone
                backend = group._get_backend(self._torch.device("cuda"))
                getattr(backend, "_wait_for_pending_works", bool)()

    @staticmethod
    def _own_slot(driver: ctypes.CDLL) -> _Slot:
        find = driver.tritter_standin_session_slot
        find.restype = ctypes.POINTER(_Slot)
        slot: _Slot = find().contents
        return slot

    def start(self) -> None:
        """Begin with the first use of a device."""
        torch = self._torch
        self._record_history()
        torch._C._cuda_attach_out_of_memory_observer(self._out_of_memory)
        self._attention.install()
        self._values.install()  # last of what has kernels: it runs them, and sees what they write
        for one in (self._requests, self._backward, self._modules):
            one.install()
        when_imported("triton.runtime.jit", self._kernels.watch_triton)
        when_imported("torch._inductor.runtime.triton_heuristics", self._kernels.watch_inductor)
        if self._values.problem:
            self.note("uncounted", self._values.problem)
        self._write_about()
        before_reset = torch._C._cuda_resetPeakMemoryStats

        def reset(device: int) -> None:
            self.sync(device)
            self._last.pop(device, None)
            before_reset(device)

        torch._C._cuda_resetPeakMemoryStats = reset
        before_exit = os._exit

        def leave(status: int) -> None:
            if os.getpid() == self._pid:
                self.end()
            before_exit(status)

        os._exit = leave  # type: ignore[assignment]
        atexit.register(self.end)

    def _record_history(self) -> None:
        torch = self._torch
        record = torch.cuda.memory._record_memory_history
        record(enabled="all", context="all", stacks="python", max_entries=EVENTS)

        def keep(*args: Any, **kwargs: Any) -> None:
            """The history is kept whole, whatever the code asks for."""

        torch.cuda.memory._record_memory_history = keep

    def sync(self, device: int) -> None:
        """Write the figures of a device where they survive this process; only peaks that rose."""
        found = self._torch._C._cuda_memoryStats(device)
        peaks = tuple([found[name]["all"]["peak"] for name in _STATISTICS])
        if self._last.get(device) == peaks or os.getpid() != self._pid:
            return
        self._last[device] = peaks
        kept = self._slot.torch[self._number(device)]
        for at, value in enumerate(peaks):
            kept[at] = max(kept[at], value)
        kept[4], kept[5] = found["num_ooms"], found["num_alloc_retries"]
        kept[6] = found["allocated_bytes"]["all"]["current"]
        kept[7] = found["reserved_bytes"]["all"]["current"]

    def note(self, kind: str, text: str, **more: Any) -> None:
        """Add a line to what is known of the run."""
        line = {"kind": kind, "pid": self._pid, "text": text, "at": time.time(), **more}
        self._write("notes.jsonl", "a", line)

    def _write(self, name: str, mode: str, line: dict[str, Any]) -> None:
        """Write into the session's folder; where that is gone, the rehearsal says so, not this."""
        with suppress(OSError), open(os.path.join(self._folder, name), mode) as file:
            file.write(json.dumps(line) + "\n")

    def _out_of_memory(self, device: int, requested: int, limit: int, free: int) -> None:
        self.sync(device)
        stats = self._torch._C._cuda_memoryStats(device)
        self.note(
            "out_of_memory",
            self._values.where(),
            device=self._number(device),
            requested_bytes=requested,
            allocated_bytes=stats["allocated_bytes"]["all"]["current"],
            reserved_bytes=stats["reserved_bytes"]["all"]["current"],
            limit_bytes=limit,
            free_bytes=free,
        )

    def _write_about(self) -> None:
        about = {
            "pid": self._pid,
            "parent": os.getppid(),
            "argv": sys.argv[:20] if hasattr(sys, "argv") else [],
            "title": _title(),
            "rank": _number("RANK"),
            "local_rank": _number("LOCAL_RANK"),
            "world_size": _number("WORLD_SIZE"),
            "devices": self._torch.cuda.device_count(),
            "versions": {
                name: str(getattr(sys.modules[name], "__version__", "?"))
                for name in _NAMED
                if name in sys.modules
            }
            | {"cuda": self._torch.version.cuda, "python": sys.version.split()[0]},
            "allocator_conf": os.environ.get(
                "PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
            ),
        }
        name = f"process-{self._pid}.json"
        self._write(name + ".part", "w", about)
        path = os.path.join(self._folder, name)
        with suppress(OSError):
            os.replace(path + ".part", path)

    def end(self) -> None:
        """Write what is written once, at the process's end."""
        if self._written or os.getpid() != self._pid:
            return
        self._written = True
        self._modules.look()
        for device in range(self._torch.cuda.device_count()):
            if self._torch._C._cuda_memoryStats(device):
                self._last.pop(device, None)
                self.sync(device)
        self._write_about()
        self._dump()

    def _dump(self) -> None:
        """The snapshot; a process that ends in trouble may not write it."""
        path = os.path.join(self._folder, f"snapshot-{self._pid}.pickle")
        try:
            snapshot = self._torch.cuda.memory._snapshot()
            self._inside.history_lines.leave_out_own_frames(snapshot)
            for one in (self._backward, self._modules):
                one.write_into(snapshot)
            with open(path + ".part", "wb") as file:
                pickle.dump(snapshot, file, protocol=4)
            os.replace(path + ".part", path)
        except Exception as error:
            self.note("uncounted", f"no snapshot of process {self._pid}: {error}")


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else None


def _title() -> str:
    """What the process calls itself, such as `VLLM::Worker_TP0`."""
    try:
        with open("/proc/self/cmdline", "rb") as file:
            return file.read(400).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def watch(inside: Inside) -> None:
    """See to it that torch, once it is imported, tells when a device is first used."""

    def then(torch: Any) -> None:
        _prepare(torch, inside)
        inside.one_rank.stand_alone(torch)

    when_imported("torch", then)


def when_imported(name: str, then: Callable[[Any], None]) -> None:
    """Run something with a module once it has been imported."""
    if name in sys.modules:
        then(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, then))


class _Finder:
    """Runs something when a module has been imported."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        self._name = name
        self._then = then
        self._within = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module's own spec, whose loader does a little more; many only look for it."""
        if name != self._name or self._within:
            return None
        import importlib.util

        self._within = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._within = False
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_then(module: ModuleType) -> None:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            run(module)
            self._then(module)

        spec.loader.exec_module = run_and_then  # type: ignore[method-assign]
        return spec


def _prepare(torch: Any, inside: Inside) -> None:
    """Wait for the first use of a device; remember errors that end the process."""
    folder = os.environ[SESSION]
    if torch.version.cuda is None:
        with suppress(OSError), open(os.path.join(folder, "cpu-torch"), "w") as file:
            file.write(torch.__version__)
        return
    inside.cudnn.say_version(torch)
    _see_uncaught(torch, folder)
    process: list[Process] = []

    def begin() -> None:
        if not process or process[0]._pid != os.getpid():
            process[:] = [Process(torch, inside)]
            process[0].start()

    torch.cuda._lazy_call(begin)


def _see_uncaught(torch: Any, folder: str) -> None:
    """Keep PyTorch's own words where an out-of-memory error ends a process or a thread."""
    shown, shown_of_thread = sys.excepthook, threading.excepthook

    def keep(error: BaseException | None) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            path = os.path.join(folder, "errors.jsonl")
            with suppress(OSError), open(path, "a") as file:
                file.write(json.dumps({"pid": os.getpid(), "text": str(error)}) + "\n")

    def hook(kind: Any, error: Any, trace: Any) -> None:
        keep(error)
        shown(kind, error, trace)

    def hook_of_thread(args: Any) -> None:
        keep(args.exc_value)
        shown_of_thread(args)

    sys.excepthook, threading.excepthook = hook, hook_of_thread
