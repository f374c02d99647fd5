"""A whole small model with kernels: packed as trained, bit for bit, and near its references."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.config import ModelConfig, RunConfig, TrainingConfig
from tritter_model.run import run
from tritter_model.transformer import Transformer

CONFIG = ModelConfig(
    hidden_size=40,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=20,
    intermediate_size=34,
    vocab_size=33,
)
CASE = RunConfig(
    model=CONFIG, training=TrainingConfig(loss_chunk=5), context=8, prefill_chunk=5, new_tokens=2
)


def final_hidden(model: Transformer, ids: Tensor) -> Tensor:
    """Of a whole sequence at once."""
    x = model.embedding.embed(ids.flatten(), None, model.dtype)
    return model.hidden_states(x, ids.shape[0], CASE.training)


@pytest.mark.parametrize("form", ["ternary-2bit", "ternary-1.6bit"])
def test_a_packed_model_equals_the_trained_one(
    device: torch.device, kernels: None, form: str, seed: int
) -> None:
    trained = Transformer(replace(CONFIG, weight_format=form), device, trainable=True, seed=seed)
    ids = torch.randint(0, CONFIG.vocab_size, (1, 7))
    with torch.no_grad():
        assert torch.equal(final_hidden(trained, ids), final_hidden(trained.packed(), ids))


def test_a_training_step_agrees_with_the_references(
    device: torch.device, both: Callable[[Callable[[], Any]], tuple[Any, Any]], seed: int
) -> None:
    model = Transformer(CONFIG, device, trainable=True, seed=seed)
    ids = torch.randint(0, CONFIG.vocab_size, (1, 9))

    def gradients() -> tuple[Tensor, ...]:
        loss = model.loss(ids, torch.roll(ids, -1, 1), CASE.training)
        return loss.detach(), *torch.autograd.grad(loss, tuple(model.parameters()))

    for ours, theirs in zip(*both(gradients), strict=True):
        distance = (ours.double() - theirs.double()).norm()
        assert distance <= 0.05 * theirs.double().norm()


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_every_phase_runs(device: torch.device, kernels: None, mode: str) -> None:
    phases: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        phases.append(name)
        yield

    run(replace(CASE, mode=mode), str(device), phase)
    assert phases[-1] == ("decode" if mode == "inference" else "optimizer")
