"""Figures, written row by row: a JSON object a line, on the disk before the next row begins.

A line says which part and row it is of, in which call it was written, and what it was taken with:
the code, the card and PyTorch. Figures that were taken with the same are not taken again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Line = dict[str, Any]
Event = Literal["planned", "skipped", "begins", "finished", "failed", "ended"]


@dataclass(frozen=True)
class Records:
    """The file of figures, as one call of `make gpu` sees it.

    Attributes:
        path: the file; it may hold lines of other calls, and of other code, cards or versions.
        call: names this call.
        taken_with: the code, the card, PyTorch.
        again: whether only this call's figures count.
    """

    path: Path
    call: str
    taken_with: dict[str, str]
    again: bool = False

    def append(self, part: str, event: Event, **what: Any) -> None:
        """Write a line; figures and errors go down to the disk. Several processes may write."""
        line = {"part": part, "event": event, **what}
        line |= {"call": self.call, "taken_with": self.taken_with}
        with self.path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(line) + "\n")
            file.flush()
            if event in {"finished", "failed"}:
                os.fsync(file.fileno())

    def lines(self) -> Iterator[Line]:
        """The lines that count, oldest first; one that was cut off is left out."""
        if not self.path.exists():
            return
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            same = line["taken_with"] == self.taken_with
            if same and (line["call"] == self.call or not self.again):
                yield line

    def rows(self, part: str) -> dict[str, Line]:
        """The last line of each row of a part: `skipped`, `begins`, `finished` or `failed`."""
        return {x["row"]: x for x in self.lines() if x["part"] == part and "row" in x}

    def finished(self, part: str) -> dict[str, Line]:
        """The newest finished line of each row."""
        lines = (x for x in self.lines() if x["part"] == part and x["event"] == "finished")
        return {x["row"]: x for x in lines}

    def skipped(self, part: str) -> dict[str, str]:
        """Why rows were not run, where nothing has run them since."""
        rows = self.rows(part).items()
        return {row: x["why"] for row, x in rows if x["event"] == "skipped"}

    def tried(self, part: str) -> set[str]:
        """Rows that this call has begun."""
        mine = (x for x in self.lines() if x["call"] == self.call and x["part"] == part)
        return {x["row"] for x in mine if x["event"] == "begins"}

    def planned(self, part: str) -> list[str] | None:
        """The rows of a part, as its last start listed them; None where it has not started."""
        plans = [x for x in self.lines() if x["part"] == part and x["event"] == "planned"]
        return list(plans[-1]["rows"]) if plans else None

    def remaining(self, part: str) -> list[str] | None:
        """Rows to be run without figures; None where nobody has listed the part's rows yet."""
        planned, done = self.planned(part), self.finished(part).keys() | self.skipped(part).keys()
        return None if planned is None else [row for row in planned if row not in done]
