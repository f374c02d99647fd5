"""A check as annotations of GitHub Actions, and what of its markdown a step summary takes.

Limits and escapes: GitHub shows 10 errors and 10 warnings of a step and takes a summary of 1 MiB;
the escapes are those of the actions toolkit's `core/src/command.ts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from tritter_mem.report.check import details, headline, name_of_outcome
from tritter_mem.units import MiB

if TYPE_CHECKING:
    from tritter_mem.check.outcome import CheckReport, Outcome

Level = Literal["error", "warning", "notice"]
MAX_OF_A_LEVEL = 10
MAX_TITLE = 255
MAX_MESSAGE_BYTES = 64 * 1024
MAX_SUMMARY_BYTES = MiB
CUT = "\n\n*cut here: a step summary holds 1 MiB*\n"


def render_annotations(report: CheckReport, units: str = "GiB") -> str:
    """One line an annotation; where there are too many of a level, the last one counts the rest."""
    found: dict[Level, list[Outcome]] = {"error": [], "warning": [], "notice": []}
    for outcome in report.outcomes:
        if (level := _level(outcome)) is not None:
            found[level].append(outcome)
    lines = [line for level, outcomes in found.items() for line in _lines(level, outcomes, units)]
    return "".join(f"{line}\n" for line in lines)


def _level(outcome: Outcome) -> Level | None:
    if outcome.exit_code:
        return "error" if outcome.status in ("regression", "failed") else "warning"
    return "notice" if outcome.status == "gain" else None


def _lines(level: Level, outcomes: list[Outcome], units: str) -> Iterator[str]:
    fits = len(outcomes) <= MAX_OF_A_LEVEL
    shown = outcomes if fits else outcomes[: MAX_OF_A_LEVEL - 1]
    for outcome in shown:
        text = "\n".join([headline(outcome, units), *details(outcome, units)])
        yield annotation(level, f"Memory: {name_of_outcome(outcome)}", text)
    if not fits:
        rest = len(outcomes) - len(shown)
        yield annotation(level, f"Memory: {rest} more", "see the step summary or the log for all")


def annotation(level: Level, title: str, message: str) -> str:
    """A workflow command on one line, whatever the title and the message hold."""
    cut = message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore")
    return f"::{level} title={_property(title[:MAX_TITLE])}::{_data(cut)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def fitting_summary(markdown: str, written_bytes: int) -> str:
    """As much of the markdown, in whole lines, as a summary takes that holds some already.

    Args:
        markdown: what is to be added.
        written_bytes: what the step's summary holds already.
    """
    room = MAX_SUMMARY_BYTES - written_bytes
    text = markdown.encode()
    if len(text) <= room:
        return markdown
    kept = text[: max(room - len(CUT.encode()), 0)].decode(errors="ignore")
    return kept.rpartition("\n")[0] + CUT if kept else ""
