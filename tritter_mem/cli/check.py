"""`tritter-mem check`: memory against a committed baseline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tritter_mem.cli.listing import print_json
from tritter_mem.cli.options import Json, ProfileOptions, with_options
from tritter_mem.errors import InputError, OutputError, UsageError

if TYPE_CHECKING:
    from tritter_mem.check.baseline import Baseline, Case, CheckedKind
    from tritter_mem.check.compare import Rules
    from tritter_mem.check.outcome import CheckReport, Outcome
    from tritter_mem.check.run import Profiled

Format = Literal["text", "json", "markdown", "junit", "github"]
BASELINE = Path("reports/baseline.json")
File = Annotated[Path, typer.Option("--baseline", metavar="FILE", help="The committed baseline.")]
Update = Annotated[
    bool,
    typer.Option(
        "--update-baseline", help="Write today's figures into the baseline, and show what changes."
    ),
]
Measured = Annotated[
    bool, typer.Option("--measured", help="Measure too what the baseline has measured.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="DEVICE", help="Where --measured runs: auto, cpu, cuda or cuda:1."
    ),
]
TimeLimit = Annotated[
    float, typer.Option("--time-limit", metavar="SECONDS", help="End a measurement after this.")
]
Results = Annotated[
    list[Path],
    typer.Option(
        "--results", metavar="FILE", help="Check results that profile wrote, and run nothing."
    ),
]
Fast = Annotated[
    bool,
    typer.Option("--fast", help="Simulate what --config names without repeated chunks and tokens."),
]
GateOption = Annotated[
    Literal["allocated", "reserved"] | None,
    typer.Option("--gate", help="Which peak decides; the other one informs."),
]
Relative = Annotated[
    str | None,
    typer.Option("--relative", metavar="PERCENT", help="Tolerated of the baseline, such as 1%."),
]
Absolute = Annotated[
    str | None,
    typer.Option("--absolute", metavar="SIZE", help="Tolerated in any case, such as 16MiB."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]


@partial(with_options, config=())
def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    options: ProfileOptions,
    file: File = BASELINE,
    update: Update = False,
    measured: Measured = False,
    device: Device = "auto",
    time_limit: TimeLimit = 300.0,
    results: Results = [],  # noqa: B006  (typer copies it)
    fast: Fast = False,
    gate: GateOption = None,
    relative: Relative = None,
    absolute: Absolute = None,
    form: FormatOption = "text",
    as_json: Json = False,
) -> None:
    """Compare memory with a committed baseline, and say what grew; for CI, without a GPU.

    Simulates what the baseline lists. A peak may grow by --relative of the baseline (1%) or by
    --absolute (16 MiB), whichever is larger; an entry of the baseline may say otherwise.

    With --config: those alone, with the options that change them. --update-baseline adds them.

    Exit code: 0 all within tolerance, or smaller; 1 a regression; 2 nothing to compare with
    (no entry, another version of PyTorch, a profile that changed), or wrong usage; 3 could not
    simulate or measure.

    Example: tritter-mem check --baseline reports/baseline.json --format github
    """
    from tritter_mem.check.compare import Rules

    ask = Ask(
        options=options,
        kinds=("simulated", "measured") if measured else ("simulated",),
        device=device if measured else "none",
        time_limit_seconds=time_limit,
        fast=fast,
        quiet=as_json or form != "text",
    )
    limits = Rules(gate=gate, relative=_ratio(relative), absolute_bytes=_size(absolute))
    _refuse_what_does_not_go_together(ask, update, limits, results)
    report = _update(file, ask) if update else _check(file, ask, limits, results)
    _show(report, "json" if as_json else form)
    raise typer.Exit(report.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be profiled, and how."""

    options: ProfileOptions
    kinds: Sequence[CheckedKind]
    device: str
    time_limit_seconds: float
    fast: bool
    quiet: bool

    def cases(self, baseline: Baseline) -> list[Case]:
        """What `--config` names, else what the baseline lists."""
        from tritter_mem.check.baseline import Case
        from tritter_mem.check.run import cases_of, with_speed

        settings = self.options.overrides()
        named = [Case(config=c, settings=settings, fast=self.fast) for c in self.options.config]
        if named:
            return [with_speed(case, baseline) for case in named]
        return cases_of(baseline, self.kinds)

    def run(self, cases: Sequence[Case]) -> list[Profiled]:
        """Profile every case; what fails is part of the answer."""
        from tritter_mem.check.run import run_case
        from tritter_mem.cli.progress import showing
        from tritter_mem.history import remember

        with showing(not self.quiet) as progress:
            found = [
                run_case(case, self.device, self.time_limit_seconds, progress) for case in cases
            ]
        remember([profiled.result for profiled in found if profiled.result is not None])
        return found


def _refuse_what_does_not_go_together(
    ask: Ask, update: bool, limits: Rules, results: Sequence[Path]
) -> None:
    from tritter_mem.check.compare import Rules

    named = bool(ask.options.config)
    changed = bool(ask.options.overrides()) or ask.fast
    if changed and not named:
        raise UsageError("options that change a profile, and --fast: only with --config")
    if update and limits != Rules():
        raise UsageError(
            "--gate, --relative, --absolute: not with --update-baseline; to keep them, write "
            "`gate` and `tolerance` into the baseline, for all or for an entry"
        )
    if results and (update or named or ask.device != "none"):
        raise UsageError("--results: not with --config, --measured or --update-baseline")


