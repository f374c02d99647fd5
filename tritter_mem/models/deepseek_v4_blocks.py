"""Modules of DeepSeek-V4: `modeling_deepseek_v4.py` of transformers 5.23.

Each token attends to a window, and to compressed tokens behind it: one for each `rate` tokens, of
which an indexer chooses some where they are short. Keys are the values. Compressors cache what they
made, and the inputs of tokens that are not enough for one more. Behind a prompt these inputs are
views, by which the storages of the whole prompt's stay until the next token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tritter_mem.models.architecture import Cache, Weight
from tritter_mem.models.expert_blocks import Experts
from tritter_mem.models.formats import ceil_div
from tritter_mem.models.hyper_connections import head, root_scaled
from tritter_mem.models.layer_run import LayerRun, activated, halves, rotary_angles
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    LONG,
    QUANTISED,
    NotPlannedError,
    Operations,
    Tensor,
)
from tritter_mem.models.transformers_blocks import (
    FLOAT32_BYTES,
    Attention,
    FeedForward,
    Module,
    linear,
    vector,
)
from tritter_mem.models.transformers_caches import KEYS, VALUES, CacheKind, LayerCache

NAME = "self_attn"
COMPRESSOR, INDEXER = f"{NAME}.compressor", f"{NAME}.compressor.indexer"
INT32 = 4
Held = list[Tensor]
"""What local names hold until a module's `forward` ends."""


