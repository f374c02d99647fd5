"""Train a small GPT on random tokens, then evaluate it. Needs a GPU, or a rehearsal of one.

tritter-mem rehearse --gpu rtx-4090 -- python docs/examples/train_gpt.py

`evaluate` keeps the logits of all batches on the GPU, so its memory grows with their number:
make_snapshot.sh has a run that ends there.
"""

from __future__ import annotations

import argparse

import torch
from gpt import GPT
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 50304
TOKENS = 1024


def batch_of(size: int) -> Tensor:
    """Random token ids, [size, TOKENS], on the GPU."""
    return torch.randint(VOCABULARY, (size, TOKENS)).to("cuda")


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy of the next tokens."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: nn.Module, steps: int, size: int) -> None:
    """AdamW on random batches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(steps):
        ids = batch_of(size)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(model(ids), ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")


@torch.no_grad()
def evaluate(model: nn.Module, batches: int, size: int) -> None:
    """The mean loss over some batches."""
    inputs = [batch_of(size) for _ in range(batches)]
    outputs = []
    for ids in inputs:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            outputs.append(model(ids))  # all of them stay on the card
    losses = [loss_of(logits, ids) for logits, ids in zip(outputs, inputs, strict=True)]
    print(f"evaluation: loss {torch.stack(losses).mean().item():.3f}")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="Train a small GPT on random tokens.")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--eval-batches", type=int, default=4)
    chosen = parser.parse_args()
    model = GPT(chosen.layers, 768, 12, VOCABULARY, TOKENS).to("cuda")
    train(model, chosen.steps, chosen.batch_size)
    evaluate(model, chosen.eval_batches, chosen.batch_size)


if __name__ == "__main__":
    main()
