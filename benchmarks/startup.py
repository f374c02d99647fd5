"""How long `tritter-mem plan --config 7b` takes as a whole process, beside `hf-mem`.

They run in turn, so that a machine that slows down slows all. `hf-mem` reads a model's header from
the network: without one its run ends at the first request, and its time is then what it takes to
get there. Its `--help` is what it takes to start and do nothing. Run with
`python -m benchmarks.startup`; `hf-mem` is left out where it is not installed.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 21
OURS = "tritter-mem plan --config 7b"
PEER = "hf-mem --model-id openai-community/gpt2"


def commands() -> dict[str, list[str]]:
    """What is timed, by name."""
    found = {
        "python": [sys.executable, "-c", "pass"],
        OURS: [_script("tritter-mem"), "plan", "--config", "7b"],
        f"{OURS} --json": [_script("tritter-mem"), "plan", "--config", "7b", "--json"],
    }
    if shutil.which("hf-mem") or Path(_script("hf-mem")).exists():
        found[PEER] = [_script("hf-mem"), "--model-id", "openai-community/gpt2"]
        found["hf-mem --help"] = [_script("hf-mem"), "--help"]
    return found


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one run."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Print the medians, and their ratios to the peer, as JSON."""
    timed = commands()
    runs: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(RUNS + 1):
        for name, command in timed.items():
            took = seconds(command)
            if number:  # the first round warms the file cache
                runs[name].append(took)
    medians = {name: round(statistics.median(found), 4) for name, found in runs.items()}
    ratios = {
        name: round(medians[OURS] / median, 3)
        for name, median in medians.items()
        if name.startswith("hf-mem")
    }
    print(json.dumps({"runs": RUNS, "median_seconds": medians, "ratio_to": ratios}, indent=2))


if __name__ == "__main__":
    main()
