"""The formulas equal what the bundled model really allocates, to the byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from tests.planner.cases import (
    DETERMINED,
    KV_TYPES,
    POLICIES,
    assert_plan_is_exact,
    card,
    profiles,
    tiny,
)
from tritter_mem.config.profile import Profile
from tritter_mem.models.bundled import architecture_of, run_settings
from tritter_mem.planner.case import Case
from tritter_mem.planner.compose import plan
from tritter_mem.planner.training import LayerStep
from tritter_model.ops.tuning import tuned
from tritter_model.transformer import Transformer

# Each example runs a model, so a failing one is shown as it was found: shrinking takes minutes.
SLOW = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    print_blob=True,
)


@SLOW
@given(profile=profiles())
def test_any_profile_is_planned_exactly(profile: Profile) -> None:
    assert_plan_is_exact(profile)


@pytest.mark.parametrize("name", DETERMINED)
def test_each_step_is_planned_exactly(name: str) -> None:
    assert_plan_is_exact(tiny(**DETERMINED[name]))


@SLOW
@given(profile=profiles())
def test_planned_parameters_are_those_of_the_model(profile: Profile) -> None:
    config = run_settings(profile, card()).model
    trainable = profile.workload.mode == "training" and profile.weights.format.startswith("ternary")
    if not trainable and profile.weights.format not in ("bfloat16", "float16", "float32"):
        return  # packed tensors do not have one element a parameter
    model = Transformer(config, torch.device("meta"), trainable=trainable)
    assert sum(p.numel() for p in model.parameters()) == architecture_of(profile.model).parameters


@pytest.mark.parametrize("weights", ["ternary-2bit", "ternary-1.6bit"])
@pytest.mark.parametrize("dtype", KV_TYPES)
def test_tiny_inference_on_the_cpu(dtype: str, weights: str) -> None:
    assert_plan_is_exact(tiny(kv_cache__dtype=dtype, weights__format=weights), "cpu")


@pytest.mark.parametrize("new_tokens", [1, 2, 5])
def test_a_captured_step(new_tokens: int) -> None:
    assert_plan_is_exact(tiny(workload__cuda_graph=True, workload__new_tokens=new_tokens))


def test_the_plan_follows_the_programs_that_attention_is_split_for() -> None:
    profile = tiny(workload__context=8192, workload__prefill_chunk=64, workload__batch=3)
    scratch = []
    for programs in (2, 3):
        with tuned(decode_programs=programs):
            assert_plan_is_exact(profile)
            scratch.append(plan(profile, card()).phases[-1].allocated_peak_bytes)
    assert scratch[0] < scratch[1]


@pytest.mark.parametrize("weights", ["ternary-2bit", "bfloat16"])
@pytest.mark.parametrize("switch", ["angles_once", "fused_merge", "fused_add_norm"])
def test_the_plan_follows_fused_launches(switch: str, weights: str) -> None:
    profile = tiny(workload__batch=3, weights__format=weights)
    with tuned(**{switch: True}):
        assert_plan_is_exact(profile)
        assert_plan_is_exact(tiny(workload__cuda_graph=True, weights__format=weights))


@pytest.mark.parametrize("policy", POLICIES)
def test_tiny_training_on_the_cpu(policy: str) -> None:
    checkpointing = {"policy": policy, "n": 2}
    profile = tiny(workload__mode="training", training__checkpointing=checkpointing)
    assert_plan_is_exact(profile, "cpu")


@pytest.mark.parametrize("policy", ["selective-attention", "selective-matmul"])
def test_what_a_selective_policy_keeps_is_counted_once(policy: str) -> None:
    """Float layers have no rows and packed weights beside it, so attention is where it shows."""
    checkpointing = {"policy": policy, "n": 1}
    model = {"vision": None, "qk_norm": False, "num_attention_heads": 12, "head_dim": 32,
             "hidden_size": 96, "num_key_value_heads": 4, "intermediate_size": 352}  # fmt: skip
    assert_plan_is_exact(
        tiny(
            **{f"model__{key}": value for key, value in model.items()},
            weights__format="bfloat16",
            training__master_dtype="bfloat16",
            workload__mode="training",
            training__checkpointing=checkpointing,
            training__loss_chunk=100,
            workload__context=857,
            model__vocab_size=5000,
            weights__embedding_dtype="float32",
        )
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw-8bit"])
def test_tiny_training_with_other_optimizers_on_the_cpu(optimizer: str) -> None:
    assert_plan_is_exact(tiny(workload__mode="training", training__optimizer=optimizer), "cpu")


def test_what_a_norm_saves_is_there_from_its_step_on() -> None:
    """Roots of mean squares too, which the first step of a block makes."""
    profile = tiny(workload__mode="training")
    [layer, *_] = Case.of(profile, card()).architecture.layers
    block = LayerStep(layer, Case.of(profile, card())).blocks[0]
    for name in ("norm", "rstd"):
        with_it, without = (next(block.forward(kept, ["norm"])) for kept in ([name], []))
        assert with_it.total_bytes - without.total_bytes == block.bytes_of([name]) > 0
