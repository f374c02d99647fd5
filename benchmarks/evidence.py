"""What `make gpu` says last: of its parts, targets and failures, and of what remains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from benchmarks.records import Records

PEAKS = {"allocated_peak": "allocated", "reserved_peak": "reserved"}
RUNS = ("measured", "rehearsed")


def summary(records: Records, limits: Mapping[str, float]) -> list[str]:
    """A short table: the parts with their limits in seconds, and what each comes to."""
    lines = [f"taken with: {', '.join(records.taken_with.values())}"]
    standin = any(line.get("on", {}).get("standin") for line in records.lines())
    if standin:
        lines.append("nothing computes on this card: times are left out, for none means anything")
    lines.append("")
    lines += [part_line(records, part) for part in limits]
    for part in limits:
        rows = records.finished(part).values()
        lines += dict.fromkeys(line for row in rows for line in figure_lines(row, not standin))
    lines += [line for part in limits for line in failures(records, part)]
    return [*lines, *remaining_lines(records, limits)]


def part_line(records: Records, part: str) -> str:
    """How a part ended last, how long it took, how many of its rows have figures, and why not all.

    A part is skipped where all of its rows are.
    """
    ends = [x for x in records.lines() if x["part"] == part and x["event"] == "ended"]
    if not ends:
        return f"{part:<14} not run"
    end, skipped, planned = ends[-1], records.skipped(part), records.planned(part) or ()
    how = (
        "FAILED"
        if not end["passed"]
        else "skipped"
        if 0 < len(planned) == len(skipped)
        else "passed"
    )
    rows = f"{len(records.finished(part))} of {len(planned)} rows"
    if skipped:
        rows += f", {len(skipped)} skipped: {'; '.join(dict.fromkeys(skipped.values()))}"
    return f"{part:<14} {how:<7} {end['seconds']:>5.0f} s  {rows}  {end['note']}".rstrip()


def figure_lines(row: Mapping[str, Any], timed: bool) -> Iterator[str]:
    """What a row says by itself: its target, a variant's gain, a validation's errors.

    Targets and gains are left out where times mean nothing.
    """
    figures = row["figures"]
    if timed and (goal := figures.get("target")):
        got = "nothing" if goal["got"] is None else f"{goal['got']:.2f}"
        reached = "reached" if goal["reached"] else "NOT REACHED"
        yield f"{goal['what']:<52} wanted {goal['wanted']:.2f}, got {got} {reached}"
    if "compared" in figures:
        yield f"{row['part']}: {figures['compared']}"
    if timed and "times_faster" in figures:
        yield f"{row['row']:<52} {figures['times_faster']:.3f} times as fast"
    if row["part"] == "compile":
        yield from (f"compile: not {name}: {why}" for name, why in figures["failed"].items())
    if row["part"] == "fragmentation":
        yield from fragmentation_lines([figures])
    if row["part"] == "validate":
        yield from (f"{row['row']:<16} {line}" for line in figures["lines"])


def failures(records: Records, part: str) -> Iterator[str]:
    """Rows without figures, and why."""
    finished = records.finished(part)
    for row, line in records.rows(part).items():
        if line["event"] == "failed" and row not in finished:
            why = line["error"].strip().splitlines()[-1:] or ["?"]
            yield f"FAILED {part}: {row}: {why[0][:200]}"


def remaining_lines(records: Records, limits: Mapping[str, float]) -> list[str]:
    """What remains, and about how long that takes: by the rows there are, or by the limit."""
    lines, total = [], 0.0
    for part, limit in limits.items():
        rest = records.remaining(part)
        if rest == []:
            continue
        took = [row["seconds"] for row in records.finished(part).values()]
        seconds = min(limit, len(rest) * sum(took) / len(took)) if rest and took else limit
        rows = "all rows" if rest is None else f"{len(rest)} rows"
        lines.append(f"remains: {part}, {rows}, about {seconds:.0f} s")
        total += seconds
    return [*lines, f"remains in all: about {total:.0f} s"] if lines else ["nothing remains"]


def validation_lines(document: dict[str, Any]) -> list[str]:
    """How many cases are within, and the largest error of each kind."""
    cases = document["cases"]
    within = sum(case["status"] == "within" for case in cases)
    lines = [f"validated    {within} of {len(cases)} cases within the tolerances"]
    for kind, run in product(("planned", "simulated"), RUNS):
        for name, word in PEAKS.items():
            peaks = [peak for case in cases for peak in case["peaks"] if peak["name"] == name]
            ratios = [peak.get(f"{kind}_vs_{run}") for peak in peaks]
            errors = [abs(ratio) for ratio in ratios if ratio is not None]
            if errors:
                lines.append(f"{kind} against {run}, {word}: {max(errors):.3%} at most")
    return lines


def fragmentation_lines(results: list[dict[str, Any]]) -> list[str]:
    """Reserved and not allocated at the peak, simulated and measured, by setting."""
    lines = []
    for result in results:
        kinds = [f"{kind} {result[kind]['fragmentation']['ratio']:.1%}"
                 for kind in ("simulated", *RUNS)
                 if result.get(kind) and result[kind]["fragmentation"]]  # fmt: skip
        conf = result["profile"]["allocator"]["conf"] or "default"
        lines.append(f"fragmentation, {conf}: {', '.join(kinds) or 'no figures'}")
    return lines
