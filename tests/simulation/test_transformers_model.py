"""Models of transformers on `meta` and on the CPU: the same weights, caches and states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("transformers")
import torch

from tests.models.tiny_models import BATCH, BUILT, DECODED, PREFILL, tiny_config
from tritter_mem.config.cards import GpuCard
from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import SimulationError
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.quantization import Quantization
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.progress import Progress
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.transformers_model import (
    Routing,
    alone,
    build_model,
    run_model,
    simulate_transformers,
)
from tritter_model import labels

CARD, OLD_CARD = find_gpu("h100"), find_gpu("a100-80gb")
DTYPES = ("bfloat16", "float16", "float32")
REFUSED = {
    "qwen4_exp_text": "nonzero",
    "glm5_next_text": "nonzero",
    "hy_v4": "same dtype",  # what it keeps in float32 meets bfloat16 in a product
    "muse_spark_text": "audio_config",  # the audio tower must be as wide
}
"""Families whose code asks for values, or fails in transformers itself, and what it says."""
NOT_IN_FLOAT16 = ("deepseek_v4",)
"""Families of which transformers keeps compressors in float32 then, which meet float16 rows."""
RUN = tuple(name for name in BUILT if name not in REFUSED)


def a_run(values: dict[str, Any], dtype: str = "bfloat16", **changes: Any) -> TransformersRun:
    work = {"context": PREFILL + 1 + DECODED, "batch": BATCH, "new_tokens": 1 + DECODED}
    return TransformersRun(
        model=read_config(values),
        config=values,
        dtype=storage_format(dtype),
        work=Workload.model_validate(work | changes.get("work", {})),
        prefill_chunk=changes.get("chunk"),
        training=Training.model_validate(changes.get("training", {})),
    )


class Spy:
    """Adds up what a run says of its tensors, after each phase of it or call of the model."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.bytes: Counter[str] = Counter()
        self.caches: list[int] = []
        self._cache: dict[int, int] = {}

    def adopt(self, tensor: torch.Tensor, category: str) -> None:
        self._recorder.adopt(tensor, category)
        if category == labels.KV_CACHE:
            self._cache[id(tensor)] = tensor.nbytes
        else:
            self._called()
            self.bytes[category] += tensor.nbytes

    def _called(self) -> None:
        """The model's logits come before its cache, the scores behind it."""
        if self._cache:
            self.caches.append(sum(self._cache.values()))
            self._cache = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with self._recorder.phase(name):
            yield


def spied(run: TransformersRun, device: str) -> Spy:
    """A run on the CPU, with values, or on `meta`."""
    model = build_model(run, CARD, device)
    with Recorder(device) as recorder:
        spy = Spy(recorder)
        if device == "cpu":
            run_model(model, run, spy)
        else:
            with as_on_cuda(CARD.compute_capability), alone(CARD):
                run_model(model, run, spy)
    return spy


@pytest.mark.parametrize("model_type", RUN)
def test_weights_and_cache_are_those_that_the_configuration_describes(model_type: str) -> None:
    number = RUN.index(model_type)
    dtype = "bfloat16" if model_type in NOT_IN_FLOAT16 else DTYPES[number % 3]
    run = a_run(tiny_config(model_type, number), dtype)
    meta = spied(run, "meta")
    assert meta.caches == [
        run.model.cache_bytes(PREFILL + step, BATCH, dtype) for step in range(1 + DECODED)
    ]
    weights = meta.bytes[labels.WEIGHTS] + meta.bytes[labels.EMBEDDINGS]
    assert weights == run.model.weight_bytes_in(Quantization(), run.dtype)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize(
    "model_type", ["llama", "gemma3_text", "deepseek_v3", "jamba", "longcat_flash"]
)
def test_a_run_with_values_holds_the_same(model_type: str, chunk: int | None) -> None:
    run = a_run(tiny_config(model_type, 1) | {"vocab_size": 96}, "float32", chunk=chunk)
    meta, real = spied(run, "meta"), spied(run, "cpu")
    assert meta.caches == real.caches
    assert meta.bytes == real.bytes


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_run_says_where(model_type: str) -> None:
    with pytest.raises(SimulationError, match=REFUSED[model_type]) as refused:
        simulate_transformers(a_run(tiny_config(model_type, 0)), CARD)
    assert "transformers/" in str(refused.value)


