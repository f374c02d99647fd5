"""Checkpointing policies: the same gradients, the bytes that each keeps, what it repeats."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.checkpointing import POLICIES, run_layers
from tritter_model.config import ModelConfig, TrainingConfig
from tritter_model.layer import Sequences
from tritter_model.transformer import Transformer

CPU = torch.device("cpu")
CASES = [
    (policy, n)
    for policy in POLICIES
    for n in ((2, 3) if policy in ("every-nth", "segments") else (1,))
]
under_every_policy = pytest.mark.parametrize(("policy", "n"), CASES, ids=str)


@pytest.fixture(params=["ternary-2bit", "bfloat16"])
def deep(config: ModelConfig, request: pytest.FixtureRequest) -> ModelConfig:
    """Eight layers, heads that share the hidden size out, the MLP's usual proportion."""
    return replace(
        config, hidden_size=64, head_dim=16, intermediate_size=172, num_hidden_layers=8,
        weight_format=request.param,
    )  # fmt: skip


def loss_and_gradients(
    model: Transformer, training: TrainingConfig, ids: Tensor
) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    targets = ids.roll(-1, 1)
    loss = model.loss(ids, targets, training, sinks=1)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("tied", [False, True])
def test_every_policy_gives_the_same_loss_and_gradients(
    deep: ModelConfig, seed: int, tied: bool
) -> None:
    config = replace(deep, num_hidden_layers=5, sliding_window=7, tie_word_embeddings=tied)
    model = Transformer(config, CPU, trainable=True, seed=seed)
    ids = torch.randint(0, config.vocab_size, (2, 17))
    wanted, gradients = loss_and_gradients(model, TrainingConfig(loss_chunk=10), ids)
    assert len(gradients) == len(list(model.parameters()))
    assert all(g.isfinite().all() and g.any() for g in gradients)
    for policy, n in CASES[1:]:
        training = TrainingConfig(checkpointing=policy, n=n, loss_chunk=10)
        loss, others = loss_and_gradients(model, training, ids)
        assert torch.equal(loss, wanted), policy
        pairs = zip(gradients, others, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), policy


@dataclass(frozen=True)
class Bytes:
    """What one layer may keep, in bytes, for T tokens (`facts`: units of Th)."""

    config: ModelConfig
    tokens: int

    @property
    def boundary(self) -> int:
        return 2 * self.tokens * self.config.hidden_size

    @property
    def shared(self) -> float:
        """Key-value heads for each query head."""
        return self.config.num_key_value_heads / self.config.num_attention_heads

    @property
    def gate_up(self) -> int:
        return 4 * self.tokens * self.config.intermediate_size

    @property
    def attention(self) -> int:
        """The attention's output and its log-sum-exp."""
        return self.boundary + 4 * self.tokens * self.config.num_attention_heads

    @property
    def everything(self) -> int:
        """2Th(6 + 2g) + FFN + 4Ta + 8T, where this MLP's FFN is gate, up and their product."""
        mlp = self.gate_up + 2 * self.tokens * self.config.intermediate_size
        rows = int(self.boundary * (6 + 2 * self.shared))
        return rows + mlp + 4 * self.tokens * self.config.num_attention_heads + 8 * self.tokens

    def kept(self, policy: str, n: int) -> int:
        """At the end of the forward pass, by all layers together."""
        layers = self.config.num_hidden_layers
        selected = self.boundary + self.attention
        qkv = int(self.boundary * (1 + 2 * self.shared))
        checkpointed = math.ceil(layers / n)
        return {
            "none": layers * self.everything,
            "every-layer": layers * self.boundary,
            "every-nth": checkpointed * self.boundary + (layers - checkpointed) * self.everything,
            "segments": checkpointed * self.boundary,
            "selective-attention": layers * selected,
            "selective-matmul": layers * (selected + qkv + self.gate_up),
        }[policy]


