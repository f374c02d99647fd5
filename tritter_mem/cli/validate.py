"""`tritter-mem validate`: plan and simulation compared with what a device measures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tritter_mem.cli.options import Budget, Html, Json, complete_profiles
from tritter_mem.cli.outputs import print_json, write_result_page
from tritter_mem.errors import MeasureError, UsageError

if TYPE_CHECKING:
    from tritter_mem.evidence.validate import CaseFiles
    from tritter_mem.measure.target import LocatedDevice, MeasureOptions
    from tritter_mem.results.validation import Validated, Validation

Configs = Annotated[
    list[str],
    typer.Option(
        "--config",
        metavar="NAME|FILE",
        help="A bundled profile or a YAML file, in place of the list; repeatable.",
        autocompletion=complete_profiles,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where to measure: cuda, cuda:1, cpu; auto: on CUDA.",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
    ),
]
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", metavar="SECONDS", help="Stop each measured run after this time."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="DIR", help="Folder of finished cases; default: reports/<gpu>."
    ),
]
Again = Annotated[bool, typer.Option("--again", help="Measure finished cases again.")]


def command(  # noqa: PLR0913, PLR0917  (one parameter an option)
    config: Configs = [],  # noqa: B006  (typer copies it)
    device: Device = "auto",
    budget: Budget = None,
    time_limit: TimeLimit = 300.0,
    again: Again = False,
    output: Output = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Measure bundled profiles and report the errors of the plan and of the simulation.

    Finished cases are kept in the output folder, and an interrupted run continues there.

    Tolerances of the allocated peak: 2% for the plan, 0.5% for the simulation. Tolerance of the
    reserved peak: 1%.

    Exit code: 0 all within tolerance, 1 some beyond it, 3 some not measured, 130 interrupted.

    Example: tritter-mem validate --config tiny --device cpu --output out
    """
    from tritter_mem.evidence.validate import CaseFiles, folder_of, refuse_rehearsed_evidence
    from tritter_mem.measure.target import MeasureOptions
    from tritter_mem.results.writing import check_writable

    options = MeasureOptions(device=device, time_limit_seconds=time_limit)
    located = _located(options)
    run = _Run(options, located, config, budget)
    if html is not None:
        check_writable(html)
    folder = output or folder_of(run.conditions.device)
    if located.standin:
        refuse_rehearsed_evidence(folder)
    files = CaseFiles(folder)
    try:
        run.go(files, again, shown=not as_json)
    except KeyboardInterrupt:
        run.interrupted = True
        raise
    finally:
        _finish(run.validation(), files, html, as_json)
    if code := run.validation().exit_code:
        raise typer.Exit(code)


def _located(options: MeasureOptions) -> LocatedDevice:
    """The device to measure on: the CPU only where it is named."""
    from tritter_mem.measure.target import locate

    if options.device == "none":
        raise UsageError("--device: got none, expected auto, cuda, cuda:1 or cpu")
    try:
        return locate(options)
    except MeasureError as error:
        advice = "--device cpu compares the plan with a run on the CPU"
        raise MeasureError(*(f"{problem}; {advice}" for problem in error.problems)) from None


class _Run:
    """The cases of one call, and what they have come to so far."""

    def __init__(
        self, options: MeasureOptions, device: LocatedDevice, configs: list[str], budget: str | None
    ) -> None:
        from tritter_mem.evidence import validate
        from tritter_mem.results.header import header

        self._options, self._device = options, device
        card = device.card
        self._header = header()
        self._done: list[Validated] = []
        self._left_out: Any = ()
        self.interrupted = False
        self.conditions = validate.conditions_on(card, options.index)
        if configs:
            self._cases = validate.named(configs, card, budget)
        else:
            self._cases = validate.bundled(card, budget)
            if card is not None:
                self._cases, self._left_out = validate.that_fit(self._cases, card)

    def go(self, files: CaseFiles, again: bool, shown: bool) -> None:
        """Run the cases; each is kept and named as soon as it has ended."""
        from tritter_mem.cli.progress import showing
        from tritter_mem.evidence.validate import validate

        with showing(shown) as progress:
            cases = validate(
                self._cases,
                self.conditions,
                (lambda name, key: None) if again else files.read,
                options=self._options,
                device=self._device,
                progress=progress,
            )
            self._collect(cases, files)

    def _collect(self, cases: Iterable[Validated], files: CaseFiles) -> None:
        for case in cases:
            self._done.append(case)
            files.write(case)
            kept = ", kept from before" if case.kept else ""
            count = f"{len(self._done)} of {len(self._cases)}"
            typer.echo(f"{count}: {case.name}: {case.status}{kept}", err=True)

    def validation(self) -> Validation:
        """What there is."""
        from tritter_mem.devices.environment import collect_environment
        from tritter_mem.results.validation import Validation

        return Validation(
            **self._header,
            device=self.conditions.device,
            environment=collect_environment(gpu=self._options.index),
            cases=tuple(self._done),
            left_out=self._left_out,
            interrupted=self.interrupted,
        )


def _finish(validation: Validation, files: CaseFiles, html: Path | None, as_json: bool) -> None:
    """Write and show what there is."""
    try:
        files.write_document(validation)
        _write_page(validation, html)
    finally:
        _show(validation, as_json)


def _write_page(validation: Validation, html: Path | None) -> None:
    results = [case.result for case in validation.cases if case.result is not None]
    if html is not None and results:
        write_result_page(html, results)


def _show(validation: Validation, as_json: bool) -> None:
    from tritter_mem.report.terminal import make_console
    from tritter_mem.report.validation_report import render_validation

    if as_json:
        print_json(validation.to_dict())
    else:
        render_validation(validation, make_console())
