"""The command line: a lazy group, so that each command imports only what it needs."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tritter_mem.errors import EXIT_INTERRUPTED, TritterMemError

# Command name, and the line that `--help` shows for it. The module is tritter_mem.cli.<name>, its
# function `command`.
COMMANDS = {
    "plan": "Plan memory by formula: a budget table, a verdict, and what to change.",
    "profile": "Plan, simulate and measure side by side; write JSON and HTML.",
    "replay": "Replay a recorded PyTorch snapshot under other allocator settings.",
    "report": "Make the HTML report from results.",
    "audit": "Check the specification's claims, one row each.",
    "profiles": "List and show the bundled profiles.",
    "gpus": "List the table of cards.",
    "doctor": "Show the environment.",
}


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called, not before."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one command; for the group's own `--help` a stand-in with its first line."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tritter_mem.cli.{cmd_name}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(module.command)
        return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    name="tritter-mem",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tritter_mem import __version__

        typer.echo(f"tritter-mem {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """What GPU memory a long-context, quantised language model will use, why, and what to change."""


def main() -> None:
    """Run the command line; errors take one line a problem and map to their exit code."""
    try:
        app()
    except TritterMemError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
