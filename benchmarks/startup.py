"""How long `tritter-mem plan` takes as a whole process, beside `hf-mem`.

Planned are the bundled 7B model, which does not fit, so that suggestions are planned too, a
released model by its name, and the `config.json` of one.

They run in turn, so that a machine that slows down slows all. `hf-mem` reads a model's header from
the network: without one its run ends at the first request, and its time is then what it takes to
get there. Its `--help` is what it takes to start and do nothing. Run with
`python -m benchmarks.startup`; `hf-mem` is left out where it is not installed.

Both run from compiled bytecode, as after any installation by pip. A checkout has none where
PYTHONDONTWRITEBYTECODE is set, so that is left out of the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tritter_mem.models.released import read_released

RUNS = 21
OURS = "tritter-mem plan --config 7b"
MODEL = "qwen3-8b"
BY_NAME = f"tritter-mem plan {MODEL}"
BY_FILE = "tritter-mem plan config.json"
PEER = "hf-mem --model-id openai-community/gpt2"
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed, by name.

    Args:
        folder: where a `config.json` is.
    """
    plan = [str(Path(sys.executable).with_name("tritter-mem")), "plan"]
    found = {
        "python": [sys.executable, "-c", "pass"],
        OURS: [*plan, "--config", "7b"],
        f"{OURS} --json": [*plan, "--config", "7b", "--json"],
        BY_NAME: [*plan, MODEL, "--gpu", "h100"],
        BY_FILE: [*plan, str(folder / "config.json"), "--gpu", "h100"],
    }
    if peer := shutil.which("hf-mem"):
        found[PEER] = [peer, "--model-id", "openai-community/gpt2"]
        found["hf-mem --help"] = [peer, "--help"]
    return found


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run."""
    nothing = subprocess.DEVNULL
    start = time.perf_counter()
    subprocess.run(command, stdout=nothing, stderr=nothing, env=ENVIRONMENT, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians, and their ratios to the peer, as JSON."""
    with TemporaryDirectory() as folder:
        released = read_released(MODEL)
        config = {} if released is None else released.config
        Path(folder, "config.json").write_text(json.dumps(config))
        medians = _medians(commands(Path(folder)))
    ratios = {
        f"{ours} / {peer}": round(medians[ours] / medians[peer], 3)
        for ours in (OURS, BY_NAME, BY_FILE)
        for peer in medians
        if peer.startswith("hf-mem")
    }
    print(json.dumps({"runs": RUNS, "median_seconds": medians, "ratios": ratios}, indent=2))


def _medians(timed: dict[str, list[str]]) -> dict[str, float]:
    runs: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(RUNS + 1):
        for name, command in timed.items():
            took = seconds(command)
            if number:  # the first round warms the file cache
                runs[name].append(took)
    return {name: round(statistics.median(found), 4) for name, found in runs.items()}


if __name__ == "__main__":
    main()
