"""The child process of `child`: `python -m tritter_mem.measure.worker REQUEST ANSWER`."""

from __future__ import annotations

import faulthandler
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tritter_mem.child_process import end_with
from tritter_mem.errors import TritterMemError
from tritter_mem.results.writing import write_text_atomically


def main(request: Path, answer: Path) -> None:
    """Call the function that the request names; the answer is there whole or not at all.

    Another error than our own ends the process with its traceback; the answer then says what it
    was, which the last line printed need not.
    """
    faulthandler.enable()  # of a crash, the line of Python that led to it
    job = json.loads(request.read_text())
    end_with(job["parent"])
    try:
        _write(answer, _answer(job))
    except Exception as error:
        _write(answer, {"failure": described(error)})
        raise


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    module, _, name = job["function"].partition(":")
    try:
        return {"value": getattr(import_module(module), name)(**job["arguments"])}
    except TritterMemError as error:
        return {"error": type(error).__name__, "problems": list(error.problems)}


def described(error: BaseException) -> str:
    """An error's type and its first line: `RuntimeError: no kernel image is available`."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


def _write(path: Path, answer: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(answer))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
