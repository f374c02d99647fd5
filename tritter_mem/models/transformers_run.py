"""What Hugging Face transformers runs of a model: the loop of `generate()`, or a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritter_mem.config.profile import Training, Workload
from tritter_mem.models.formats import StorageFormat
from tritter_mem.models.huggingface import HuggingFaceModel


@dataclass(frozen=True, kw_only=True)
class TransformersRun:
    """One run, described once for the formulas and for the simulation.

    Inference is the loop of greedy `generate()`: the prompt, whole or `prefill_chunk` tokens at a
    time, then token by token, with logits of the last token alone and a `DynamicCache`. Training is
    one step of `Trainer`: forward with labels, backward, optimizer, gradients set to None.

    Attributes:
        model: what the configuration describes.
        config: keys of the `config.json`, from which transformers builds the model.
        dtype: of activations, of the cache, and of weights that are not quantised.
        work: mode, tokens, sequences. The prompt runs whole unless the workload names a chunk.
        prefill_chunk: tokens of the prompt that run at a time; None: all.
        training: the optimizer and the type of trained weights. In float32 the forward pass runs
            under autocast to `dtype`; checkpointing is of every layer or of none.
    """

    model: HuggingFaceModel
    config: Mapping[str, Any]
    dtype: StorageFormat
    work: Workload
    prefill_chunk: int | None
    training: Training

    @property
    def trains(self) -> bool:
        """Whether the run is a training step."""
        return self.work.mode == "training"

    @property
    def prompt(self) -> int:
        """Tokens of each sequence that are there before any is generated."""
        return self.work.context - self.work.new_tokens
