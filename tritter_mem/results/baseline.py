"""The baseline (`tritter-mem.baseline/1`): what a profile took when it was last accepted.

An entry is named by what is profiled or rehearsed, the kind of number, the GPU and the version of
PyTorch: only figures that agree in all four are compared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tritter_mem.results.run import HeldBySame
from tritter_mem.units import MiB

SCHEMA = "tritter-mem.baseline/1"
Gate = Literal["allocated", "reserved"]
CheckedKind = Literal["simulated", "rehearsed", "measured"]
CHECKED_KINDS: tuple[CheckedKind, ...] = ("simulated", "rehearsed", "measured")
PROFILED_KINDS: tuple[CheckedKind, ...] = ("simulated", "measured")
"""Those of a profile; a command and a test's body are rehearsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a peak may move.

    Attributes:
        relative: as a part of the baseline's peak: 0.01 is 1%.
        absolute_bytes: in bytes, whatever the peak.
    """

    relative: float = 0.01
    absolute_bytes: int = 16 * MiB

    def of(self, baseline_bytes: int) -> int:
        """Bytes that a peak may move: the larger of the two, so that small peaks have room too."""
        return max(int(self.relative * baseline_bytes), self.absolute_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is profiled, or a command that is rehearsed.

    Attributes:
        config: a bundled profile's name or a file, as `--config` takes it; a test's id; empty for a
            command.
        settings: what is changed in it, by dotted key, as `--set` takes it.
        fast: simulated without the chunks and tokens that repeat those before them.
        command: the words of a command.
        gpus: how many GPUs the command has.
        gpu: the one that the command is rehearsed for.
    """

    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    fast: bool = False
    command: tuple[str, ...] = ()
    gpus: int = 1
    gpu: str = ""

    @property
    def label(self) -> str:
        """What reports call it: `1b workload.mode=training`, `torchrun train.py gpus=2`."""
        if self.command:
            return shlex.join(self.command) + (f" gpus={self.gpus}" if self.gpus > 1 else "")
        changed = (f"{key}={_shown(self.settings[key])}" for key in sorted(self.settings))
        return " ".join((self.config, *changed))

    @property
    def options(self) -> str:
        """The options of `check` that name it."""
        if not self.command:
            return f"--config {self.config}"
        several = f" --gpus {self.gpus}" if self.gpus > 1 else ""
        return f"--rehearse {shlex.quote(shlex.join(self.command))} --gpu {self.gpu}{several}"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePeaks:
    """The peaks of one phase."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is kept of a kind of answer: enough to compare it, and to say what grew.

    Attributes:
        peak_at: what was running at the allocated peak, in words.
        components: bytes at the allocated peak by component; those without any are left out.
        held_at_peak: what was alive then, by component and module; a model's layers together.
    """

    allocated_peak_bytes: int
    reserved_peak_bytes: int | None = None
    peak_at: str | None = None
    components: dict[str, int] = field(default_factory=dict)
    phases: dict[str, PhasePeaks] = field(default_factory=dict)
    held_at_peak: tuple[HeldBySame, ...] = ()

    def peak_bytes(self, gate: Gate) -> int | None:
        """The peak that a gate looks at."""
        return self.allocated_peak_bytes if gate == "allocated" else self.reserved_peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the baseline.

    Attributes:
        config: what is profiled, and
        command: what is rehearsed: an entry has one of them.
        gpus: of a command, where it has several.
        gpu: the card that it stands for or ran on; `cpu` for a run on the CPU.
        torch: PyTorch's version without the build (`+cu130`).
        profile_hash: of the resolved profile; another content is another profile. Empty for a
            command, whose files may change: that is what is checked.
        gate: which peak decides; where it is None the baseline's.
        tolerance: how far it may move; where it is None the baseline's.
    """

    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    fast: bool = False
    command: tuple[str, ...] = ()
    gpus: int | None = None
    kind: CheckedKind
    gpu: str
    torch: str
    profile_hash: str
    figures: Figures
    gate: Gate | None = None
    tolerance: Tolerance | None = None

    @property
    def case(self) -> Case:
        """What is profiled or rehearsed for it."""
        if self.command:
            return Case(command=self.command, gpus=self.gpus or 1, gpu=self.gpu)
        return Case(config=self.config, settings=self.settings, fast=self.fast)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names it among all entries, and sorts them."""
        return self.case.label, self.kind, self.gpu, self.torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """All entries, and what holds for those that say nothing else.

    Attributes:
        gate: the peak that decides; the other one informs.
        tolerance: how far a peak may move.
    """

    schema: str = SCHEMA
    gate: Gate = "allocated"
    tolerance: Tolerance = Tolerance()
    entries: tuple[Entry, ...] = ()

    def of_case(self, label: str, kind: CheckedKind) -> Iterator[Entry]:
        """The entries of a case and kind, for every GPU and version of PyTorch."""
        return (e for e in self.entries if e.kind == kind and e.case.label == label)

    def find(self, key: tuple[str, str, str, str]) -> Entry | None:
        """The entry of that name."""
        return next((entry for entry in self.entries if entry.key == key), None)
