"""Caches of `generate()`: what a layer holds in each kind, and what an update of it allocates.

As transformers 5.23 writes them in `cache_utils.py`, line by line, as what a local name holds is
there until the name goes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from tritter_mem.models.shape_tensors import LONG, Operations, Tensor

KEYS, VALUES, INDEX_KEYS = "keys", "values", "index keys"
SECOND_KEYS, SECOND_VALUES = "second keys", "second values"
"""What is cached of each token, by name; the second ones where a layer has two attentions."""
LayerCache = dict[str, Tensor]
"""What a layer caches, by name: what it has of each token, and what it has beside that."""


class CacheKind(ABC):
    """A kind of cache, of `cache_implementation`.

    Attributes:
        masks_first: whether `generate()` makes masks before it calls the model, and makes one for
            each generated token too, as a model that is to be compiled needs.
    """

    masks_first = False

    @abstractmethod
    def update(
        self, ops: Operations, cache: LayerCache, new: Mapping[str, Tensor], at: Span
    ) -> list[Tensor]:
        """Cache new keys and values [B, G, T, D].

        Args:
            ops: makes tensors.
            cache: of the layer; it is changed.
            new: by name in the cache.
            at: which tokens they are of.

        Returns:
            What attention reads, in the order of `new`.
        """

    @abstractmethod
    def keys(self, at: Span) -> int:
        """Keys that attention reads of a layer: `get_mask_sizes`."""

    @abstractmethod
    def skip(self, ops: Operations, cache: LayerCache, tokens: int, window: int | None) -> None:
        """Hold what is there behind so many more tokens, each of which is a call.

        Args:
            ops: makes tensors.
            cache: of the layer; it is changed.
            tokens: how many.
            window: tokens that the layer reaches; None: all.
        """

    def high_steps(self, cache: LayerCache, steps: int) -> list[int]:
        """Which of so many calls with one token each takes more than the last one.

        Args:
            cache: of a layer, before the first of them.
            steps: calls.
        """
        del cache, steps
        return []


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens that run.

    Attributes:
        past: tokens before them that are cached.
        tokens: how many run.
        window: tokens that the layer reaches; None: all.
    """

    past: int
    tokens: int
    window: int | None


@dataclass(frozen=True)
class DynamicCache(CacheKind):
    """Grows with each token: `DynamicLayer`, `DynamicSlidingWindowLayer`."""

    def update(
        self, ops: Operations, cache: LayerCache, new: Mapping[str, Tensor], at: Span
    ) -> list[Tensor]:
        """What was cached and what is new, in new tensors.

        Both are there while the new one is made; it replaces what was cached. With a window all
        are made first, and what stays are views of the last tokens, one less than the window.
        """
        if at.window is None:
            return [self._joined(ops, cache, name, x, keeps=True) for name, x in new.items()]
        if "window" not in cache:
            cache["window"] = ops.new((), LONG)
        joined = {name: self._joined(ops, cache, name, x, keeps=False) for name, x in new.items()}
        for name, x in joined.items():
            kept = min(x.shape[2], at.window - 1)
            cache[name] = ops.slice(x, 2, kept) if kept < x.shape[2] else x
        return list(joined.values())

    @staticmethod
    def _joined(ops: Operations, cache: LayerCache, name: str, x: Tensor, *, keeps: bool) -> Tensor:
        before = cache.get(name)
        joined = ops.cat([x] if before is None else [before, x], 2)
        ops.account(joined, "kv_cache")
        if keeps:
            cache[name] = joined
        return joined

    def keys(self, at: Span) -> int:
        """All that are cached, and those that run; of a full window one less than it holds."""
        if at.window and at.past >= at.window:
            return at.window - 1 + at.tokens
        return at.past + at.tokens

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, window: int | None) -> None:
        """Longer keys and values; those of a window as far as it reaches."""
        for name in (KEYS, VALUES, INDEX_KEYS, SECOND_KEYS, SECOND_VALUES):
            if name in cache:
                cache[name] = self._longer(ops, cache[name], tokens, window)

    @staticmethod
    def _longer(ops: Operations, x: Tensor, tokens: int, window: int | None) -> Tensor:
        batch, heads, length, width = x.shape
        if window is None:
            return ops.new((batch, heads, length + tokens, width), x.size, component="kv_cache")
        if length >= window - 1:
            return x
        joined = min(length + tokens, window)
        made = ops.new((batch, heads, joined, width), x.size, component="kv_cache")
        return ops.slice(made, 2, window - 1) if joined == window else made


GROWING = DynamicCache()


@dataclass(frozen=True)
class StaticCache(CacheKind):
    """Holds room for all tokens from the first one on: `StaticLayer`, `StaticSlidingWindowLayer`.

    Attributes:
        length: tokens of each sequence that there is room for.
    """

    length: int
    masks_first = True

    def room(self, window: int | None) -> int:
        """Tokens that a layer has room for."""
        return self.length if window is None else min(window, self.length)

    def make(
        self, ops: Operations, cache: LayerCache, shapes: Mapping[str, tuple[int, ...]], size: int
    ) -> None:
        """Allocate a layer's cache: `lazy_initialization`.

        Args:
            ops: makes tensors.
            cache: of the layer.
            shapes: of each of its tensors, by name.
            size: bytes of an element.
        """
        for name, shape in shapes.items():
            cache[name] = ops.new(shape, size, component="kv_cache")
        cache[f"length of {next(iter(shapes))}"] = ops.new((), LONG)

    def update(
        self, ops: Operations, cache: LayerCache, new: Mapping[str, Tensor], at: Span
    ) -> list[Tensor]:
        """Write new tokens in their place, and read all.

        Where a window overflows, what is read is what was cached and what is new, in new tensors,
        or the new ones alone where nothing was cached; one token more moves all others.
        """
        room, names = self.room(at.window), list(new)
        if names[0] not in cache:
            shapes = {name: (*x.shape[:2], room, x.shape[3]) for name, x in new.items()}
            self.make(ops, cache, shapes, new[names[0]].size)
        if at.past + at.tokens <= room:
            near = ops.new((at.tokens,), LONG)
            position = ops.new((at.tokens,), LONG)
            del near, position
            return [cache[name] for name in names]
        if not at.past:
            return list(new.values())
        if at.past >= room and at.tokens == 1:
            moved = [ops.new(cache[name].shape, cache[name].size) for name in names]
            last = ops.new((1,), LONG)
            del moved, last
            return [cache[name] for name in names]
        kept = min(at.past, room - 1)
        return [ops.cat([ops.slice(cache[name], 2, kept), x], 2) for name, x in new.items()]

    def keys(self, at: Span) -> int:
        """All that there is room for; where a window overflows, those before and those that run."""
        room = self.room(at.window)
        if at.window is None or at.past + at.tokens <= room:
            return room
        return (room - 1 if at.past >= room else at.past) + at.tokens

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, window: int | None) -> None:
        """Nothing changes."""
        del ops, cache, tokens, window
