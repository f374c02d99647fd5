"""What is planned of a named model is what its simulated run takes, and needs no PyTorch."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import BUILT, tiny_config
from tritter_mem.allocator.caching_allocator import CachingAllocator
from tritter_mem.allocator.rules import SMALL_SEGMENT_BYTES
from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models import gated_delta_blocks
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.huggingface_families import all_families
from tritter_mem.models.shape_tensors import NotPlannedError
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.least import least_memory
from tritter_mem.planner.reserved import Reserved
from tritter_mem.planner.transformers_engine import SHORTENED, plan_transformers, play_run
from tritter_mem.results.run import MemoryUse

CARD = find_gpu("h100")
PLANNED = tuple(name for name in BUILT if all_families()[name].dialect is not None)
TRAINED_NOT = ("mamba", "falcon_mamba", "jamba", "inkling_text")
"""Families whose training is not planned."""
RUN_WHOLE = ("mamba", "falcon_mamba", "mamba2", "minimax")
"""Families whose prompts transformers cannot cut."""
NEAR = 0.01
NOT_TO_THE_BYTE = (
    "qwen3_vl_text", "qwen3_vl_moe_text", "gemma3_text", "gpt_oss", "mamba",
    "falcon_mamba", "mamba2", "nemotron_h",
)  # fmt: skip
"""Families of which some KiB of small temporary tensors differ, or a segment that they share."""
DIFFERING: dict[str, dict[str, int]] = json.loads(
    (Path(__file__).parent / "differing_storages.json").read_text()
)
"""What `differing` counts of a run of a family; nothing where nothing is said."""
IN_NO_ORDER = ("gemma4_text", "mimo_v2_flash")
"""Families of whose simulated tensors some go sooner or later from process to process."""
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma3": LLAMA | {
        "model_type": "gemma3_text", "head_dim": 64, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt-oss": LLAMA | {
        "model_type": "gpt_oss", "head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2_moe": LLAMA | {
        "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "shared_expert_intermediate_size": 128,
    },
    "deepseek": LLAMA | {
        "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 64,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 64, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "deepseek_v4": LLAMA | {
        "model_type": "deepseek_v4", "num_key_value_heads": 1, "head_dim": 64, "q_lora_rank": 64,
        "o_groups": 2, "o_lora_rank": 64, "index_n_heads": 2, "index_head_dim": 32,
        "index_topk": 16, "qk_rope_head_dim": 16, "moe_intermediate_size": 64,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "num_hash_layers": 1,
        "sliding_window": 16, "hc_sinkhorn_iters": 3,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
    },
}  # fmt: skip


def a_run(values: dict[str, Any], **changes: Any) -> TransformersRun:
    return TransformersRun(
        model=read_config(values),
        config=values,
        dtype=storage_format(changes.get("dtype", "bfloat16")),
        work=Workload.model_validate({"context": 200, "new_tokens": 6} | changes.get("work", {})),
        prefill_chunk=changes.get("chunk"),
        training=Training.model_validate(changes.get("training", {})),
    )


RUNS: dict[str, dict[str, Any]] = {
    "whole": {"work": {"new_tokens": 3}},
    "chunks": {"work": {"batch": 3}, "chunk": 70},
    "training": {"work": {"mode": "training", "new_tokens": 1, "batch": 2}},
    "checkpointing": {
        "work": {"mode": "training", "new_tokens": 1},
        "training": {"master_dtype": "float32", "checkpointing": {"policy": "every-layer"}},
    },
}


def both(run: TransformersRun, trace: Path | None = None) -> tuple[MemoryUse, MemoryUse]:
    pytest.importorskip("transformers")
    from tritter_mem.simulation.transformers_model import simulate_transformers

    return plan_transformers(run, CARD), simulate_transformers(run, CARD, save_trace=trace)


def differing(run: TransformersRun, trace: Path) -> dict[str, int]:
    """Where a plan and a simulation differ: how many storages of each phase only one of them has.

    And of `moments`: after how many of the prompt's allocations there lives another sum, counted
    from its beginning. Generated tokens are left out where the plan leaves some out.
    """
    played = play_run(run, CARD)
    with gzip.open(trace, "rt") as file:
        header, *events = map(json.loads, file)
    sizes = played.requests.sizes
    traced = {event["alloc"]: event["bytes"] for event in events if "alloc" in event}
    numbers = [event["alloc"] if "alloc" in event else ~event["free"] for event in events]
    found, phases = {}, {name: slice(begin, end) for name, begin, end in header["phases"]}
    for name, first, last in played.spans:
        if not name:  # the warm-up
            continue
        planned = served(played.requests.events[first:last], sizes)
        simulated = served(numbers[phases[name]], traced)
        found[name] = unequal(*([size for size, _ in one] for one in (planned, simulated)))
        if name in ("prefill", "forward"):
            found["moments"] = unequal(*([live for _, live in one] for one in (planned, simulated)))
    if run.work.new_tokens > SHORTENED:
        del found["decode"]
    return {name: count for name, count in found.items() if count}


def served(
    events: Iterable[int], sizes: Sequence[int] | Mapping[int, int]
) -> list[tuple[int, int]]:
    """Of each storage that has bytes: how many, and how many live with it."""
    live, found = 0, []
    for event in events:
        live += sizes[event] if event >= 0 else -sizes[~event]
        if event >= 0 and sizes[event]:
            found.append((sizes[event], live))
    return found


def unequal(ones: Iterable[int], others: Iterable[int]) -> int:
    """How many are only among the one, or only among the others."""
    one, other = Counter(ones), Counter(others)
    return ((one - other) + (other - one)).total()


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("name", PLANNED)
def test_a_plan_is_what_a_simulated_run_takes(name: str, kind: str, tmp_path: Path) -> None:
    run = a_run(tiny_config(name, 0) | {"attention_dropout": 0.0}, **RUNS[kind])
    if (run.trains and name in TRAINED_NOT) or (run.prefill_chunk and name in RUN_WHOLE):
        with pytest.raises(NotPlannedError):
            plan_transformers(run, CARD)
        return
    planned, simulated = both(run, tmp_path / "trace")
    found = differing(run, tmp_path / "trace")
    if name in IN_NO_ORDER:
        found.pop("moments", None)
    assert found == DIFFERING.get(f"{name} {kind}", {})
    assert planned.allocated_peak_bytes == pytest.approx(simulated.allocated_peak_bytes, rel=NEAR)
    assert planned.reserved_peak_bytes is not None
    assert simulated.reserved_peak_bytes is not None
    assert planned.reserved_peak_bytes >= simulated.reserved_peak_bytes
    assert [phase.name for phase in planned.phases] == [phase.name for phase in simulated.phases]
    if not run.trains and name not in NOT_TO_THE_BYTE:
        assert peaks(planned) == peaks(simulated)
        assert planned.reserved_peak_bytes == simulated.reserved_peak_bytes + SMALL_SEGMENT_BYTES


@pytest.mark.parametrize("name", [name for name in PLANNED if name not in NOT_TO_THE_BYTE])
def test_another_configuration_of_a_family_is_planned_to_the_byte(name: str) -> None:
    planned, simulated = both(a_run(tiny_config(name, 2) | {"attention_dropout": 0.0}))
    assert peaks(planned) == peaks(simulated)


BESIDE_FLOAT16 = [
    name
    for name in PLANNED
    if all_families()[name].float32_beside_float16 and name != "deepseek_v4"  # which fails
]


@pytest.mark.parametrize("name", [name for name in BESIDE_FLOAT16 if name not in NOT_TO_THE_BYTE])
def test_float16_leaves_some_weights_in_float32(name: str) -> None:
    values = tiny_config(name, 0) | {"attention_dropout": 0.0}
    planned, simulated = both(a_run(values, dtype="float16"))
    assert planned.phases[0].components == simulated.phases[0].components
    assert peaks(planned) == peaks(simulated)


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lightning attention first": (
        "minimax", {"layer_types": ["linear_attention", "full_attention"] * 2},
    ),
    "tuned queries without angles": (
        "llama4_text", {"attn_temperature_tuning": True, "no_rope_layers": [1, 0, 1, 0, 1]},
    ),
}  # fmt: skip
"""Configurations that tiny ones are not, of a family."""


def other_run(what: str) -> TransformersRun:
    name, changes = OTHERS[what]
    return a_run(tiny_config(name, 0) | {"attention_dropout": 0.0} | changes)


@pytest.mark.parametrize("what", OTHERS)
def test_what_a_family_does_seldom_is_planned_to_the_byte(what: str) -> None:
    planned, simulated = both(other_run(what))
    assert peaks(planned) == peaks(simulated)


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_mask_makes_no_difference_between_an_a100_and_an_rtx_5090(name: str) -> None:
    """Both have the kernel that takes one: efficient attention, not the plain one."""
    run = a_run(tiny_config(name, 0) | {"attention_dropout": 0.0, "sliding_window": 32})
    found = [play_run(run, find_gpu(card)).requests.sizes for card in ("a100-80gb", "rtx-5090")]
    assert len(found[0]) == len(found[1])


def peaks(use: MemoryUse) -> list[int]:
    return [phase.allocated_peak_bytes for phase in use.phases]


SMALL = LLAMA | {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 100, "attention_dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "context", "new_tokens"), [(64, 200, 3), (64, 200, 20), (130, 78, 9), (256, 60, 40)]
)
def test_ids_of_many_sequences_are_planned_to_the_byte(
    batch: int, context: int, new_tokens: int
) -> None:
    """Of a model so small that they show, with tokens between that are not played."""
    work = {"batch": batch, "context": context, "new_tokens": new_tokens}
    planned, simulated = both(a_run(SMALL, work=work))
    assert peaks(planned) == peaks(simulated)


def test_of_many_tokens_a_few_are_played() -> None:
    """As many events whatever their number, unless every one is asked for."""
    run = a_run(SMALL, work={"context": 600, "new_tokens": 500})
    short = a_run(SMALL, work={"context": 600, "new_tokens": 20})
    events = len(play_run(run, CARD).requests.events)
    assert events == pytest.approx(len(play_run(short, CARD).requests.events), rel=0.1)
    assert len(play_run(run, CARD, every_token=lambda _: True).requests.events) > 20 * events


@pytest.mark.parametrize(
    ("kind", "briefly", "plays"), [("whole", False, 2), ("whole", True, 1), ("training", False, 1)]
)
def test_where_a_token_releases_memory_every_one_is_played_but_in_brief(
    kind: str, briefly: bool, plays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []

    class Counting(CachingAllocator):
        def serve(self, sizes: Any, events: Any, held: Any) -> list[int]:
            asked = list(events)
            played[-1] += len(asked)
            return super().serve(sizes, asked, held)

    def releasing(play: Any, *_: object) -> Reserved:
        allocator = Counting()
        played.append(0)
        play(allocator)
        return Reserved(allocator.counters.reserved.peak, 1)

    monkeypatch.setattr("tritter_mem.planner.transformers_engine.find_reserved", releasing)
    work = {"context": 300, "new_tokens": 200} if kind == "whole" else RUNS[kind]["work"]
    plan_transformers(a_run(SMALL, work=work), CARD, budget_bytes=1 << 40, briefly=briefly)
    assert len(played) == plays
    if plays == 2:
        assert played[1] > 5 * played[0]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "sgd"])
def test_the_state_of_an_optimizer_is_that_of_a_simulated_step(optimizer: str) -> None:
    """With weights of fewer than 4096 elements, and of no whole blocks of 256."""
    values = SMALL | {"vocab_size": 1001, "intermediate_size": 77}
    training = {"optimizer": optimizer}
    run = a_run(values, work={"mode": "training", "new_tokens": 1}, training=training)
    planned, simulated = (use.phases[-1].components.optimizer_state_bytes for use in both(run))
    assert planned == simulated
    state = 0
    for _, weight in run.model.language_weights():
        size = weight.elements
        eight_bits = size + 4 * -(-size // 256) if size >= 4096 else 4 * size
        state += {"adamw": 4 + 2 * 4 * size, "adamw-8bit": 2 * eight_bits, "sgd": 0}[optimizer]
    assert planned == state


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_that_of_the_run_to_the_byte(kind: str) -> None:
    """Weights, tables, and what a model holds beside them: angles for each kind of layer."""
    planned, simulated = both(a_run(KINDS[kind] | {"attention_dropout": 0.0}))
    assert planned.phases[0].components == simulated.phases[0].components


@pytest.mark.parametrize("kind", ["llama", "qwen2_moe", "deepseek"])
def test_the_cache_is_that_of_the_model_to_the_byte(kind: str) -> None:
    run = a_run(KINDS[kind], work={"batch": 2})
    requests = play_run(run, CARD).requests
    live, most = 0, 0
    for event in requests.events:
        number = event if event >= 0 else ~event
        if requests.components[number] == "kv_cache":
            live += requests.sizes[number] if event >= 0 else -requests.sizes[number]
            most = max(most, live)
    layers = run.model.layers
    # At its end a step holds all layers' new keys and values, and those of one layer twice.
    cached = run.model.cache_bytes(run.work.context - 1, run.work.batch)
    assert cached < most <= cached + cached // len(layers)


def test_chunks_that_run_at_once_take_what_they_take_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = tiny_config("qwen3_next", 0) | {"attention_dropout": 0.0, "num_hidden_layers": 2}
    context = 3 * gated_delta_blocks.CHUNKS_TRAINED * gated_delta_blocks.CHUNK
    run = a_run(values, work={"mode": "training", "new_tokens": 1, "context": context})
    at_once = plan_transformers(run, CARD, plays=False)
    monkeypatch.setattr(gated_delta_blocks, "CHUNKS_TRAINED", context)
    one_by_one = plan_transformers(run, CARD, plays=False)
    assert at_once.allocated_peak_bytes != one_by_one.allocated_peak_bytes
    assert at_once.allocated_peak_bytes == pytest.approx(one_by_one.allocated_peak_bytes, rel=NEAR)


def test_chunks_that_run_at_once_are_as_few_as_may_be() -> None:
    most = gated_delta_blocks.CHUNKS_TRAINED
    for chunks in range(1, 6 * most):
        count = gated_delta_blocks._at_once(chunks)
        fitting = [n for n in range(1, chunks + 1) if chunks % n == 0 and chunks <= n * most]
        assert count in (1, fitting[0])
        assert count == fitting[0] or fitting[0] > 2 * chunks // most


@pytest.mark.parametrize("name", ["kimi_linear", "bailing_hybrid"])
def test_a_step_keeps_what_each_of_many_chunks_made(name: str) -> None:
    """Of a prompt with so many chunks that inference would leave some out."""
    values = tiny_config(name, 0) | {"attention_dropout": 0.0}
    work = {"mode": "training", "new_tokens": 1, "context": 900}
    planned, simulated = both(a_run(values, work=work))
    assert planned.allocated_peak_bytes == pytest.approx(simulated.allocated_peak_bytes, rel=NEAR)


def test_weights_that_transformers_dequantises_are_planned_so() -> None:
    section = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    stored, plain = a_run(LLAMA | {"quantization_config": section}), a_run(LLAMA)
    old = find_gpu("a100-80gb")
    assert plan_transformers(stored, old) == plan_transformers(plain, old)
    assert plan_transformers(stored, CARD) != plan_transformers(plain, CARD)


W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 4, "symmetric": True}


def test_the_least_of_packed_integers_is_of_what_they_become_in_the_first_call() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": W4 | {"num_bits": 8}}},
    }
    run = a_run(LLAMA | {"quantization_config": section})
    with pytest.raises(NotPlannedError, match="in the first call"):
        plan_transformers(run, CARD)
    least = least_memory(run, CARD, "why")
    assert least.components.weights_bytes == a_run(LLAMA).model.weight_bytes
    assert run.model.weight_bytes < least.components.weights_bytes


FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}


def rounded(kind: str, strategy: str) -> dict[str, Any]:
    """Activations of compressed-tensors, whose scales are found unless there is one for all."""
    return {
        "num_bits": 8, "type": kind, "strategy": strategy, "symmetric": True,
        "dynamic": strategy != "tensor",
    }  # fmt: skip


def coded(weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTISED: dict[str, dict[str, Any]] = {
    "nf4": NF4 | {"bnb_4bit_compute_dtype": "bfloat16"},
    "nf4, nested, products in float32": NF4 | {"bnb_4bit_use_double_quant": True},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "packed int4": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": W4}},
        "ignore": ["lm_head"],
    },
    "packed int4 with zeros": coded(W4 | {"symmetric": False}, None),
    "fp8, tokens rounded": coded(FP8, rounded("float", "token")),
    "fp8, a scale for all": coded(FP8 | {"strategy": "tensor"}, rounded("float", "tensor")),
    "fp8, blocks": coded(
        FP8 | {"strategy": "block", "block_structure": [2, 2]},
        rounded("float", "group") | {"group_size": 2},
    ),
    "fp8 weights alone": coded(FP8, None),
    "int8, tokens rounded": coded(FP8 | {"type": "int"}, rounded("int", "token")),
    "fp8 of transformers": {"quant_method": "fp8", "weight_block_size": [2, 2]},
}


@pytest.mark.parametrize("stored", QUANTISED)
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe", "deepseek_v3"])
def test_quantised_weights_are_planned_as_they_are_simulated(
    name: str, stored: str, tmp_path: Path
) -> None:
    """qwen2 has biases, whose type changes; experts stay as they are."""
    values = tiny_config(name, 0) | {"quantization_config": QUANTISED[stored]}
    if name == "deepseek_v3" and stored.startswith(
        "packed int4"
    ):  # whose latent is no whole groups
        with pytest.raises(NotPlannedError, match="found 10 inputs in groups of 4"):
            plan_transformers(a_run(values), CARD)
        return
    run = a_run(values | {"attention_dropout": 0.0}, **RUNS["chunks"])
    planned, simulated = both(run, tmp_path / "trace")
    assert differing(run, tmp_path / "trace") == DIFFERING.get(f"{name} {stored}", {})
    assert planned.allocated_peak_bytes == pytest.approx(simulated.allocated_peak_bytes, rel=NEAR)
    assert (planned.reserved_peak_bytes or 0) >= (simulated.reserved_peak_bytes or 0)
    for found, wanted in zip(planned.phases[:1], simulated.phases[:1], strict=True):
        assert found.components.weights_bytes == wanted.components.weights_bytes
        assert found.components.embeddings_bytes == wanted.components.embeddings_bytes


@pytest.mark.parametrize("stored", QUANTISED)
def test_what_a_product_expands_is_planned(stored: str) -> None:
    """Of a model whose largest product is much of its peak."""
    wide = LLAMA | {"intermediate_size": 65536, "num_hidden_layers": 1, "vocab_size": 100}
    planned, simulated = both(a_run(wide | {"quantization_config": QUANTISED[stored]}))
    for found, wanted in zip(planned.phases, simulated.phases, strict=True):
        assert found.allocated_peak_bytes == pytest.approx(wanted.allocated_peak_bytes, rel=0.001)


def test_without_the_allocator_nothing_is_said_of_what_is_reserved() -> None:
    run = a_run(LLAMA)
    fast, whole = plan_transformers(run, CARD, plays=False), plan_transformers(run, CARD)
    assert fast.reserved_peak_bytes is None
    assert fast.components.rounding_bytes == 0
    assert fast.allocated_peak_bytes <= whole.allocated_peak_bytes
    assert whole.components.total_bytes == whole.allocated_peak_bytes


@pytest.mark.parametrize("chunk", [None, 700])
def test_where_memory_is_released_every_token_is_played(chunk: int | None) -> None:
    """Whether that happens for the prompt or for a token; in brief, fewer are."""
    run = a_run(
        LLAMA | {"hidden_size": 1024, "head_dim": 256},
        work={"context": 3000, "batch": 4, "new_tokens": 24},
        chunk=chunk,
    )
    every = play_run(run, CARD, every_token=lambda _: True).requests
    most = plan_transformers(run, CARD).footprint_bytes
    found = []
    for budget in range(most - (120 << 20), most, 8 << 20):
        plan = plan_transformers(run, CARD, budget_bytes=budget)
        if plan.cache_releases:
            limit = budget - SMALL_SEGMENT_BYTES
            alone = CachingAllocator(None, limit, CARD.context_bytes)
            alone.serve(every.sizes, every.events, {})
            reserved = (plan.reserved_peak_bytes or 0) - SMALL_SEGMENT_BYTES
            assert reserved == alone.counters.reserved.peak
            assert plan.cache_releases == alone.counters.num_alloc_retries
            assert plan.footprint_bytes <= budget
            found.append(budget)
    assert found
    brief = plan_transformers(run, CARD, budget_bytes=found[0], briefly=True)
    whole = plan_transformers(run, CARD, budget_bytes=found[0])
    assert brief.phases[0] == whole.phases[0]


def deeper(values: dict[str, Any]) -> dict[str, Any]:
    """Three times as many layers."""
    types = {"layer_types": 3 * values["layer_types"]} if "layer_types" in values else {}
    return values | {"num_hidden_layers": 3 * values["num_hidden_layers"]} | types


GROWN = {
    # By whole chunks: what DeepSeek-V4 compresses depends on how many tokens the last one has, and
    # a simulation of 256 tokens in chunks of 50 takes less than one of 128.
    "context": lambda run, values: (values, run | {"context": run["context"] + 200}),
    "batch": lambda run, values: (values, run | {"batch": 2 * run["batch"]}),
    "layers": lambda run, values: (deeper(values), run),
    "heads": lambda run, values: (
        values
        | {name: 2 * values[name] for name in ("num_attention_heads", "num_key_value_heads")}
        | {"head_dim": values.get("head_dim", 64)},
        run,
    ),
}


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    grown=st.sampled_from(sorted(GROWN)),
    context=st.integers(8, 400),
    batch=st.integers(1, 3),
    chunk=st.sampled_from([None, 50]),
)
def test_more_never_plans_less(
    kind: str, grown: str, context: int, batch: int, chunk: int | None
) -> None:
    work: dict[str, Any] = {"context": context, "batch": batch, "new_tokens": 4}
    values, more = GROWN[grown](work, KINDS[kind])
    less = plan_transformers(a_run(KINDS[kind], work=work, chunk=chunk), CARD, plays=False)
    plan = plan_transformers(a_run(values, work=more, chunk=chunk), CARD, plays=False)
    assert plan.allocated_peak_bytes >= less.allocated_peak_bytes


NOISE = {"router_jitter_noise": 0.1}


def test_what_has_no_formulas_is_said() -> None:
    quantised = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    train = {"mode": "training", "new_tokens": 1}
    for values, changes, said in (
        (tiny_config("qwen4_exp_text", 0), {}, "activations of qwen4_exp_text models"),
        (tiny_config("mamba", 0), {"chunk": 70}, "prompts of mamba models whole alone"),
        (tiny_config("phimoe", 0) | {"num_experts_per_tok": 3}, {}, "num_experts_per_tok other"),
        (quantised, {}, "gptqmodel for GPTQ"),
        (LLAMA | {"hidden_act": "xielu"}, {}, "activation xielu"),
        (LLAMA | {"attention_dropout": 0.1}, {"work": train}, "training with attention_dropout"),
        (tiny_config("mixtral", 0) | NOISE, {"work": train}, "training with router_jitter_noise"),
        (tiny_config("jamba", 0), {"work": train}, "a scan token by token"),
    ):
        with pytest.raises(NotPlannedError, match=said):
            plan_transformers(a_run(values, **changes), CARD)


def test_a_plan_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from tests.planner import test_transformers_engine as t;"
        "t.plan_transformers(t.a_run(t.LLAMA), t.CARD);"
        "print({'torch', 'transformers', 'pandas', 'plotly'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
