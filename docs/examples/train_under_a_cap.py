"""Train the 125m model under a memory cap that a plain loop cannot meet, with the same loss curve.

python docs/examples/train_under_a_cap.py                 # on the CPU, on a simulated device
python docs/examples/train_under_a_cap.py --device cuda   # on a GPU, the process capped for real
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tritter_mem import MemoryManager
from tritter_mem.config.loading import load_profile
from tritter_mem.devices.cuda import CudaDevice, memory_fraction
from tritter_mem.devices.device import Device
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.bundled import run_settings
from tritter_mem.oom.jobs import training_job
from tritter_mem.oom.ladder import AS_IT_IS
from tritter_mem.oom.simulated_device import SimulatedDevice
from tritter_mem.results.run import Ladder
from tritter_mem.units import GB, parse_bytes
from tritter_model.config import ModelConfig, TrainingConfig
from tritter_model.optim import AdamW
from tritter_model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and how long."""

    profile: str = "125m"
    device: str = "cpu"
    batch: int = 8
    context: int = 128
    steps: int = 3

    def model(self) -> ModelConfig:
        """The architecture of a bundled profile, in what a CPU computes in fastest."""
        changed = {"workload.mode": "training", "weights.format": "float32"}
        profile = load_profile(self.profile, changed)
        return run_settings(profile, find_gpu(profile.gpu.name)).model

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Random tokens, and the tokens that follow them; the same ones every time."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.context)
        for _ in range(self.steps):
            ids = torch.randint(self.model().vocab_size, shape, generator=generator).to(self.device)
            targets = ids.roll(-1, 1)
            targets[:, -1] = -100
            yield ids, targets


def loss(model: Transformer, ids: Tensor, targets: Tensor) -> Tensor:
    """The mean over the tokens that count."""
    return model.loss(ids, targets, TrainingConfig())


def count(ids: Tensor, targets: Tensor) -> Tensor:
    """What the mean is over."""
    return (targets != -100).sum()


def train_plainly(case: Case) -> list[float]:
    """The loop as everybody writes it: the loss of each step."""
    model = Transformer(case.model(), torch.device(case.device), trainable=True)
    optimizer, losses = AdamW(model.parameters()), []
    for batch in case.batches():
        result = loss(model, *batch)
        result.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result.item())
    return losses


def train_managed(case: Case, manager: MemoryManager) -> list[float]:
    """The same loop, each forward and backward pass handed to a manager."""
    model = Transformer(case.model(), torch.device(case.device), trainable=True)
    optimizer, losses, settings = AdamW(model.parameters()), [], AS_IT_IS
    for batch in case.batches():
        outcome = manager.run(training_job(model, loss, batch, count), settings)
        settings = outcome.settings  # the next step need not fail its way down again
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outcome.value.item())
    return losses


@contextmanager
def capped(case: Case, cap_bytes: int) -> Iterator[Device]:
    """A device that gives no more than so many bytes: simulated, or the GPU with a cap."""
    if case.device == "cpu":
        with SimulatedDevice(cap_bytes) as device:
            yield device
        return
    total = torch.cuda.mem_get_info()[1]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(memory_fraction(min(cap_bytes, total), total))
    try:
        yield CudaDevice(torch.cuda.current_device())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def plain_loop_runs(case: Case, cap_bytes: int) -> bool:
    """Whether a plain loop ends under a cap."""
    try:
        with capped(case, cap_bytes):
            train_plainly(case)
    except torch.OutOfMemoryError:
        return False
    return True


def cured(case: Case, cap_bytes: int) -> tuple[list[float], list[Ladder]]:
    """Losses of the managed loop under a cap, and the rungs that each step went through."""
    with capped(case, cap_bytes) as device:
        manager = MemoryManager(budget_gb=cap_bytes / GB, headroom_gb=0, device=device)
        return train_managed(case, manager), list(manager.history)


def main() -> None:
    """Train plainly without a cap, plainly under it, and managed under it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cap", type=parse_bytes, help="default: 2400 MiB, on a GPU 4 GB")
    parser.add_argument("--steps", type=int, default=Case.steps)
    asked = parser.parse_args()
    on_gpu = asked.device == "cuda"
    batch, context = (16, 1024) if on_gpu else (Case.batch, Case.context)
    case = Case(device=asked.device, batch=batch, context=context, steps=asked.steps)
    cap = asked.cap or parse_bytes("4 GB" if on_gpu else "2400 MiB")
    print("plain loop, no cap:   ", *(f"{value:.4f}" for value in train_plainly(case)))
    print("plain loop under cap: ", "runs" if plain_loop_runs(case, cap) else "out of memory")
    losses, ladders = cured(case, cap)
    print("managed, under cap:   ", *(f"{value:.4f}" for value in losses))
    for number, ladder in enumerate(ladders, 1):
        print(f"step {number}:", "; ".join(f"{step.rung}: {step.ended}" for step in ladder.steps))


if __name__ == "__main__":
    main()
