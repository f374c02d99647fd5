"""Rehearse every row, one release of torch after another, and write a table.

`make rehearsals`, or `python -m benchmarks.rehearsals [--torch 2.14.0] [--rows 8B] [--again]`. An
environment is made for each release, and deleted afterwards. Rows that were rehearsed are kept in
`out/rehearsals/rows.json` and not run again; while rows are missing, the table goes beside that
file. Exit code 1 where a row came out otherwise.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.rehearsals.rows import CONTEXT, NEW_TOKENS, ROWS, SCRIPTS, Row
from tritter_mem.errors import MeasureError, TritterMemError
from tritter_mem.profiling.profiler import profile
from tritter_mem.rehearsal.environment_setup import NEEDED_BYTES, set_up
from tritter_mem.units import GiB

ROOT = Path(__file__).parents[2]
MODEL_FOLDER = ROOT / "docs" / "examples" / "model_folder.py"
REPORTS = ROOT / "reports"
PAGE = REPORTS / "rehearsals.md"
PEAKS = ("allocated_peak_bytes", "reserved_peak_bytes")
TOLERANCE = 0.01
"""Of the allocated peak, beyond which a row is off."""
LIMIT_SECONDS = 1800
PRINTED = re.compile(r"(median step|host|peak|trained|kv_cache_\w+) |\w+ (fails|runs)")
"""Lines of a script that the table shows."""
NOTE = """\
The published fine-tuning runs are rehearsed with the versions of PyTorch and transformers that the
authors name. The script is written anew, after what the authors' worker does. What matters beside
the shapes: what the model returned stays until the end of the step, half of the labels are masked,
adapters are float32, embeddings that are tied stay so on the GPU, and FSDP2 shards all again after
the forward pass, the root too.
"""


def main() -> int:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", help="only the rows of this release")
    parser.add_argument("--rows", default="", help="only rows whose names have this in them")
    parser.add_argument("--again", action="store_true", help="also those that were run before")
    parser.add_argument("--env", type=Path, help="an environment that is there, and stays")
    asked = parser.parse_args()
    kept = ROOT / "out" / "rehearsals" / "rows.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    kept.parent.mkdir(parents=True, exist_ok=True)
    for release in dict.fromkeys(row.torch for row in ROWS):
        rows = [row for row in ROWS if row.torch == release and asked.rows in row.name]
        rows = [row for row in rows if asked.again or row.name not in found]
        if not rows or asked.torch not in (None, release):
            continue
        for together in together_in_one_environment(rows):
            for row, came_to in rehearsed(release, together, asked.env):
                found |= json.loads(kept.read_text()) if kept.exists() else {}  # of another run
                found[row.name] = came_to
                kept.write_text(json.dumps(found, indent=1))
                print(f"{row.name}: {'; '.join(words(row, came_to))}", flush=True)
    missing = sum(row.name not in found for row in ROWS)
    written = kept.with_name(PAGE.name) if missing else PAGE  # a part is no page to commit
    written.write_text(page(found))
    print(f"{written}: {f'{missing} rows are missing' if missing else 'all rows'}")
    return int(any(is_off(row, found[row.name]) for row in ROWS if row.name in found))


def together_in_one_environment(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of one release whose requirements go together: all that ask for one transformers."""
    groups: dict[tuple[bool, str], list[Row]] = {}
    for row in rows:
        apart = row.needs[0] if row.needs[0].startswith("vllm") else ""
        groups.setdefault((row.wheels, apart), []).append(row)
    yield from groups.values()


def rehearsed(release: str, rows: list[Row], env: Path | None) -> Iterator[tuple[Row, Any]]:
    """Each row's record, in an environment of its release."""
    with tempfile.TemporaryDirectory(prefix="rehearsals-", dir=ROOT / "out") as name:
        folder = env or Path(name) / "environment"
        try:
            if env is None:
                make(folder, release, rows, Path(name))
        except TritterMemError as error:
            yield from ((row, {"problem": "; ".join(error.problems)}) for row in rows)
            return
        for row in rows:
            yield row, rehearse(row, folder)


