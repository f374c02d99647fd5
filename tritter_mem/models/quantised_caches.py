"""`QuantizedCache` of `generate()`: keys and values as codes, and what coding them allocates.

As transformers 5.23 writes it in `cache_utils.py`, and its backends:

| backend | codes | source |
|---|---|---|
| quanto | 2 or 4 bits, a scale and a shift in the activations' type for each group | optimum-quanto 0.2.7: `MaxOptimizer`, `quantize_affine`, `PackedTensor`, `QBitsDequantizer`, and its kernel that unpacks |
| fp8 | 8-bit floats, one float32 scale | transformers: `Fp8QuantizedLayer` |

The simulation's layers (`simulation/cache_backends.py`) run the same of PyTorch's operators.
"""  # noqa: E501  (a table has its width)

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from tritter_mem.models.formats import ceil_div
from tritter_mem.models.shape_tensors import (
    FLOAT,
    NotPlannedError,
    Operations,
    Tensor,
    contiguous,
)
from tritter_mem.models.transformers_caches import KEYS, VALUES, CacheKind, LayerCache, Span

CODES, SCALES, SHIFTS = "codes of", "scales of", "shifts of"
"""What is cached of keys and of values, by name."""
STEPS_BEFORE = 32
"""Calls of one token that are run before one that takes much."""
CODED = "coded"
"""Name of a tensor without memory: the keys, or the values, that are coded."""


class CodedCache(CacheKind):
    """A cache that holds codes: `BaseQuantizedLayer`."""

    def keys(self, at: Span) -> int:
        """All that are cached, and those that run."""
        return at.past + at.tokens

    @abstractmethod
    def row_bytes(self, width: int, size: int) -> int:
        """Bytes that a token takes once it is coded; a fraction is left out.

        Args:
            width: elements of its keys, or of its values, in all heads.
            size: bytes of an element of the activations.
        """


Forms = list[tuple[tuple[int, ...], int]]
"""Shapes of codes, scales and shifts, and bytes of their elements."""


