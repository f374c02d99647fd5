"""Whole cases: the phases, the tokens, the losses, and the same memory on `meta` as on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model import vision
from tritter_model.checkpointing import POLICIES
from tritter_model.config import CacheConfig, RunConfig, TrainingConfig
from tritter_model.kv_cache import KVCache
from tritter_model.run import infer, train
from tritter_model.run import run as run_case
from tritter_model.transformer import Transformer
from tritter_model.vision import PATCHES

CPU, META = torch.device("cpu"), torch.device("meta")
CACHES = ["bfloat16", "float16", "fp8", "int8", "int4", "int2"]


def phases_of(case: RunConfig, device: str) -> list[str]:
    names: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        names.append(name)
        yield
        names.append(f"end of {name}")

    run_case(case, device, phase)
    return names


def ended(*names: str) -> list[str]:
    return [part for name in names for part in (name, f"end of {name}")]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_phases_come_in_order(run: RunConfig, device: str) -> None:
    assert phases_of(run, device) == ended("load", "warmup", "prefill", "decode")
    training = replace(run, mode="training")
    wanted = ended("load", "warmup", "forward", "backward", "optimizer")
    assert phases_of(training, device) == wanted


@torch.inference_mode()
def greedy(case: RunConfig, prompt: Tensor) -> Tensor:
    """One token at a time from the first on: no chunks, no separate prefill."""
    model, cache = Transformer(case.model, CPU, seed=case.seed), KVCache(case, CPU)
    ids = prompt
    for position in range(case.context - 1):
        logits = model.logits(model.extend(ids[:, position : position + 1], cache, 3))
        if position + 1 == ids.shape[1]:
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
    return ids[:, prompt.shape[1] :]


def prompt_of(case: RunConfig) -> Tensor:
    """The random prompt that a case draws from its seed."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.context - case.new_tokens)
    return torch.empty(shape, dtype=torch.int64).random_(0, 131, generator=generator)


@pytest.mark.parametrize("dtype", CACHES)
def test_a_prompt_in_chunks_of_one_decodes_as_token_by_token(
    run: RunConfig, seed: int, dtype: str
) -> None:
    """Prefill and decode are one computation, in every cache type, with and without a window."""
    model = replace(run.model, sliding_window=7, global_attention_every=2)
    case = replace(run, model=model, seed=seed, batch=2, prefill_chunk=1)
    case = replace(case, cache=replace(case.cache, dtype=dtype))
    got = infer(case, CPU, nullcontext_of)
    assert got.shape == (2, 6)
    assert torch.equal(got, greedy(case, prompt_of(case)))


def nullcontext_of(_: str) -> Any:
    return nullcontext()


def test_the_same_seed_decodes_the_same_tokens(run: RunConfig, seed: int) -> None:
    tokens = [infer(replace(run, seed=s), CPU, nullcontext_of) for s in (seed, seed, seed + 1)]
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens[0], tokens[2])


def test_training_reports_two_losses_of_which_the_second_is_lower(
    run: RunConfig, seed: int
) -> None:
    first, second = train(replace(run, mode="training", seed=seed), CPU, nullcontext_of)
    assert second < first
    assert train(replace(run, mode="training"), META, nullcontext_of) == []


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "LAYERS", 1)


