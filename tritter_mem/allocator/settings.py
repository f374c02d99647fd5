"""`PYTORCH_CUDA_ALLOC_CONF` (or `PYTORCH_ALLOC_CONF`): what it may hold, and what it means.

Source: `c10/core/AllocatorConfig.cpp` and `c10/cuda/CUDAAllocatorConfig.cpp` of PyTorch 2.13. Where
versions differ, the newest counts; docs/allocator.md lists the differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from tritter_mem.allocator.rules import DIVISION_INTERVALS, LARGE_SEGMENT_BYTES, OWN_SEGMENT_BYTES
from tritter_mem.errors import ConfigError
from tritter_mem.units import MiB

MAX_CONF_CHARACTERS = 4096
MAX_MEGABYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """The settings that change memory, with PyTorch's defaults.

    Attributes:
        expandable_segments: grow one virtual segment a stream and pool, page by page.
        max_split_bytes: blocks of this size and more are never split; None: all may be.
        max_non_split_rounding_bytes: how much larger than a request such a block may be.
        roundup_power2_divisions: steps between powers of two, one for each interval from 1 MiB;
            None: no such rounding.
        garbage_collection_threshold: part of the memory limit above which cached segments are
            released by age; 0: never.
        large_segment_bytes: segment for requests of 1 to 10 MiB, and page of an expandable one.
        per_process_memory_fraction: part of the device's memory that the process may take.
        throw_on_cudamalloc_oom: beyond that part, fail at once instead of releasing the cache.
        without_effect: keys that were given and change no device memory.
        conf: the text that the settings were read from.
    """

    expandable_segments: bool = False
    max_split_bytes: int | None = None
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_BYTES
    roundup_power2_divisions: tuple[int, ...] | None = None
    garbage_collection_threshold: float = 0.0
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    per_process_memory_fraction: float = 1.0
    throw_on_cudamalloc_oom: bool = False
    without_effect: tuple[str, ...] = field(default=(), compare=False)
    conf: str = field(default="", compare=False)


def parse_alloc_conf(conf: str) -> AllocatorSettings:
    """Read a configuration as PyTorch does.

    Args:
        conf: comma-separated `key:value`, such as `expandable_segments:True`.

    Raises:
        ConfigError: unknown keys, wrong values; names every problem.
    """
    if len(conf) > MAX_CONF_CHARACTERS:
        raise ConfigError(
            f"allocator settings: {len(conf):,} characters; at most {MAX_CONF_CHARACTERS:,}"
        )
    parser = _Parser()
    # Some limits depend on the large segment, so it is read first wherever it stands.
    pairs = sorted(_pairs(conf, parser.problems), key=lambda pair: pair[0] != _LARGE_SEGMENT)
    for key, value in pairs:
        parser.read(key, value)
    if parser.problems:
        raise ConfigError(*(f"allocator settings: {problem}" for problem in parser.problems))
    return replace(
        AllocatorSettings(**parser.found),
        without_effect=tuple(parser.without_effect),
        conf=conf.strip(),
    )


def _pairs(conf: str, problems: list[str]) -> Iterator[tuple[str, str]]:
    # Commas inside of [...] belong to a list value.
    for entry in re.split(r",(?![^\[]*\])", re.sub(r"\s", "", conf)):
        key, colon, value = entry.partition(":")
        if colon and value:
            yield key, value
        elif entry:
            problems.append(f"got {entry[:80]!r}, expected key:value")


_LARGE_SEGMENT = "large_segment_size_mb"


class _Parser:
    """Collects the fields found and every problem."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.without_effect: list[str] = []
        self.problems: list[str] = []

    def read(self, key: str, value: str) -> None:
        reader = _READERS.get(key)
        if reader is None:
            self.problems.append(_unknown(key))
            return
        try:
            reader(self, key, value)
        except ValueError as error:
            self.problems.append(f"{key}: got {value[:80]!r}, expected {error}")

    def flag(self, key: str, value: str) -> None:
        self.found[key] = _flag(value)

    def threshold(self, key: str, value: str) -> None:
        self.found[key] = _fraction(value, "a number above 0 and below 1", upper_included=False)

    def fraction(self, key: str, value: str) -> None:
        self.found[key] = _fraction(value, "a number above 0 and at most 1", upper_included=True)

    def divisions(self, key: str, value: str) -> None:
        self.found[key] = parse_divisions(value)

    def large_segment(self, key: str, value: str) -> None:
        size = _whole(value, OWN_SEGMENT_BYTES // MiB + 1) * MiB
        self.found |= {"large_segment_bytes": size, "max_non_split_rounding_bytes": size}

    def max_split(self, key: str, value: str) -> None:
        self.found["max_split_bytes"] = _whole(value, self._large_segment_mb) * MiB

    def max_non_split_rounding(self, key: str, value: str) -> None:
        self.found["max_non_split_rounding_bytes"] = _whole(value, self._large_segment_mb) * MiB

    def backend(self, key: str, value: str) -> None:
        if value != "native":
            raise ValueError("native: no other backend is simulated")
        self.without_effect.append(key)

    def ignored_flag(self, key: str, value: str) -> None:
        _flag(value)
        self.without_effect.append(key)

    def ignored_number(self, key: str, value: str) -> None:
        _whole(value, 0)
        self.without_effect.append(key)

    @property
    def _large_segment_mb(self) -> int:
        size: int = self.found.get("large_segment_bytes", LARGE_SEGMENT_BYTES)
        return size // MiB


_Reader = Callable[[_Parser, str, str], None]
_READERS: dict[str, _Reader] = {
    "expandable_segments": _Parser.flag,
    "max_split_size_mb": _Parser.max_split,
    "max_non_split_rounding_mb": _Parser.max_non_split_rounding,
    "roundup_power2_divisions": _Parser.divisions,
    "garbage_collection_threshold": _Parser.threshold,
    _LARGE_SEGMENT: _Parser.large_segment,
    "per_process_memory_fraction": _Parser.fraction,
    "throw_on_cudamalloc_oom": _Parser.flag,
    "backend": _Parser.backend,
    "release_lock_on_cudamalloc": _Parser.ignored_flag,
    "release_lock_on_hipmalloc": _Parser.ignored_flag,
    "graph_capture_record_stream_reuse": _Parser.ignored_flag,
    "pinned_use_cuda_host_register": _Parser.ignored_flag,
    "pinned_use_hip_host_register": _Parser.ignored_flag,
    "pinned_use_background_threads": _Parser.ignored_flag,
    "pinned_free_catch_all": _Parser.ignored_flag,
    "pinned_num_register_threads": _Parser.ignored_number,
    "pinned_reserve_segment_size_mb": _Parser.ignored_number,
    "pinned_max_round_threshold_mb": _Parser.ignored_number,
    "pinned_max_cached_size_mb": _Parser.ignored_number,
}


def parse_divisions(value: str) -> tuple[int, ...] | None:
    """Read `roundup_power2_divisions`: one number, or `[256:1,512:2,1024:4,>:8]` by size in MB.

    In the list a key holds from its size up to its double; the first key holds for everything
    below too, and `>` for everything above the last key before it.

    Raises:
        ValueError: says what is expected.
    """
    if not value.startswith("["):
        found = (_power_of_two(value),) * DIVISION_INTERVALS
    else:
        found = _division_list(value)
    return found if any(steps > 1 for steps in found) else None


def _division_list(value: str) -> tuple[int, ...]:
    if not value.endswith("]"):
        raise ValueError("a list that ends with ]")
    steps = [0] * DIVISION_INTERVALS
    last = -1
    for entry in value[1:-1].split(","):
        key, _, text = entry.partition(":")
        count = _division(text)
        if key == ">":
            above = max(last, 0) + 1
            steps[above:] = [count] * (DIVISION_INTERVALS - above)
            continue
        interval = min(_power_of_two(key).bit_length() - 1, DIVISION_INTERVALS - 1)
        first = 0 if last < 0 else interval
        steps[first : interval + 1] = [count] * (interval + 1 - first)
        last = interval
    return tuple(steps)


def _division(text: str) -> int:
    return 0 if text == "0" else _power_of_two(text)


def _power_of_two(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number.bit_count() != 1:
        raise ValueError("powers of two: one number, or a list such as [256:1,512:2,1024:4,>:8]")
    return number


def _flag(value: str) -> bool:
    if value not in ("True", "False"):
        raise ValueError("True or False, written so")
    return value == "True"


def _whole(value: str, least: int) -> int:
    number = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else -1
    if number < least:
        raise ValueError(f"a whole number of at least {least}")
    return min(number, MAX_MEGABYTES)


def _fraction(value: str, expected: str, *, upper_included: bool) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not (0 < number < 1 or (upper_included and number == 1)):
        raise ValueError(expected)
    return number


def _unknown(key: str) -> str:
    near = get_close_matches(key, _READERS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(_READERS)}"
    return f"unknown key {key[:80]!r}; {hint}"
