"""The command line: commands are imported when they are called, and errors become exit codes."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

from tritter_mem import ending
from tritter_mem.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_MEASURED,
    EXIT_OK,
    EXIT_USAGE,
    TritterMemError,
    UsageError,
    missing_package,
)
from tritter_mem.input_files import remembering_inputs
from tritter_mem.text import printable

# Command name, and the line that `--help` shows for it. The module is tritter_mem.cli.<name>, but
# for other names of a command; its function is `command`.
COMMANDS = {
    "plan": "Say whether a model fits a GPU, and what to change if it does not.",
    "profile": "Plan a model, simulate it and, on a GPU, measure it.",
    "check": "Fail CI when peak memory grows beyond the committed baseline.",
    "validate": "Measure bundled profiles and report the errors of plan and simulation.",
    "rehearse": "Run your own command without a GPU and see how much memory it needs.",
    "replay": "Replay a PyTorch memory snapshot under other allocator settings.",
    "report": "Show saved results as tables or as one HTML page.",
    "audit": "Check the claims of the project's memory specification.",
    "models": "List the bundled models and profiles, or show one.",
    "profiles": "The same as models.",
    "gpus": "List the GPUs that --gpu knows.",
    "doctor": "Show what is installed and which commands work here.",
}
OTHER_NAMES = {"profiles": "models"}
MEANT_COMMANDS = {
    **dict.fromkeys(("fit", "fits", "estimate", "calc", "calculate", "budget"), "plan"),
    **dict.fromkeys(("simulate", "measure", "trace"), "profile"),
    **dict.fromkeys(("run", "dry-run", "dryrun", "exec"), "rehearse"),
    **dict.fromkeys(("snapshot", "viz", "memory_viz"), "replay"),
    **dict.fromkeys(("list", "ls", "model"), "models"),
    **dict.fromkeys(("cards", "gpu", "devices"), "gpus"),
    **dict.fromkeys(("env", "info", "collect-env"), "doctor"),
    "version": "--version",
}
"""What people type who know other tools, and which command answers it."""
MEANT_OPTIONS = {
    **dict.fromkeys(
        ("--max-model-len", "--seq-len", "--sequence-length", "--max-seq-len", "--max-length",
         "--ctx-size", "--ctx", "--context-length", "--tokens"),
        "--context",
    ),
    **dict.fromkeys(("--batch-size", "--max-num-seqs", "--per-device-train-batch-size"), "--batch"),
    **dict.fromkeys(("--kv-cache-dtype", "--cache-dtype", "--cache-type"), "--kv-dtype"),
    **dict.fromkeys(("--torch-dtype", "--precision"), "--dtype"),
    **dict.fromkeys(("--model", "--model-id", "--profile"), "--config"),
    **dict.fromkeys(("--vram", "--memory", "--gpu-memory", "--limit"), "--budget"),
    **dict.fromkeys(("--card", "--gpu-name"), "--gpu"),
    **dict.fromkeys(("--gradient-checkpointing", "--activation-checkpointing"), "--checkpoint"),
    **dict.fromkeys(("--train", "--training"), "--mode"),
    **dict.fromkeys(("--quantization", "--quant", "--load-in-4bit", "--load-in-8bit"),
                    "--set weights.quantization=bitsandbytes-nf4"),
    "--max-context": "--max context",
    "--max-batch": "--max batch",
    "--num-gpus": "--gpus",
}  # fmt: skip
"""Options of other tools, and the one here that means the same."""
HELP_NAMES = {"help_option_names": ["-h", "--help"]}
EXIT_BUG = 70  # EX_SOFTWARE of sysexits.h
_MORE_MEMORY = "free some memory, or raise the limit that `ulimit -v` shows"
_NO_MEMORY = (
    "failed to map segment",
    "cannot allocate memory",
    "Cannot allocate memory",
    "can't start new thread",
    "DefaultCPUAllocator: ",
)


class Command(TyperCommand):
    """A command that refuses an option given twice, and knows the options of other tools."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: an option that takes one value is there more than once.
        """
        try:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        except Exception as error:
            meant = MEANT_OPTIONS.get(getattr(error, "option_name", ""), "")
            if meant.partition(" ")[0] in self._options(ctx):
                error.possibilities = []  # type: ignore[attr-defined]
                error.message += f". Did you mean {meant}?"  # type: ignore[attr-defined]
            raise
        for option in cast("list[Any]", given):
            single = option.param_type_name == "option" and not (option.multiple or option.is_flag)
            if single and (times := given.count(option)) > 1:
                raise UsageError(f"{option.opts[0]}: given {times} times; give it once")
        return super().parse_args(ctx, args)

    def _options(self, ctx: Any) -> set[str]:
        return {name for option in self.get_params(ctx) for name in option.opts}


class LazyCommand(TyperCommand):
    """A command's name and summary; its module is imported when the command is called."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Parse the arguments with the real command, which then runs."""
        name = self.name or ""
        module = import_module(f"tritter_mem.cli.{OTHER_NAMES.get(name, name)}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(self.name, cls=Command, context_settings=HELP_NAMES)(module.command)
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
        """Understand `help` and `help COMMAND`, and `--debug` behind the command's name too.

        What is behind `--` belongs to the user's own command.
        """
        if args[:1] == ["help"]:
            args = [*args[1:2], "--help"]
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            kept = [arg for arg in own if arg != "--debug"]
            args = ["--debug", *kept, *args[len(own) :]]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command; suggest the likely one if the name is unknown."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if "Did you mean" not in getattr(error, "message", "Did you mean"):
                error.message += _meant_command(args[0])  # type: ignore[attr-defined]
            raise

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


def _meant_command(word: str) -> str:
    """What to type instead of a word that is not a command; empty where nobody knows."""
    meant = MEANT_COMMANDS.get(word.lower())
    if meant is not None:
        return f" Did you mean {meant!r}?"
    from tritter_mem.config.bundled_files import bundled_profiles, released_names

    if word.lower() in {*bundled_profiles(), *released_names()} or "/" in word:
        return f" To plan a model, type: tritter-mem plan {printable(word, 80)}"
    return ""


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
    return [
        f"error: this is a bug in tritter-mem: {_words(error)}; run it again with --debug to see "
        "where"
    ], EXIT_BUG


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
    context_settings=HELP_NAMES,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from tritter_mem.version import __version__

        typer.echo(f"tritter-mem {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_show_version, is_eager=True, help="Show the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from (a traceback).")
    ] = False,
) -> None:
    """Find out how much GPU memory a model, script or server needs before you pay for the GPU.

    Example: tritter-mem plan qwen3-8b --context 32k --gpu rtx-4090
    """


def main() -> None:
    """Run the command line and exit."""
    code = EXIT_OK
    try:
        app(prog_name="tritter-mem")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_OK
    raise SystemExit(ending.exit_code_after(code))