@pytest.mark.usefixtures("shallow")
def test_an_image_is_neither_a_row_of_the_table_nor_a_target(
    run: RunConfig, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    original = Transformer.loss

    def spy(model: Transformer, ids: Tensor, targets: Tensor, *rest: Any) -> Tensor:
        seen.append((ids.clone(), targets.clone()))
        return original(model, ids, targets, *rest)

    monkeypatch.setattr(Transformer, "loss", spy)
    model = replace(run.model, vision=True)
    train(replace(run, mode="training", model=model, context=210, seed=seed), CPU, nullcontext_of)
    ids, targets = seen[0]
    assert (ids[:, :PATCHES] < 0).all()
    assert (ids[:, PATCHES:] >= 0).all()
    assert torch.equal(targets[:, PATCHES - 1 : -1], ids[:, PATCHES:])
    assert (targets[:, : PATCHES - 1] == -100).all()
    assert (targets[:, -1] == -100).all()


def memory(case: RunConfig, device: str, recording: Any) -> list[Any]:
    """Every allocation of a case, in order."""
    with recording() as events:
        run_case(case, device, nullcontext_of)
    made: list[Any] = events.made
    return made


def assert_alike(case: RunConfig, recording: Any) -> None:
    real, simulated = (memory(case, device, recording) for device in ("cpu", "meta"))
    for index, (one, other) in enumerate(zip(real, simulated, strict=False)):
        assert (one.nbytes, one.shape, one.dtype) == (other.nbytes, other.shape, other.dtype), (
            index, one, other,
        )  # fmt: skip
    assert len(real) == len(simulated)


@pytest.mark.parametrize("dtype", CACHES)
@pytest.mark.parametrize(
    "settings", [{}, {"sliding_window": 7, "global_attention_every": 2}], ids=str
)
def test_inference_allocates_alike_on_meta_and_on_the_cpu(
    run: RunConfig, recording: Any, dtype: str, settings: Any
) -> None:
    case = replace(run, cache=CacheConfig(dtype=dtype, group_size=16, attention_sinks=4), batch=2)
    assert_alike(replace(case, model=replace(run.model, **settings)), recording)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_format": "ternary-1.6bit"},
        {"weight_format": "bfloat16"},
        {"weight_format": "float16", "embedding_dtype": "float32"},
        {"weight_format": "int8", "embedding_dtype": "int8"},
        {"weight_format": "int4", "tie_word_embeddings": True},
        {"qk_norm": False},
        {"vision": True},
    ],
    ids=str,
)
def test_every_format_allocates_alike_on_meta_and_on_the_cpu(
    run: RunConfig, recording: Any, settings: Any
) -> None:
    case = replace(run, context=212 if "vision" in settings else 40, prefill_chunk=100)
    assert_alike(replace(case, model=replace(run.model, **settings)), recording)


@pytest.mark.parametrize(
    ("policy", "optimizer"),
    [*((policy, "adamw") for policy in POLICIES), ("none", "adamw-8bit"), ("none", "sgd")],
)
def test_training_allocates_alike_on_meta_and_on_the_cpu(
    run: RunConfig, recording: Any, policy: str, optimizer: str
) -> None:
    training = TrainingConfig(optimizer=optimizer, checkpointing=policy, n=2, loss_chunk=20)
    assert_alike(replace(run, mode="training", training=training), recording)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    "settings",
    [
        {"weight_format": "bfloat16"},
        {"weight_format": "float32", "tie_word_embeddings": True},
        {"master_dtype": "bfloat16", "tie_word_embeddings": True},
        {"qk_norm": False, "sliding_window": 7},
        {"vision": True},
    ],
    ids=str,
)
def test_every_trained_format_allocates_alike_on_meta_and_on_the_cpu(
    run: RunConfig, recording: Any, settings: Any
) -> None:
    case = replace(run, mode="training", context=212 if "vision" in settings else 40)
    assert_alike(replace(case, model=replace(run.model, **settings)), recording)


@pytest.mark.parametrize("at_once", [2, 1])
def test_a_step_in_pieces_trains_as_the_whole_does(run: RunConfig, seed: int, at_once: int) -> None:
    """Three sequences, two and one at a time, one by one: the second loss follows the update."""
    model = replace(run.model, weight_format="float32")
    whole = replace(run, model=model, mode="training", batch=3, seed=seed)
    pieces = replace(whole, training=replace(whole.training, micro_batch=at_once))
    wanted, got = (train(case, CPU, nullcontext_of) for case in (whole, pieces))
    assert got == pytest.approx(wanted, rel=1e-4)


def test_a_step_in_pieces_allocates_alike_on_meta_and_on_the_cpu(
    run: RunConfig, recording: Any
) -> None:
    training = TrainingConfig(micro_batch=2)
    assert_alike(replace(run, mode="training", batch=3, training=training), recording)
