"""Options that several commands share: which profiles, and what to change in them.

A command takes them as one parameter, `options: ProfileOptions`, and `with_options` shows each as
a separate option. The schema checks the values, so that every problem is reported at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from tritter_mem.config.options import CHECKPOINT_NUMBER, KEYS, overrides, whole
from tritter_mem.errors import ConfigError, UsageError
from tritter_mem.models.formats import formats_for

if TYPE_CHECKING:
    from tritter_mem.config.named_profile import AnyProfile


def complete_profiles(incomplete: str) -> list[str]:
    """Names of bundled profiles that begin so."""
    from tritter_mem.config.bundled_files import bundled_profiles

    return [name for name in bundled_profiles() if name.startswith(incomplete)]


def complete_gpus(incomplete: str) -> list[str]:
    """Names of cards that begin so."""
    from tritter_mem.config.cards import AUTO, card_names

    return [name for name in (AUTO, *card_names()) if name.startswith(incomplete)]


def _needs_plotly(html: Path | None) -> Path | None:
    """Refuse a page that could not be made, before a run rather than after it."""
    if html is not None and find_spec("plotly") is None:
        raise UsageError("--html needs plotly, which is not installed: pip install plotly")
    return html


def _completer(section: str, field: str) -> Callable[[str], list[str]]:
    """Complete the names that a field of the schema allows."""

    def complete(incomplete: str) -> list[str]:
        from tritter_mem.config import profile

        names = getattr(profile, section).kinds[field].names
        return [name for name in names if name.startswith(incomplete)]

    return complete


Config = Annotated[
    list[str],
    typer.Option(
        "--config",
        metavar="NAME|FILE",
        help="The same as MODEL; repeat it to compare. - reads YAML or JSON from standard input.",
        autocompletion=complete_profiles,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="A bundled name (qwen3-8b), org/name on the Hub, a folder or config.json, a GGUF file "
        "or a YAML profile. Several are compared.",
        autocompletion=complete_profiles,
        show_default=False,
    ),
]
Max = Annotated[
    Literal["context", "batch"] | None,
    typer.Option(
        "--max", case_sensitive=False, help="Find the largest context or batch that fits."
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="TOKENS", help="Tokens of each sequence, such as 32k."),
]
Batch = Annotated[str | None, typer.Option("--batch", metavar="N", help="Sequences in a batch.")]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="The GPU to plan for, such as rtx-4090 or h100; auto is the one in this machine.",
        autocompletion=complete_gpus,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="SIZE", help="Memory that the job may use, such as 15GiB."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        metavar="MODE",
        help="inference or training.",
        autocompletion=_completer("Workload", "mode"),
    ),
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        metavar="POLICY[:N]",
        help="Activation checkpointing: none, every-layer, every-nth:4, segments:8, "
        "selective-attention or selective-matmul.",
        autocompletion=_completer("Checkpointing", "policy"),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Type of weights and activations: auto (the checkpoint's), bfloat16, float16 or "
        "float32.",
    ),
]
KvDtype = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype",
        metavar="DTYPE",
        help=f"Type of the bundled model's KV cache: {', '.join(formats_for('kv_cache'))}.",
        autocompletion=_completer("KVCache", "dtype"),
    ),
]
AllocConf = Annotated[
    str | None,
    typer.Option(
        "--alloc-conf", metavar="CONF", help="Allocator settings, as in PYTORCH_CUDA_ALLOC_CONF."
    ),
]
Settings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change any key of the profile, such as weights.quantization=bitsandbytes-nf4.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Also write the report as one HTML page.",
        callback=_needs_plotly,
    ),
]
PlotlyJs = Annotated[
    Literal["inline", "cdn", "directory"],
    typer.Option(
        "--plotlyjs",
        help="Where the page gets its chart library: inline (in the page, 4.8 MB), cdn (from the "
        "network) or directory (plotly.min.js beside the page).",
    ),
]
Units = Annotated[
    Literal["GiB", "GB"],
    typer.Option(
        "--units", case_sensitive=False, help="Show binary (1024) or decimal (1000) units."
    ),
]


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Which profiles to load, and what to change in each."""

    config: Config = ("7b",)  # type: ignore[assignment]  # typer makes it a list
    context: Context = None
    batch: Batch = None
    gpu: GpuName = None
    budget: Budget = None
    mode: Mode = None
    checkpoint: Checkpoint = None
    dtype: Dtype = None
    kv_dtype: KvDtype = None
    alloc_conf: AllocConf = None
    settings: Settings = ()  # type: ignore[assignment]  # typer makes it a list

    def naming(self, models: Sequence[str] | None) -> ProfileOptions:
        """The options for models that are arguments.

        Raises:
            UsageError: there is --config too.
        """
        if not models:
            return self
        if self.config:
            raise UsageError("MODEL and --config mean the same; give one of them")
        return replace(self, config=list(models))

    def profiles(self) -> list[AnyProfile]:
        """Load every profile with the options applied.

        Raises:
            ConfigError: with every problem of every profile.
        """
        from tritter_mem.config.loading import load_any

        overrides, labels = self.overrides(), self.labels()
        loaded: list[AnyProfile] = []
        problems = self._allocator_problems()
        for name in self.config:
            try:
                loaded.append(load_any(name, overrides, labels))
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(*dict.fromkeys(problems))
        _read_models(loaded)
        return loaded

    def _allocator_problems(self) -> list[str]:
        if not self.alloc_conf:
            return []
        from tritter_mem.allocator.settings import parse_alloc_conf

        try:
            parse_alloc_conf(self.alloc_conf)
        except ConfigError as error:
            return [p.replace("allocator settings", "--alloc-conf", 1) for p in error.problems]
        return []

    def overrides(self) -> dict[str, Any]:
        """What the options change, by dotted key; `--set` comes last and wins."""
        given = {name: getattr(self, name) for name in KEYS}
        return overrides(given | {"batch": whole(self.batch)}, _read_settings(self.settings))

    def labels(self) -> dict[str, str]:
        """What messages call each override: the option that it came from."""
        options = {key: f"--{name.replace('_', '-')}" for name, key in KEYS.items()}
        options[CHECKPOINT_NUMBER] = "--checkpoint"
        set_keys = {setting.partition("=")[0].strip() for setting in self.settings}
        return {key: label for key, label in options.items() if key not in set_keys}


