"""What transformers 5.23 runs around and between the modules of a layer.

Families differ in how they write a norm, in where norms stand, and in how they rotate queries and
keys: their `Dialect`. The functions here follow their code line by line, as what a local name holds
is there until the name goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    LONG,
    NotPlannedError,
    Operations,
    Parameter,
    Tensor,
    contiguous,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a family writes what all families have.

    Attributes:
        norm: of `NORMS`, over the residual stream. `head_norm`: of queries and keys.
        order: of `ORDERS`: where norms stand in a layer.
        names: of the norms before (or, in post order, behind) attention and MLP.
        heads_first: whether norms of queries and keys follow the transpose to [B, H, T, D].
        rotary: of `ROTATIONS`; empty: queries and keys are not rotated.
        rotary_dim: channels of a head that rotate; 0: all.
        rotary_kinds: tables of angles that a step makes: one, or one each for layers with a window
            and without.
        wide_angles: whether cosines and sines stay in float32.
        activation: of the MLP, of `ACTIVATIONS`.
        scales_residual: whether what is added to the residual stream is multiplied first.
        scales_embedding: whether embeddings are multiplied by a number.
        logits_steps: results that are made of the logits, one after another.
        half_angles: whether cosines and sines are as wide as half of what rotates.
        scales_values: whether values are multiplied by a number.
        eager: how attention is written out where the family has no `sdpa`: `float32`, its softmax in
            that type; `max`, the largest score of each row taken off first; `sinks`, the same as
            gpt-oss writes it.
        softcap: whether scores of written-out attention are capped.
        more_masks: windows for which masks are made though no layer has them.
    """

    norm: str = "llama"
    head_norm: str = ""
    order: str = "before"
    names: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    heads_first: bool = False
    rotary: str = "halves"
    rotary_dim: int = 0
    rotary_kinds: int = 1
    wide_angles: bool = False
    activation: str = "silu"
    scales_residual: bool = False
    scales_embedding: bool = False
    logits_steps: int = 0
    half_angles: bool = False
    scales_values: bool = False
    eager: str = ""
    softcap: bool = False
    more_masks: tuple[int, ...] = ()


LayerCache = dict[str, Tensor]
"""What a layer caches, by name."""


@dataclass(slots=True, kw_only=True)
class Step:
    """One call of the model.

    Attributes:
        ops: makes tensors.
        dialect: of the family.
        size: bytes of an element of the residual stream.
        batch: sequences. `tokens`: of each, that run now. `past`: that are cached.
        caches: whether there is a cache.
        decodes: whether tokens are generated.
        angles: cosines and sines of the positions, for layers without a window and with one.
        masks: by window: None where attention needs none.
    """

    ops: Operations
    dialect: Dialect
    size: int
    batch: int
    tokens: int
    past: int
    caches: bool
    decodes: bool = False
    angles: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class LayerRun:
    """A layer in one call.

    Attributes:
        step: the call.
        kind: of the language model.
        weights: of the layer, by name.
        cache: of the layer.
        returned: what its modules return beside their result, which the layer holds to its end.
    """

    step: Step
    kind: str
    weights: Mapping[str, Parameter]
    cache: LayerCache
    returned: list[Tensor] = field(default_factory=list)

    @property
    def ops(self) -> Operations:
        """Makes tensors."""
        return self.step.ops

    @property
    def dialect(self) -> Dialect:
        """Of the family."""
        return self.step.dialect

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer, with its bias where it has one."""
        return self.ops.linear(x, self.weights[name], self.weights.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str, style: str = "") -> Tensor:
        """A norm, as the family writes it."""
        return NORMS[style or self.dialect.norm](self.ops, x, self.weights[name])

    def remember(self, name: str, x: Tensor, window: int | None = None, dim: int = 2) -> Tensor:
        """`DynamicLayer.update` of one tensor: what was cached and what is new, in a new tensor.

        Both are there while the new one is made; it replaces what was cached. With a window, what
        stays is a view of its last tokens, one less than the window.
        """
        if not self.step.caches:
            return x
        before = self.cache.get(name)
        if window is not None and before is None and name == "keys":
            self.cache["window"] = self.ops.new((), LONG)
        joined = self.ops.cat([x] if before is None else [before, x], dim)
        self.ops.account(joined, "kv_cache")
        kept = joined
        if window is not None and joined.shape[dim] >= window:
            kept = self.ops.slice(joined, dim, window - 1)
        self.cache[name] = kept
        return joined


# Norms


def _llama_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`weight * x.to(dtype)` behind float32."""
    given = x.size
    x = ops.to(x, FLOAT)
    variance = ops.mean(ops.square(x))
    x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
    return ops.mul(weight, ops.to(x, given))


