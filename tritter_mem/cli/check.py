"""`tritter-mem check`: memory against a committed baseline."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.options import Json, Models, ProfileOptions, size_of, with_options
from tritter_mem.cli.outputs import print_json
from tritter_mem.errors import InputError, OutputError, UsageError
from tritter_mem.input_files import is_input, is_there, remembering_inputs

if TYPE_CHECKING:
    from tritter_mem.check.compare import Rules
    from tritter_mem.check.tasks import Profiled, Task
    from tritter_mem.results.baseline import Baseline, Case, CheckedKind
    from tritter_mem.results.check import CheckReport

BASELINE = Path("reports/baseline.json")
File = Annotated[Path, typer.Option("--baseline", metavar="FILE", help="The committed baseline.")]
Update = Annotated[
    bool,
    typer.Option(
        "--update-baseline", help="Write the new figures into the baseline and show what changed."
    ),
]
Measured = Annotated[
    bool, typer.Option("--measured", help="Also measure the entries that have measured figures.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", help="Where --measured runs: auto, cpu, cuda or cuda:1."
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", metavar="SECONDS", help="Stop a measurement after this time."),
]
Results = Annotated[
    list[Path],
    typer.Option(
        "--results", metavar="FILE", help="Check results that `profile` wrote; run nothing."
    ),
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Skip chunks and tokens that repeat earlier ones."),
]
Rehearse = Annotated[
    list[str],
    typer.Option(
        "--rehearse",
        metavar="COMMAND",
        help="Rehearse this command on --gpu instead of simulating a model, such as "
        '"python train.py".',
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="The number of GPUs of --rehearse.")]
GateOption = Annotated[
    Literal["allocated", "reserved"] | None,
    typer.Option("--gate", help="Which peak decides; the other one is only shown."),
]
Relative = Annotated[
    str | None,
    typer.Option(
        "--relative",
        metavar="PERCENT",
        help="Tolerated growth relative to the baseline, such as 1%.",
    ),
]
Absolute = Annotated[
    str | None,
    typer.Option(
        "--absolute", metavar="SIZE", help="Growth that is always tolerated, such as 16MiB."
    ),
]
Format = Literal["text", "json", "markdown", "junit", "github"]
FormatOption = Annotated[Format, typer.Option("--format", help="Output format.")]


@partial(with_options, config=())
def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    options: ProfileOptions,
    models: Models = None,
    file: File = BASELINE,
    update: Update = False,
    measured: Measured = False,
    device: Device = None,
    time_limit: TimeLimit = 300.0,
    results: Results = [],  # noqa: B006  (typer copies it)
    fast: Fast = False,
    rehearse: Rehearse = [],  # noqa: B006
    gpus: Gpus = 1,
    gate: GateOption = None,
    relative: Relative = None,
    absolute: Absolute = None,
    form: FormatOption = "text",
    as_json: Json = False,
) -> None:
    """Compare peak memory with a committed baseline and say what grew. Made for CI without a GPU.

    Every model of the baseline is simulated. A peak may grow by --relative (1%) or by --absolute
    (16 MiB), whichever is larger; an entry may have its own tolerance.

    With MODEL or --rehearse, only those are checked. A command of the baseline runs only if
    --rehearse names it. --update-baseline writes what is named into the baseline.

    Exit code: 0 within tolerance or smaller; 1 a regression; 2 nothing to compare with (no entry,
    another PyTorch version, a changed profile) or wrong usage; 3 could not simulate or measure.

    Example: tritter-mem check --baseline reports/baseline.json --format github
    """
    from tritter_mem.check.compare import Rules

    ask = Ask(
        options=options.naming(models),
        measured=measured,
        commands=_commands(rehearse),
        gpus=gpus,
        device=device,
        time_limit_seconds=time_limit,
        fast=fast,
        quiet=as_json or form != "text",
    )
    limits = Rules(
        gate=gate, relative=_ratio(relative), absolute_bytes=size_of(absolute, "--absolute")
    )
    ask.refuse_what_does_not_go_together(update, limits, results)
    if update:
        report = _update(file, ask)
    elif results:
        report = _check_files(file, limits, results)
    else:
        report = _check(file, ask, limits)
    _show(report, "json" if as_json else form)
    raise typer.Exit(report.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be profiled or rehearsed, and how."""

    options: ProfileOptions
    measured: bool
    commands: Sequence[tuple[str, ...]]
    gpus: int
    device: str | None
    time_limit_seconds: float
    fast: bool
    quiet: bool

    def refuse_what_does_not_go_together(
        self, update: bool, limits: Rules, results: Sequence[Path]
    ) -> None:
        """Say which options exclude each other, before anything runs."""
        from tritter_mem.check.compare import Rules

        named, measured = bool(self.options.config), self.measured
        self._refuse_what_commands_have_not()
        if not self.commands and (self.options.overrides() or self.fast) and not named:
            raise UsageError("--fast and options that change a profile need MODEL or --config")
        if self.device is not None and not measured:
            raise UsageError("--device needs --measured; nothing else runs on a device")
        if update and limits != Rules():
            raise UsageError(
                "--gate, --relative and --absolute cannot be combined with --update-baseline; "
                "write `gate` and `tolerance` into the baseline instead"
            )
        if results and (update or named or measured or self.commands):
            raise UsageError(
                "--results cannot be combined with --config, --rehearse, --measured or "
                "--update-baseline"
            )

    def _refuse_what_commands_have_not(self) -> None:
        if not self.commands:
            if self.gpus != 1:
                raise UsageError("--gpus needs --rehearse")
            return
        if self.options.config or self.measured or self.fast:
            raise UsageError("--rehearse cannot be combined with MODEL, --measured or --fast")
        if self.options.gpu is None:
            raise UsageError("--rehearse needs --gpu; `tritter-mem gpus` lists them")
        if replace(self.options, gpu=None).overrides():
            raise UsageError("--rehearse takes no options of a profile, only --gpu and --gpus")

    @property
    def wanted(self) -> CheckedKind:
        """The kind of number that has to be there."""
        return "measured" if self.measured else "rehearsed" if self.commands else "simulated"

    def tasks(self, baseline: Baseline) -> list[Task]:
        """What `--config` names, as fast as its entry, else what the baseline lists."""
        from tritter_mem.check.tasks import Task, listed_tasks
        from tritter_mem.results.baseline import Case

        if self.commands:
            return [Task(case=case, kinds=("rehearsed",)) for case in self._cases_of_commands()]
        kinds: Sequence[CheckedKind] = (
            ("simulated", "measured") if self.measured else ("simulated",)
        )
        if not self.options.config:
            return listed_tasks(baseline, kinds)
        settings = self.options.overrides()
        named = [Case(config=name, settings=settings) for name in self.options.config]
        fast = {entry.case.label for entry in baseline.entries if entry.fast}
        return [
            Task(case=replace(case, fast=self.fast or case.label in fast), kinds=kinds)
            for case in named
        ]

    def _cases_of_commands(self) -> list[Case]:
        from tritter_mem.config.cards import find_card
        from tritter_mem.results.baseline import Case

        gpu = find_card(str(self.options.gpu)).name
        return [Case(command=words, gpus=self.gpus, gpu=gpu) for words in self.commands]

    def run(self, tasks: Sequence[Task]) -> list[Profiled]:
        """Profile every case; what fails is part of the answer."""
        from tritter_mem.check.tasks import run_task
        from tritter_mem.cli.progress import showing
        from tritter_mem.results.history import remember

        with showing(not self.quiet) as progress:
            found = [
                run_task(task, self.device or "auto", self.time_limit_seconds, progress)
                for task in tasks
            ]
        remember([profiled.result for profiled in found if profiled.result is not None])
        return found


