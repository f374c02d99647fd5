"""What the CUDA context, libraries and operators take, beside what a simulation assumes of them.

`python -m benchmarks.probes --output probes.json` shows the readings, and what they would change in
the card's entry, `profiles/gpus/<card>.yaml`; `--write` changes it. Exit code 3 without a device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.card import here
from benchmarks.rows import Figures, Row, command
from tritter_mem.config.bundled_files import profiles_root
from tritter_mem.config.cards import GpuCard, known_as
from tritter_mem.devices.environment import collect_environment
from tritter_mem.errors import EXIT_NOT_MEASURED, EXIT_OK, MeasureError
from tritter_mem.evidence.probes import ProbeReading, difference, probe, source_of, updated
from tritter_mem.measure.target import STANDIN, MeasureOptions, locate
from tritter_mem.results.writing import write_text_atomically

SCHEMA = "tritter-mem.probes/1"
NEEDS_A_DEVICE = f"{STANDIN}; probes need a device"


def lines(readings: Sequence[ProbeReading]) -> list[str]:
    """A table of bytes: measured, assumed, and whether they are equal."""
    return [f"{'probe':<42} {'measured':>13} {'assumed':>13}", *map(_line, readings)]


def _line(reading: ProbeReading) -> str:
    known = [
        "-" if size is None else f"{size:,}"
        for size in (reading.measured_bytes, reading.assumed_bytes)
    ]
    differs = reading.assumed_bytes not in (None, reading.measured_bytes)
    note = "  differs" if differs and reading.measured_bytes is not None else ""
    return f"{reading.name:<42} {known[0]:>13} {known[1]:>13}{note}"


def entry_of(card: GpuCard, folder: Path) -> Path:
    """The card's file in the table.

    Raises:
        MeasureError: there is none.
    """
    name = known_as(card.title)
    if name is None:
        raise MeasureError(f"the table of cards has no {card.title}: {folder} takes a new file")
    return folder / f"{name}.yaml"


def change(path: Path, readings: Sequence[ProbeReading], write: bool) -> str:
    """What the readings change in a card's file; written where that is wanted.

    Raises:
        MeasureError: nothing that the entry holds could be read.
        OutputError: the file cannot be written.
    """
    environment = collect_environment()
    date = datetime.now(UTC).date().isoformat()
    before = path.read_text()
    after = updated(before, readings, source_of(environment.torch or "", environment.driver, date))
    if write:
        write_text_atomically(path, after)
    return difference(before, after, path.name)


def rows(files: Path) -> Iterator[Row]:
    """This script, as a part of `make gpu`."""
    skipped = NEEDS_A_DEVICE if here().standin else ""
    yield Row("readings", partial(kept, files / "probes.json"), skipped=skipped)


def kept(output: Path) -> Figures:
    """The readings, also of a card that the table does not have."""
    output.unlink(missing_ok=True)
    arguments = ["-m", "benchmarks.probes", "--output", str(output)]
    _, printed = command(arguments, allowed=(EXIT_OK, EXIT_NOT_MEASURED))
    if not output.exists():
        raise MeasureError(printed)
    return {"printed": printed, **json.loads(output.read_text())}


def main() -> int:
    """Probe, show and, where that is wanted, write; the exit code."""
    parser = argparse.ArgumentParser(description="Probe what a simulation assumes.")
    parser.add_argument("--output", type=Path, help="where to write the readings as JSON")
    parser.add_argument("--write", action="store_true", help="change the card's entry")
    asked = parser.parse_args()
    try:
        device = locate(MeasureOptions(device="cuda"))
        card = device.card
        assert card is not None  # noqa: S101  (only --device cpu has none)
        if device.standin:
            raise MeasureError(NEEDS_A_DEVICE)
        readings = probe(card)
        _keep(readings, card, asked.output)
        print("\n".join(lines(readings)), end="\n\n")
        print(change(entry_of(card, profiles_root() / "gpus"), readings, asked.write))
    except MeasureError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return EXIT_NOT_MEASURED
    return EXIT_OK


def _keep(readings: Sequence[ProbeReading], card: GpuCard, output: Path | None) -> None:
    if output is None:
        return
    environment = asdict(collect_environment())
    rows = [asdict(reading) for reading in readings]
    document = {"schema": SCHEMA, "gpu": card.title, "environment": environment, "readings": rows}
    write_text_atomically(output, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