@dataclass(frozen=True)
class GroupedCache(CodedCache):
    """Codes in groups, and the last tokens as they are: `QuantizedLayer`.

    Attributes:
        bits: of a code.
        axes: along which keys and values are coded.
        group: elements that share a scale.
        residual: tokens that wait until they are coded, all at once with all that were before.
    """

    bits: int
    axes: tuple[int, int]
    group: int
    residual: int

    def update(
        self, ops: Operations, cache: LayerCache, new: Mapping[str, Tensor], at: Span
    ) -> list[Tensor]:
        """Decode all, join it with what waits and what is new, and code that where it is enough."""
        names = list(new)
        if f"{CODED} {names[0]}" not in cache:
            for name, x in new.items():
                self._keep(ops, cache, name, x)
            return list(new.values())
        decoded = [self.decode(ops, cache, name) for name in names]
        waiting = [[cache[name]] if name in cache else [] for name in names]
        joined = [
            ops.cat([whole, *rest, x], 2)
            for whole, rest, x in zip(decoded, waiting, new.values(), strict=True)
        ]
        if self._waiting(cache) + at.tokens >= self.residual:
            for name, whole in zip(names, joined, strict=True):
                self._keep(ops, cache, name, whole)
            waiting.clear()
            for name in names:
                cache.pop(name, None)
        else:
            for name, x in new.items():
                rest = waiting.pop(0)
                cache[name] = ops.cat([*rest, x], 2)
                ops.account(cache[name], "kv_cache")
                del rest
        del decoded
        return joined

    def _keep(self, ops: Operations, cache: LayerCache, name: str, x: Tensor) -> None:
        """Code keys or values, and hold that instead of what was coded before."""
        self._refuse_parts(name, x)
        self._hold(ops, cache, name, x, self.code(ops, ops.contiguous(x), self.axis(name)))

    def _hold(
        self, ops: Operations, cache: LayerCache, name: str, x: Tensor, found: list[Tensor]
    ) -> None:
        for kind, tensor in zip((CODES, SCALES, SHIFTS), found, strict=True):
            cache[f"{kind} {name}"] = tensor
            ops.account(tensor, "kv_cache")
        cache[f"{CODED} {name}"] = Tensor(x.shape, contiguous(x.shape), x.size, None)

    def _refuse_parts(self, name: str, x: Tensor) -> None:
        if x.elements // self.parts(x, self.axis(name)) % self.group:
            raise NotPlannedError(
                f"a quantized cache codes whole groups alone: found keys or values of {x.shape} in "
                f"groups of {self.group}"
            )

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, window: int | None) -> None:
        """More tokens wait; where they are enough, all are coded, and those behind them wait."""
        del window
        waits = self._waiting(cache) + tokens
        for name in (KEYS, VALUES):
            before = cache[f"{CODED} {name}"]
            batch, heads, coded, width = before.shape
            if more := waits - waits % self.residual:
                shape = (batch, heads, coded + more, width)
                x = Tensor(shape, contiguous(shape), before.size, None)
                self._refuse_parts(name, x)
                forms = self.forms(x, self.axis(name))
                self._hold(ops, cache, name, x, [ops.new(*form) for form in forms])
            cache.pop(name, None)
            if left := waits % self.residual:
                shape = (batch, heads, left, width)
                cache[name] = ops.new(shape, before.size, component="kv_cache")

    def high_steps(self, cache: LayerCache, steps: int) -> list[int]:
        """The last one that codes all, and the last one, each with those before it.

        What the allocator reserves depends on them, as each asks for tensors of other sizes.
        """
        waits = self._waiting(cache)
        coding = (waits + steps) // self.residual * self.residual - waits - 1
        near = {n for end in (coding, steps - 1) for n in range(end - STEPS_BEFORE, end + 1)}
        return sorted(step for step in near if step >= 0)

    @staticmethod
    def _waiting(cache: LayerCache) -> int:
        return cache[KEYS].shape[2] if KEYS in cache else 0

    def axis(self, name: str) -> int:
        """Along which keys or values are coded."""
        return self.axes[name == VALUES]

    def row_bytes(self, width: int, size: int) -> int:
        """Codes, and a scale and a shift for each group."""
        return width * self.bits // 8 + 2 * size * width // self.group

    @abstractmethod
    def parts(self, x: Tensor, axis: int) -> int:
        """Parts of x of which each has whole groups."""

    @abstractmethod
    def forms(self, x: Tensor, axis: int) -> Forms:
        """What x [B, G, T, D] is coded as."""

    @abstractmethod
    def code(self, ops: Operations, x: Tensor, axis: int) -> list[Tensor]:
        """Codes, scales and shifts of x [B, G, T, D], whose elements lie in order."""

    @abstractmethod
    def decode(self, ops: Operations, cache: LayerCache, name: str) -> Tensor:
        """Keys or values [B, G, T, D] of what is cached."""