def operators(values: dict[str, Any], card: GpuCard = CARD) -> Counter[str]:
    """How often each operator allocates in a run."""
    run = a_run(values)
    model = build_model(run, card)
    with Recorder("meta") as recorder, as_on_cuda(card.compute_capability):
        run_model(model, run, recorder)
    return Counter(event.operator for event in recorder.log if event.kind == "alloc")


CUDNN = "aten._scaled_dot_product_cudnn_attention.default"
FLASH = "aten._scaled_dot_product_flash_attention.default"
MASK = "aten.le.Tensor"
EFFICIENT = "aten._scaled_dot_product_efficient_attention.default"


def kernels(found: Counter[str]) -> set[str]:
    """Those of attention that ran."""
    return {CUDNN, FLASH, EFFICIENT} & set(found)


@pytest.mark.parametrize(("card", "kernel"), [(CARD, CUDNN), (OLD_CARD, FLASH)])
def test_attention_has_no_mask_where_no_window_matters(card: GpuCard, kernel: str) -> None:
    values = tiny_config("mistral", 0) | {"num_hidden_layers": 2, "sliding_window": None}
    found = operators(values, card)
    assert kernels(found) == {kernel}
    assert not found[MASK]


@pytest.mark.parametrize(("card", "kernel"), [(CARD, CUDNN), (OLD_CARD, EFFICIENT)])
def test_a_window_that_is_shorter_takes_a_mask_and_a_kernel_that_has_one(
    card: GpuCard, kernel: str
) -> None:
    values = tiny_config("mistral", 0) | {"num_hidden_layers": 2, "sliding_window": 4}
    found = operators(values, card)
    assert kernels(found) == {kernel}
    assert found[MASK]


def test_experts_of_generated_tokens_copy_their_weights_as_on_a_card() -> None:
    """`generate()` switches from `grouped_mm` to `batched_mm`."""
    values = tiny_config("qwen3_moe", 0) | {"mlp_only_layers": [], "num_hidden_layers": 1}
    found = operators(values)
    assert found["aten._grouped_mm.default"] == 2
    assert found["aten.bmm.default"] >= 2 * DECODED


@pytest.mark.parametrize(
    ("pairs", "experts", "rows"), [(5, 3, [2, 2, 1]), (2, 4, [1, 1]), (6, 3, [2, 2, 2])]
)
def test_experts_in_a_loop_get_equal_shares(pairs: int, experts: int, rows: list[int]) -> None:
    routing = Routing(pairs, experts)
    mask = torch.empty((2, 3), dtype=torch.bool, device="meta")
    found = []
    with routing.answering():
        for expert in mask.nonzero():
            assert expert.item() == expert[0] == len(found)
            top, token = torch.where(mask)
            assert top.shape == token.shape
            found.append(len(token))
    assert found == rows


def trained(**training: Any) -> TransformersRun:
    values = tiny_config("qwen3_moe", 0) | {"num_hidden_layers": 3, "vocab_size": 96}
    return a_run(values, "bfloat16", training=training, work={"mode": "training", "context": 64})


def parameter_count(run: TransformersRun) -> tuple[int, int]:
    """Elements of all parameters, and how many there are."""
    parameters = list(build_model(run, CARD).parameters())
    return sum(parameter.numel() for parameter in parameters), len(parameters)


@pytest.mark.parametrize("master", ["float32", "bfloat16"])
def test_a_training_step_holds_gradients_and_two_moments(master: str) -> None:
    run = trained(master_dtype=master)
    elements, count = parameter_count(run)
    meta = spied(run, "meta")
    size = storage_format(master).element_bytes
    assert meta.bytes[labels.GRADIENTS] == 2 * elements * size  # of two steps
    assert meta.bytes[labels.OPTIMIZER_STATE] == 2 * (2 * elements * size + 4 * count)
    use = simulate_transformers(run, CARD)
    assert [phase.name for phase in use.phases] == ["load", "forward", "backward", "optimizer"]
    forward = use.phases[1].components
    assert forward is not None
    assert forward.gradients_bytes == 0
    assert forward.optimizer_state_bytes == 2 * elements * size + 4 * count
    assert forward.kv_cache_bytes == 0
    assert forward.logits_bytes >= BATCH * 64 * 96 * 4


