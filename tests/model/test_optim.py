"""Optimizers: PyTorch's own steps, in the stated bytes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tritter_model.config import ModelConfig, TrainingConfig
from tritter_model.ops import adamw
from tritter_model.optim import OPTIMIZERS, SGD, AdamW, AdamW8bit, Rates
from tritter_model.transformer import Transformer

RATES = Rates(lr=0.01, weight_decay=0.1)
SIZES = [1, 2, 255, 256, 257, 1000]
Gradients = Callable[[int], Tensor]


def walk(optimizer: SGD, parameter: nn.Parameter, gradients: list[Tensor]) -> Tensor:
    for gradient in gradients:
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()
    return parameter.detach()


def reference(start: Tensor, gradients: list[Tensor]) -> Tensor:
    """torch.optim.AdamW in float64."""
    parameter = nn.Parameter(start.double())
    betas = (RATES.beta1, RATES.beta2)
    step = torch.optim.AdamW([parameter], RATES.lr, betas, RATES.eps, RATES.weight_decay)
    for gradient in gradients:
        parameter.grad = gradient.double()
        step.step()
    return parameter.detach()


@pytest.fixture(params=[1 << 20, 256], ids=["whole", "slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of whole parameters, and of a slice at a time."""
    monkeypatch.setattr(adamw, "SLICE", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("size", SIZES)
def test_adamw_takes_pytorch_s_steps(size: int) -> None:
    start, gradients = torch.randn(size), [torch.randn(size) for _ in range(10)]
    parameter = nn.Parameter(start.clone())
    got = walk(AdamW([parameter], RATES), parameter, gradients)
    torch.testing.assert_close(got.double(), reference(start, gradients), rtol=1e-6, atol=1e-6)


def test_adamw_on_bfloat16_masters_rounds_once_a_step() -> None:
    start, gradient = torch.randn(300).bfloat16(), torch.randn(300).bfloat16()
    parameter = nn.Parameter(start.clone())
    got = walk(AdamW([parameter], RATES), parameter, [gradient])
    wanted = reference(start, [gradient])
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=1e-8)


def test_sgd_takes_pytorch_s_steps_with_decoupled_decay() -> None:
    start, gradients = torch.randn(300), [torch.randn(300) for _ in range(10)]
    parameter, wanted = nn.Parameter(start.clone()), start.double()
    got = walk(SGD([parameter], RATES), parameter, gradients)
    for gradient in gradients:
        wanted = wanted * (1 - RATES.lr * RATES.weight_decay) - RATES.lr * gradient.double()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("size", SIZES)
def test_the_first_8_bit_step_is_pytorch_s(size: int) -> None:
    """The moments are rounded when they are put away, after the step."""
    start, gradients = torch.randn(size), [torch.randn(size)]
    parameter = nn.Parameter(start.clone())
    got = walk(AdamW8bit([parameter], RATES), parameter, gradients)
    torch.testing.assert_close(got.double(), reference(start, gradients), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("size", SIZES)
def test_8_bit_steps_stay_near_pytorch_s(size: int) -> None:
    """Within a tenth of the way that ten steps of at most `lr` go."""
    start, gradients = torch.randn(size), [torch.randn(size) for _ in range(10)]
    parameter = nn.Parameter(start.clone())
    got = walk(AdamW8bit([parameter], RATES), parameter, gradients)
    error = (got - reference(start, gradients)).norm() / size**0.5
    assert error <= 0.1 * 10 * RATES.lr


@pytest.mark.parametrize("decades", [0, 2, 4])
def test_8_bit_moments_train_as_float32_ones_do(decades: int) -> None:
    """However far the sizes of a block's gradients lie apart: here up to 10,000 times."""
    losses = [trained_loss(kind, decades) for kind in (AdamW, AdamW8bit)]
    assert losses[1] <= 2 * losses[0], losses
    assert losses[0] <= 1e-3


def trained_loss(kind: type[AdamW], decades: int) -> float:
    """Mean squared error after training towards noisy targets, each number on a scale of its own.

    Linear codes leave 0.04 and more over four decades: small first moments become zero.
    """
    noise = torch.Generator().manual_seed(torch.initial_seed())
    wanted = torch.randn(256, generator=noise)
    scale = torch.logspace(-decades, 0, 256)[torch.randperm(256, generator=noise)]
    parameter = nn.Parameter(torch.zeros(256))
    optimizer = kind([parameter], Rates(weight_decay=0))
    for step in range(200):
        optimizer.rates = Rates(lr=0.04 * min(1, 2 - step / 100), weight_decay=0)
        target = wanted + 0.03 * torch.randn(256, generator=noise)
        walk(optimizer, parameter, [scale * (parameter.detach() - target)])
    return float((parameter.detach() - wanted).square().mean())


def test_no_8_bit_step_runs_away() -> None:
    """A second moment too small for its block must not become zero: a step divides by its root.

    The first number's gradient changes its sign, so that the block's first moments are small and
    its second moments large; the second number's comes late, is small, and stays away again.
    """
    parameter, block = nn.Parameter(torch.zeros(256)), torch.zeros(256)
    optimizer = AdamW8bit([parameter], Rates(lr=0.01, weight_decay=0))
    for step in range(60):
        before = parameter.detach().clone()
        block[0], block[1] = (-1) ** step, 4e-3 if 30 <= step < 50 else 0
        walk(optimizer, parameter, [block])
        assert (parameter - before).abs().max() <= 0.02, step


@pytest.mark.parametrize(
    ("name", "a_parameter", "a_block"), [("sgd", 0, 0), ("adamw", 8, 0), ("adamw-8bit", 2, 8)]
)
@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=str)
def test_state_takes_the_stated_bytes(
    recording: Any, name: str, a_parameter: int, a_block: int, master: torch.dtype
) -> None:
    """Float32 moments: 8 bytes a parameter. 8-bit: 2, and two float32 scales a block of 256."""
    shapes = [(1,), (7, 11), (256,), (257,), (30, 40)]
    parameters = [nn.Parameter(torch.randn(shape).to(master)) for shape in shapes]
    optimizer = OPTIMIZERS[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with recording() as events:
        optimizer.step()
    sizes = [parameter.numel() for parameter in parameters]
    wanted = sum(n * a_parameter + -(-n // 256) * a_block for n in sizes)
    assert sum(events.alive.values()) == wanted
    with recording() as events:
        optimizer.step()
    assert events.made == []  # a step allocates nothing


def test_frozen_parameters_and_those_without_a_gradient_are_left_alone() -> None:
    frozen, unused = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    for kind in OPTIMIZERS.values():
        optimizer = kind([frozen, unused])
        assert optimizer.parameters == [unused]
        optimizer.step()
        assert torch.equal(unused, torch.ones(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_few_steps_reduce_the_loss(config: ModelConfig, seed: int, name: str) -> None:
    model = Transformer(config, torch.device("cpu"), trainable=True, seed=seed)
    rate = 0.2 if name == "sgd" else 0.01
    optimizer = OPTIMIZERS[name](model.parameters(), Rates(lr=rate, weight_decay=0))
    ids = torch.randint(0, config.vocab_size, (2, 17))
    losses = []
    for _ in range(8):
        loss = model.loss(ids, ids.roll(-1, 1), TrainingConfig())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2, losses
