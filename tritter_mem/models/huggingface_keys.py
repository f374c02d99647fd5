"""The keys of a Hugging Face `config.json`, with what transformers takes where one is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.huggingface_defaults import ALIASES, DEFAULTS

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
INDEXED, LINEAR, CONV = "indexed_attention", "linear_attention", "conv"
MOST_LAYERS, MOST = 10_000, 1 << 40
_LEGACY_TYPES = {
    "mamba": LINEAR,
    "attention": FULL,
    "deepseek_sparse_attention": INDEXED,
    "qwen_sparse_attention": INDEXED,
}


@dataclass(frozen=True, slots=True)
class Keys:
    """A language model's keys.

    An absent key has the default of the configuration class of its `model_type`. Some keys have
    two names, of which either is taken.

    Attributes:
        values: as in the file.
        model_type: of the language model.
    """

    values: Mapping[str, Any]
    model_type: str

    def get(self, name: str) -> Any:
        """A key's value; None where it is null, or absent and without a default."""
        aliases = ALIASES.get(self.model_type, {})
        other = aliases.get(name, next((a for a, b in aliases.items() if b == name), name))
        for key in (name, other):
            if key in self.values:
                return self.values[key]
        defaults = DEFAULTS.get(self.model_type, {})
        return defaults.get(name, defaults.get(other))

    def has(self, name: str) -> bool:
        """Whether a key is true."""
        return bool(self.get(name))

    def optional(self, name: str) -> int | None:
        """A number of things, or None where it is null, absent or 0.

        Raises:
            ConfigError: it is something else, or below zero.
        """
        value = self.get(name)
        if value is None or value == "auto":
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{name}: a number of things is wanted, not {value!r}")
        if value > MOST:
            raise ConfigError(f"{name}: more than {MOST:,}, which no model has")
        return value or None

    def number(self, name: str) -> int:
        """A number of things, at least 1.

        Raises:
            ConfigError: it is absent, null, 0, or no such number.
        """
        value = self.optional(name)
        if value is None:
            raise ConfigError(f"{name}: a {self.model_type} model needs it, and it is missing")
        return value

    def list_of(self, name: str, count: int | None = None) -> list[Any] | None:
        """A list, or None where it is null or absent.

        Raises:
            ConfigError: it is something else, or shorter than `count`.
        """
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{name}: a list is wanted, not {value!r}")
        if count is not None and len(value) < count:
            raise ConfigError(f"{name}: {len(value)} values for {count} layers")
        return list(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A section; empty where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}: a section is wanted, not {value!r}")
        return value

    def at(self, number: int) -> Keys:
        """The keys of one layer: `per_layer_config` may give it other values."""
        overrides = self.mapping("per_layer_config")
        for name in (str(number), f"{number:0{len(str(self.layers - 1))}}"):
            if isinstance(overrides.get(name), Mapping):
                return Keys({**self.values, **overrides[name]}, self.model_type)
        return self

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.number("hidden_size")

    @property
    def layers(self) -> int:
        """Decoder layers.

        Raises:
            ConfigError: there are more than any model has.
        """
        count = self.number("num_hidden_layers")
        if count > MOST_LAYERS:
            raise ConfigError(f"num_hidden_layers: {count} is more than {MOST_LAYERS}")
        return count

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads: as many as query heads where the file does not say."""
        return self.optional("num_key_value_heads") or self.heads

    @property
    def head_dim(self) -> int:
        """Width of a head: the hidden size over the heads where the file does not say."""
        return self.optional("head_dim") or self.hidden // self.heads

    def layer_types(self, derived: Sequence[str] | None = None) -> list[str]:
        """Kind of attention of each layer: `layer_types`, else what the class derives.

        Without either, the cache of transformers goes by `sliding_window`, then by
        `attention_chunk_size`.
        """
        listed = self.list_of("layer_types", self.layers)
        if listed is not None:
            return [_LEGACY_TYPES.get(kind, kind) for kind in listed[: self.layers]]
        if derived is not None:
            return list(derived)
        if self.optional("sliding_window"):
            return [SLIDING] * self.layers
        return [CHUNKED if self.optional("attention_chunk_size") else FULL] * self.layers

    def every(self, period: int, rare: str = FULL, often: str = SLIDING) -> list[str]:
        """`rare` on each `period`-th layer, `often` on the others."""
        return [often if (number + 1) % period else rare for number in range(self.layers)]

    def window(self, kind: str) -> int | None:
        """Tokens that a layer of a kind reaches; None: all."""
        if kind in (SLIDING, "hybrid_sliding"):
            return self.optional("sliding_window")
        return self.optional("attention_chunk_size") if kind == CHUNKED else None