def test_training_on_the_cpu_holds_the_same() -> None:
    run = trained(master_dtype="float32")
    assert spied(run, "meta").bytes == spied(run, "cpu").bytes


def test_other_optimizers_keep_less() -> None:
    plain = spied(trained(optimizer="sgd"), "meta")
    assert plain.bytes[labels.OPTIMIZER_STATE] == 0
    run = trained(optimizer="adamw-8bit")
    expected = 0
    for parameter in build_model(run, CARD).parameters():
        n = parameter.numel()
        expected += 2 * (4 * n if n < 4096 else n + 4 * -(-n // 256))
    eight = spied(run, "meta")
    assert eight.bytes[labels.OPTIMIZER_STATE] == 2 * expected


def test_checkpointing_keeps_less() -> None:
    every = trained(checkpointing={"policy": "every-layer"})
    kept, least = (
        next(p for p in simulate_transformers(run, CARD).phases if p.name == "forward")
        for run in (trained(), every)
    )
    assert least.allocated_peak_bytes < kept.allocated_peak_bytes


FLOAT8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_moe", "deepseek_v3"])
def test_float8_weights_stay_as_they_are_stored(model_type: str) -> None:
    values = tiny_config(model_type, 2) | {"quantization_config": FLOAT8}
    run = a_run(values)
    meta = spied(run, "meta")
    weights = meta.bytes[labels.WEIGHTS] + meta.bytes[labels.EMBEDDINGS]
    assert weights == run.model.weight_bytes
    assert simulate_transformers(run, CARD).components.weights_bytes < weights


def test_on_a_card_without_float8_weights_are_dequantised() -> None:
    values = tiny_config("qwen3_moe", 2)
    stored, plain = a_run(values | {"quantization_config": FLOAT8}), a_run(values)
    assert simulate_transformers(stored, OLD_CARD) == simulate_transformers(plain, OLD_CARD)


W8 = {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
REFUSED_STORAGE = (
    ("llama", {"quant_method": "awq", "bits": 4, "group_size": 16}, "AWQ 4-bit.*gptqmodel"),
    ("mixtral", {"quant_method": "mxfp4"}, "MXFP4.*for experts of gpt-oss alone"),
    (
        "llama",
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": W8}},
        },
        "int8 packed.*dequantises all weights in the first call",
    ),
)


@pytest.mark.parametrize(("model_type", "section", "said"), REFUSED_STORAGE)
def test_other_schemes_are_named(model_type: str, section: dict[str, Any], said: str) -> None:
    run = a_run(tiny_config(model_type, 0) | {"quantization_config": section})
    with pytest.raises(SimulationError, match=said):
        simulate_transformers(run, CARD)


def test_another_model_than_the_described_one_is_no_answer() -> None:
    run = a_run(tiny_config("llama", 0))
    other = replace(run, config=dict(run.config) | {"num_hidden_layers": 2})
    with pytest.raises(SimulationError, match="parameters from these keys, which describe"):
        simulate_transformers(other, CARD)


def test_code_of_a_repository_is_not_run() -> None:
    run = a_run(tiny_config("llama", 0) | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    assert simulate_transformers(run, CARD).allocated_peak_bytes
    unknown = replace(run, config=dict(run.config) | {"model_type": "no-such-model"})
    assert simulate_transformers(unknown, CARD).allocated_peak_bytes  # it is described as llama's
    nowhere = replace(unknown, model=replace(unknown.model, language_type="no-such-model"))
    with pytest.raises(SimulationError, match="no code of a model's repository"):
        simulate_transformers(nowhere, CARD)


def test_progress_comes_to_its_end() -> None:
    run = a_run(tiny_config("llama", 0), chunk=4)
    progress = Progress()
    simulate_transformers(run, CARD, progress=progress)
    assert progress.layers == run.config["num_hidden_layers"]
    assert progress.done == progress.total == progress.layers * (3 + DECODED)