class QuantoCache(GroupedCache):
    """Coded by optimum-quanto."""

    def parts(self, x: Tensor, axis: int) -> int:
        """Each place along the axis has its groups."""
        return x.shape[axis]

    def _grouped(self, x: Tensor, axis: int) -> tuple[int, int]:
        groups = x.elements // self.group
        return (groups, self.group) if axis == 0 else (self.group, groups)

    def forms(self, x: Tensor, axis: int) -> Forms:
        """Rows of codes share bytes."""
        rows, columns = self._grouped(x, axis)
        scales = (rows, 1) if axis == 0 else (1, columns)
        return [((ceil_div(rows * self.bits, 8), columns), 1), (scales, x.size), (scales, x.size)]

    def _regrouped(self, ops: Operations, x: Tensor, axis: int) -> Tensor:
        """A row for each group, or a column, in front of which the last axis is brought."""
        shape = self._grouped(x, axis)
        return ops.view(x, shape) if axis == 0 else ops.new(shape, x.size)

    def code(self, ops: Operations, x: Tensor, axis: int) -> list[Tensor]:
        """`MaxOptimizer`, then `quantize_affine`, then `pack_weights`."""
        scale, shift = self._scales(ops, self._regrouped(ops, x, axis), axis)
        base = self._regrouped(ops, x, axis)
        moved = ops.new(base.shape, x.size)
        scaled = ops.new(base.shape, x.size)
        del moved
        rounded = ops.new(base.shape, x.size)
        del scaled
        limited = ops.new(base.shape, x.size)
        codes = ops.new(base.shape, 1)
        del limited, rounded, base
        packed = ops.new(*self.forms(x, axis)[0])
        for _ in range(8 // self.bits):
            ops.inside([packed.nbytes])
        del codes
        return [packed, scale, shift]

    @staticmethod
    def _scales(ops: Operations, base: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        least = ops.extreme(base, [1 if axis == 0 else 0])
        most = ops.extreme(base, [1 if axis == 0 else 0])
        between = ops.new(least.shape, base.size)
        scale = ops.new(least.shape, base.size)
        del between
        shift = ops.new(least.shape, base.size)
        del least, most
        return scale, shift

    def decode(self, ops: Operations, cache: LayerCache, name: str) -> Tensor:
        """`QBitsDequantizer`, whose codes a kernel unpacks."""
        packed, whole, axis = cache[f"{CODES} {name}"], cache[f"{CODED} {name}"], self.axis(name)
        codes = ops.new((packed.shape[0] * (8 // self.bits), packed.shape[1]), 1)
        wide = ops.new(self._grouped(whole, axis), whole.size)
        del codes
        return ops.view(wide, whole.shape) if axis == 0 else ops.new(whole.shape, whole.size)


class Float8Cache(CodedCache):
    """8-bit floats with one scale, to which new ones are appended: `Fp8QuantizedLayer`."""

    def update(
        self, ops: Operations, cache: LayerCache, new: Mapping[str, Tensor], at: Span
    ) -> list[Tensor]:
        """Code what is new, append it, and decode all."""
        del at
        names = list(new)
        if f"{CODES} {names[0]}" not in cache:
            for name, x in new.items():
                scale = self._scale(ops, x)
                cache[f"{CODES} {name}"] = self._coded(ops, x)
                cache[f"{SCALES} {name}"] = scale
                self._account(ops, cache, name)
            return list(new.values())
        before = [cache[f"{CODES} {name}"] for name in names]
        coded = [self._coded(ops, x) for x in new.values()]
        for name, old, more in zip(names, before, coded, strict=True):
            cache[f"{CODES} {name}"] = ops.cat([old, more], 2)
            self._account(ops, cache, name)
        found = [self._decoded(ops, cache[f"{CODES} {name}"], x.size) for name, x in new.items()]
        del before, coded
        return found

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, window: int | None) -> None:
        """More codes."""
        del window
        for name in (KEYS, VALUES):
            batch, heads, length, width = cache[f"{CODES} {name}"].shape
            shape = (batch, heads, length + tokens, width)
            cache[f"{CODES} {name}"] = ops.new(shape, 1, component="kv_cache")

    @staticmethod
    def _account(ops: Operations, cache: LayerCache, name: str) -> None:
        for kind in (CODES, SCALES):
            ops.account(cache[f"{kind} {name}"], "kv_cache")

    @staticmethod
    def _scale(ops: Operations, x: Tensor) -> Tensor:
        sizes = ops.scaled(x)
        most = ops.extreme(sizes, range(len(x.shape)))
        del sizes
        wide = ops.new((), FLOAT)
        del most
        share = ops.new((), FLOAT)
        del wide
        return ops.shifted(share)

    @staticmethod
    def _coded(ops: Operations, x: Tensor) -> Tensor:
        wide = ops.to(x, FLOAT)
        scaled = ops.scaled(wide)
        del wide
        return ops.to(scaled, 1)

    @staticmethod
    def _decoded(ops: Operations, codes: Tensor, size: int) -> Tensor:
        wide = ops.to(codes, FLOAT)
        scaled = ops.scaled(wide)
        del wide
        return ops.to(scaled, size)

    def row_bytes(self, width: int, size: int) -> int:
        """A byte an element."""
        del size
        return width
