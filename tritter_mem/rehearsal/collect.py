"""What the processes of a rehearsal left in its folder, put together."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritter_mem.errors import InputError, MeasureError
from tritter_mem.results.rehearsal import RankUse, Refusal

_MAGIC = 0x7472697474657231
_DEVICES, _FIGURES = 16, 8
_SLOT = struct.Struct(f"<II{_DEVICES}Q{_DEVICES}Q{_DEVICES * _FIGURES}Q")
_HEAD = struct.Struct("<QQQQ")
_ABOUT = {"pid", "rank", "title", "versions", "allocator_conf"}
OWN_RUNTIME = (
    "a library with a statically linked CUDA runtime found no GPU: its memory is not counted"
)
_EXPORT_TABLE = "cuGetExportTable"
"""What such a runtime asks the driver for, before all else."""
_BY_RULE = ("workspace of ", "reserve of ", "times between ")
"""How notes of the stand-ins begin that are no names of functions."""


@dataclass(slots=True)
class Left:
    """What was found.

    Attributes:
        uses: what each process took of each device, by rank.
        abouts: what each process said of itself, by its number.
        unwatched: processes that used a device, and in which PyTorch was not watched.
        cpu_torch: the version of a torch without CUDA that was imported.
    """

    uses: tuple[RankUse, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    stubs: tuple[str, ...] = ()
    by_rule: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    not_followed: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    allocator_conf: str = ""
    unwatched: tuple[int, ...] = ()
    cpu_torch: str = ""


def collect(folder: Path, asked_at: float | None = None) -> Left:
    """Read a session's folder.

    Args:
        folder: where the processes left what they know.
        asked_at: when the rehearsal sent its own request to a server. The tokens that are drawn for
            it decide when its few end, and no more: those lines count as assumed.

    Raises:
        InputError: its table of processes is none.
        MeasureError: the folder is gone.
    """
    if not folder.is_dir():
        raise MeasureError(
            f"{folder} was deleted while the command ran, so nothing is known about it"
        )
    abouts = {about["pid"]: about for about in _abouts(folder)}
    notes = list(_lines(folder / "notes.jsonl"))
    slots = list(_slots(folder / "processes"))
    uses = sorted(_uses(slots, abouts, folder), key=_by_rank)
    stubs = _text(folder / "stubs").splitlines()
    versions: dict[str, str] = {}
    for about in abouts.values():
        versions |= about["versions"]
    return Left(
        uses=tuple(uses),
        refusals=tuple(_refusals(notes, list(_lines(folder / "errors.jsonl")))),
        stubs=_once(name for name in stubs if not name.startswith(_BY_RULE)),
        by_rule=_once(name for name in stubs if name.startswith(_BY_RULE)),
        decided=_once(note["text"] for note in notes if _decided(note, asked_at)),
        assumed=_once(
            note["text"]
            for note in notes
            if note["kind"] == "assumed"
            or (note["kind"] == "decided" and not _decided(note, asked_at))
        ),
        not_followed=_once(note["text"] for note in notes if note["kind"] == "not_followed"),
        uncounted=(
            *_once(note["text"] for note in notes if note["kind"] == "uncounted"),
            *([OWN_RUNTIME] if _EXPORT_TABLE in stubs else []),
        ),
        versions=versions,
        allocator_conf=next((about["allocator_conf"] for about in abouts.values()), ""),
        unwatched=tuple(use.process for use in uses if use.process not in abouts),
        cpu_torch=_text(folder / "cpu-torch"),
    )


def _decided(note: dict[str, Any], asked_at: float | None) -> bool:
    return note["kind"] == "decided" and (asked_at is None or note["at"] < asked_at)


def _once(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(lines))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """A file of JSON lines; the last one may be cut off where a process was killed."""
    for line in _text(path).splitlines():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _abouts(folder: Path) -> Iterator[dict[str, Any]]:
    """What processes said of themselves; a disk that was full may have cut that off."""
    for path in sorted(folder.glob("process-*.json")):
        for about in _lines(path):
            if about.keys() >= _ABOUT:
                yield about


@dataclass(frozen=True, slots=True)
class _Slot:
    process: int
    peak: tuple[int, ...]
    torch: tuple[tuple[int, ...], ...]


def _slots(path: Path) -> Iterator[_Slot]:
    """The table of `driver/session.c`."""
    if not path.exists():
        return
    data = path.read_bytes()
    if len(data) < _HEAD.size:
        raise InputError(f"{path}: not a table of a rehearsal's processes")
    magic, count, slot_bytes, first = _HEAD.unpack_from(data)
    if (magic, slot_bytes) != (_MAGIC, _SLOT.size) or len(data) < first + count * slot_bytes:
        raise InputError(f"{path}: not a table of a rehearsal's processes")
    for at in range(count):
        process, _, *numbers = _SLOT.unpack_from(data, first + at * slot_bytes)
        if not process:
            return
        torch = numbers[2 * _DEVICES :]
        yield _Slot(
            process,
            tuple(numbers[_DEVICES : 2 * _DEVICES]),
            tuple(tuple(torch[_FIGURES * d : _FIGURES * (d + 1)]) for d in range(_DEVICES)),
        )


def _uses(slots: Iterable[_Slot], abouts: dict[int, Any], folder: Path) -> Iterator[RankUse]:
    for slot in slots:
        about = abouts.get(slot.process)
        snapshot = folder / f"snapshot-{slot.process}.pickle"
        for device in range(_DEVICES):
            if not slot.peak[device]:
                continue
            figures: tuple[int | None, ...] = slot.torch[device]
            if about is None:
                figures = (None,) * 4 + (0, 0) + (None,) * 2
            allocated, reserved, active, requested, refusals, retries, now, kept = figures
            yield RankUse(
                rank=about["rank"] if about else None,
                process=slot.process,
                title=about["title"] if about else "",
                device=device,
                allocated_peak_bytes=allocated,
                reserved_peak_bytes=reserved,
                active_peak_bytes=active,
                requested_peak_bytes=requested,
                device_peak_bytes=slot.peak[device],
                allocated_end_bytes=now,
                reserved_end_bytes=kept,
                retries=retries or 0,
                refusals=refusals or 0,
                snapshot=str(snapshot) if snapshot.exists() else None,
            )


def _by_rank(use: RankUse) -> tuple[bool, int, int, int]:
    return use.rank is None, use.rank or 0, use.process, use.device


def _refusals(notes: list[dict[str, Any]], errors: list[dict[str, Any]]) -> Iterator[Refusal]:
    texts = {error["pid"]: error["text"] for error in errors}
    found = [note for note in notes if note["kind"] == "out_of_memory"]
    last = {note["pid"]: at for at, note in enumerate(found)}
    for at, note in enumerate(found):
        yield Refusal(
            process=note["pid"],
            device=note["device"],
            where=note["text"],
            requested_bytes=note["requested_bytes"],
            allocated_bytes=note["allocated_bytes"],
            reserved_bytes=note["reserved_bytes"],
            free_bytes=note["free_bytes"],
            text=texts.get(note["pid"], "") if last[note["pid"]] == at else "",
        )
