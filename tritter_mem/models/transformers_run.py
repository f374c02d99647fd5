"""What Hugging Face transformers runs of a model: the loop of `generate()`, or a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tritter_mem.config.named_profile import QUANTIZATIONS, NamedCache, NamedProfile
from tritter_mem.config.profile import Training, Workload
from tritter_mem.errors import ConfigError
from tritter_mem.models.formats import StorageFormat, storage_format
from tritter_mem.models.huggingface import HuggingFaceModel
from tritter_mem.models.model_files import Progress
from tritter_mem.models.named_model import NamedModel, find_model, of_keys
from tritter_mem.models.quantised_caches import CodedCache, Float8Cache, QuantoCache
from tritter_mem.models.quantization import GGUF, read_quantization
from tritter_mem.models.transformers_blocks import NO_STATE
from tritter_mem.models.transformers_caches import GROWING, CacheKind, StaticCache

_DYNAMIC = NamedCache()
_MXFP4 = "mxfp4"
FROM_CODE = (
    "MXFP4 needs the package kernels, without which transformers dequantises it "
    "(weights.quantization=none); what its Triton kernels allocate is read from their code, not "
    "measured on a GPU"
)
TRAINED_DEQUANTISED = (
    "transformers does not train weights in MXFP4; this is for a checkpoint that is loaded with "
    "Mxfp4Config(dequantize=True)"
)
NOT_COMPILED = (
    "of generate with disable_compile=True: without it, transformers compiles the steps of "
    "generation for a static cache into CUDA graphs, whose memory is not counted"
)


@dataclass(frozen=True, kw_only=True)
class TransformersRun:
    """One run, described once for the formulas and for the simulation.

    Inference is the loop of greedy `generate()`: the prompt, whole or `prefill_chunk` tokens at a
    time, then token by token, with logits of the last token alone and a `DynamicCache` or another
    cache that `generate()` makes. Training is one step of `Trainer`: forward with labels, backward,
    optimizer, gradients set to None.

    Attributes:
        model: what the configuration describes.
        config: keys of the `config.json`, from which transformers builds the model.
        dtype: of activations, of the cache, and of weights that are not quantised.
        work: mode, tokens, sequences. The prompt runs whole unless the workload names a chunk.
        prefill_chunk: tokens of the prompt that run at a time; None: all.
        training: the optimizer and the type of trained weights. In float32 the forward pass runs
            under autocast to `dtype`; checkpointing is of every layer or of none.
        cache: which cache `generate()` makes.
    """

    model: HuggingFaceModel
    config: Mapping[str, Any]
    dtype: StorageFormat
    work: Workload
    prefill_chunk: int | None
    training: Training
    cache: NamedCache = _DYNAMIC

    @property
    def trains(self) -> bool:
        """Whether the run is a training step."""
        return self.work.mode == "training"

    @property
    def cache_kind(self) -> CacheKind:
        """The cache that `generate()` makes."""
        match self.cache.implementation:
            case "static":
                return StaticCache(max(self.work.context - 1, self.cache.max_cache_len or 0))
            case "quantized":
                return self._quantised_cache()
        return GROWING

    def caveat_on(self, capability: tuple[int, int]) -> str | None:
        """What a reader must know of a plan or a simulation of the run on a card; None: nothing.

        Args:
            capability: compute capability of the card.
        """
        stored = self.model.quantization
        if self.trains:
            return TRAINED_DEQUANTISED if stored.method == _MXFP4 else None
        found = [NOT_COMPILED] if self.cache.implementation == "static" else []
        if stored.held(capability).method == _MXFP4:
            found.append(FROM_CODE)
        return "; ".join(found) or None

    @property
    def cache_name(self) -> str:
        """How keys and values are stored, in words."""
        if self.cache.implementation != "quantized":
            return self.dtype.name
        bits = "" if self.cache.backend == "fp8" else f" int{self.cache.nbits}"
        return f"{self.cache.backend}{bits}"

    @property
    def kv_bytes_per_token(self) -> int:
        """What a token behind the context adds to the cache of one sequence."""
        kind = self.cache_kind
        if not isinstance(kind, CodedCache):
            return self.model.kv_bytes_per_token(self.dtype, self.work.context)
        return sum(
            kind.row_bytes(width, self.dtype.element_bytes)
            for layer in self.model.layers
            for module in layer
            for width in module.rows()
        )

    @property
    def least_cache_bytes(self) -> int:
        """What the whole cache takes at least."""
        kind, work = self.cache_kind, self.work
        if isinstance(kind, CodedCache):
            return work.batch * (work.context - 1) * self.kv_bytes_per_token
        tokens = kind.length if isinstance(kind, StaticCache) else work.context
        return self.model.cache_bytes(tokens, work.batch, self.dtype.name)

    def _quantised_cache(self) -> CacheKind:
        cache = self.cache
        if cache.backend == "fp8":
            return Float8Cache()
        return QuantoCache(
            bits=cache.nbits,
            axes=(cache.axis_key, cache.axis_value),
            group=cache.q_group_size,
            residual=cache.residual_length,
        )

    @property
    def runtime(self) -> str:
        """What runs it: `transformers`, or `llama.cpp` where weights are those of a GGUF file."""
        is_gguf = self.model.quantization.method == GGUF and not self.trains
        return "llama.cpp" if is_gguf else "transformers"

    @property
    def master(self) -> StorageFormat:
        """Storage of trained weights and of their gradients."""
        return storage_format(self.training.master_dtype)

    @property
    def prompt(self) -> int:
        """Tokens of each sequence that are there before any is generated."""
        return self.work.context - self.work.new_tokens


_FOUND: dict[str, NamedModel] = {}


def named_model(profile: NamedProfile, progress: Progress | None = None) -> NamedModel:
    """The model that a profile names; each name is looked up once.

    Args:
        profile: of a named model.
        progress: called while headers are read.

    Raises:
        ConfigError: there is no such model, or its keys describe none.
        InputError: what is there cannot be read.
    """
    source = profile.model
    if not isinstance(source, str):
        return of_keys(profile.name, source)
    if source not in _FOUND:
        _FOUND[source] = _find(source, progress)
    return _FOUND[source]


def _find(name: str, progress: Progress | None) -> NamedModel:
    found = find_model(name, progress)
    if found is None:
        raise ConfigError(
            f"{name}: no such model, expected a folder, a config.json, a GGUF file, or org/name "
            "on the Hub"
        )
    return found


def transformers_run(profile: NamedProfile) -> TransformersRun:
    """What a profile asks of its model.

    Raises:
        ConfigError: there is no such model, or its keys describe none.
        InputError: what is there cannot be read.
    """
    named, work, training = named_model(profile), profile.workload, profile.training
    name = profile.weights.dtype
    dtype = named.model.dtype if name == "auto" else storage_format(name)
    model, config = _stored_as(profile.weights.quantization, named, dtype)
    if work.mode == "inference":
        _refuse_cache(model, profile.kv_cache.implementation)
    return TransformersRun(
        model=model,
        config=config,
        dtype=dtype,
        work=Workload(
            mode=work.mode, context=work.context, batch=work.batch, new_tokens=work.new_tokens
        ),
        prefill_chunk=work.prefill_chunk,
        training=Training(
            optimizer=training.optimizer,
            master_dtype=training.master_dtype,
            checkpointing={"policy": training.checkpointing.policy},  # type: ignore[arg-type]
        ),
        cache=profile.kv_cache,
    )


def _refuse_cache(model: HuggingFaceModel, implementation: str) -> None:
    """Refuse a cache that transformers does not make for a model.

    `QuantizedCache` takes models with keys and values of all tokens in each layer alone.

    Raises:
        ConfigError: a layer caches something else.
    """
    layers = set(model.layers)
    is_static = all(module.has_static_cache() for layer in layers for module in layer)
    if implementation == "static" and not is_static:
        raise ConfigError(
            "kv_cache.implementation: got static; transformers has no static cache for what layers "
            f"of {model.model_type} cache; try dynamic"
        )
    if implementation != "quantized":
        return
    others = "dynamic or static" if is_static else "dynamic"
    for layer in layers:
        kept = [module for module in layer if module.rows() or module.state() != NO_STATE]
        plain = [module for module in kept if module.reach() is None and len(module.rows()) == 2]
        if len(kept) != 1 or plain != kept or kept[0].state() != NO_STATE:
            raise ConfigError(
                "kv_cache.implementation: got quantized; transformers takes it for models whose "
                f"layers all have full attention, and {model.model_type} has others; try {others}"
            )


def _stored_as(
    quantization: str, named: NamedModel, dtype: StorageFormat
) -> tuple[HuggingFaceModel, Mapping[str, Any]]:
    """The model with its linear layers stored in another way than in the checkpoint.

    Products with 4-bit weights are in the type of the activations, not in float32.
    """
    if quantization == "auto":
        return named.model, named.config
    section = QUANTIZATIONS.get(quantization)
    if section is not None:
        section = {**section, "bnb_4bit_compute_dtype": dtype.name}
    model = replace(named.model, quantization=read_quantization(section, None))
    others = {key: value for key, value in named.config.items() if key != "quantization_config"}
    return model, others if section is None else {**others, "quantization_config": section}
