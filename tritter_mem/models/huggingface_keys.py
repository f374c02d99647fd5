"""The keys of a Hugging Face `config.json`, with what transformers takes where one is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tritter_mem.errors import ConfigError
from tritter_mem.models.huggingface_defaults import ALIASES, DEFAULTS

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
INDEXED, LINEAR, CONV = "indexed_attention", "linear_attention", "conv"
MOST_LAYERS, MOST = 1_000, 1 << 40
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

    Every number of a file that counts for something is read here: one that is infinite, absurd or
    of another kind is refused by name.

    Attributes:
        values: as in the file.
        model_type: of the language model.
        place: what comes before a key's name in messages, where they are those of a section.
    """

    values: Mapping[str, Any]
    model_type: str
    place: str = ""

    def get(self, name: str) -> Any:
        """A key's value; None where it is null, or absent and without a default.

        Of two names in a file the second one has the value, as transformers sets it later.
        """
        aliases = ALIASES.get(self.model_type, {})
        own = aliases.get(name, name)
        others = [alias for alias, key in aliases.items() if key == own]
        for key in (*others, own):
            if key in self.values:
                return self.values[key]
        defaults = DEFAULTS.get(self.model_type, {})
        return next((defaults[key] for key in (name, own, *others) if key in defaults), None)

    def has(self, name: str) -> bool:
        """Whether a key is true."""
        return bool(self.get(name))

    def optional(self, name: str, most: int = MOST) -> int | None:
        """A number of things, or None where it is null, absent or 0.

        Args:
            name: of the key.
            most: that a model has of these things.

        Raises:
            ConfigError: it is something else, below zero, or above `most`.
        """
        value = self.get(name)
        return None if value is None or value == "auto" else self._count(name, value, most) or None

    def _count(self, name: str, value: object, most: int = MOST) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(name, "a number of things", value)
        if value > most:
            raise ConfigError(f"{self.place}{name}: more than {most:,}, which no model has")
        return value

    def _wrong(self, name: str, wanted: str, value: object) -> ConfigError:
        return ConfigError(f"{self.place}{name}: {wanted} is wanted, not {value!r:.60}")

    def number(self, name: str, most: int = MOST) -> int:
        """A number of things, at least 1 and at most `most`.

        Raises:
            ConfigError: it is absent, null, 0, or no such number.
        """
        value = self.optional(name, most)
        if value is None:
            model = f"a {self.model_type} model" if self.model_type else "this section"
            raise ConfigError(f"{self.place}{name}: {model} needs it, and it is missing")
        return value

    def integer(self, name: str) -> int | None:
        """An index, which may be 0 or count from the end, or None where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MOST:
            raise self._wrong(name, "an integer", value)
        return value

    def factor(self, name: str) -> float | None:
        """What a size is multiplied by, or None where it is null, absent or 0.

        Raises:
            ConfigError: it is no number between 0 and `MOST`.
        """
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
            raise self._wrong(name, "a factor", value)
        return value or None

    def factors(self, name: str, count: int | None = None) -> list[float | None]:
        """The factors of a list, or none where it is null or absent.

        Raises:
            ConfigError: it is something else, or shorter than `count`.
        """
        items = {str(number): item for number, item in enumerate(self.list_of(name, count) or ())}
        listed = section_of(items, f"{self.place}{name}")
        return [listed.factor(number) for number in items]

    def text(self, name: str) -> str | None:
        """Text, perhaps a letter for each layer, or None where it is null, absent or empty.

        Raises:
            ConfigError: it is something else, or too long.
        """
        value = self.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > MOST_LAYERS):
            raise self._wrong(name, "text", value)
        return value or None

    def list_of(self, name: str, count: int | None = None) -> list[Any] | None:
        """A list, or None where it is null or absent.

        Raises:
            ConfigError: it is something else, shorter than `count`, or longer than a model has
                layers.
        """
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise self._wrong(name, "a list", value)
        if len(value) > MOST_LAYERS:
            raise ConfigError(f"{self.place}{name}: more than {MOST_LAYERS} values")
        if count is not None and len(value) < count:
            raise ConfigError(
                f"{self.place}{name}: {len(value)} values; at least {count} are wanted"
            )
        return list(value)

    def numbers(self, name: str, count: int | None = None) -> list[int] | None:
        """A list of numbers of things, or None where it is null or absent.

        Raises:
            ConfigError: it is something else, or shorter than `count`.
        """
        found = self.list_of(name, count)
        return None if found is None else [self._count(name, value) for value in found]

    def names(self, name: str) -> tuple[str, ...] | None:
        """A list of names or patterns, or None where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if value is not None and not (
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        ):
            raise self._wrong(name, "a list of names", value)
        return None if value is None else tuple(value)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A section; empty where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        value = self.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._wrong(name, "a section", value)
        return value

    def section(self, name: str) -> Keys:
        """The keys of a section, which have no defaults; none where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        return section_of(self.mapping(name), f"{self.place}{name}")

    def sections(self, name: str) -> list[Keys]:
        """The keys of each section of a list, or none where it is null or absent.

        Raises:
            ConfigError: it is something else.
        """
        items = {str(number): item for number, item in enumerate(self.list_of(name) or ())}
        listed = section_of(items, f"{self.place}{name}")
        return [listed.section(number) for number in items]

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
        return self.number("num_hidden_layers", MOST_LAYERS)

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
        return self.optional("head_dim") or self.hidden_per_head

    @property
    def hidden_per_head(self) -> int:
        """The hidden size over the heads.

        Raises:
            ConfigError: there are more heads than that.
        """
        return self.per_head(self.hidden)

    def per_head(self, width: int, heads: str = "num_attention_heads") -> int:
        """A width over the heads that a key counts.

        Raises:
            ConfigError: there are more heads than that.
        """
        count = self.number(heads)
        if width < count:
            raise ConfigError(
                f"{self.place}{heads}: got {count:,}, expected at most {width:,}, which it divides"
            )
        return width // count

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


def section_of(values: Mapping[str, Any], name: str) -> Keys:
    """The keys of a section of a file, which have no defaults."""
    return Keys(values, "", f"{name}.")
