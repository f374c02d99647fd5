"""The command line: commands are imported when they are called, and errors become exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tritter_mem.errors import EXIT_INTERRUPTED, EXIT_USAGE, TritterMemError, missing_package

# Command name, and the line that `--help` shows for it. The module is tritter_mem.cli.<name>, but
# for other names of a command; its function is `command`.
COMMANDS = {
    "plan": "Plan memory by formula: a budget table, a verdict, and what to change.",
    "profile": "Plan, simulate and measure side by side; write JSON and HTML.",
    "check": "Compare with the committed baseline; for CI.",
    "validate": "Measure bundled profiles, and show how far plan and simulation are off.",
    "rehearse": "Run your own command without a GPU, and see what memory it takes of one.",
    "replay": "Replay a recorded PyTorch snapshot under other allocator settings.",
    "report": "Make the HTML report from results.",
    "audit": "Check the specification's claims, one row each.",
    "models": "List and show the bundled models and profiles.",
    "profiles": "Another name of models.",
    "gpus": "List the table of cards.",
    "doctor": "Show the environment, and what works in it.",
}
OTHER_NAMES = {"profiles": "models"}
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
EXIT_PIPE = 141  # what a shell shows for a process that SIGPIPE ended


class LazyCommand(TyperCommand):
    """A command's name and summary; its module is imported when the command is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the arguments with the real command, which then runs."""
        name = self.name or ""
        module = import_module(f"tritter_mem.cli.{OTHER_NAMES.get(name, name)}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(self.name)(module.command)
        return typer.main.get_command(single).make_context(info_name, args, parent, **extra)


class Group(TyperGroup):
    """All commands, and what happens when one fails."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(LazyCommand(name, short_help=summary))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Understand `--debug` behind the command's name too."""
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what goes wrong becomes lines and an exit code, unless `--debug`."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(EXIT_PIPE) from None
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params["debug"] or _explains_itself(error):
                raise
            lines, code = explain(error)
            for line in lines:
                typer.echo(line, err=True)
            raise typer.Exit(code) from None


def _explains_itself(error: BaseException) -> bool:
    """Exits, and usage errors that show themselves; typer keeps their classes to itself."""
    return isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "show")


def explain(error: BaseException) -> tuple[list[str], int]:
    """Lines for people, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], EXIT_INTERRUPTED
    if isinstance(error, TritterMemError):
        return [f"error: {problem}" for problem in error.problems], error.exit_code
    if isinstance(error, ModuleNotFoundError) and (words := missing_package(error)):
        return [f"error: {words}"], EXIT_USAGE
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return [f"error: a bug in tritter-mem: {words}; --debug shows where"], EXIT_BUG


def _discard_output() -> None:
    """Discard what is left for a reader that has gone (`| head`): Python flushes at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=Group,
    name="tritter-mem",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tritter_mem.version import __version__

        typer.echo(f"tritter-mem {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from (a traceback).")
    ] = False,
) -> None:
    """What GPU memory a long-context, quantised language model will use, why, and what to change.

    Example: tritter-mem plan --config 7b-128k-gqa
    """


def main() -> None:
    """Run the command line and exit."""
    try:
        app(prog_name="tritter-mem")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_output()