def _wide_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`(weight * x).to(dtype)`: OLMo 2, gpt-oss."""
    given = x.size
    x = ops.to(x, FLOAT)
    variance = ops.mean(ops.square(x))
    x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
    return ops.to(ops.mul(weight, x), given)


def _gemma_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`(x * (1 + weight.float())).type_as(x)`."""

    def inner(x: Tensor) -> Tensor:
        return ops.mul(x, ops.rsqrt(ops.shifted(ops.mean(ops.square(x)))))

    output = inner(ops.to(x, FLOAT))
    output = ops.mul(output, ops.shifted(ops.to(weight, FLOAT)))
    return ops.to(output, x.size)


def _llama4_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`norm(x.float()).type_as(x) * weight`."""

    def inner(x: Tensor) -> Tensor:
        return ops.mul(x, ops.rsqrt(ops.shifted(ops.mean(ops.square(x)))))

    output = ops.to(inner(ops.to(x, FLOAT)), x.size)
    return ops.mul(output, weight)


def _cohere_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """Less its mean, in float32, without a bias."""
    given = x.size
    x = ops.to(x, FLOAT)
    mean = ops.mean(x)
    variance = ops.mean(ops.square(ops.add(x, mean)))
    x = ops.mul(ops.add(x, mean), ops.rsqrt(ops.shifted(variance)))
    x = ops.mul(ops.to(weight, FLOAT), x)
    return ops.to(x, given)


NORMS: Mapping[str, Callable[[Operations, Tensor, Tensor], Tensor]] = {
    "llama": _llama_norm,
    "wide": _wide_norm,
    "gemma": _gemma_norm,
    "llama4": _llama4_norm,
    "cohere": _cohere_norm,
}


# Activations


def _silu(ops: Operations, x: Tensor) -> Tensor:
    return ops.pointwise(x)


def _squared_relu(ops: Operations, x: Tensor) -> Tensor:
    return ops.square(ops.pointwise(x, saves="output"))


ACTIVATIONS: Mapping[str, Callable[[Operations, Tensor], Tensor]] = {
    "silu": _silu,
    "swish": _silu,
    "gelu": _silu,
    "gelu_new": _silu,
    "gelu_pytorch_tanh": _silu,
    "relu2": _squared_relu,
}


def halves(ops: Operations, x: Tensor) -> tuple[Tensor, Tensor]:
    """`x.chunk(2, dim=-1)`: gate and up of what one product made."""
    half = x.shape[-1] // 2
    gate, up = ops.split(x, -1, [half, half])
    return gate, up


def activated(run: LayerRun, x: Tensor) -> Tensor:
    """The MLP's activation.

    Raises:
        NotPlannedError: it is of another kind.
    """
    name = run.dialect.activation
    if name not in ACTIVATIONS:
        raise NotPlannedError(f"the activation {name} is not planned")
    return ACTIVATIONS[name](run.ops, x)


# Rotation


def rotary_angles(step: Step, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, T, width] of positions, made in float32: `LlamaRotaryEmbedding`."""
    ops = step.ops
    with ops.without_gradients():
        rows = (*positions.shape, width)
        half = (*positions.shape, width // 2)
        near = ops.new(positions.shape, FLOAT)
        freqs = ops.new(half, FLOAT)
        del near
        emb = freqs if step.dialect.half_angles else ops.new(rows, FLOAT)
        cos = ops.scaled(ops.new(emb.shape, FLOAT))
        sin = ops.scaled(ops.new(emb.shape, FLOAT))
        size = FLOAT if step.dialect.wide_angles else step.size
        result = ops.to(cos, size), ops.to(sin, size)
        del freqs, emb, cos, sin
        return result


def _rotate_half(ops: Operations, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    x1 = ops.slice(x, -1, half)
    x2 = ops.slice(x, -1, half)
    return ops.cat([ops.scaled(x2), x1], -1)


def _rotated(ops: Operations, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return ops.add(ops.mul(x, cos), ops.mul(_rotate_half(ops, x), sin))


def _halves(run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    ops = run.ops
    q_embed = _rotated(ops, q, cos, sin)
    k_embed = _rotated(ops, k, cos, sin)
    return q_embed, k_embed


def _wide_halves(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """In float32, as OLMo 2's angles are."""
    q_size, k_size = q.size, k.size
    q_embed = _rotated(run.ops, q, cos, sin)
    k_embed = _rotated(run.ops, k, cos, sin)
    return run.ops.to(q_embed, q_size), run.ops.to(k_embed, k_size)


def _partial(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The first channels rotate, the others pass; written in one line each."""
    ops, width = run.ops, cos.shape[-1]
    rest = q.shape[-1] - width
    q_rot, q_pass = ops.slice(q, -1, width), ops.slice(q, -1, rest)
    k_rot, k_pass = ops.slice(k, -1, width), ops.slice(k, -1, rest)
    q_embed = ops.cat([_rotated(ops, q_rot, cos, sin), q_pass], -1)
    k_embed = ops.cat([_rotated(ops, k_rot, cos, sin), k_pass], -1)
    return q_embed, k_embed


def _partial_later(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The first channels rotate, the others pass; joined when both have rotated."""
    ops, width = run.ops, cos.shape[-1]
    rest = q.shape[-1] - width
    q_rot, q_pass = ops.slice(q, -1, width), ops.slice(q, -1, rest)
    k_rot, k_pass = ops.slice(k, -1, width), ops.slice(k, -1, rest)
    q_embed = _rotated(ops, q_rot, cos, sin)
    k_embed = _rotated(ops, k_rot, cos, sin)
    q_embed = ops.cat([q_embed, q_pass], -1)
    k_embed = ops.cat([k_embed, k_pass], -1)
    return q_embed, k_embed


def _pairs(run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours rotate, in float32: Cohere."""
    ops, size = run.ops, q.size
    q = ops.to(q, FLOAT)
    k = ops.to(k, FLOAT)
    q_embed = _rotated(ops, q, cos, sin)
    k_embed = _rotated(ops, k, cos, sin)
    return ops.to(q_embed, size), ops.to(k_embed, size)


def _interleaved(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Even and odd channels rotate by half as many angles: DeepSeek."""
    ops, half = run.ops, cos.shape[-1] // 2
    cos, sin = ops.slice(cos, -1, half), ops.slice(sin, -1, half)

    def rotated(one: Tensor, other: Tensor) -> Tensor:
        return ops.cat(
            [
                ops.add(ops.mul(one, cos), ops.mul(other, sin)),
                ops.add(ops.mul(other, cos), ops.mul(one, sin)),
            ],
            -1,
        )

    q_embed = rotated(ops.slice(q, -1, half), ops.slice(q, -1, half))
    k_embed = rotated(ops.slice(k, -1, half), ops.slice(k, -1, half))
    return q_embed, k_embed


def _chunked(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Halves rotate by half as many angles: gpt-oss."""
    ops = run.ops

    def rotated(x: Tensor) -> Tensor:
        one, other = halves(ops, x)
        first = ops.add(ops.mul(one, cos), ops.mul(other, sin))
        second = ops.add(ops.mul(other, cos), ops.mul(one, sin))
        return ops.cat([first, second], -1)

    q_embed = rotated(q)
    k_embed = rotated(k)
    return q_embed, k_embed


Rotation = Callable[[LayerRun, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
ROTATIONS: Mapping[str, Rotation] = {
    "halves": _halves,
    "wide halves": _wide_halves,
    "chunked": _chunked,
    "interleaved": _interleaved,
    "pairs": _pairs,
    "partial": _partial,
    "partial later": _partial_later,
}


# Layers

Part = Callable[[Tensor, LayerRun], Tensor]


def _before(x: Tensor, run: LayerRun, mixer: Part, mlp: Part) -> Tensor:
    """A norm before each part."""
    ops, (first, second) = run.ops, run.dialect.names
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = ops.add(residual, _scaled(run, x))
    residual = x
    x = run.norm(x, second)
    x = mlp(x, run)
    return ops.add(residual, _scaled(run, x))


def _scaled(run: LayerRun, x: Tensor) -> Tensor:
    return run.ops.scaled(x) if run.dialect.scales_residual else x


def _behind(x: Tensor, run: LayerRun, mixer: Part, mlp: Part) -> Tensor:
    """A norm behind each part: OLMo 2, EXAONE 4."""
    ops, (first, second) = run.ops, run.dialect.names
    residual = x
    x = mixer(x, run)
    x = run.norm(x, first)
    x = ops.add(residual, x)
    residual = x
    x = mlp(x, run)
    x = run.norm(x, second)
    return ops.add(residual, x)


def _around(x: Tensor, run: LayerRun, mixer: Part, mlp: Part) -> Tensor:
    """Norms before and behind each part: Gemma 2 and 3."""
    ops, (first, second, third, fourth) = run.ops, run.dialect.names
    residual = x
    x = run.norm(x, first)
    x = mixer(x, run)
    x = run.norm(x, second)
    x = ops.add(residual, x)
    residual = x
    x = run.norm(x, third)
    x = mlp(x, run)
    x = run.norm(x, fourth)
    return ops.add(residual, x)


def _beside(x: Tensor, run: LayerRun, mixer: Part, mlp: Part) -> Tensor:
    """Attention and MLP of the same norm's result: Cohere."""
    ops = run.ops
    residual = x
    x = run.norm(x, run.dialect.names[0])
    attended = mixer(x, run)
    passed = mlp(x, run)
    return ops.add(ops.add(residual, attended), passed)


ORDERS: Mapping[str, Callable[[Tensor, LayerRun, Part, Part], Tensor]] = {
    "before": _before,
    "behind": _behind,
    "around": _around,
    "beside": _beside,
}


# Masks


def make_mask(step: Step, window: int | None) -> Tensor | None:
    """The mask of a call, of booleans [B, 1, T, K]; None where `is_causal` says the same.

    `sdpa_mask` of `masking_utils.py`: no mask for one token, nor for a prompt with nothing before
    it, unless a window cuts it.
    """
    ops = step.ops
    keys = step.past + step.tokens
    if window and step.past >= window:
        keys = window - 1 + step.tokens
    cut = window is not None and keys >= window
    eager = step.dialect.eager
    if not eager and not cut and (step.tokens == 1 or not step.past):
        return None
    rows = [ops.new((step.batch,), LONG), ops.new((1,), LONG)]
    for length in (step.tokens, keys):
        near = ops.new((length,), LONG)
        rows.append(ops.new((length,), LONG))
        del near
    shape = (1, 1, step.tokens, keys)
    mask = ops.new(shape, BOOL) if window is None else _window_mask(ops, shape)
    del rows
    if eager:
        return ops.new((step.batch, *shape[1:]), step.size)
    return ops.alias(mask, (step.batch, *shape[1:]), (0, *contiguous(shape)[1:]))


def _window_mask(ops: Operations, shape: tuple[int, ...]) -> Tensor:
    """In the window, and causal: `and_masks`."""
    one = ops.new((), BOOL)
    first = ops.new((shape[2],), LONG)
    near = ops.new(shape, BOOL)
    del first
    windowed = ops.new(shape, BOOL)
    del near, one
    causal = ops.new(shape, BOOL)
    mask = ops.new(shape, BOOL)
    del causal, windowed
    return mask
