"""Labels: what an allocation is for, said where it is made."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tritter_model import labels, vision
from tritter_model.config import ModelConfig, RunConfig, TrainingConfig
from tritter_model.kv_cache import KVCache
from tritter_model.optim import OPTIMIZERS
from tritter_model.transformer import Transformer

CPU = torch.device("cpu")


def test_the_innermost_label_counts_and_ends_with_its_block() -> None:
    assert labels.current() == labels.ACTIVATIONS
    with labels.label(labels.WEIGHTS):
        with labels.label(labels.EMBEDDINGS):
            assert labels.current() == labels.EMBEDDINGS
        assert labels.current() == labels.WEIGHTS
    assert labels.current() == labels.ACTIVATIONS


def test_a_label_ends_with_an_error_too() -> None:
    def fail() -> None:
        with labels.label(labels.WEIGHTS):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert labels.current() == labels.ACTIVATIONS


@pytest.mark.parametrize("weight_format", ["ternary-2bit", "bfloat16", "int8", "int4"])
def test_what_is_loaded_is_labelled_by_its_part(
    run: RunConfig, recording: Any, monkeypatch: pytest.MonkeyPatch, weight_format: str
) -> None:
    monkeypatch.setattr(vision, "LAYERS", 1)
    config = replace(
        run.model, vision=True, weight_format=weight_format, embedding_dtype="int8"
    )  # fmt: skip
    with recording() as events:
        model, cache = Transformer(config, CPU), KVCache(replace(run, model=config), CPU)
    assert model.vision is not None
    tables = [*model.embedding.state_dict().values(), *model.head.state_dict().values()]
    parts = {
        labels.WEIGHTS: [*model.layers.state_dict().values(), model.norm.weight],
        labels.EMBEDDINGS: tables,
        labels.VISION: list(model.vision.state_dict().values()),
        labels.KV_CACHE: [tensor for layer in cache.layers for tensor in layer.tensors()],
    }
    for name, tensors in parts.items():
        assert events.labels_of(tensors) == {name}


def test_inference_labels_logits_and_scratch(run: RunConfig, recording: Any) -> None:
    model, cache = Transformer(run.model, CPU), KVCache(run, CPU)
    with torch.inference_mode(), recording() as events:
        for position in (0, 20):
            ids = torch.randint(0, 131, (1, 20 if position == 0 else 5))
            logits = model.logits(model.extend(ids, cache, run.multiprocessors))
    assert events.labels_of([logits]) == {labels.LOGITS}
    found = {made.label for made in events.made}
    assert found == {labels.ACTIVATIONS, labels.LOGITS, labels.WORKSPACE}
    scratch = [made for made in events.made if made.label == labels.WORKSPACE]
    assert {made.shape[0] for made in scratch} == {2, 5}  # expanded history, running output


@pytest.mark.parametrize("weight_format", ["ternary-2bit", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_training_labels_gradients_and_optimizer_state(
    config: ModelConfig, recording: Any, weight_format: str, tied: bool
) -> None:
    config = replace(config, weight_format=weight_format, tie_word_embeddings=tied)
    model = Transformer(config, CPU, trainable=True)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    ids = torch.randint(0, 131, (2, 17))
    with recording() as events:
        model.loss(ids, ids, TrainingConfig(loss_chunk=10)).backward()
        assert events.labels_of(p.grad for p in model.parameters()) == {labels.GRADIENTS}
        optimizer.step()
    state = [tensor for moments in optimizer.state.values() for tensor in moments]
    assert events.labels_of(state) == {labels.OPTIMIZER_STATE}
    assert {made.shape for made in events.made if made.label == labels.LOGITS} == {(10, 131)}
