"""Tokens per second come from the tokens that a phase really takes."""

from dataclasses import replace

import pytest

from tritter_mem.measure import phases
from tritter_mem.measure.phases import Stopwatch, phase_tokens, with_speed
from tritter_mem.results.run import Components, MemoryUse, Phase
from tritter_model.config import ModelConfig, RunConfig

MODEL = ModelConfig(
    hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    intermediate_size=128, vocab_size=128,
)  # fmt: skip
INFERENCE = RunConfig(model=MODEL, context=100, new_tokens=21, batch=2)
TRAINING = replace(INFERENCE, mode="training")


def use(*names: str) -> MemoryUse:
    phases = tuple(Phase(name=name, allocated_peak_bytes=1) for name in names)
    return MemoryUse(device="cpu", components=Components(), phases=phases, allocated_peak_bytes=1)


def test_prompt_goes_through_prefill_and_all_but_the_first_new_token_through_decode() -> None:
    assert phase_tokens(INFERENCE) == {"prefill": 158, "decode": 40}


def test_inference_is_as_fast_as_its_decode() -> None:
    seconds = {"load": 1.0, "prefill": 2.0, "decode": 8.0}
    timed = with_speed(use("load", "prefill", "decode"), seconds, INFERENCE)
    assert [phase.seconds for phase in timed.phases] == [1.0, 2.0, 8.0]
    assert [phase.tokens_per_second for phase in timed.phases] == [None, 79.0, 5.0]
    assert timed.tokens_per_second == 5.0


def test_one_new_token_leaves_decode_without_a_speed() -> None:
    seconds = {"load": 1.0, "prefill": 2.0, "decode": 1e-6}
    run = replace(INFERENCE, new_tokens=1)
    timed = with_speed(use("load", "prefill", "decode"), seconds, run)
    assert timed.tokens_per_second is None
    assert timed.phases[2].tokens_per_second is None


def test_training_is_as_fast_as_a_whole_step() -> None:
    seconds = {"load": 9.0, "warmup": 9.0, "forward": 1.0, "backward": 2.0, "optimizer": 1.0}
    timed = with_speed(use("load", "forward", "backward", "optimizer"), seconds, TRAINING)
    assert [phase.tokens_per_second for phase in timed.phases] == [None, 200.0, 100.0, None]
    assert timed.tokens_per_second == 50.0


def test_stopwatch_sums_a_phase_that_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 3.0, 10.0, 14.5])
    monkeypatch.setattr(phases, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.phase("decode"):
            pass
    assert stopwatch.seconds == {"decode": 2.0 + 4.5}
