"""Serving engines: how a server is told by its command, when it is ready, and what it prints."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tritter_mem.results.rehearsal import EngineFigures
from tritter_mem.units import GB, GiB

_UNITS = {"GiB": GiB, "GB": GB}
_SIZE = r"([\d.]+) ?(GiB|GB)"
_ANSWER_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A serving engine.

    Attributes:
        starts: two words of a command that follow each other and start a server.
        ready: what it prints once it answers.
        port: where it answers unless `--port` says otherwise.
        drops: files whose functions run the engine on requests of no user, before it is ready, and
            throw the tokens away: a copy of them to the host decides nothing. The ends of paths.
        figures: what its lines say, by the attribute of `EngineFigures`: sizes have a number and a
            unit, others a number.
    """

    name: str
    starts: frozenset[tuple[str, str]]
    ready: str
    port: int
    figures: dict[str, re.Pattern[str]]
    drops: tuple[str, ...] = ()


ENGINES = (
    Engine(
        name="vllm",
        starts=frozenset({("vllm", "serve"), ("-m", "vllm.entrypoints.openai.api_server")}),
        ready="Application startup complete",
        port=8000,
        drops=("/vllm/v1/worker/gpu/warmup.py",),  # as read in 0.33
        figures={
            "weights_bytes": re.compile(rf"Model loading took {_SIZE}"),
            "activation_peak_bytes": re.compile(rf"activation peak memory takes {_SIZE}"),
            "graphs_bytes": re.compile(rf"Graph capturing finished in .* took {_SIZE}"),
            "kv_cache_bytes": re.compile(rf"Available KV cache memory: {_SIZE}"),
            "kv_cache_tokens": re.compile(r"KV cache size: ([\d,]+) tokens"),
            "context_tokens": re.compile(r"Maximum concurrency for ([\d,]+) tokens"),
            "max_concurrency": re.compile(r"Maximum concurrency for .*: ([\d.,]+)x"),
        },
    ),
    Engine(
        name="sglang",
        starts=frozenset({("sglang", "serve"), ("-m", "sglang.launch_server")}),
        ready="The server is fired up and ready to roll",
        port=30000,
        figures={
            "weights_bytes": re.compile(rf"Load weight end.*mem usage={_SIZE}"),
            "graphs_bytes": re.compile(rf"Capture cuda graph end.*mem usage={_SIZE}"),
            "kv_cache_tokens": re.compile(r"max_total_num_tokens=(\d+)"),
            "context_tokens": re.compile(r"context_len=(\d+)"),
        },
    ),
)
LINE = re.compile("|".join(found.pattern for one in ENGINES for found in one.figures.values()))
"""Any line that says something of these."""


def engine_of(command: Sequence[str]) -> Engine | None:
    """The engine whose server a command starts; None where it is none that is known."""
    words = set(pairwise([Path(command[0]).name, *command[1:]]))
    return next((one for one in ENGINES if one.starts & words), None)


def figures_of(engine: Engine, lines: Iterable[str]) -> EngineFigures:
    """What a server printed. Of several processes that say the same, the first."""
    found: dict[str, Any] = {}
    for line in lines:
        for name, pattern in engine.figures.items():
            if name not in found and (seen := pattern.search(line)):
                found[name] = _number(name, seen)
    return EngineFigures(name=engine.name, **found)


def _number(name: str, seen: re.Match[str]) -> int | float:
    if name.endswith("_bytes"):
        return round(float(seen[1]) * _UNITS[seen[2]])
    text = seen[1].replace(",", "")
    return float(text) if name == "max_concurrency" else int(text)


def address_of(engine: Engine, command: Sequence[str]) -> str:
    """Where the server of a command answers on this machine."""
    port: str | int = engine.port
    for word, after in pairwise([*command, ""]):
        if word == "--port":
            port = after
        elif word.startswith("--port="):
            port = word.partition("=")[2]
    return f"http://127.0.0.1:{port}"


def ask(address: str) -> str:
    """One small request, as to any server of OpenAI's interface.

    Returns:
        What went wrong; empty where it was answered.
    """
    try:
        models = _sent(f"{address}/v1/models", None)
        model = models["data"][0]["id"]
        _sent(f"{address}/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 4})
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"a small request to the server was not answered: {error}"
    return ""


def _sent(url: str, body: dict[str, Any] | None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(asked, timeout=_ANSWER_SECONDS) as answer:
        return json.loads(answer.read(1 << 20))
