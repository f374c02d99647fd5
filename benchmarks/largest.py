"""Whether the largest context or batch that `plan --max` names holds when it is simulated.

`make largest`, or `python -m benchmarks.largest [--rows TEXT] [--again]`. Of each row the value is
simulated within the budget, which it must not exceed, and one percent more, which must. What was
simulated is kept in `out/largest/simulated.json`, so a run that was interrupted goes on. The table
is written to `reports/largest.md`. Exit code 1 where a row does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tritter_mem.config.cards import GpuCard
from tritter_mem.config.loading import load_any
from tritter_mem.config.named_profile import AnyProfile, NamedProfile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.transformers_run import transformers_run
from tritter_mem.planner.compose import budget_of
from tritter_mem.planner.solve import find_largest, with_value
from tritter_mem.results.largest import Unknown
from tritter_mem.units import GiB

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "out" / "largest" / "simulated.json"
PAGE = ROOT / "reports" / "largest.md"
MORE = 100
"""One part in so many more does not fit."""


class Row(NamedTuple):
    """A model on a card, what is solved for, and further settings."""

    model: str
    card: str
    unknown: Unknown = "context"
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """In words."""
        others = "".join(f", {key.split('.')[-1]} {value}" for key, value in self.settings)
        return f"{self.model} on {self.card}, {self.unknown}{others}"

    def profile(self) -> AnyProfile:
        """What is planned."""
        name = self.model
        if name in CONFIGS:
            path = KEPT.parent / name / "config.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(CONFIGS[name]))
            name = str(path)
        return load_any(name, {"gpu.name": self.card, **dict(self.settings)})


CONFIGS = {
    "mla-16b-a3b": {
        "model_type": "deepseek_v3", "hidden_size": 2048, "intermediate_size": 11264,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
        "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "vocab_size": 163840, "max_position_embeddings": 8192,
        "tie_word_embeddings": False, "dtype": "bfloat16", "num_nextn_predict_layers": 0,
    },
}  # fmt: skip
"""Models that no bundled name stands for, with their keys."""


TRAINING = ("workload.mode", "training")
EXPANDABLE = ("allocator.conf", "expandable_segments:True")
ROWS = (
    Row("qwen3-0.6b", "rtx-3060"),
    Row("llama-3.2-1b", "rtx-5080"),
    Row("qwen3-8b", "rtx-4090"),
    Row("qwen3-4b", "l4"),
    Row("llama-3.1-8b", "h100"),
    Row("7b", "rtx-5080"),
    Row("7b-128k-gqa", "rtx-4080"),
    Row("qwen3-30b-a3b", "h100"),
    Row("mistral-7b", "l4"),
    Row("smollm3-3b", "rtx-4080"),
    Row("gemma-3-4b", "rtx-4080"),
    Row("gemma-4-26b-a4b", "a100-80gb"),
    Row("mla-16b-a3b", "a100-40gb"),
    Row("qwen3-8b", "rtx-4080", settings=(("weights.quantization", "bitsandbytes-nf4"),)),
    Row("qwen3-8b", "rtx-4090", settings=(("workload.prefill_chunk", 2048),)),
    Row("qwen3-8b", "rtx-4090", settings=(EXPANDABLE, ("workload.prefill_chunk", 2048))),
    Row("qwen3-8b", "rtx-4090", "batch"),
    Row("qwen3-0.6b", "rtx-4090", "context", (TRAINING,)),
    Row("qwen3-0.6b", "rtx-4090", "batch", (TRAINING, ("workload.context", 512))),
    Row("llama-3.2-1b", "h100", "batch",
        (TRAINING, ("training.checkpointing.policy", "every-layer"))),
)  # fmt: skip


def main() -> int:
    """Simulate what was not simulated yet, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose names have this in them")
    parser.add_argument("--again", action="store_true", help="also those that were simulated")
    asked = parser.parse_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        if asked.rows not in row.name:
            continue
        profile = row.profile()
        begins = time.process_time()
        found = find_largest(profile, row.unknown)
        seconds = time.process_time() - begins
        value, before = found.value or 0, kept.get(row.name, {})
        if asked.again or before.get("value") != value:
            before = {"value": value, **_simulated(profile, row.unknown, value)}
        kept[row.name] = before | {"planned": found.footprint_bytes, "plan_seconds": seconds}
        KEPT.write_text(json.dumps(kept, indent=1))
        print(_line(row.name, kept[row.name]), flush=True)
    rows = {row.name: kept[row.name] for row in ROWS if row.name in kept}
    PAGE.write_text(page(rows))
    return 0 if all(map(holds, rows.values())) else 1


def _simulated(profile: AnyProfile, unknown: Unknown, value: int) -> dict[str, Any]:
    """What a value takes when simulated, and what one percent more takes."""
    card = find_gpu(profile.gpu.name)
    more = value + max(1, value // MORE)
    return {
        "budget": budget_of(profile, card),
        "simulated": footprint_bytes(with_value(profile, unknown, value), card),
        "more": more,
        "more_simulated": footprint_bytes(with_value(profile, unknown, more), card),
    }


def footprint_bytes(profile: AnyProfile, card: GpuCard) -> int:
    """What a profile needs when it is simulated within its budget."""
    from tritter_mem.simulation.simulate import simulate
    from tritter_mem.simulation.transformers_model import simulate_transformers

    budget = budget_of(profile, card)
    if isinstance(profile, NamedProfile):
        run, conf = transformers_run(profile), profile.allocator.conf
        return simulate_transformers(run, card, conf, budget_bytes=budget).footprint_bytes
    return simulate(profile, fast=True, card=card, budget_bytes=budget).footprint_bytes


def holds(found: dict[str, Any]) -> bool:
    """Whether the value fits when it is simulated, and one percent more does not."""
    return bool(found["simulated"] <= found["budget"] < found["more_simulated"])


def _line(name: str, found: dict[str, Any]) -> str:
    sizes = (f"{found[key] / GiB:.3f}" for key in ("planned", "simulated", "budget"))
    more = f"{found['more']:,} needs {found['more_simulated'] / GiB:.3f}"
    verdict = "" if holds(found) else " DOES NOT HOLD"
    return f"{name}: {found['value']:,}: {' / '.join(sizes)}; {more}{verdict}"


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The table."""
    held = sum(map(holds, rows.values()))
    lines = [
        "# What `plan --max` names, simulated",
        "",
        "Made by `make largest`. Each value is the largest that the plan fits into the card's",
        "default budget. It is simulated within that budget, and so is one percent more, which",
        "must not fit. Sizes are GiB of the device; seconds are CPU time of `plan --max`.",
        "",
        f"{held} of {len(rows)} rows hold.",
        "",
        "| row | largest | planned | simulated | budget | 1% more, simulated | holds | s |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, found in rows.items():
        sizes = (found[key] / GiB for key in ("planned", "simulated", "budget", "more_simulated"))
        lines.append(
            f"| {name} | {found['value']:,} | {' | '.join(f'{size:.3f}' for size in sizes)} | "
            f"{'yes' if holds(found) else '**no**'} | {found['plan_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
