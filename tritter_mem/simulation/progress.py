"""How far a simulation is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tritter_model.config import SHORTENED, RunConfig, TrainingConfig


class Progress:
    """Written by the simulation, and read, from another thread too, by what shows it.

    Attributes:
        task: what runs: a profile's name, and what is simulated of it.
        phase: the phase of the run; empty outside of any.
        layer: number of the layer that ran last, from 1; 0 before the first.
        layers: how many there are.
        done: passes through a layer so far.
        total: passes that the run takes; 0 where it is not known.
    """

    def __init__(self) -> None:
        self.begin("")

    def begin(self, task: str) -> None:
        """Start anew with something else."""
        self.task, self.phase = task, ""
        self.layer = self.layers = self.done = self.total = 0

    @contextmanager
    def following(self, run: RunConfig) -> Iterator[None]:
        """Count the passes through the bundled model's layers while it runs."""
        from tritter_model.layer import Layer

        passes = layer_passes(run)
        with self._counting(
            lambda module: isinstance(module, Layer), run.model.num_hidden_layers, passes
        ):
            yield

    @contextmanager
    def counting(self, layers: Iterable[Any], passes: int) -> Iterator[None]:
        """Count the passes through a model's layers while it runs.

        Args:
            layers: its layers.
            passes: how many of all of them the run takes.
        """
        known = set(layers)
        with self._counting(known.__contains__, len(known), passes):
            yield

    @contextmanager
    def _counting(
        self, is_layer: Callable[[Any], bool], layers: int, passes: int
    ) -> Iterator[None]:
        from torch.nn.modules.module import register_module_forward_pre_hook

        numbers: dict[Any, int] = {}

        def count(module: Any, args: Any) -> None:
            if is_layer(module):
                self.layer = numbers.setdefault(module, len(numbers) + 1)
                self.done += 1

        self.layers, self.total = layers, passes
        handle = register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def entering(self, phase: str) -> Iterator[None]:
        """Say that a phase runs."""
        self.phase = phase
        try:
            yield
        finally:
            self.phase = ""


def layer_passes(run: RunConfig) -> int:
    """How often a run of the bundled model passes through a layer, its warm-up included."""
    layers = run.model.num_hidden_layers
    if run.mode == "training":
        pieces = -(-run.batch // (run.training.micro_batch or run.batch))
        return 2 * pieces * (layers + _recomputed_layers(run.training, layers))
    chunks = (-(-tokens // run.prefill_chunk) for tokens in run.warm_up_prompts)
    warmup = sum(min(number, SHORTENED) for number in chunks) + (run.new_tokens > 1)
    decode = 2 if run.captures else run.steps  # a replay passes through no layer
    return layers * (warmup + run.chunks + decode)


def _recomputed_layers(training: TrainingConfig, layers: int) -> int:
    if training.checkpointing == "none":
        return 0
    return -(-layers // training.n) if training.checkpointing == "every-nth" else layers