def forward(model: Transformer, policy: str, n: int, x: Tensor, batch: int = 2) -> Tensor:
    layers = [partial(layer, work=Sequences(batch, sinks=1)) for layer in model.blocks]
    return run_layers(layers, x, policy, n)


@under_every_policy
def test_what_is_kept_is_the_closed_formula(
    deep: ModelConfig, seed: int, recording: Any, policy: str, n: int
) -> None:
    model = Transformer(deep, CPU, trainable=True, seed=seed)
    x = torch.randn(34, deep.hidden_size).bfloat16().requires_grad_()
    with recording() as events:
        out = forward(model, policy, n, x)
    # The input was there before, and the result is what a next layer would keep: they cancel out.
    assert sum(events.alive.values()) == Bytes(deep, 34).kept(policy, n)
    out.sum().backward()


@under_every_policy
def test_nothing_is_left_after_the_backward_pass(
    deep: ModelConfig, seed: int, recording: Any, policy: str, n: int
) -> None:
    model = Transformer(deep, CPU, trainable=True, seed=seed)
    x = torch.randn(34, deep.hidden_size).bfloat16().requires_grad_()
    with recording() as events:
        forward(model, policy, n, x).sum().backward()
        gradients = [p.grad for p in (x, *model.layers.parameters())]
    assert sum(events.alive.values()) == sum(g.nbytes for g in gradients if g is not None)


def test_policies_keep_less_in_the_order_of_what_they_recompute(deep: ModelConfig) -> None:
    order = [("none", 1), ("every-nth", 4), ("selective-matmul", 1), ("selective-attention", 1),
             ("every-layer", 1), ("segments", 4)]  # fmt: skip
    kept = [Bytes(deep, 34).kept(policy, n) for policy, n in order]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize(
    ("policy", "n", "attentions", "products"),
    [
        ("none", 1, 8, 32),
        ("every-layer", 1, 16, 32 + 24),
        ("every-nth", 4, 10, 32 + 6),
        ("segments", 4, 16, 32 + 30),
        ("selective-attention", 1, 8, 32 + 24),
        ("selective-matmul", 1, 8, 32 + 8),  # the first (qkv) and the third (gate and up) are kept
    ],
)
def test_only_what_was_not_kept_is_computed_again(
    deep: ModelConfig,
    seed: int,
    recording: Any,
    policy: str,
    n: int,
    attentions: int,
    products: int,
) -> None:
    """Attention and products of the forward pass, over both passes and all eight layers.

    The last product of what is recomputed together is not: all that was saved is there before it.
    """
    model = Transformer(deep, CPU, trainable=True, seed=seed)
    x = torch.randn(34, deep.hidden_size).bfloat16().requires_grad_()
    with recording() as events:
        forward(model, policy, n, x).sum().backward()
    assert events.calls.count("tritter.attention.default") == attentions
    assert events.calls.count("tritter.attention_backward.default") == 8
    if deep.is_ternary:
        assert events.calls.count("tritter.ternary_linear.default") == products
    else:
        assert events.calls.count("aten.mm.out") == products
        assert events.calls.count("aten.mm.default") == 32  # each layer's four input gradients


def test_layers_that_are_recomputed_are_those_that_the_policy_names() -> None:
    """every-nth checkpoints the layers with i % n == 0, the others keep everything."""
    for n, wanted in ((1, "01234"), (2, "024"), (3, "03"), (4, "04"), (9, "0")):
        runs: list[int] = []

        def layer(x: Tensor, index: int, runs: list[int] = runs) -> Tensor:
            runs.append(index)
            return x * x

        x = torch.ones(3, requires_grad=True)
        run_layers([partial(layer, index=i) for i in range(5)], x, "every-nth", n).sum().backward()
        assert runs[:5] == [0, 1, 2, 3, 4]
        assert sorted(runs[5:]) == [int(i) for i in wanted]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="got checkpointing policy 'some', expected none, every-"):
        run_layers([], torch.ones(1), "some", 1)