def _read_models(profiles: Sequence[AnyProfile]) -> None:
    """Read the models that profiles name, with progress on a terminal; each is kept.

    Raises:
        ConfigError: there is no such model, or its keys describe none.
        InputError: what is there cannot be read.
    """
    from tritter_mem.config.named_profile import NamedProfile

    named = [profile for profile in profiles if isinstance(profile, NamedProfile)]
    if not named:
        return
    from tritter_mem.cli.progress import reading
    from tritter_mem.models.transformers_run import named_model

    with reading() as progress:
        for profile in named:
            named_model(profile, progress)


def _read_settings(settings: list[str]) -> dict[str, Any]:
    from tritter_mem.config.reading import read_value

    wrong = [text for text in settings if "=" not in text or not text.partition("=")[0].strip()]
    if wrong:
        allowed = "expected KEY=VALUE, such as workload.context=32k"
        raise UsageError(*(f"--set: got {setting!r}, {allowed}" for setting in wrong))
    pairs = (setting.split("=", 1) for setting in settings)
    return {key.strip(): read_value(value, f"--set {key.strip()}") for key, value in pairs}


def with_options(command: Callable[..., None], **defaults: Any) -> Callable[..., None]:
    """Show the fields of `ProfileOptions` as options of a command that takes `options`.

    Args:
        command: takes `options`, and other parameters.
        defaults: of fields, where the command's differ from the shared ones.
    """
    hints = get_type_hints(ProfileOptions, include_extras=True)
    shared = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=hints[field.name],
        )
        for field in fields(ProfileOptions)
    ]
    own_hints = get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=own_hints[parameter.name])
        for parameter in signature(command).parameters.values()
        if parameter.name != "options"
    ]

    @wraps(command)
    def expanded(**given: Any) -> None:
        options = {parameter.name: given.pop(parameter.name) for parameter in shared}
        command(options=ProfileOptions(**options), **given)

    expanded.__signature__ = Signature([*shared, *own])  # type: ignore[attr-defined]
    return expanded


def size_of(text: str | None, option: str) -> int | None:
    """The bytes that an option names; None where it is not given.

    Raises:
        UsageError: it is no size.
    """
    from tritter_mem.units import MAX_BYTES, NoUnitError, format_bytes, parse_memory

    if text is None:
        return None
    try:
        found = parse_memory(text)
    except NoUnitError as error:
        raise UsageError(f"{option}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{option}: got {text[:80]!r}, {error}") from error
    if found > MAX_BYTES:
        raise UsageError(f"{option}: got {text[:80]!r}, expected at most {format_bytes(MAX_BYTES)}")
    return found
