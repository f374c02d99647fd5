"""Processes that use a device and end in every way; the first argument says in which."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys

import torch

MIB = 1 << 20


def use(mebibytes: int) -> None:
    torch.empty(mebibytes * MIB, dtype=torch.uint8, device="cuda")  # is gone at once
    torch.cuda.reset_peak_memory_stats()
    torch.empty(20 * MIB, dtype=torch.uint8, device="cuda")


def hide_variables() -> None:
    """As a process does that writes its name over them."""
    with open("/proc/self/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    ctypes.memset(start, 0, end - start)


def main(how: str) -> None:
    if how == "all":
        ways = ("exit", "kill", "segfault", "daemon")
        children = [subprocess.Popen([sys.executable, __file__, way]) for way in ways]
        print([child.wait() for child in children])
        for number, method in enumerate(("fork", "spawn")):
            child = multiprocessing.get_context(method).Process(
                target=use, args=(240 + 20 * number,)
            )
            child.start()
            child.join()
            assert child.exitcode == 0
        print("still here")
    elif how == "exit":
        use(100)
        os._exit(0)
    elif how == "kill":
        use(120)
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        use(140)
        ctypes.string_at(0)
    elif how == "daemon":
        use(160)
        if os.fork() == 0:
            os.setsid()
            hide_variables()
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