def _commands(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """The words of each command."""
    found = []
    for text in texts:
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:
            raise UsageError(f"--rehearse: got {text[:80]!r}: {error}") from error
        if not words:
            raise UsageError("--rehearse: got '', expected a command, such as \"python train.py\"")
        found.append(words)
    return found


def _ratio(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise UsageError(f"--relative: got {text!r}, expected 0% to 100%, such as 1%")
    return found


def _check(file: Path, ask: Ask, limits: Rules) -> CheckReport:
    from tritter_mem.check.baseline_file import read_baseline
    from tritter_mem.check.tasks import outcomes_of
    from tritter_mem.results.check import CheckReport

    baseline = read_baseline(file)
    tasks = ask.tasks(baseline)
    notes = _commands_not_run(baseline, tasks)
    if not any(ask.wanted in task.kinds for task in tasks):
        measured = " --measured" if ask.measured else ""
        raise InputError(
            f"{file}: nothing {ask.wanted} in it; to add to it: "
            f"tritter-mem check --update-baseline{measured} --config NAME",
            *notes,
        )
    outcomes = outcomes_of(ask.run(tasks), baseline, limits)
    return CheckReport(baseline=str(file), outcomes=outcomes, notes=notes)


def _commands_not_run(baseline: Baseline, tasks: Sequence[Task]) -> tuple[str, ...]:
    """A baseline may come from anybody, so its commands run only where the user names them."""
    named = {task.case.label for task in tasks}
    listed = {entry.case.label: entry.case for entry in baseline.entries if entry.command}
    left = [case for label, case in listed.items() if label not in named]
    return tuple(f"not run: a command has to be named: {case.options}" for case in left)


def _check_files(file: Path, limits: Rules, results: Sequence[Path]) -> CheckReport:
    """Check what was profiled before; what the baseline lists besides is a note, no failure."""
    from tritter_mem.check.baseline_file import read_baseline
    from tritter_mem.check.tasks import from_file, listed_tasks, outcomes_of
    from tritter_mem.results.baseline import CHECKED_KINDS
    from tritter_mem.results.check import CheckReport
    from tritter_mem.results.record_file import read_results

    baseline = read_baseline(file)
    read = (result for path in results for result in read_results(path))
    outcomes = outcomes_of([from_file(baseline, result) for result in read], baseline, limits)
    seen = {outcome.label for outcome in outcomes}
    listed = (task.case.label for task in listed_tasks(baseline, CHECKED_KINDS))
    rest = [label for label in listed if label not in seen]
    notes = (f"not in the results: {', '.join(rest)}",) if rest else ()
    return CheckReport(baseline=str(file), outcomes=outcomes, notes=notes)


def _update(file: Path, ask: Ask) -> CheckReport:
    """Write the baseline anew, unless something could not be profiled."""
    from tritter_mem.check.baseline_file import read_baseline, write_baseline
    from tritter_mem.check.tasks import update
    from tritter_mem.results.baseline import Baseline
    from tritter_mem.results.check import CheckReport
    from tritter_mem.results.writing import check_writable, one_writer_at_a_time

    def read() -> Baseline:
        with remembering_inputs():  # it is written anew
            needed = is_there(file) or not (ask.options.config or ask.commands)
            return read_baseline(file) if needed else Baseline()

    check_writable(file)
    profiled = ask.run(ask.tasks(read()))
    with one_writer_at_a_time(file):  # another may have written it meanwhile
        new, outcomes = update(read(), profiled)
        if new is None:
            note = f"{file} was not changed: not everything could be profiled"
        else:
            note = f"{file}: {'written' if write_baseline(file, new) else 'nothing changed'}"
    return CheckReport(baseline=str(file), outcomes=outcomes, notes=(note,))


def _show(report: CheckReport, form: Format) -> None:
    """Print a check as one of the formats; for GitHub its step summary is added to as well."""
    if form == "json":
        print_json(report.to_dict())
    elif form == "text":
        from tritter_mem.report.check_report import render_check
        from tritter_mem.report.terminal import make_console

        render_check(report, make_console())
    elif form == "junit":
        from tritter_mem.report.check_report import render_junit

        typer.echo(render_junit(report), nl=False)
    else:
        _show_markdown(report, annotations=form == "github")


def _show_markdown(report: CheckReport, annotations: bool) -> None:
    from tritter_mem.report.check_report import counts, render_annotations, render_markdown

    text = render_markdown(report)
    if not annotations:
        typer.echo(text, nl=False)
        return
    typer.echo(render_annotations(report), nl=False)
    typer.echo(f"memory: {counts(report)}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _add_to_summary(Path(summary), text)


def _add_to_summary(path: Path, text: str) -> None:
    from tritter_mem.report.check_report import fitting_summary

    try:
        if is_input(path):
            raise OSError(0, "this command reads it")
        written = path.stat().st_size if is_there(path) else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(fitting_summary(text, written))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
