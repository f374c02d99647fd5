"""How a command ends early: by Ctrl-C, by SIGTERM, or with nobody who takes its output."""

from __future__ import annotations

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any

from tritter_mem.errors import EXIT_INTERRUPTED, EXIT_USAGE

EXIT_PIPE = 141  # what a shell shows for a process that SIGPIPE ended
_ENDED_BY_SIGNAL = 128
_AGAIN_SECONDS = 0.05
_NOT_TAKEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_interrupts = 0


def catch_signals() -> None:
    """Let Ctrl-C, SIGTERM and the end of the terminal end a command in order, and none be lost.

    A library that catches everything, and Python in a destructor, swallow a KeyboardInterrupt: it
    is raised again where that is known, and is remembered in any case.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell's background jobs have
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _raise_again
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _terminate)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed."""
    return _interrupts > 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupts  # noqa: PLW0603  (a signal is the process's)
    _interrupts += 1
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(_ENDED_BY_SIGNAL + number)


def _raise_again(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        import threading

        # Not at once: this hook's own frames would swallow it too. To the thread that sleeps, which
        # a signal to another one does not wake.
        whom = threading.main_thread().ident
        threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, [whom, signal.SIGINT]).start()
    else:
        sys.__unraisablehook__(unraisable)


def open_missing_streams() -> None:
    """Put /dev/null where a standard stream is closed, or the next file would be taken for it.

    Raises:
        SystemExit: standard output is closed: there is nowhere to show a result.
    """
    streams = (sys.stdin, sys.stdout, sys.stderr)
    for number, stream in enumerate(streams):
        if stream is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if number == 2:
                sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if streams[1] is None:
        say("error: standard output is closed; to show nothing, send it to /dev/null")
        raise SystemExit(EXIT_USAGE)


def say(line: str) -> None:
    """Print a line on standard error, if anybody takes it."""
    try:
        print(line, file=sys.stderr)
    except OSError:
        return


def how_output_failed(error: BaseException) -> int | None:
    """The exit code where an error is that nobody takes our output; None where it is another.

    What is left to write is discarded, and what happened is said: Python would try it at its exit.
    """
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return EXIT_PIPE
    of_stream = isinstance(error, OSError) and error.filename is None
    if of_stream and error.errno in _NOT_TAKEN:  # type: ignore[attr-defined]
        _discard_output()
        say(f"error: standard output cannot be written: {error.strerror}")  # type: ignore[attr-defined]
        return EXIT_USAGE
    return None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def exit_code_after(code: int) -> int:
    """The exit code of a command that came to `code`, once its output is written.

    Ctrl-C counts even where a library swallowed it, or made another error of it.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        code = how_output_failed(error) or EXIT_USAGE
    return EXIT_INTERRUPTED if interrupted() else code
