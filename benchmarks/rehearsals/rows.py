"""What is rehearsed: a script of `scripts/`, its options, and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritter_mem.config.named_profile import NamedProfile

SCRIPTS = Path(__file__).parent / "scripts"
TORCH = "2.14.0"
RELEASES = ("2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rehearsal.

    Attributes:
        name: what the table calls it.
        command: behind `--`; a file of `scripts/` by its name.
        options: of `rehearse`.
        torch: the release to run over.
        needs: what the environment has besides.
        allocated_gib: the allocated peak that is known, and
        reserved_gib: the reserved one,
        source: from where.
        exit_code: what is expected.
        model: a released model, whose simulated run is what is known; its configuration is the
            first argument of the command.
        wheels: whether NVIDIA's own libraries are in the environment too.
        cause: why it differs from what is known.
        measured: whether the same was run on a GPU, whose figures are what is known.
        alone: whether it fills so much of a GPU that it is measured by itself.
    """

    name: str
    command: str
    options: str = "--gpu h100"
    torch: str = TORCH
    needs: tuple[str, ...] = ("transformers==5.24.0",)
    allocated_gib: float | None = None
    reserved_gib: float | None = None
    source: str = ""
    exit_code: int = 0
    model: str = ""
    wheels: bool = False
    cause: str = ""
    measured: bool = False
    alone: bool = False

    def profile(self) -> NamedProfile:
        """Of its model."""
        from tritter_mem.config.loading import load_any
        from tritter_mem.config.named_profile import NamedProfile

        card = self.options.split()[1]
        loaded = load_any(self.model, {
            "gpu.name": card, "workload.context": CONTEXT, "workload.new_tokens": NEW_TOKENS,
        })  # fmt: skip
        assert isinstance(loaded, NamedProfile)  # noqa: S101  (for mypy)
        return loaded

    def words(self, folder: Path) -> list[str]:
        """The command's words; the configuration of its model is written into the folder."""
        if not self.model:
            return self.command.format(folder=folder / "model").split()
        from tritter_mem.models.transformers_run import transformers_run

        run, config = transformers_run(self.profile()), folder / "config.json"
        config.write_text(json.dumps(dict(run.config)))
        return self.command.format(config=config, dtype=run.dtype.name).split()


_EXPERIMENT = "an experiment over an earlier form of the stand-ins"
_PUBLISHED = (
    "FanBB2333/FakeGPU@7d5cf83cf3ce docs/llm-sft-memory-estimation.md, RTX PRO 5000 "
    "with torch 2.8.0, equal on an RTX 3090 Ti with torch 2.12.1, transformers 5.12.1"
)
_NO_WORKSPACE = (
    "64 MiB less: PyTorch keeps no cuBLAS workspace from 2.15 on; before, the threads of the "
    "forward and of the backward pass keep 32 MiB each"
)
_PEFT = ("transformers==5.24.0", "peft")
_2_RANKS = "torchrun --nproc-per-node 2"


def _fine_tuned(words: str, allocated_gib: float, ranks: int = 1) -> Row:
    launcher = f"torchrun --nproc-per-node {ranks}" if ranks > 1 else "python"
    return Row(
        name=f"Qwen3.5, {words}" + (f", {ranks} ranks" if ranks > 1 else ""),
        command=f"{launcher} fine_tuning.py {words}",
        options=f"--gpu rtx-3090-ti --gpus {ranks}",
        torch="2.12.1",
        needs=("transformers==5.12.1", "peft==0.21.2"),
        allocated_gib=allocated_gib,
        source=_PUBLISHED,
    )


CONTEXT, NEW_TOKENS = 4096, 4
MODELS = (
    "qwen3-0.6b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "qwen3.5-0.8b",
    "llama-3.2-1b",
    "gemma-3-1b",
    "gemma-2-2b",
    "mistral-7b",
    "olmo-2-7b",
    "smollm3-3b",
    "phi-4-mini",
    "lfm2-1.2b",
)
_TOKENS = (
    "a block of 512 bytes for each token that begins or fills sequences: `generate()` makes a "
    "tensor of it, and the simulation has none"
)
_CAUSES = dict.fromkeys(
    ("llama-3.2-1b", "gemma-3-1b", "gemma-2-2b", "mistral-7b", "smollm3-3b", "phi-4-mini"), _TOKENS
) | {
    "olmo-2-7b": f"{_TOKENS}; rehearsed with PyTorch 2.14.0 and transformers 5.24.0",
    "lfm2-1.2b": "two such tokens, 16 bytes; the other requests are the same, and are served from "
    "other free blocks, which leaves 81,920 bytes less of rounding",
}
"""By model: why its rehearsal and its simulation differ."""


def _generated(model: str) -> Row:
    """With the PyTorch and the transformers that simulate."""
    return Row(
        name=f"{model}, {CONTEXT:,} tokens",
        command=f"python named_model.py {{config}} {CONTEXT - NEW_TOKENS} {NEW_TOKENS} {{dtype}}",
        torch="2.13.0",
        needs=("transformers==5.23.0",),
        model=model,
        cause=_CAUSES.get(model, ""),
    )


