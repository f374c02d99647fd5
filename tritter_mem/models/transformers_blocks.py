"""Kinds of modules that models of Hugging Face transformers are made of: weights, cache, steps.

Weights have the names and shapes of checkpoints. What is cached is what `DynamicCache` of
transformers 5.23 holds, which is also what engines cache for a layer: for multi-head latent
attention the compressed latent, not keys and values of every head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from tritter_mem.models.architecture import Block, Cache, Weight
from tritter_mem.models.layer_run import (
    ROTATIONS,
    LayerRun,
    activated,
    scaled_by_position,
)
from tritter_mem.models.shape_tensors import (
    FLOAT,
    NotPlannedError,
    Operations,
    Tensor,
)
from tritter_mem.models.transformers_caches import KEYS, VALUES, CacheKind, LayerCache

FLOAT32_BYTES = 4


def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> Iterator[Weight]:
    """A linear layer's weight, and its bias where it has one."""
    yield Weight(name=name, shape=(outputs, inputs), is_linear=True)
    if bias:
        yield vector(f"{name}.bias", outputs)


def vector(name: str, elements: int) -> Weight:
    """A weight of one dimension: a norm, a bias, a scale of each head."""
    return Weight(name=name, shape=(elements,))


def layer_norm(name: str, width: int, bias: bool) -> Iterator[Weight]:
    """A norm's weight, and its bias where it has one."""
    yield vector(name, width)
    if bias:
        yield vector(f"{name}.bias", width)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a layer keeps of a sequence, however long that is, in elements.

    Attributes:
        compute: in the type of activations.
        float32: in float32 whatever the activations' type.
    """

    compute: int = 0
    float32: int = 0


NO_STATE = State()


class Module(Block):
    """A module that may cache rows of each token, or a state of each sequence.

    Attributes:
        ROLE: what it is in a layer: `mixer`, `mlp`, or `weights` that those or the layer use;
            empty: how it runs is not described.
    """

    __slots__ = ()
    ROLE: ClassVar[str] = ""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """What it computes of its input [B, T, H], as transformers writes it; the same shape.

        Raises:
            NotPlannedError: how it runs is not described.
        """
        del x, run
        raise NotPlannedError(f"activations of {type(self).__name__} are not planned")

    def prepare(self, ids: Tensor, embeds: Tensor, run: LayerRun) -> None:
        """What it makes before the layers of a call, and leaves in `run.step.shared`.

        Args:
            ids: of the tokens that run, [B, T].
            embeds: their embeddings, [B, T, H].
            run: of what is outside of the layers.
        """

    def begin(self, x: Tensor, run: LayerRun) -> Tensor:
        """What the first layer takes, of embeddings [B, T, H]; `run` is as in `prepare`."""
        del run
        return x

    def end(self, x: Tensor, run: LayerRun) -> Tensor:
        """What the last norm takes, of what the last layer leaves."""
        del run
        return x

    def beside(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what lies beside its weights and is in no checkpoint."""
        return ()

    def frequencies(self) -> tuple[int, ...]:
        """How many frequencies each table of rotations has that lies beside its weights."""
        return ()

    def built(self, hidden: int) -> dict[str, tuple[int, ...]]:
        """Shapes of its weights as transformers makes them, by name."""
        return {
            weight.name: weight.shape if weight.copies == 1 else (weight.copies, *weight.shape)
            for weight in self.weights(hidden)
        }

    def borrows(self) -> int | None:
        """Number of the layer whose weights it runs with; None: they are its own."""
        return None

    def rows(self) -> tuple[int, ...]:
        """Elements that each cached token has: of its keys, of its values, of its index keys."""
        return ()

    def has_static_cache(self) -> bool:
        """Whether transformers has a static cache for it."""
        return True

    def reach(self) -> int | None:
        """Last tokens that its attention reaches; None: all, so that its cache grows."""
        return None

    def period(self) -> int:
        """After how many tokens what one more takes is as before, but for what is cached."""
        return 1

    def skip(self, ops: Operations, cache: LayerCache, tokens: int, kind: CacheKind) -> None:
        """Make its cache that behind so many more calls of one token each, which are not run."""
        kind.skip(ops, cache, tokens, self.reach())

    def state(self) -> State:
        """What it keeps of a sequence."""
        return NO_STATE

    def grown_elements(self, context: int | None = None) -> tuple[int, ...]:
        """Rows that a further token adds behind `context` tokens; None: behind a full window."""
        return () if self._is_full(context) else self.rows()

    def _is_full(self, context: int | None) -> bool:
        """Whether a window holds as many tokens as it keeps."""
        window = self.reach()
        return window is not None and (context is None or context >= window - 1)

    def cache_bytes(self, cache: Cache) -> int:
        """What `DynamicCache` holds behind `cache.context` tokens.

        A sliding layer holds a token less than its window: the next token completes it.
        """
        window, state = self.reach(), self.state()
        tokens = cache.context if window is None else min(cache.context, window - 1)
        rows = sum(cache.format.weight_bytes(tokens, width) for width in self.rows())
        kept = state.compute * cache.compute.element_bytes + state.float32 * FLOAT32_BYTES
        return cache.batch * (rows + kept)