def _ratio(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise UsageError(f"--relative: found {text!r}; allowed: 0% to 100%, such as 1%")
    return found


def _size(text: str | None) -> int | None:
    from tritter_mem.units import parse_bytes

    if text is None:
        return None
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--absolute: found {text!r}; {error}") from error


def _check(file: Path, ask: Ask, limits: Rules, results: Sequence[Path]) -> CheckReport:
    from tritter_mem.check.files import read_baseline
    from tritter_mem.check.outcome import CheckReport
    from tritter_mem.check.run import kinds_of, outcomes_of

    baseline = read_baseline(file)
    if results:
        return _check_files(file, baseline, limits, results)
    cases = ask.cases(baseline)
    if not cases:
        raise InputError(
            f"{file}: nothing {' or '.join(ask.kinds)} in it; add to it by "
            "tritter-mem check --update-baseline --config NAME"
        )
    outcomes: list[Outcome] = []
    for profiled in ask.run(cases):
        kinds = kinds_of(profiled.case, baseline, ask.kinds) or ask.kinds
        outcomes += outcomes_of(profiled, kinds, baseline, limits)
    return CheckReport(baseline=str(file), outcomes=tuple(outcomes))


def _check_files(
    file: Path, baseline: Baseline, limits: Rules, results: Sequence[Path]
) -> CheckReport:
    """Check what was profiled before; what the baseline lists besides is told, not failed."""
    from tritter_mem.check.outcome import CheckReport
    from tritter_mem.check.run import Profiled, case_of_result, cases_of, outcomes_of
    from tritter_mem.report.files import read_results

    outcomes: list[Outcome] = []
    for result in (result for path in results for result in read_results(path)):
        profiled = Profiled(case=case_of_result(baseline, result), result=result)
        kinds = [kind for kind in _KINDS if kind in result.estimates()] or ["simulated"]
        outcomes += outcomes_of(profiled, kinds, baseline, limits)
    seen = {outcome.label for outcome in outcomes}
    rest = [case.label for case in cases_of(baseline, _KINDS) if case.label not in seen]
    notes = (f"not in the results: {', '.join(rest)}",) if rest else ()
    return CheckReport(baseline=str(file), outcomes=tuple(outcomes), notes=notes)


_KINDS: tuple[CheckedKind, ...] = ("simulated", "measured")


def _update(file: Path, ask: Ask) -> CheckReport:
    """Write the baseline anew, unless something could not be profiled."""
    from tritter_mem.check.baseline import Baseline, Entry
    from tritter_mem.check.files import baseline_text, read_baseline
    from tritter_mem.check.outcome import CheckReport
    from tritter_mem.check.run import entries_of, failed
    from tritter_mem.check.update import updated, what_changes
    from tritter_mem.report.files import check_writable, write_text_atomically

    baseline = read_baseline(file) if file.exists() or not ask.options.config else Baseline()
    check_writable(file)
    found = [
        (profiled, kind, entry)
        for profiled in ask.run(ask.cases(baseline))
        for kind, entry in entries_of(profiled, ask.kinds)
    ]
    outcomes = tuple(
        what_changes(entry, baseline) if isinstance(entry, Entry) else failed(profiled, kind, entry)
        for profiled, kind, entry in found
    )
    entries = [entry for _, _, entry in found if isinstance(entry, Entry)]
    if len(entries) < len(found):
        note = f"{file} is as it was: not everything could be profiled"
        return CheckReport(baseline=str(file), outcomes=outcomes, notes=(note,))
    text = baseline_text(updated(baseline, entries))
    same = file.exists() and file.read_text(encoding="utf-8") == text
    if not same:
        write_text_atomically(file, text)
    note = f"{file}: {'nothing changed' if same else 'written'}"
    return CheckReport(baseline=str(file), outcomes=outcomes, notes=(note,))


def _show(report: CheckReport, form: Format) -> None:
    if form == "json":
        print_json(report.to_dict())
    elif form == "text":
        from tritter_mem.report.check import render_check
        from tritter_mem.report.terminal import make_console

        render_check(report, make_console())
    elif form == "junit":
        from tritter_mem.report.junit import render_junit

        typer.echo(render_junit(report), nl=False)
    else:
        _show_markdown(report, annotations=form == "github")


def _show_markdown(report: CheckReport, annotations: bool) -> None:
    from tritter_mem.report.check import counts
    from tritter_mem.report.github import render_annotations
    from tritter_mem.report.markdown import render_markdown

    text = render_markdown(report)
    if not annotations:
        typer.echo(text, nl=False)
        return
    typer.echo(render_annotations(report), nl=False)
    typer.echo(f"memory: {counts(report)}")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        _add_to_summary(Path(summary), text)


def _add_to_summary(path: Path, text: str) -> None:
    from tritter_mem.report.github import fitting_summary

    try:
        written = path.stat().st_size if path.exists() else 0
        with path.open("a", encoding="utf-8") as file:
            file.write(fitting_summary(text, written))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