ROWS = (
    Row(name="8B, forward of 2,048 tokens", command="python llama.py 8b forward"),
    Row(name="8B, AdamW, checkpointed", command="python llama.py 8b train",
        allocated_gib=74.850, reserved_gib=76.152, source=_EXPERIMENT),
    Row(name="8B, LoRA of rank 16", command="python llama.py 8b lora", needs=_PEFT,
        allocated_gib=18.960, source=_EXPERIMENT),
    Row(name="70B on the card", command="python llama.py 70b forward", exit_code=1),
    Row(name="8B, sampled generation", command="python llama.py 8b generate"),
    Row(name="Trainer, 1.1 B", command="python trainer.py",
        needs=("transformers==5.24.0", "accelerate")),
    Row(name="8B, FSDP2, two ranks", command=f"{_2_RANKS} llama.py 8b fsdp",
        options="--gpu h100 --gpus 2"),
    Row(name="8B, FSDP2, rank 0 of 2 alone", command="python llama.py 8b fsdp",
        options="--gpu h100 --rank 0 --world-size 2"),
    Row(name="70B, FSDP2, rank 0 of 64", command="python llama.py 70b fsdp",
        options="--gpu h100 --rank 0 --world-size 64"),
    Row(name="405B, FSDP2, rank 0 of 1,024", command="python llama.py 405b shards",
        options="--gpu h200 --rank 0 --world-size 1024"),
    Row(name="1B, compiled, reduce-overhead", command="python llama.py 1b compile"),
    Row(name="cuDNN, cuSOLVER, cuFFT", command="python libraries.py"),
    Row(name="vLLM, Qwen3-8B, 32,768 tokens",
        command="vllm serve {folder} --load-format dummy --max-model-len 32768",
        needs=("vllm==0.33.0",)),
    Row(name="bitsandbytes", command="python bits.py", needs=("bitsandbytes", "numpy")),
    _fine_tuned("0.8b full 16 2", 6.626),
    _fine_tuned("0.8b full 128", 6.687),
    _fine_tuned("0.8b full 128 checkpointed", 6.679),
    _fine_tuned("0.8b lora 16", 1.756),
    _fine_tuned("0.8b lora 128", 2.696),
    _fine_tuned("0.8b lora 128 checkpointed", 1.876),
    _fine_tuned("2b full 16 2", 15.939),
    _fine_tuned("2b lora 16", 3.868),
    _fine_tuned("2b lora 128", 4.959),
    _fine_tuned("2b lora 128 checkpointed", 3.974),
    _fine_tuned("0.8b sharded 16", 3.308, 2),
    _fine_tuned("0.8b sharded 128", 3.357, 2),
    _fine_tuned("0.8b sharded-lora 16", 1.961, 2),
    _fine_tuned("0.8b sharded-lora 128", 2.687, 2),
    _fine_tuned("0.8b sharded-lora 16", 1.594, 4),
    _fine_tuned("0.8b sharded-lora 64", 1.803, 4),
    _fine_tuned("0.8b sharded-lora 128", 2.322, 4),
    *(
        Row(name=f"8B, AdamW, checkpointed, torch {release}", command="python llama.py 8b train",
            torch=release, cause=_NO_WORKSPACE if release == RELEASES[-1] else "")
        for release in RELEASES if release != TORCH
    ),
    *(
        Row(name=f"8B, AdamW, checkpointed, torch {release}, NVIDIA's wheels there",
            command="python llama.py 8b train", torch=release, wheels=True)
        for release in (RELEASES[0], RELEASES[-1])
    ),
    *map(_generated, MODELS),
)  # fmt: skip

_MEASURED_WITH = ("transformers==5.17.0", "accelerate==1.15.0", "peft")
_MEASURED_MODELS = ("qwen3-8b", "qwen3-30b-a3b", "qwen3.5-0.8b", "gemma-3-1b")
"""Dense, of experts, with linear attention, with windows of attention."""
_MEASURED_CAUSES = {
    "gemma-3-1b": "the requests are the same, in the same order; of free blocks of one size "
    "PyTorch 2.11 takes the lowest, and on the H200 some segments lay where something else had "
    "left addresses, which no rule gives; with that run's addresses the rehearsal is equal",
}
"""By model: why its rehearsal and the GPU differ."""


def _measured(row: Row, *, alone: bool = False) -> Row:
    """A rehearsal of what is measured, with the releases that were there."""
    return replace(
        row, name=f"{row.name}, measured", torch="2.11.0", needs=_MEASURED_WITH, measured=True,
        options="--gpu h200", alone=alone, allocated_gib=None, reserved_gib=None, source="",
        cause=_MEASURED_CAUSES.get(row.model, ""),
    )  # fmt: skip


MEASURED = (
    *(_measured(_generated(model)) for model in _MEASURED_MODELS),
    *(
        _measured(_fine_tuned(words, 0))
        for words in ("0.8b full 128", "0.8b lora 128 checkpointed")
    ),
    _measured(Row(name="1B, compiled, reduce-overhead", command="python llama.py 1b compile")),
    _measured(Row(name="8B, AdamW, checkpointed", command="python llama.py 8b train"), alone=True),
)
"""What `make gpu` runs too."""
ROWS = (*ROWS, *MEASURED)