@dataclass(frozen=True, slots=True)
class Norms(Module):
    """Norms over the residual stream."""

    ROLE = "weights"

    names: tuple[str, ...]
    bias: bool = False

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """A weight for each channel."""
        return tuple(
            weight for name in self.names for weight in layer_norm(name, hidden, self.bias)
        )


@dataclass(frozen=True, slots=True)
class Tables(Module):
    """Embedding and, unless it is tied, the output projection.

    Attributes:
        head: name of the output projection; empty: it is the embedding.
        head_bias: whether the output projection has a bias, which is there all the same.
    """

    vocabulary: int
    embedding: str
    head: str
    head_bias: bool = False

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """A row for each token of the vocabulary."""
        table = Weight(name=self.embedding, shape=(self.vocabulary, hidden))
        if self.head:
            return (table, *linear(self.head, self.vocabulary, hidden, self.head_bias))
        return (table, vector("lm_head.bias", self.vocabulary)) if self.head_bias else (table,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(Module):
    """Query heads that share key and value heads.

    Attributes:
        value_dim: width of a value head; None: that of a key head.
        window: tokens that it reaches, its own included; None: all.
        bias: biases of queries, keys and values. `out_bias`: of the output.
        fused: one projection makes queries, keys and values.
        query_copies: 2 where the query projection makes a gate too.
        qk_norm: elements of the norms of queries and of keys.
        has_keys: False where another layer's keys and values are used.
        has_values: False where values are the keys.
        caches: False where another layer's cache is used.
        rotates: whether queries and keys rotate.
        gate: outputs of a projection that gates the result, by name.
        vectors: elements of other weights, by name: sinks, norms of the result.
        inputs: channels of its input; None: the residual stream's.
        name: of the module.
        out: name of the output projection.
        norm_names: of the norms of queries and of keys.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    window: int | None = None
    bias: bool = False
    out_bias: bool = False
    fused: bool = False
    query_copies: int = 1
    qk_norm: tuple[int, int] = (0, 0)
    has_keys: bool = True
    has_values: bool = True
    caches: bool = True
    rotates: bool = True
    gate: tuple[tuple[str, int], ...] = ()
    vectors: tuple[tuple[str, int], ...] = ()
    inputs: int | None = None
    name: str = "self_attn"
    out: str = "o_proj"
    norm_names: tuple[str, str] = ("q_norm", "k_norm")
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Queries, keys and values, rotated; attention over what is cached; the output."""
        ops, step = run.ops, run.step
        self._refuse_unplanned()
        if self.fused:
            made = run.linear(x, f"{self.name}.qkv_proj")
            q, k, v = (self._part(run, made, n) for n in (self.heads, self.kv_heads, self.kv_heads))
        else:
            q = self._projected(x, run, "q_proj", self.heads, self.norm_names[0])
            k = self._projected(x, run, "k_proj", self.kv_heads, self.norm_names[1])
            v = self._projected(x, run, "v_proj", self.kv_heads, "")
            k = ops.scaled(k) if run.dialect.scales_keys else k
            v = ops.scaled(v) if run.dialect.scales_values else v
        if run.dialect.heads_first and self.qk_norm[0]:
            q = run.norm(q, f"{self.name}.{self.norm_names[0]}", run.dialect.head_norm)
            k = run.norm(k, f"{self.name}.{self.norm_names[1]}", run.dialect.head_norm)
        if self.rotates:
            cos, sin = step.angles[self.window is not None]
            q, k = ROTATIONS[run.dialect.rotary](run, q, k, cos, sin)
        if run.dialect.scales_queries:
            q = scaled_by_position(run, q)
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        out = ops.reshape(out, (step.batch, step.tokens, self.out_width))
        for name, _ in self.vectors:
            if name != "sinks":
                out = run.norm(out, f"{self.name}.{name}")
        out = run.linear(out, f"{self.name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)

    def _refuse_unplanned(self) -> None:
        if self.gate or self.query_copies > 1 or not self.has_keys:
            raise NotPlannedError("attention with gates or shared keys is not planned")
        if not self.has_values:
            raise NotPlannedError("attention with keys as values is not planned")

    def _projected(self, x: Tensor, run: LayerRun, name: str, heads: int, norm: str) -> Tensor:
        """Heads [B, H, T, D] of a projection, normed before the transpose where they are."""
        ops, step = run.ops, run.step
        made = run.linear(x, f"{self.name}.{name}")
        shape = (step.batch, step.tokens, heads, made.shape[-1] // heads)
        normed = f"{self.name}.{norm}" if norm and any(self.qk_norm) else ""
        if not normed or run.dialect.heads_first:
            return ops.transpose(ops.view(made, shape), 1, 2)
        if self.qk_norm[0] > self.head_dim:  # over all heads
            made = run.norm(made, normed, run.dialect.head_norm)
            return ops.transpose(ops.view(made, shape), 1, 2)
        normed_heads = run.norm(ops.view(made, shape), normed, run.dialect.head_norm)
        return ops.transpose(normed_heads, 1, 2)

    def _part(self, run: LayerRun, made: Tensor, heads: int) -> Tensor:
        """Heads [B, H, T, D] of what one projection made for all."""
        ops, step = run.ops, run.step
        part = ops.slice(made, -1, heads * self.head_dim)
        shape = (step.batch, step.tokens, heads, self.head_dim)
        return ops.transpose(ops.view(part, shape, (*made.strides[:2], self.head_dim, 1)), 1, 2)

    def _attend(self, run: LayerRun, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention [B, T, H, E]: `sdpa_attention_forward`."""
        ops, step = run.ops, run.step
        if run.dialect.eager:
            return self.written_out(run, q, k, v, step.masks[self.window])
        if "sinks" in dict(self.vectors):
            raise NotPlannedError("attention with sinks by a kernel is not planned")
        mask, times = step.masks[self.window], self.heads // self.kv_heads
        grouped = times > 1 and mask is None and k.shape[3] == v.shape[3] <= 256
        packed = times > 1 and not grouped and step.tokens == 1
        if packed:
            q = ops.view(q, (step.batch, self.kv_heads, times, self.head_dim))
        elif times > 1 and not grouped:
            k = ops.repeated(k, times)
            v = ops.repeated(v, times)
        causal = step.tokens > 1 and mask is None
        out = ops.attention(q, k, v, mask, causal)
        if packed:
            out = ops.reshape(out, (step.batch, self.heads, 1, out.shape[3]))
        return ops.contiguous(ops.transpose(out, 1, 2))

    def written_out(
        self, run: LayerRun, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention [B, T, H, E] without a kernel: `eager_attention_forward`."""
        ops = run.ops
        keys = ops.repeated(k, self.heads // self.kv_heads)
        values = ops.repeated(v, self.heads // self.kv_heads)
        scores = self._scores(run, q, keys, mask)
        before = scores
        if self.vectors:
            sinks = ops.view(run.weights[f"{self.name}.sinks"], (1, self.heads, 1, 1))
            scores = ops.cat([scores, ops.expand(sinks, (*scores.shape[:3], 1))], -1)
        if run.dialect.eager != "sinks":  # gpt-oss gives what has sinks a name by itself
            del before
        if run.dialect.eager == "float32":
            scores = ops.to(ops.softmax(scores, FLOAT), q.size)
            return self._read(run, scores, values)
        scores = ops.add(scores, ops.largest(scores))
        chances = ops.softmax(scores)
        if self.vectors:
            chances = ops.slice(chances, -1, chances.shape[3] - 1)
        weights = ops.to(chances, values.size)
        if run.dialect.eager == "sinks":
            before = weights
        else:
            scores = weights
        return self._read(run, weights, values)

    @staticmethod
    def _scores(run: LayerRun, q: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Scaled, capped and masked."""
        ops = run.ops
        scores = ops.scaled(ops.matmul(q, ops.transpose(keys, 2, 3)))
        if run.dialect.softcap:
            scores = ops.scaled(scores)
            scores = ops.pointwise(scores, saves="output")
            scores = ops.scaled(scores)
        return scores if mask is None else ops.add(scores, mask)

    @staticmethod
    def _read(run: LayerRun, chances: Tensor, values: Tensor) -> Tensor:
        """Values by their weights, which are returned too."""
        run.returned.append(chances)
        out = run.ops.matmul(chances, values)
        return run.ops.contiguous(run.ops.transpose(out, 1, 2))

    @property
    def key_width(self) -> int:
        """Elements of a token's keys."""
        return self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """Elements of a token's values."""
        return self.kv_heads * (self.head_dim if self.value_dim is None else self.value_dim)

    @property
    def out_width(self) -> int:
        """Inputs of the output projection."""
        return self.heads * (self.head_dim if self.value_dim is None else self.value_dim)

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections, norms of queries and keys, gates."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        inputs = hidden if self.inputs is None else self.inputs
        for name, outputs in self._projections():
            yield from linear(f"{self.name}.{name}", outputs, inputs, self.bias)
        yield from linear(f"{self.name}.{self.out}", hidden, self.out_width, self.out_bias)
        for name, outputs in self.gate:
            yield from linear(f"{self.name}.{name}", outputs, inputs)
        for name, elements in zip(self.norm_names, self.qk_norm, strict=True):
            if elements and (self.has_keys or name == self.norm_names[0]):
                yield vector(f"{self.name}.{name}", elements)
        for name, elements in self.vectors:
            yield vector(f"{self.name}.{name}", elements)

    def _projections(self) -> Iterator[tuple[str, int]]:
        queries = self.query_copies * self.heads * self.head_dim
        if self.fused:
            yield "qkv_proj", queries + self.key_width + self.value_width
            return
        yield "q_proj", queries
        if self.has_keys:
            yield "k_proj", self.key_width
            if self.has_values:
                yield "v_proj", self.value_width

    def rows(self) -> tuple[int, ...]:
        """Keys and values; values that are the keys are cached all the same."""
        return (self.key_width, self.value_width) if self.caches else ()

    def reach(self) -> int | None:
        """Its window."""
        return self.window


@dataclass(frozen=True, slots=True, kw_only=True)
class ComplexAttention(Attention):
    """Attention whose queries and keys rotate as complex numbers: Llama 4.

    Attributes:
        l2_normed: whether what rotates is divided by the root of its mean square.
        tuned: whether queries that do not rotate are multiplied by a number of their position.
    """

    l2_normed: bool = False
    tuned: bool = False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`Llama4TextAttention`."""
        ops, step, name = run.ops, run.step, self.name
        shape = (step.batch, step.tokens, -1, self.head_dim)
        q = ops.view(run.linear(x, f"{name}.q_proj"), (*shape[:2], self.heads, self.head_dim))
        k = ops.view(run.linear(x, f"{name}.k_proj"), (*shape[:2], self.kv_heads, self.head_dim))
        v = ops.view(run.linear(x, f"{name}.v_proj"), (*shape[:2], self.kv_heads, self.head_dim))
        v = ops.transpose(v, 1, 2)
        if self.rotates:
            q, k = self._rotated(run, q, k)
        if self.rotates and self.l2_normed:
            q = self._normed(run, q)
            k = self._normed(run, k)
        if self.tuned and not self.rotates:
            scales = ops.new((1, step.tokens, 1, 1), FLOAT)
            q = ops.to(ops.mul(q, scales), q.size)
        q, k = ops.transpose(q, 1, 2), ops.transpose(k, 1, 2)
        k, v = run.update({"keys": k, "values": v}, self.window)
        out = self._attend(run, q, k, v)
        out = ops.reshape(out, (step.batch, step.tokens, self.out_width))
        out = run.linear(out, f"{name}.{self.out}")
        return out  # noqa: RET504  (what was attended goes first)

    @staticmethod
    def _rotated(run: LayerRun, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        ops = run.ops
        wide_q, wide_k = ops.to(q, FLOAT), ops.to(k, FLOAT)
        out_q = ops.scaled(wide_q)
        out_k = ops.scaled(wide_k)
        return ops.to(out_q, q.size), ops.to(out_k, k.size)

    @staticmethod
    def _normed(run: LayerRun, x: Tensor) -> Tensor:
        ops = run.ops

        def inner(x: Tensor) -> Tensor:
            return ops.mul(x, ops.rsqrt(ops.shifted(ops.mean(ops.square(x)))))

        return ops.to(inner(ops.to(x, FLOAT)), x.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention(Module):
    """Multi-head latent attention: a token caches one latent and one rotated key.

    Attributes:
        query_rank: of the factorised query projection; None: it is one matrix.
        rank: of the latent.
        nope_dim: channels of a query head without rotation; `rope_dim`: with it.
        bias: of the projections down, and of the output.
        gate: outputs of a projection that gates the result, by name.
        sinks: whether each head has one.
        has_latent: False where another layer's latent, and its cache, is used.
        scaled: whether queries and the latent are multiplied by numbers: LongCat.
        cached: names of the latent and of the rotated key in the layer's cache.
        name: of the module.
    """

    heads: int
    query_rank: int | None
    rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    bias: bool = False
    gate: tuple[tuple[str, int], ...] = ()
    sinks: bool = False
    has_latent: bool = True
    scaled: bool = False
    cached: tuple[str, str] = (KEYS, VALUES)
    name: str = "self_attn"
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Cache the latent, and expand it to keys and values of all heads: `DeepseekV3Attention`.

        Raises:
            NotPlannedError: it has parts that DeepSeek's has not.
        """
        is_gated = any(width != self.heads for _, width in self.gate)
        if is_gated or self.sinks or not self.has_latent:
            raise NotPlannedError(f"activations of {run.kind} attention are not planned")
        ops, step, name = run.ops, run.step, self.name
        if self.query_rank:
            latent = run.norm(run.linear(x, f"{name}.q_a_proj"), f"{name}.q_a_layernorm")
            q = run.linear(latent, f"{name}.q_b_proj")
            del latent
        else:
            q = run.linear(x, f"{name}.q_proj")
        q = ops.view(q, (step.batch, step.tokens, self.heads, self.nope_dim + self.rope_dim))
        q = ops.transpose(q, 1, 2)
        q_pass = q_rot = q
        if run.dialect.rotary:
            q_pass, q_rot = ops.split(q, -1, [self.nope_dim, self.rope_dim])
        compressed, latent, k_rot = self._compressed(x, run)
        if self.scaled:
            q_pass = ops.scaled(q_pass)
            q_rot = ops.scaled(q_rot)
            latent = ops.scaled(latent)
        if run.dialect.rotary:
            cos, sin = step.angles[False]
            q_rot, k_rot = ROTATIONS[run.dialect.rotary](run, q_rot, k_rot, cos, sin)
        latent, k_rot = run.update(dict(zip(self.cached, (latent, k_rot), strict=True)))
        query = ops.cat([q_pass, q_rot], -1) if run.dialect.rotary else q
        if run.dialect.scales_queries:
            query = scaled_by_position(run, query)
        k, v = self._expanded(latent, k_rot, run)
        mask = step.masks[None]
        out = ops.attention(query, k, v, mask, step.tokens > 1 and mask is None)
        out = ops.contiguous(ops.transpose(out, 1, 2))
        gates = [self._gate_of(x, run, gate) for gate, _ in self.gate]
        for gate in gates:
            out = ops.mul(out, gate)
        out = ops.view(out, (step.batch, step.tokens, self.heads * self.value_dim))
        out = run.linear(out, f"{name}.o_proj")
        del q, q_pass, compressed, gates
        return out

    def _gate_of(self, x: Tensor, run: LayerRun, name: str) -> Tensor:
        """A number for the result of each head, [B, T, H, 1], found in float32: Bailing."""
        ops = run.ops
        made = ops.to(run.linear(x, f"{self.name}.{name}"), FLOAT)
        made = ops.to(ops.pointwise(made, saves="output"), x.size)
        return ops.view(made, (*made.shape, 1))

    def _compressed(self, x: Tensor, run: LayerRun) -> tuple[Tensor, Tensor, Tensor]:
        """What is projected down, and of it the latent and the key that rotates, [B, 1, T, D]."""
        ops, step, name = run.ops, run.step, self.name
        compressed = run.linear(x, f"{name}.kv_a_proj_with_mqa")
        latent, k_rot = ops.split(compressed, -1, [self.rank, self.rope_dim])
        latent = run.norm(latent, f"{name}.kv_a_layernorm")
        latent = ops.view(latent, (step.batch, 1, step.tokens, self.rank))
        shape = (step.batch, 1, step.tokens, self.rope_dim)
        strides = (compressed.strides[0], compressed.strides[0], compressed.strides[1], 1)
        return compressed, latent, ops.view(k_rot, shape, strides)

    def _expanded(self, latent: Tensor, k_rot: Tensor, run: LayerRun) -> tuple[Tensor, Tensor]:
        """Keys [B, H, K, D] and values [B, H, K, E] of all heads."""
        ops, (batch, _, keys, _) = run.ops, latent.shape
        made = run.linear(latent, f"{self.name}.kv_b_proj")
        made = ops.view(made, (batch, keys, self.heads, self.nope_dim + self.value_dim))
        k, v = ops.split(ops.transpose(made, 1, 2), -1, [self.nope_dim, self.value_dim])
        wide = ops.expand(k_rot, (batch, self.heads, keys, self.rope_dim))
        return ops.filled([k, wide]), v

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections down and up, and the norms between them."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        name, queries = self.name, self.heads * (self.nope_dim + self.rope_dim)
        if self.query_rank:
            yield from linear(f"{name}.q_a_proj", self.query_rank, hidden, self.bias)
            yield vector(f"{name}.q_a_layernorm", self.query_rank)
            yield from linear(f"{name}.q_b_proj", queries, self.query_rank)
        else:
            yield from linear(f"{name}.q_proj", queries, hidden)
        if self.has_latent:
            down = self.rank + self.rope_dim
            yield from linear(f"{name}.kv_a_proj_with_mqa", down, hidden, self.bias)
            yield vector(f"{name}.kv_a_layernorm", self.rank)
        expanded = self.heads * (self.nope_dim + self.value_dim)
        yield from linear(f"{name}.kv_b_proj", expanded, self.rank)
        yield from linear(f"{name}.o_proj", hidden, self.heads * self.value_dim, self.bias)
        for gate, outputs in self.gate:
            yield from linear(f"{name}.{gate}", outputs, hidden)
        if self.sinks:
            yield vector(f"{name}.sinks", self.heads)

    def rows(self) -> tuple[int, ...]:
        """The latent and the rotated key."""
        return (self.rank, self.rope_dim) if self.has_latent else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer(Module):
    """Chooses the tokens that attention reads: one key a token, whatever the heads.

    Attributes:
        queries: inputs of its query projection.
        vectors: elements of other weights, by name.
        pooled: tokens that are pooled into one key, by a gate and a position table; 0: none.
        rows_of_token: what it caches of a token; None: its key.
    """

    heads: int
    head_dim: int
    queries: int
    vectors: tuple[tuple[str, int], ...] = ()
    pooled: int = 0
    rows_of_token: int | None = None
    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections of queries, of one key, and of the heads' weights."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        name = "self_attn.indexer"
        yield from linear(f"{name}.wq_b", self.heads * self.head_dim, self.queries)
        yield from linear(f"{name}.wk", self.head_dim, hidden)
        yield from layer_norm(f"{name}.k_norm", self.head_dim, True)
        yield from linear(f"{name}.weights_proj", self.heads, hidden)
        for other, elements in self.vectors:
            yield vector(f"{name}.{other}", elements)
        if self.pooled:
            shape = (self.pooled, self.head_dim)
            yield Weight(name=f"{name}.index_kpool_compress_ape", shape=shape)
            yield Weight(name=f"{name}.index_kpool_compress_gate", shape=(self.head_dim, hidden))

    def rows(self) -> tuple[int, ...]:
        """One key, shared by the heads."""
        return (self.head_dim if self.rows_of_token is None else self.rows_of_token,)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndexer(Module):
    """Chooses blocks of keys that attention reads, by heads that share one key."""

    heads: int
    head_dim: int

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections of queries and of one key, with their norms."""
        name = "self_attn.indexer"
        return (
            *linear(f"{name}.q_proj", self.heads * self.head_dim, hidden),
            *linear(f"{name}.k_proj", self.head_dim, hidden),
            vector(f"{name}.q_norm", self.head_dim),
            vector(f"{name}.k_norm", self.head_dim),
        )

    def rows(self) -> tuple[int, ...]:
        """One key."""
        return (self.head_dim,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedIndexer(Module):
    """Chooses blocks of keys; one projection makes its queries and one key."""

    heads: int
    head_dim: int

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """The projection, and norms of queries and of the key."""
        name = "self_attn.indexer"
        return (
            *linear(f"{name}.index_qk_proj", (self.heads + 1) * self.head_dim, hidden),
            vector(f"{name}.q_layernorm", self.head_dim),
            vector(f"{name}.k_layernorm", self.head_dim),
        )

    def rows(self) -> tuple[int, ...]:
        """One key."""
        return (self.head_dim,)


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseConvolutions(Module):
    """Short convolutions over single channels, each with a state."""

    widths: tuple[tuple[str, int], ...]
    kernel: int

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """One kernel a channel."""
        del hidden
        return tuple(
            Weight(name=f"{name}.conv1d", shape=(width, 1, self.kernel))
            for name, width in self.widths
        )

    def state(self) -> State:
        """The last inputs of each, in float32."""
        return State(float32=sum(width for _, width in self.widths) * self.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward(Module):
    """A dense MLP.

    Attributes:
        gated: whether a gate multiplies what goes up.
        fused: name of the one projection that makes gate and up; empty: they are two.
        names: of the projections to gate, up and down.
        vectors: elements of norms before the projection down, by name.
    """

    inner: int
    gated: bool = True
    fused: str = ""
    bias: bool = False
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    vectors: tuple[tuple[str, int], ...] = ()
    name: str = "mlp"
    ROLE = "mlp"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """Up, through the activation, and down."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        if self.fused:
            states = run.linear(x, f"{self.name}.{self.fused}")
            half, other = ops.split(states, -1, [self.inner, self.inner])
            states = ops.mul(other, activated(run, half))
            return run.linear(states, down)
        if not self.gated:
            return run.linear(activated(run, run.linear(x, up)), down)
        return run.linear(self._normed(self._gated(x, run, gate, up), run), down)

    @staticmethod
    def _gated(x: Tensor, run: LayerRun, gate: str, up: str) -> Tensor:
        return run.ops.mul(activated(run, run.linear(x, gate)), run.linear(x, up))

    def _normed(self, x: Tensor, run: LayerRun) -> Tensor:
        for name, _ in self.vectors:
            x = run.norm(x, f"{self.name}.{name}")
        return x

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Projections up and down."""
        gate, up, down = self.names
        ups = (gate, up) if self.gated else (up,)
        parts = ((self.fused, 2 * self.inner),) if self.fused else ((n, self.inner) for n in ups)
        return (
            *(w for n, size in parts for w in linear(f"{self.name}.{n}", size, hidden, self.bias)),
            *linear(f"{self.name}.{down}", hidden, self.inner, self.bias),
            *(vector(f"{self.name}.{n}", size) for n, size in self.vectors),
        )


@dataclass(frozen=True, slots=True)
class Reused(Module):
    """A module that runs again with an earlier layer's weights, and with a cache for itself.

    Attributes:
        source: number of that layer.
    """

    module: Module
    source: int
    ROLE = "mixer"

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """As the module."""
        return self.module.run(x, run)

    def borrows(self) -> int:
        """The layer that has its weights."""
        return self.source

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """Counted where they are first."""
        del hidden
        return ()

    def rows(self) -> tuple[int, ...]:
        """Those of the module."""
        return self.module.rows()


@dataclass(frozen=True, slots=True)
class ReusedMlp(Reused):
    """The same of an MLP."""

    ROLE = "mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra(Module):
    """Weights that fit no other kind, by name: linear layers, and others.

    Attributes:
        linears: outputs and inputs.
        tensors: shapes.
        buffers: shapes of tensors that training does not change.
        integers: shapes of int64 tensors.
    """

    linears: tuple[tuple[str, int, int], ...] = ()
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = ()
    buffers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    integers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    ROLE = "weights"

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """All of them."""
        del hidden
        return (
            *(w for name, outputs, inputs in self.linears for w in linear(name, outputs, inputs)),
            *(Weight(name=name, shape=shape) for name, shape in self.tensors),
            *(Weight(name=name, shape=shape, is_parameter=False) for name, shape in self.buffers),
            *(
                Weight(name=name, shape=shape, is_parameter=False, element_bytes=8)
                for name, shape in self.integers
            ),
        )
