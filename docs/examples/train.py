"""Train a small language model on random tokens: by itself, or a process for each GPU.

python docs/examples/train.py --batch-size 8
torchrun --nproc-per-node 2 docs/examples/train.py
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WORDS, WIDTH, LAYERS, CONTEXT = 32_000, 1024, 12, 1024


class Model(nn.Module):
    """A decoder of 12 layers, 216 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 16, 4 * WIDTH, 0.0, "gelu", batch_first=True)
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Scores of each next word: batch, context, words."""
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        scores: Tensor = self.head(hidden)
        return scores


def main() -> None:
    """A few steps of AdamW."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    model: nn.Module = Model().to(device)
    if "RANK" in os.environ:
        dist.init_process_group("nccl")
        model = DistributedDataParallel(model, device_ids=[device.index])
    optimizer = torch.optim.AdamW(model.parameters())
    mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT, device)
    for step in range(asked.steps):
        tokens = torch.randint(WORDS, (asked.batch_size, CONTEXT + 1), device=device)
        with torch.autocast("cuda", torch.bfloat16):
            scores = model(tokens[:, :-1], mask)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
