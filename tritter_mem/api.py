"""What the commands do, for Python: a model by its name, and the settings that people change most.

```python
from tritter_mem import plan

use = plan("Qwen/Qwen3-8B", gpu="h100", context="32k")
print(use.footprint_bytes)
```
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from tritter_mem.config.loading import load_any
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.config.options import KEYS, overrides
from tritter_mem.config.profile import Profile, changed
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import UsageError

if TYPE_CHECKING:
    from tritter_mem.config.cards import GpuCard
    from tritter_mem.results.run import MemoryUse, Result

Model = str | PathLike[str] | AnyProfile
"""What the commands take as MODEL, or a profile."""


class Options(TypedDict, total=False):
    """Settings by their short names, as the commands' options have them.

    Attributes:
        gpu: the card's name; `auto`: the one that is present.
        budget: bytes that may be used, or text such as `15 GiB`.
        context: tokens, or text such as `32k`.
        batch: sequences.
        mode: `inference` or `training`.
        checkpoint: the activation checkpointing, such as `every-layer` or `every-nth:4`.
        dtype: type of weights and activations of a named model, as `from_pretrained` takes it.
        kv_dtype: storage of the key-value cache.
        alloc_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        settings: any others, by dotted key.
    """

    gpu: str
    budget: str | int
    context: str | int
    batch: int
    mode: str
    checkpoint: str
    dtype: str
    kv_dtype: str
    alloc_conf: str
    settings: Mapping[str, Any]


def load(model: Model, **options: Unpack[Options]) -> AnyProfile:
    """The profile of a model, with settings changed.

    Raises:
        ConfigError: with one line for each problem.
        InputError: the model's files cannot be read.
        UsageError: there is no such option.
    """
    if unknown := [name for name in options if name not in {*KEYS, "settings"}]:
        allowed = ", ".join([*KEYS, "settings"])
        raise UsageError(f"{', '.join(unknown)}: no such option; the options are {allowed}")
    settings = overrides(options, options.get("settings"))
    if isinstance(model, Profile | NamedProfile):
        return changed(model, settings) if settings else model
    labels = {key: name for name, key in KEYS.items() if name in options}
    return load_any(fspath(model), settings, labels)


def plan(
    model: Model, card: GpuCard | None = None, *, plays: bool = True, **options: Unpack[Options]
) -> MemoryUse:
    """Plan a model's memory on a card by formula; see `planner.compose.plan`.

    Args:
        model: its name or path, or a profile.
        card: the card; default: the profile's.
        plays: whether to find what the allocator reserves too.
        options: settings to change.

    Raises:
        ConfigError: a setting is wrong, or the card is unknown.
        InputError: the model's files cannot be read.
    """
    from tritter_mem.planner.compose import plan as plan_profile

    profile = load(model, **options)
    return plan_profile(profile, card or find_gpu(profile.gpu.name), plays=plays)


def simulate(model: Model, *, card: GpuCard | None = None, **more: Any) -> MemoryUse:
    """Run a model on PyTorch's `meta` device, and its memory events through the allocator.

    Args:
        model: its name or path, or a profile.
        card: the card; default: the profile's.
        more: `fast`, `progress` and `save_trace` of `simulation.simulate.simulate`, and options.

    Raises:
        ConfigError: a setting is wrong, or the card is unknown.
        InputError: the model's files cannot be read.
        SimulationError: a named model cannot be run on `meta`.
        UsageError: there is no such option, or `fast` was asked for a named model.
    """
    from tritter_mem.simulation.simulate import simulate as simulate_bundled

    how = {name: more.pop(name) for name in ("fast", "progress", "save_trace") if name in more}
    profile = load(model, **more)
    card = card or find_gpu(profile.gpu.name)
    if isinstance(profile, Profile):
        return simulate_bundled(profile, card=card, **how)
    from tritter_mem.models.transformers_run import transformers_run
    from tritter_mem.planner.compose import budget_of
    from tritter_mem.simulation.transformers_model import simulate_transformers

    if how.pop("fast", False):
        raise UsageError("fast: only for profiles of the bundled model")
    run, budget = transformers_run(profile), budget_of(profile, card)
    return simulate_transformers(run, card, profile.allocator.conf, budget_bytes=budget, **how)


def profile(model: Model, **more: Any) -> Result:
    """Plan a model, simulate it and, where there is a device for it, measure it.

    Args:
        model: its name or path, or a profile.
        more: keywords of `profiling.profiler.profile`, and options.

    Raises:
        ConfigError: a setting is wrong, or the card is unknown.
        InputError: the model's files cannot be read.
        MeasurementFailedError: a device was named, and the measurement failed.
    """
    from tritter_mem.profiling.profiler import profile as profile_one

    given = {name: more.pop(name) for name in (*KEYS, "settings") if name in more}
    return profile_one(load(model, **given), **more)
