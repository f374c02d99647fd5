"""The whole model gives the same bits with each fused launch as without, in fewer launches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops.registry import Operator
from tritter_model.ops.tuning import tuned
from tritter_model.transformer import Transformer

LAYERS = 2
MODEL = ModelConfig(
    hidden_size=64,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=20,
    intermediate_size=96,
    vocab_size=67,
)
CASE = RunConfig(
    model=MODEL, cache=CacheConfig(group_size=8), context=24, batch=2, multiprocessors=4
)
SWITCHES = {
    "angles_once": ({"rotary_angles": 4}, set()),
    "fused_merge": ({}, {"quantise_rows"}),
    "fused_add_norm": ({"add_rms_norm_rows": 4 * (2 * LAYERS - 1)}, set()),
}
"""What each runs in four steps, and what it no longer runs in a decode step."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operators that ran, in order."""
    names: list[str] = []
    call = Operator.__call__

    def noted(operator: Operator, *args: object) -> None:
        names.append(operator.name)
        call(operator, *args)

    monkeypatch.setattr(Operator, "__call__", noted)
    return names


@torch.inference_mode()
def hidden_states(model: Transformer, run: RunConfig, ids: Tensor) -> Tensor:
    """A prompt in two chunks, then two tokens: [B, tokens, H]."""
    cache = KVCache(run, ids.device)
    steps = [model.extend(part, cache, run.multiprocessors) for part in ids.split([9, 5, 1, 1], 1)]
    return torch.cat(steps, 1)


@pytest.mark.parametrize("form", ["ternary-2bit", "bfloat16"])
def test_a_switch_leaves_the_bits_alone(
    device: torch.device, kernels: None, called: list[str], form: str
) -> None:
    run = replace(CASE, model=replace(MODEL, weight_format=form))
    model = Transformer(run.model, device, seed=3)
    ids = torch.randint(0, MODEL.vocab_size, (2, 16))
    called.clear()
    wanted, without = hidden_states(model, run, ids), list(called)
    for switch, (more, fewer) in SWITCHES.items():
        called.clear()
        with tuned(**{switch: True}):
            ours = hidden_states(model, run, ids)
        assert ours.isfinite().all(), switch
        assert torch.equal(ours, wanted), switch
        if form == "bfloat16" and switch != "angles_once":
            assert called == without, switch
            continue
        assert {name: called.count(name) for name in more} == more, switch
        for name in fewer:
            assert called.count(name) == without.count(name) - 2 * LAYERS, switch
        added = 4 if switch == "angles_once" else 0
        assert len(called) == len(without) + added - len(fewer) * 2 * LAYERS, switch