def turned(ops: Operations, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last channels of x [B, H, T, D] in pairs, by angles [B, 1, T, R / 2].

    `apply_rotary_pos_emb`: in float32; the other channels pass.
    """
    cos = ops.interleaved(cos, -1, 2)
    sin = ops.interleaved(sin, -1, 2)
    width = cos.shape[-1]
    rest, rope = ops.slice(x, -1, x.shape[-1] - width), ops.slice(x, -1, width)
    rotated = ops.to(
        ops.add(
            ops.mul(ops.to(rope, FLOAT), cos), ops.mul(ops.to(_half_turn(ops, rope), FLOAT), sin)
        ),
        x.size,
    )
    return ops.cat([rest, rotated], -1)


def _half_turn(ops: Operations, x: Tensor) -> Tensor:
    """Pairs of channels swapped, and one of each negated: `rotate_half`."""
    shape = (*x.shape[:-1], x.shape[-1] // 2)
    one, other = (ops.slice(x, -1, shape[-1]) for _ in range(2))
    parts = [ops.view(part, (*shape, 1), (*part.strides, 1)) for part in (ops.scaled(other), one)]
    del one, other
    return ops.view(ops.cat(parts, -1), x.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedAttention(Module):
    """Attention over a window and over compressed tokens, of keys that are the values too.

    Attributes:
        window: last tokens that are kept as they are.
        rate: tokens that become one compressed token; 0: there are none behind the window.
        index: heads and their width of an indexer over the compressed tokens; None: all are read.
        chosen: compressed tokens that an indexer chooses.
        rotated: channels that rotate: in layers with a window alone, and in others.
    """

    heads: int
    head_dim: int
    query_rank: int
    out_groups: int
    out_rank: int
    window: int
    rate: int
    index: tuple[int, int] | None = None
    chosen: int = 0
    rotated: tuple[int, int]
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV4Attention`."""
        ops, step = run.ops, run.step
        shape = (step.batch, step.tokens)
        cos, sin = step.angles[not self.rate]
        resid = run.norm(run.linear(x, f"{NAME}.q_a_proj"), f"{NAME}.q_a_norm")
        q = ops.view(run.linear(resid, f"{NAME}.q_b_proj"), (*shape, self.heads, self.head_dim))
        q = root_scaled(ops, ops.transpose(q, 1, 2))
        q = turned(ops, q, cos, sin)
        kv = run.norm(run.linear(x, f"{NAME}.kv_proj"), f"{NAME}.kv_norm")
        kv = ops.transpose(ops.view(kv, (*shape, 1, self.head_dim)), 1, 2)
        kv = turned(ops, kv, cos, sin)
        kv = self._with_cached(run, kv)
        bias = None
        if self.rate:
            compressed, bias = self._compressed(run, x, resid)
            kv = ops.cat([kv, compressed], 2)
        mask = self._widened(run, kv.shape[2], bias)
        out = self._plain().written_out(run, q, kv, kv, mask)
        out = turned(ops, ops.transpose(out, 1, 2), cos, ops.scaled(sin))
        out = ops.transpose(out, 1, 2)
        grouped = ops.reshape(out, (*shape, self.out_groups, self._group_width))
        grouped = self._projected(run, grouped)
        result = run.linear(grouped, f"{NAME}.o_b_proj")
        del mask, resid, q, kv, bias, out, grouped
        return result

    def _plain(self) -> Attention:
        """Attention with sinks, of keys that all heads share."""
        return Attention(
            heads=self.heads, kv_heads=1, head_dim=self.head_dim, vectors=(("sinks", self.heads),)
        )

    def _with_cached(self, run: LayerRun, kv: Tensor) -> Tensor:
        """Keys of the window before too; layers with a window alone cache them as values too."""
        names = (KEYS,) if self.rate else (KEYS, VALUES)
        return run.update(dict.fromkeys(names, kv), self.window)[0]

    def _widened(self, run: LayerRun, keys: int, bias: Tensor | None) -> Tensor | None:
        """The mask for compressed tokens too, of which `bias` says who sees them; None: all do."""
        ops, mask = run.ops, run.step.masks[self.window]
        if mask is None or keys == mask.shape[3]:
            return mask
        return ops.padded(mask, 3, keys) if bias is None else ops.cat([mask, bias], 3)

    def _compressed(self, run: LayerRun, x: Tensor, resid: Tensor) -> tuple[Tensor, Tensor | None]:
        """All compressed tokens [B, 1, N, D], and which of them each token sees."""
        held: Held = []
        made = self._compress(run, x, COMPRESSOR, self.head_dim, held)
        batch, count, width = made.shape
        wide = run.ops.view(made, (batch, 1, count, width), (made.strides[0], *made.strides))
        bias = None
        if self.index is not None:
            held.append(self._choose(run, x, resid))
            bias = self._of_chosen(run, count, held)
        elif run.step.tokens > 1 and count:
            bias = self._of_past(run, count, held)
        _let_go(held)
        return wide, bias

    def _of_past(self, run: LayerRun, count: int, held: Held) -> Tensor:
        """Which compressed tokens are of tokens before each."""
        ops, step = run.ops, run.step
        numbers = ops.new((count,), LONG)
        behind = _thresholds(run)
        held += [numbers, behind]
        shape = (step.batch, 1, step.tokens, count)
        zeros = ops.new(shape, step.size)
        later = ops.new((behind.shape[0], *shape[1:]), BOOL)
        bias = ops.new(shape, step.size)
        del later, zeros
        return bias

    def _of_chosen(self, run: LayerRun, count: int, held: Held) -> Tensor:
        """Which compressed tokens the indexer chose for each token: places [B, T, K], held last."""
        ops, step, shape = run.ops, run.step, held[-1].shape
        held.append(ops.new(shape, BOOL))
        others = ops.new(shape, LONG)
        held.append(ops.new(shape, LONG))
        del others
        bias = ops.new((step.batch, 1, step.tokens, count + 1), step.size)
        return ops.slice(bias, 3, count)

    def _choose(self, run: LayerRun, x: Tensor, resid: Tensor) -> Tensor:
        """Places of compressed tokens for each token [B, T, K]: `DeepseekV4Indexer`."""
        ops, step = run.ops, run.step
        heads, width = self.index or (0, 0)
        held: Held = []
        made = self._compress(run, x, INDEXER, width, held)
        rows = step.batch if step.caches else 1
        positions = Tensor((rows, step.tokens), (step.tokens, 1), LONG, None)
        cos, sin = rotary_angles(step, positions, self.rotated[1])
        q = ops.view(
            run.linear(resid, f"{INDEXER}.q_b_proj"), (step.batch, step.tokens, heads, width)
        )
        q = ops.transpose(turned(ops, ops.transpose(q, 1, 2), cos, sin), 1, 2)
        scores = self._scores(run, q, made, x)
        count = made.shape[1]
        if not count:
            return ops.new((step.batch, step.tokens, 0), LONG)
        behind = _thresholds(run)
        numbers = ops.new((count,), LONG)
        later = ops.new((behind.shape[0], step.tokens, count), BOOL)
        scores = ops.masked(scores, later)
        found = ops.topk(scores, min(self.chosen, count))[1]
        invalid = ops.new(found.shape, BOOL)
        none = ops.new(found.shape, LONG)
        places = ops.new(found.shape, LONG)
        del none
        _let_go(held)
        del cos, sin, q, scores, behind, numbers, later, found, invalid
        return places

    @staticmethod
    def _scores(run: LayerRun, q: Tensor, keys: Tensor, x: Tensor) -> Tensor:
        """Of queries [B, T, H, D] and keys [B, N, D] of the indexer: [B, T, N], in float32."""
        ops, (batch, tokens, heads, _) = run.ops, q.shape
        wide, turned_keys = ops.to(q, FLOAT), ops.to(ops.transpose(keys, 1, 2), FLOAT)
        shape = (batch, 1, *turned_keys.shape[1:])
        strides = (turned_keys.strides[0], *turned_keys.strides)
        scores = ops.matmul(wide, ops.view(turned_keys, shape, strides))
        del wide, turned_keys
        scores = ops.scaled(ops.pointwise(scores, saves="output"))
        weights = ops.scaled(ops.to(run.linear(x, f"{INDEXER}.scorer.weights_proj"), FLOAT))
        column = ops.view(weights, (batch, tokens, heads, 1))
        summed = ops.sum(ops.mul(scores, column), [2])
        del scores, weights, column
        return ops.view(summed, (batch, tokens, summed.shape[3]))

    def _compress(self, run: LayerRun, x: Tensor, name: str, width: int, held: Held) -> Tensor:
        """All compressed tokens [B, N, D], those of calls before too.

        Args:
            run: of the layer.
            x: rows [B, T, H].
            name: of the compressor.
            width: of its compressed tokens.
            held: gets what is there until the compressor's `forward` ends.

        Raises:
            NotPlannedError: its projections are float32 and rows are not.
        """
        ops, step = run.ops, run.step
        if run.weights[f"{name}.kv_proj"].size > x.size and not ops.autocast:
            raise NotPlannedError(
                f"transformers keeps compressors of {run.kind} models in float32 beside float16, "
                "whose rows it cannot multiply with them; try weights.dtype bfloat16"
            )
        kv = run.linear(x, f"{name}.kv_proj")
        gate = run.linear(x, f"{name}.gate_proj")
        held += [kv, gate]
        kv, gate = self._waited(run, name, kv, gate)
        count = kv.shape[1] // self.rate
        if not count:
            made = ops.new((step.batch, 0, width), step.size)
        else:
            kv = self._by_window(ops, kv)
            gate = ops.add(self._by_window(ops, gate), run.weights[f"{name}.position_bias"])
            held.append(gate)
            if self.index is not None:
                kv, gate, *before = self._overlapped(run, name, kv, gate)
                held += [kv, gate, *before]
            made = run.norm(_weighted(ops, kv, gate), f"{name}.kv_norm")
            near = ops.new((count,), LONG)
            far = ops.new((count,), LONG)
            positions = ops.new((count,), LONG)
            del far, near
            rows = ops.alias(positions, (step.batch, count), (0, 1))
            angles = rotary_angles(step, rows, self.rotated[1])
            made = turned(ops, ops.view(made, (step.batch, 1, count, width)), *angles)
            made = ops.view(made, (step.batch, count, width))
            if name == INDEXER:
                held.append(made)
            held += [positions, *angles]
        return self._appended(run, name, made)

    def _by_window(self, ops: Operations, x: Tensor) -> Tensor:
        """[B, N * rate, C] as [B, N, rate, C]."""
        batch, tokens, width = x.shape
        shape = (batch, tokens // self.rate, self.rate, width)
        return ops.view(x, shape, (x.strides[0], self.rate * x.strides[1], *x.strides[1:]))

    def _waited(self, run: LayerRun, name: str, kv: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of whole windows [B, N * rate, C]; the others wait for the next call.

        `store_compression_weights`.
        """
        ops, cache = run.ops, run.cache
        names = f"{name} inputs", f"{name} gates"
        before = [cache[n] for n in names if n in cache]
        if before and before[0].shape[1]:
            kv = ops.cat([before[0], kv], 1)
            gate = ops.cat([before[1], gate], 1)
        tokens = kv.shape[1]
        usable = tokens // self.rate * self.rate
        if run.step.caches:
            for key, x in zip(names, (kv, gate), strict=True):
                ops.account(x, "kv_cache")
                cache[key] = ops.slice(x, 1, tokens - usable)
        return ops.slice(kv, 1, usable), ops.slice(gate, 1, usable)

    def _overlapped(self, run: LayerRun, name: str, kv: Tensor, gate: Tensor) -> list[Tensor]:
        """One half of each window's inputs, behind the other half of those of the window before.

        With what was cached of the last window.
        """
        ops, (batch, count, rate, both) = run.ops, kv.shape
        shape, width = (batch, count, 2 * rate, both // 2), both // 2
        wide = [ops.new(shape, x.size) for x in (kv, gate)]
        for out, x in zip(wide, (kv, gate), strict=True):
            ops.placed(out, ops.slice(x, 3, width))
        if count > 1:
            for out, x in zip(wide, (kv, gate), strict=True):
                ops.placed(out, ops.slice(ops.slice(x, 1, count - 1), 3, width))
        if run.step.caches:
            for key, x in ((f"{name} last inputs", kv), (f"{name} last gates", gate)):
                wide += [run.cache[key]] if key in run.cache else []
                run.cache[key] = ops.new((batch, rate, width), x.size, component="kv_cache")
        return wide

    def _appended(self, run: LayerRun, name: str, made: Tensor) -> Tensor:
        """Compressed tokens behind those that are cached: `update_compressor_states`."""
        if not run.step.caches:
            return made
        before = run.cache.get(name)
        if before is not None:
            made = run.ops.cat([before, made], 1) if made.shape[1] else before
        run.ops.account(made, "kv_cache")
        run.cache[name] = made
        return made

    def _projected(self, run: LayerRun, x: Tensor) -> Tensor:
        """Each group of heads by its own matrix, [B, T, G, K] to [B, T, G * R]: `o_a_proj`."""
        ops, (batch, tokens, groups, width) = run.ops, x.shape
        weight, rows = run.weights[f"{NAME}.o_a_proj"], batch * tokens
        if weight.size == QUANTISED:
            made = self._by_kernel(ops, x)
        else:
            matrices = ops.view(weight, (groups, self.out_rank, width))
            by_group = ops.transpose(ops.reshape(x, (rows, groups, width)), 0, 1)
            made = ops.transpose(ops.matmul(by_group, ops.transpose(matrices, 1, 2)), 0, 1)
            made = ops.reshape(made, (batch, tokens, groups, self.out_rank))
        return ops.reshape(made, (batch, tokens, groups * self.out_rank))

    def _by_kernel(self, ops: Operations, x: Tensor) -> Tensor:
        """`FP8GroupedLinear`: the kernel of experts, with as many rows for each group."""
        batch, tokens, groups, width = x.shape
        rows = ops.reshape(ops.permuted(x, (2, 0, 1, 3)), (groups * batch * tokens, width))
        each = ops.new((groups,), INT32)
        near = ops.new((groups,), INT32)
        ends = ops.new((groups,), INT32)
        del near
        made = ops.new((rows.shape[0], self.out_rank), x.size)
        del rows, each, ends
        made = ops.view(made, (groups, batch, tokens, self.out_rank))
        return ops.permuted(made, (1, 2, 0, 3))

    @property
    def _group_width(self) -> int:
        """Inputs of a group's output projection."""
        return self.heads * self.head_dim // self.out_groups

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, sinks, and the compressors of keys and of index keys."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        yield from linear(f"{NAME}.q_a_proj", self.query_rank, hidden)
        yield vector(f"{NAME}.q_a_norm", self.query_rank)
        yield from linear(f"{NAME}.q_b_proj", self.heads * self.head_dim, self.query_rank)
        yield from linear(f"{NAME}.kv_proj", self.head_dim, hidden)
        yield vector(f"{NAME}.kv_norm", self.head_dim)
        out = self.out_groups * self.out_rank
        yield from linear(f"{NAME}.o_a_proj", out, self._group_width)
        yield from linear(f"{NAME}.o_b_proj", hidden, out)
        if self.rate:
            yield from self._compressor(COMPRESSOR, self.head_dim, hidden)
        if self.index is not None:
            heads, head_dim = self.index
            yield from self._compressor(INDEXER, head_dim, hidden)
            yield from linear(f"{INDEXER}.q_b_proj", heads * head_dim, self.query_rank)
            yield from linear(f"{INDEXER}.scorer.weights_proj", heads, hidden)
        yield vector(f"{NAME}.sinks", self.heads)

    def _compressor(self, name: str, width: int, hidden: int) -> Iterator[Weight]:
        series = self._series * width
        yield from linear(f"{name}.kv_proj", series, hidden)
        yield from linear(f"{name}.gate_proj", series, hidden)
        yield vector(f"{name}.kv_norm", width)
        yield Weight(name=f"{name}.position_bias", shape=(self.rate, series))

    def frequencies(self) -> tuple[int, ...]:
        """Those of each compressor, of the indexer's too."""
        found = tuple(width // 2 for width in self.rotated)
        return len(self._widths) * found

    @property
    def _series(self) -> int:
        """Compressed series that overlap: two where an indexer chooses among short ones."""
        return 1 if self.index is None else 2

    @property
    def _widths(self) -> dict[str, int]:
        """Of compressed tokens, by compressor: keys, and index keys."""
        if not self.rate:
            return {}
        found = {COMPRESSOR: self.head_dim}
        return found if self.index is None else {**found, INDEXER: self.index[1]}

    def rows(self) -> tuple[int, ...]:
        """Of the window: keys, and values where no tokens are compressed."""
        return self._copies * (self.head_dim,)

    def reach(self) -> int | None:
        """Its window."""
        return self.window

    def has_static_cache(self) -> bool:
        """`StaticCache` has no place for compressed tokens, nor for those that wait."""
        return not self.rate

    def grown_elements(self, context: int | None = None) -> tuple[int, ...]:
        """Compressed tokens grow by one row every `rate` tokens; here a token's share, rounded."""
        shares = tuple(ceil_div(width, self.rate) for width in self._widths.values())
        if context is None or context >= self.window - 1:
            return shares
        return (self._copies * self.head_dim, *shares)

    @property
    def _copies(self) -> int:
        """Tensors that the window is kept in: keys are the values where tokens are compressed."""
        return 1 if self.rate else 2

    def cache_bytes(self, cache: Cache) -> int:
        """The window; compressed tokens; and what waits to be compressed, with its gates.

        Keys are the values, in one tensor but for layers with a window alone. Overlapping series
        also keep half of the last compressed tokens' inputs, the gates of these in float32.
        """
        tokens, element, gates = cache.context, cache.format.element_bytes, 0
        elements = self._copies * min(tokens, self.window - 1) * self.head_dim
        for width in self._widths.values():
            elements += tokens // self.rate * width
            elements += 2 * (tokens % self.rate) * self._series * width
            if self.index is not None and tokens >= self.rate:
                elements += self.rate * width
                gates += self.rate * width
        return cache.batch * (elements * element + gates * FLOAT32_BYTES)

    def period(self) -> int:
        """A window of tokens is compressed once it is whole."""
        return self.rate or 1

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, kind: CacheKind) -> None:
        """More compressed tokens, and those that wait for their window."""
        kind.skip(ops, cache, tokens, self.window)
        for name, width in self._widths.items():
            self._skip(ops, cache, tokens, name, width)

    def _skip(self, ops: Operations, cache: LayerCache, tokens: int, name: str, width: int) -> None:
        made = cache[name]
        waiting = cache[f"{name} inputs"]
        batch, before, _ = made.shape
        behind = before * self.rate + waiting.shape[1] + tokens
        count, waits = behind // self.rate, behind % self.rate
        for key in (f"{name} inputs", f"{name} gates"):
            shape = (batch, waits or self.rate, waiting.shape[2])
            cache[key] = ops.slice(ops.new(shape, made.size, component="kv_cache"), 1, waits)
        if count == before:
            return
        cache[name] = ops.new((batch, count, width), made.size, component="kv_cache")
        if self.index is not None:
            for key, size in ((f"{name} last inputs", made.size), (f"{name} last gates", FLOAT)):
                shape = (batch, self.rate, width)
                cache[key] = ops.new(shape, size, component="kv_cache")


def _weighted(ops: Operations, x: Tensor, gates: Tensor) -> Tensor:
    """Sums [B, N, C] over windows of x [B, N, W, C], each row by the softmax of its gates."""
    batch, count, _, width = x.shape
    shares = ops.to(ops.softmax(gates, FLOAT), x.size)
    products = ops.mul(x, shares)
    del shares
    summed = ops.sum(products, [2], FLOAT if ops.autocast else None)
    return ops.view(summed, (batch, count, width))


def _let_go(held: Held) -> None:
    """In their order: a list lets its last item go first."""
    held.reverse()
    held.clear()


def _thresholds(run: LayerRun) -> Tensor:
    """How many compressed tokens each position sees."""
    ops, step = run.ops, run.step
    shape = (step.batch if step.caches else 1, step.tokens)
    near = ops.new(shape, LONG)
    found = ops.new(shape, LONG)
    del near
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedFeedForward(FeedForward):
    """An MLP whose gate has a largest value, and what goes up a largest and a smallest."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV4MLP`."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        limited = ops.clamped(run.linear(x, gate), limits=1)
        raised = ops.clamped(run.linear(x, up))
        out = run.linear(ops.mul(activated(run, limited), raised), down)
        del limited, raised
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedExperts(Experts):
    """Experts that are limited so, and a shared one."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV4SparseMoeBlock`.

        Raises:
            NotPlannedError: experts are scored in another way.
        """
        if not self.routing:
            raise NotPlannedError(f"activations of {run.kind} experts are not planned")
        ops, shape = run.ops, x.shape
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        logits, weights, places = self.route(flat, run)
        routed = ops.view(self._chosen(flat, run, weights, places), shape)
        total = ops.add(routed, self._shared_run(x, run))
        del logits, weights, places, routed
        return total

    def _shared_run(self, x: Tensor, run: LayerRun) -> Tensor:
        name = f"{self.name}.{self.shared_name}"
        return LimitedFeedForward(inner=self.shared, name=name).run(x, run)

    def _through(self, run: LayerRun, made: Tensor) -> Tensor:
        """`DeepseekV4Experts._apply_gate`."""
        ops = run.ops
        gate, up = halves(ops, made)
        gate = ops.clamped(gate, limits=1)
        up = ops.clamped(up)
        return ops.mul(activated(run, gate), up)


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperHead(Module):
    """One stream of several before the last norm.

    Attributes:
        streams: how many residual streams there are.
    """

    streams: int
    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """What streams are mixed by."""
        return (
            Weight(name="hc_head.hc_fn", shape=(self.streams, self.streams * hidden)),
            vector("hc_head.hc_base", self.streams),
            vector("hc_head.hc_scale", 1),
        )

    def begin(self, x: Tensor, run: LayerRun) -> Tensor:
        """Streams [B, T, N, H], each the embeddings [B, T, H]."""
        ops, (batch, tokens, width) = run.ops, x.shape
        wide = ops.view(x, (batch, tokens, 1, width))
        return ops.contiguous(ops.expand(wide, (batch, tokens, self.streams, width)))

    def end(self, x: Tensor, run: LayerRun) -> Tensor:
        """`DeepseekV4HyperHead`; the streams are there until the last norm has run."""
        run.returned.append(x)
        return head(run, x)
