"""The command line: commands are imported when they are called, and errors become exit codes."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tritter_mem import ending
from tritter_mem.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_MEASURED,
    EXIT_OK,
    EXIT_USAGE,
    TritterMemError,
    missing_package,
)
from tritter_mem.input_files import remembering_inputs
from tritter_mem.text import printable

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
_MORE_MEMORY = "raise the limit (ulimit -v shows it), or free some"
_NO_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "DefaultCPUAllocator: ",
)


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

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """Parse the arguments; help and the version are shown here."""
        try:
            return super().make_context(*arguments, **named)
        except OSError as error:
            code = ending.how_output_failed(error)
            if code is None:
                raise
            raise typer.Exit(code) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Understand `--debug` behind the command's name too."""
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what goes wrong becomes lines and an exit code, unless `--debug`."""
        try:
            with remembering_inputs():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = ending.how_output_failed(error)
            if code is not None:
                raise typer.Exit(code) from None
            if ctx.params["debug"] or _explains_itself(error):
                raise
            lines, code = explain(error)
            for line in lines:
                ending.say(line)
            raise typer.Exit(code) from None


def _explains_itself(error: BaseException) -> bool:
    """Exits, and usage errors that show themselves; typer keeps their classes to itself."""
    return isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "show")


def explain(error: BaseException) -> tuple[list[str], int]:
    """Lines for people, and the exit code."""
    if isinstance(error, TritterMemError):
        return [f"error: {problem}" for problem in error.problems], error.exit_code
    if isinstance(error, KeyboardInterrupt) or ending.interrupted():
        return ["interrupted"], EXIT_INTERRUPTED
    if _lacks_memory(error):
        return [f"error: not enough memory ({_words(error)}): {_MORE_MEMORY}"], EXIT_NOT_MEASURED
    if isinstance(error, ModuleNotFoundError) and (words := missing_package(error)):
        return [f"error: {words}"], EXIT_USAGE
    return [f"error: a bug in tritter-mem: {_words(error)}; --debug shows where"], EXIT_BUG


def _words(error: BaseException) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), 500)


def _lacks_memory(error: BaseException) -> bool:
    """Whether the system gave no memory: to Python, to a library that is loaded, for a thread."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, ImportError | OSError | RuntimeError) and any(
        words in str(error) for words in _NO_MEMORY
    )


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
    code = EXIT_OK
    try:
        app(prog_name="tritter-mem")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_OK
    raise SystemExit(ending.exit_code_after(code))