def make(folder: Path, release: str, rows: list[Row], beside: Path) -> None:
    """An environment with all that the rows need."""
    free = shutil.disk_usage(ROOT).free
    if free < 2 * NEEDED_BYTES:
        raise SystemExit(f"{free >> 30} GiB of disk are free; {2 * NEEDED_BYTES >> 30} are needed")
    requirements = beside / "requirements.txt"
    requirements.write_text("\n".join(dict.fromkeys(one for row in rows for one in row.needs)))
    if rows[0].wheels:  # as pip installs PyTorch
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        made = subprocess.run(
            [*pip, f"torch==={release}", "numpy", "-r", str(requirements)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise MeasureError((made.stderr.strip().splitlines() or ["pip failed"])[-1])
        return
    set_up(folder, release, requirements)


def rehearse(row: Row, folder: Path) -> dict[str, Any]:
    """The record of a row, in short."""
    with tempfile.TemporaryDirectory(prefix="row-", dir=ROOT / "out") as name:
        if "{folder}" in row.command:
            subprocess.run([sys.executable, str(MODEL_FOLDER), f"{name}/model"], check=True)
        found = _rehearse(row, row.words(Path(name)), folder)
        if not row.model:
            return found
        use = profile(row.profile(), device="none").simulated
        peaks = use and [use.allocated_peak_bytes, use.reserved_peak_bytes]
        return found | {"simulated": peaks}


def _rehearse(row: Row, words: list[str], folder: Path) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tritter_mem", "rehearse", "--json", "--env", str(folder),
        *row.options.split(), "--", *words,
    ]  # fmt: skip
    try:
        ran = subprocess.run(
            command, cwd=SCRIPTS, check=False, capture_output=True, text=True,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"it took more than {LIMIT_SECONDS} s"}
    if not ran.stdout:
        return {"problem": (ran.stderr.strip().splitlines() or ["nothing"])[-1]}
    record = json.loads(ran.stdout)
    engine = record["engine"] or {}
    printed = [line for line in ran.stderr.splitlines() if PRINTED.match(line)]
    return {
        "exit_code": ran.returncode,
        "seconds": record["command"]["seconds"],
        "rehearsed": record["rehearsed"],
        "versions": record["versions"],
        "decided": len(record["trust"]["values_decided_shapes"]),
        "stubs": record["trust"]["stubs_called"],
        "printed": printed
        + [
            f"{name} {value:,}"
            for name, value in engine.items()
            if name.startswith("kv_cache") and value
        ],
        "last": "" if ran.returncode in (0, 1, 3) else ran.stderr.strip().splitlines()[-1:],
    }


def is_off(row: Row, found: dict[str, Any]) -> bool:
    """Whether it came out otherwise than is known."""
    if "problem" in found or found["exit_code"] != row.exit_code:
        return True
    return any(abs(off) > TOLERANCE for off in differences(row, found))


def differences(row: Row, found: dict[str, Any]) -> list[float]:
    """Of the allocated and the reserved peak, where they are known, as ratios."""
    pairs = (
        (row.allocated_gib, "allocated_peak_bytes"),
        (row.reserved_gib, "reserved_peak_bytes"),
    )
    use = found.get("rehearsed") or {}
    if row.measured:
        known = measured_peaks().get(row.name, ())
        return [(use.get(name) or 0) / size - 1 for name, size in zip(PEAKS, known, strict=False)]
    allocated = phase_peak_gib(found) or (use.get("allocated_peak_bytes") or 0) / GiB
    if simulated := found.get("simulated"):
        sizes = (use.get("allocated_peak_bytes") or 0, use.get("reserved_peak_bytes") or 0)
        return [size / known - 1 for size, known in zip(sizes, simulated, strict=True)]
    came_to = (allocated, (use.get("reserved_peak_bytes") or 0) / GiB)
    return [size / known - 1 for size, (known, _) in zip(came_to, pairs, strict=True) if known]


@cache
def measured_peaks() -> dict[str, tuple[int, int]]:
    """What GPUs measured of rows: allocated and reserved, of the newest run of each."""
    lines = (line for path in REPORTS.glob("*/figures.jsonl") for line in path.open())
    found = [
        x for x in map(json.loads, lines) if (x["part"], x["event"]) == ("scripts", "finished")
    ]
    newest = sorted(found, key=lambda x: x["call"])
    return {x["row"]: (x["figures"][PEAKS[0]], x["figures"][PEAKS[1]]) for x in newest}


def phase_peak_gib(found: dict[str, Any]) -> float | None:
    """The peak that a script printed of its step, without what was there to build the model."""
    printed = (re.fullmatch(r"peak ([\d.]+) GiB", line) for line in found["printed"])
    return next((float(one[1]) for one in printed if one), None)


def words(row: Row, found: dict[str, Any]) -> Iterator[str]:
    """What a row came to."""
    if "problem" in found:
        yield found["problem"]
        return
    yield f"exit code {found['exit_code']}"
    if found["rehearsed"]:
        sizes = ("allocated_peak_bytes", "reserved_peak_bytes")
        yield " / ".join(f"{(found['rehearsed'][name] or 0) / GiB:.3f}" for name in sizes) + " GiB"
    yield from (f"{off:+.2%}" for off in differences(row, found))
    yield from found["printed"]
    yield from map(str, found["last"] or ())


def page(found: dict[str, Any]) -> str:
    """The tables, of all rows that were rehearsed."""
    there = [(row, found[row.name]) for row in ROWS if row.name in found]
    sources = dict.fromkeys(row.source for row, _ in there if row.source)
    lines = [
        "# Rehearsals beside what is known\n",
        "Made by `make rehearsals`: commands over the stand-ins, without a GPU. Figures are GiB, "
        "allocated / reserved; seconds are those of a shared machine with two cores.\n",
        "| rehearsal | torch | came to | known | difference | exit | s | printed |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(row, one) for row, one in there if not row.model and not row.measured),
        "",
        *(f"Known: {source}.\n" for source in sources),
        *(f"{row.name}: {row.cause}.\n" for row, _ in there if row.cause and not row.model),
        NOTE,
        "## Released models beside their simulation\n",
        f"Greedy `generate()` of transformers with {CONTEXT:,} tokens, of which {NEW_TOKENS} are "
        "new, on an H100, with the same PyTorch and transformers. Bytes, allocated / reserved.\n",
        "| model | simulated | rehearsed | difference | s |",
        "|---|---|---|---|---|",
        *(_line_of_model(row, one) for row, one in there if row.model and not row.measured),
        "",
        *(f"{row.model}: {row.cause}.\n" for row, _ in there if row.cause and row.model),
        "## Runs that a GPU measured\n",
        "On an H200 with PyTorch 2.11.0 and transformers 5.17.0, and rehearsed with these; "
        "simulated with PyTorch 2.13.0 and transformers 5.23.0. Bytes, allocated / reserved.\n",
        "| run | measured | rehearsed | difference | simulated | difference |",
        "|---|---|---|---|---|---|",
        *(_measured_line(row, one) for row, one in there if row.name in measured_peaks()),
        "",
        *(f"{row.name}: {row.cause}.\n" for row, _ in there if row.cause and row.measured),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _line(row: Row, one: dict[str, Any]) -> str:
    if "problem" in one:
        return f"| {row.name} | {row.torch} | {one['problem'][:200]} | | | | | |"
    use = one["rehearsed"] or {}
    step = phase_peak_gib(one)
    peaks = " / ".join(
        f"{size / GiB:.3f}" if size else "-"
        for size in (
            step * GiB if step else use.get("allocated_peak_bytes"),
            use.get("reserved_peak_bytes"),
        )
    )
    known = " / ".join(f"{size:.3f}" for size in (row.allocated_gib, row.reserved_gib) if size)
    off = ", ".join(f"{ratio:+.2%}" for ratio in differences(row, one))
    shown = [line for line in one["printed"] if PRINTED.match(line) and line[:5] != "peak "]
    printed = "; ".join([*shown, *map(str, one["last"] or ())])
    return (
        f"| {row.name} | {one['versions'].get('torch', row.torch)} | {peaks} | {known} | {off} "
        f"| {one['exit_code']} | {one['seconds']:.0f} | {printed[:300]} |"
    )


def _measured_line(row: Row, one: dict[str, Any]) -> str:
    known = measured_peaks()[row.name]
    use = one.get("rehearsed") or {}
    cells = [row.name.removesuffix(", measured"), _pair(known)]
    for came_to in ([use.get(name) or 0 for name in PEAKS], one.get("simulated")):
        ratios = (size / was - 1 for size, was in zip(came_to or (), known, strict=False))
        cells += [_pair(came_to or ()), " / ".join(f"{ratio:+.3%}" for ratio in ratios)]
    return f"| {' | '.join(cells)} |"


def _pair(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size:,}" for size in sizes)


def _line_of_model(row: Row, one: dict[str, Any]) -> str:
    use = one.get("rehearsed")
    if not use or not one.get("simulated"):
        return f"| {row.model} | | {one.get('problem', one.get('last'))} | | |"
    came_to = use["allocated_peak_bytes"], use["reserved_peak_bytes"]
    sizes = (" / ".join(f"{size:,}" for size in pair) for pair in (one["simulated"], came_to))
    more = (size - known for size, known in zip(came_to, one["simulated"], strict=True))
    words = " / ".join(f"{size:+,}" for size in more)
    return f"| {row.model} | {' | '.join(sizes)} | {words} | {one['seconds']:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
