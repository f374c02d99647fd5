"""Models of transformers on `meta` and on the CPU: the same weights, caches and states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("transformers")
import torch

from tests.models.tiny_models import BATCH, BUILT, DECODED, PREFILL, tiny_config
from tritter_mem.config.profile import Training, Workload
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.models.formats import storage_format
from tritter_mem.models.huggingface import read_config
from tritter_mem.models.quantization import Quantization
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.transformers_model import build_model, run_model
from tritter_model import labels

CARD, OLD_CARD = find_gpu("h100"), find_gpu("a100-80gb")
DTYPES = ("bfloat16", "float16", "float32")
REFUSED = {
    "qwen4_exp_text": "nonzero",
    "glm5_next_text": "nonzero",
    "hy_v4": "expected scalar type",  # experts in float32 in `batched_mm`: on CUDA, too
    "muse_spark_text": "audio_config",  # the audio tower must be as wide
}
"""Families whose code asks for values, or fails in transformers itself, and what it says."""
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
            with as_on_cuda(CARD.compute_capability):
                run_model(model, run, spy)
    return spy


@pytest.mark.parametrize("model_type", RUN)
def test_weights_and_cache_are_those_of_a_run_on_the_cpu_and_of_the_description(
    model_type: str,
) -> None:
    number = RUN.index(model_type)
    dtype = DTYPES[number % 3]
    run = a_run(tiny_config(model_type, number), dtype)
    meta, real = spied(run, "meta"), spied(run, "cpu")
    described = [run.model.cache_bytes(PREFILL + n, BATCH, dtype) for n in range(1 + DECODED)]
    assert meta.caches == real.caches == described
    weights = meta.bytes[labels.WEIGHTS] + meta.bytes[labels.EMBEDDINGS]
    assert weights == run.model.weight_bytes_in(Quantization(), run.dtype)
    assert meta.bytes == real.bytes
