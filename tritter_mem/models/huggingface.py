"""A model as its Hugging Face `config.json` describes it: its weights and its cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.architecture import Cache, Weight
from tritter_mem.models.attention_families import FAMILIES
from tritter_mem.models.family_parts import Family, Modules, Outside
from tritter_mem.models.formats import StorageFormat, storage_format
from tritter_mem.models.huggingface_families import SAME_AS, find_family
from tritter_mem.models.huggingface_keys import Keys
from tritter_mem.models.huggingface_towers import tower_weights
from tritter_mem.models.layer_run import Dialect
from tritter_mem.models.quantization import BITSANDBYTES, Quantization, read_quantization
from tritter_mem.models.transformers_blocks import Norms, Tables

DTYPES = ("bfloat16", "float16", "float32")
LANGUAGE_SECTIONS = ("text_config", "llm_config", "language_config", "thinker_config")
NOT_LANGUAGE = ("audio", "vision", "encoder")
PLAIN_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
)  # fmt: skip
TELLING_KEYS = (
    "kv_lora_rank", "index_head_dim", "num_experts", "n_routed_experts", "num_local_experts",
    "linear_num_value_heads", "linear_attn_config", "mamba_d_state", "ssm_state_size",
    "conv_L_cache", "hybrid_override_pattern", "layers_block_type", "num_kv_shared_layers",
    "num_nextn_predict_layers", "hc_mult",
)  # fmt: skip
"""Keys by which a model is no plain one."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceModel:
    """What a `config.json` describes.

    Attributes:
        model_type: of the file.
        language_type: of the language model, as transformers has it.
        hidden: width of the residual stream.
        layers: modules of each layer.
        outside: modules beside them: embedding, last norm, output projection.
        mtp: layers for multi-token prediction, which transformers does not build.
        unbuilt: other modules that are in a checkpoint alone, with the number of their layer.
        towers: weights of what reads images or sound, as far as the keys tell.
        names: what is outside of the layers is called so.
        family: how the weights are kept.
        dialect: how transformers writes what runs; None: its activations are not planned.
        dtype: in which a checkpoint stores weights that are not quantised.
        quantization: how it stores linear layers.
        unsupported: what of the file is not counted, in one sentence each.
    """

    model_type: str
    language_type: str
    hidden: int
    layers: tuple[Modules, ...]
    outside: Modules
    mtp: tuple[Modules, ...]
    unbuilt: tuple[tuple[int, Modules], ...]
    towers: tuple[Weight, ...]
    names: Outside
    family: Family
    dtype: StorageFormat
    quantization: Quantization
    dialect: Dialect | None = None
    unsupported: tuple[str, ...] = ()

    @cached_property
    def _layer_weights(self) -> Mapping[Modules, tuple[Weight, ...]]:
        """Weights of each different layer."""
        return {
            layer: tuple(weight for module in layer for weight in module.weights(self.hidden))
            for layer in dict.fromkeys((*self.layers, *self.mtp))
        }

    @cached_property
    def _outside_weights(self) -> tuple[Weight, ...]:
        return tuple(weight for module in self.outside for weight in module.weights(self.hidden))

    def language_weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight of the language model, with its name in a checkpoint."""
        prefix = self.names.prefix
        for weight in self._outside_weights:
            name = weight.name if weight.name.startswith("lm_head") else f"{prefix}.{weight.name}"
            yield name, weight
        for number, layer in enumerate(self.layers):
            for weight in self._layer_weights[layer]:
                yield f"{prefix}.layers.{number}.{weight.name}", weight

    def other_weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight beside the language model's: layers for prediction, towers, and others."""
        for number, layer in enumerate(self.mtp, len(self.layers)):
            for weight in self._layer_weights[layer]:
                yield f"{self.names.prefix}.layers.{number}.{weight.name}", weight
        for number, modules in self.unbuilt:
            for weight in chain.from_iterable(part.weights(self.hidden) for part in modules):
                yield f"{self.names.prefix}.layers.{number}.{weight.name}", weight
        for weight in self.towers:
            yield weight.name, weight

    @cached_property
    def language_parameters(self) -> int:
        """Parameters of the language model as transformers builds it.

        Without towers, without layers for multi-token prediction, without buffers.
        """
        return sum(weight.elements for _, weight in self.language_weights() if weight.is_parameter)

    @cached_property
    def parameters(self) -> int:
        """Elements of all that a checkpoint holds, scales of quantised weights aside.

        Towers, layers for multi-token prediction and buffers are included.
        """
        weights = (*self.language_weights(), *self.other_weights())
        return sum(weight.elements for _, weight in weights)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters of the language model that one token uses.

        All but the experts that it is not routed to; both embedding tables count whole.
        """
        return sum(
            weight.active_elements for _, weight in self.language_weights() if weight.is_parameter
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the language model's weights as the file has them stored."""
        return self.weight_bytes_in(self.quantization, self.dtype)

    def held_on(self, capability: tuple[int, int]) -> HuggingFaceModel:
        """The model with its weights as transformers holds them on a card of a capability."""
        return replace(self, quantization=self.quantization.held(capability))

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of all that a checkpoint holds."""
        others = sum(
            self._stored_bytes(name, weight, self.quantization, self.dtype)
            for name, weight in self.other_weights()
        )
        return self.weight_bytes + others

    def weight_bytes_in(self, quantization: Quantization, dtype: StorageFormat) -> int:
        """Bytes of the language model's weights.

        Args:
            quantization: of linear layers.
            dtype: of what it leaves as it is, but for weights that the model keeps in float32.
        """
        if quantization.file_bytes is not None:
            return quantization.file_bytes
        return sum(
            self._stored_bytes(name, weight, quantization, dtype)
            for name, weight in self.language_weights()
        )

    def _stored_bytes(
        self, name: str, weight: Weight, quantization: Quantization, dtype: StorageFormat
    ) -> int:
        quantises = weight.is_linear and not self.stays_unquantised(name, quantization)
        scheme = quantization.scheme_of(name) if quantises else None
        if scheme is not None:
            outputs, inputs = weight.shape
            return weight.copies * scheme.weight_bytes(outputs, inputs)
        return weight.elements * (weight.element_bytes or self.element_bytes(name, dtype))

    def stays_unquantised(self, name: str, quantization: Quantization) -> bool:
        """Whether transformers does not quantise a linear layer's weight whatever the scheme says.

        It keeps it in float32 beside some type, whichever that of the others is now, or the layer
        is of a class that the method leaves out.
        """
        kept = (*self.family.float32, *self.family.float32_beside_float16)
        if quantization.method == BITSANDBYTES:
            kept += self.family.own_class
        return any(part in f"{name}." for part in kept)

    def element_bytes(self, name: str, dtype: StorageFormat) -> int:
        """Of a weight that is not quantised, by its name in a checkpoint."""
        kept = self.family.float32
        if dtype.name == "float16":
            kept += self.family.float32_beside_float16
        return 4 if any(part in f"{name}." for part in kept) else dtype.element_bytes

    def kv_bytes_per_token(
        self, cache: StorageFormat | None = None, context: int | None = None
    ) -> int:
        """Bytes that a further token adds to the cache.

        Layers with a full window and layers with a state add nothing. Latent attention adds its
        latent and one rotated key, `kv_lora_rank + qk_rope_head_dim` elements, as engines and
        transformers 5 cache it, and the key of its indexer.

        Args:
            cache: storage of the cache; None: that of the weights.
            context: tokens that are cached before it; None: so many that each window is full.
        """
        stored = self.dtype if cache is None else cache
        return sum(
            count * stored.weight_bytes(1, width)
            for layer, count in Counter(self.layers).items()
            for module in layer
            for width in module.grown_elements(context)
        )

    def cache_bytes(self, context: int, batch: int, dtype: str = "") -> int:
        """Bytes of the tensors in transformers' `DynamicCache`.

        Layers with a window hold a token less than that. Their tensors are views: behind the
        prompt the storage of the whole prompt is kept until the next token, and then that of the
        window.

        Args:
            context: tokens of each sequence that have run.
            batch: sequences.
            dtype: of activations; empty: that of the weights.
        """
        stored = storage_format(dtype) if dtype else self.dtype
        cache = Cache(format=stored, compute=stored, group=1, sinks=0, context=context, batch=batch)
        return sum(
            count * module.cache_bytes(cache)
            for layer, count in Counter(self.layers).items()
            for module in layer
        )


def read_config(
    config: Mapping[str, Any], quantization: Mapping[str, Any] | None = None
) -> HuggingFaceModel:
    """Read a Hugging Face configuration.

    Args:
        config: what `config.json` has.
        quantization: what `hf_quant_config.json` beside it has.

    Raises:
        ConfigError: it does not describe a language model, or a key has a wrong value.
    """
    values, model_type = _language_section(config)
    language_type = SAME_AS.get(model_type, model_type)
    unsupported: list[str] = []
    family = find_family(language_type)
    if family is None:
        unsupported += _unknown(values, model_type)
        family, language_type = FAMILIES["llama"], "llama"
    keys = Keys(values, language_type)
    try:
        return _read(config, keys, family, quantization, unsupported)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise ConfigError(
            f"config.json: a key of this {model_type} model has a wrong value: {error}"
        ) from error


def _read(
    config: Mapping[str, Any],
    keys: Keys,
    family: Family,
    quantization: Mapping[str, Any] | None,
    unsupported: list[str],
) -> HuggingFaceModel:
    outside, is_known = family.outside(keys), not unsupported
    towers, missing = tower_weights(config, keys)
    tied = keys.has("tie_word_embeddings")
    if "tie_word_embeddings" in config and "tie_word_embeddings" not in keys.values:
        tied = bool(config["tie_word_embeddings"])
    tables = Tables(
        keys.number("vocab_size"),
        outside.embedding,
        "" if tied and outside.ties else "lm_head",
        outside.head_bias,
    )
    stored = read_quantization(_quantization_section(config, keys), quantization)
    mtp, predicted = tuple(family.mtp(keys)), keys.optional("num_nextn_predict_layers")
    if predicted and not mtp:
        unsupported.append(f"num_nextn_predict_layers: {predicted} layers are not counted")
    norm = (Norms((outside.norm,), bias=outside.norm_bias),) if outside.norm else ()
    return HuggingFaceModel(
        model_type=str(config.get("model_type", keys.model_type)),
        language_type=keys.model_type,
        hidden=keys.hidden,
        layers=tuple(family.layers(keys)),
        outside=(tables, *outside.more, *norm),
        mtp=mtp,
        unbuilt=tuple(family.unbuilt(keys).items()),
        towers=towers,
        names=outside,
        family=family,
        dtype=_dtype(config, keys),
        quantization=stored,
        dialect=family.dialect(keys) if family.dialect and is_known else None,
        unsupported=(*unsupported, *missing, *stored.unsupported),
    )


def _language_section(config: object) -> tuple[Mapping[str, Any], str]:
    """The keys of the language model, and its `model_type`.

    Raises:
        ConfigError: there is no language model.
    """
    if not isinstance(config, Mapping) or not config:
        raise ConfigError("config.json: a JSON object with a model's keys is wanted")
    model_type = config.get("model_type")
    for name in LANGUAGE_SECTIONS:
        section = config.get(name)
        if isinstance(section, Mapping):
            inner = section.get("text_config", section)
            if not isinstance(inner, Mapping):
                raise ConfigError(f"config.json: {name}.text_config: a section is wanted")
            own = inner.get("model_type") or SAME_AS.get(str(model_type), str(model_type))
            return inner, str(own)
    if not isinstance(model_type, str):
        raise ConfigError("config.json: there is no model_type, so this describes no model")
    if any(word in model_type for word in NOT_LANGUAGE):
        raise ConfigError(f"config.json: {model_type} is not a language model")
    return config, model_type


def _unknown(values: Mapping[str, Any], model_type: str) -> list[str]:
    """What is said of a model type that is in no table.

    Raises:
        ConfigError: it has not even the keys of a plain model.
    """
    if missing := [name for name in PLAIN_KEYS if not isinstance(values.get(name), int)]:
        raise ConfigError(
            f"config.json: model_type {model_type} is unknown, and {', '.join(missing)} is missing"
        )
    unread = [name for name in TELLING_KEYS if values.get(name)]
    said = [f"model_type {model_type} is unknown: only keys of plain attention and MLPs are read"]
    return [*said, f"not read: {', '.join(unread)}"] if unread else said


def _dtype(config: Mapping[str, Any], keys: Keys) -> StorageFormat:
    """The type of the weights: `dtype`, its older name `torch_dtype`, else bfloat16."""
    for section in (keys.values, config):
        for name in ("dtype", "torch_dtype"):
            value = section.get(name)
            if isinstance(value, str) and value.removeprefix("torch.") in DTYPES:
                return storage_format(value.removeprefix("torch."))
    return storage_format("bfloat16")


def _quantization_section(config: Mapping[str, Any], keys: Keys) -> Mapping[str, Any] | None:
    section = config.get("quantization_config") or keys.values.get("quantization_config")
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError("quantization_config: a section is wanted")
    experts = keys.values.get("expert_dtype")  # DeepSeek-V4 has it beside the section
    return {"expert_dtype": experts, **section} if section and experts else section
