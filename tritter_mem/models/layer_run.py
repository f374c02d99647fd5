"""What modules of a layer have in common: norms, rotation, masks, and the cache.

Families differ in how they write a norm and in how they rotate queries and keys: their `Dialect`.
The functions here follow their code line by line, as what a local name holds is there until the
name goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

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
from tritter_mem.models.transformers_caches import GROWING, CacheKind, LayerCache, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a family writes what all families have.

    Attributes:
        norm: of `NORMS`, over the residual stream. `head_norm`: of queries and keys.
        order: of `layer_orders.ORDERS`: where norms stand in a layer.
        names: of the norms before (or, in post order, behind) attention and MLP.
        heads_first: whether norms of queries and keys follow the transpose to [B, H, T, D].
        rotary: of `ROTATIONS`; empty: queries and keys are not rotated.
        rotary_dim: channels of a head that rotate. `windowed_dim`: of layers with a window, where
            that differs; 0: it does not.
        rotary_kinds: tables of angles that a step makes: one, or one each for layers with a window
            and without. `all_kinds`: whether both are made whichever layers there are.
        complex_angles: whether angles are complex numbers.
        grids: how many positions a token has, for time, height and width; 1: one.
        wide_angles: whether cosines and sines stay in float32.
        activation: of the MLP, of `ACTIVATIONS`.
        scales_residual: whether what is added to the residual stream is multiplied first.
        scales_embedding: whether embeddings are multiplied by a number.
        float_residual: whether the residual stream is float32. `float_logits`: whether logits are.
        scales_hidden: whether what the last norm gives is divided by a number.
        logits_width: logits that are used of each token; 0: all.
        logits_steps: results that are made of the logits, one after another.
        scaled_frequencies: whether each call multiplies frequencies by numbers of the model.
        new_frequencies: whether each call makes the frequencies of the angles again, on the CPU.
        half_angles: whether cosines and sines are as wide as half of what rotates.
        scales_keys: whether keys are multiplied by a number. `scales_values`: whether values are.
        scales_queries: whether queries are multiplied by a number of their position.
        eager: how attention is written out where the family has no `sdpa`: `float32`, its softmax
            in that type; `max`, the largest score of each row taken off first; `sinks`, the same as
            gpt-oss writes it.
        softcap: whether scores of written-out attention are capped.
        more_masks: windows for which masks are made though no layer has them.
        same_masks: masks like that of layers without a window that `generate()` makes for a static
            cache beside it, for other kinds of layers.
        scalars: numbers that lie on the card beside the weights, such as what embeddings are
            multiplied by.
        chunked: whether windows are chunks, whose masks are made for each sequence.
        cuts_prompts: whether `generate()` can run a prompt in chunks.
        masked_window: window of the masks of layers that cache all tokens; 0: those see all.
        masks_forget: whether masks are made as if no token were cached: where the first layer
            caches none and the cache does not know which layers do.
        always_masks: whether masks are made even where `is_causal` says the same.
        mixing_rounds: how often what mixes residual streams is divided by the sums of its columns.
        last_token_from: number of the layer from which on only the last token of a prompt runs.
    """

    norm: str = "llama"
    head_norm: str = ""
    order: str = "before"
    names: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    heads_first: bool = False
    rotary: str = "halves"
    rotary_dim: int = 0
    windowed_dim: int = 0
    rotary_kinds: int = 1
    all_kinds: bool = False
    complex_angles: bool = False
    grids: int = 1
    wide_angles: bool = False
    activation: str = "silu"
    scales_residual: bool = False
    scales_embedding: bool = False
    float_residual: bool = False
    float_logits: bool = False
    scales_hidden: bool = False
    logits_width: int = 0
    logits_steps: int = 0
    scaled_frequencies: bool = False
    new_frequencies: bool = False
    half_angles: bool = False
    scales_keys: bool = False
    scales_values: bool = False
    scales_queries: bool = False
    eager: str = ""
    softcap: bool = False
    more_masks: tuple[int, ...] = ()
    same_masks: int = 0
    scalars: int = 0
    chunked: bool = False
    cuts_prompts: bool = True
    masked_window: int = 0
    masks_forget: bool = False
    always_masks: bool = False
    mixing_rounds: int = 0
    last_token_from: int | None = None


@dataclass(slots=True, kw_only=True)
class Step:
    """One call of the model.

    Attributes:
        ops: makes tensors.
        dialect: of the family.
        size: bytes of an element of the residual stream.
        batch: sequences. `tokens`: of each, that run now. `past`: that are cached.
        caches: whether there is a cache. `cache_kind`: of which kind.
        decodes: whether tokens are generated.
        angles: cosines and sines of the positions, for layers without a window and with one.
        masks: by window: None where attention needs none.
        shared: what modules leave for those of later layers, by name.
    """

    ops: Operations
    dialect: Dialect
    size: int
    batch: int
    tokens: int
    past: int
    caches: bool
    cache_kind: CacheKind = GROWING
    decodes: bool = False
    angles: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)
    masks: dict[int | None, Tensor | None] = field(default_factory=dict)
    shared: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    def of_last_token(self) -> Step:
        """The same for the last token alone, in views."""
        views = self.ops.alias
        masks = {
            window: mask and views(mask, (*mask.shape[:2], 1, mask.shape[3]), mask.strides)
            for window, mask in self.masks.items()
        }
        angles = {
            windowed: tuple(views(x, (*x.shape[:2], 1, x.shape[3]), x.strides) for x in pair)
            for windowed, pair in self.angles.items()
        }
        return replace(self, tokens=1, masks=masks, angles=angles)  # type: ignore[arg-type]


@dataclass(slots=True, kw_only=True)
class LayerRun:
    """A layer in one call.

    Attributes:
        step: the call.
        kind: of the language model.
        weights: of the layer, by name.
        cache: of the layer.
        returned: what its modules return beside their result, which the layer holds to its end.
        part: its part of the per-layer inputs [B, T, width]; None: there are none.
    """

    step: Step
    kind: str
    weights: Mapping[str, Parameter]
    cache: LayerCache
    returned: list[Tensor] = field(default_factory=list)
    part: Tensor | None = None

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
        """A norm, as the family writes it; one with a bias is PyTorch's `LayerNorm`."""
        bias = self.weights.get(f"{name}.bias")
        if bias is not None:
            return self.ops.layer_norm(x, self.weights[name], bias)
        return NORMS[style or self.dialect.norm](self.ops, x, self.weights[name])

    def update(self, new: Mapping[str, Tensor], window: int | None = None) -> list[Tensor]:
        """Cache new keys and values [B, G, T, D].

        Args:
            new: by name in the cache.
            window: tokens that the layer reaches; None: all.

        Returns:
            What attention reads: all that was cached and is new.
        """
        step = self.step
        if not step.caches:
            return list(new.values())
        span = Span(step.past, step.tokens, window)
        return step.cache_kind.update(self.ops, self.cache, new, span)


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


def _float_weight_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`(weight.float() * x).to(dtype)`: Nemotron-H."""
    given = x.size
    x = ops.to(x, FLOAT)
    variance = ops.mean(ops.square(x))
    x = ops.mul(x, ops.rsqrt(ops.shifted(variance)))
    return ops.to(ops.mul(ops.to(weight, FLOAT), x), given)


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


def normalised(ops: Operations, x: Tensor) -> Tensor:
    """X over the root of its mean square, without a weight: Gemma 4."""
    return ops.to(_over_root(ops, ops.to(x, FLOAT)), x.size)


def _over_root(ops: Operations, x: Tensor) -> Tensor:
    """`x * torch.pow(mean_squared, -0.5)`, where the mean square has a name."""
    mean_squared = ops.shifted(ops.mean(ops.square(x)))
    return ops.mul(x, ops.pointwise(mean_squared, steps=1))


def _gemma4_norm(ops: Operations, x: Tensor, weight: Tensor) -> Tensor:
    """`(norm(x.float()) * weight.float()).type_as(x)`."""
    output = _over_root(ops, ops.to(x, FLOAT))
    output = ops.mul(output, ops.to(weight, FLOAT))
    return ops.to(output, x.size)


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
    "float weight": _float_weight_norm,
    "gemma": _gemma_norm,
    "llama4": _llama4_norm,
    "gemma 4": _gemma4_norm,
    "cohere": _cohere_norm,
}


# Activations


def _silu(ops: Operations, x: Tensor) -> Tensor:
    return ops.pointwise(x)


def _squared_relu(ops: Operations, x: Tensor) -> Tensor:
    return ops.square(ops.widened(ops.pointwise(x, saves="output")))


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
        raise NotPlannedError(f"the activation {name:.40} is not planned")
    return ACTIVATIONS[name](run.ops, x)


# Rotation


def rotary_angles(step: Step, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [B, 1, T, width] of positions [B, T]: `LlamaRotaryEmbedding`."""
    ops = step.ops
    with ops.without_gradients():
        batch, tokens = positions.shape
        rows = (batch, 1, tokens, width)
        half = (batch, 1, tokens, width // 2)
        length = _length(step, positions)
        rates = _scaled_frequencies(step, width // 2)
        near = ops.new(positions.shape, FLOAT)
        moved = ops.new((width // 2,), FLOAT) if length else None
        freqs = ops.new(half, FLOAT)
        del near, moved
        emb = freqs if step.dialect.half_angles else ops.new(rows, FLOAT)
        cos = ops.scaled(ops.new(emb.shape, FLOAT))
        sin = ops.scaled(ops.new(emb.shape, FLOAT))
        size = FLOAT if step.dialect.wide_angles else step.size
        result = ops.to(cos, size), ops.to(sin, size)
        del length, rates, freqs, emb, cos, sin
        return result


def _length(step: Step, positions: Tensor) -> Tensor | None:
    """How long a sequence is, where a call makes frequencies again: `PhimoeRotaryEmbedding`."""
    if not step.dialect.new_frequencies:
        return None
    return step.ops.shifted(step.ops.extreme(positions, [0, 1]))


def _scaled_frequencies(step: Step, count: int) -> Tensor | None:
    """Frequencies times `exp` of numbers of the model: `MistralLarge4TextRotaryEmbedding`."""
    if not step.dialect.scaled_frequencies:
        return None
    numbers = step.ops.new((count,), FLOAT)
    return step.ops.scaled(numbers)


def grid_angles(step: Step, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The same of several positions a token, put together: `Qwen3VLTextRotaryEmbedding`."""
    ops, grids = step.ops, step.dialect.grids
    with ops.without_gradients():
        batch, tokens = positions.shape
        half = (grids, batch, tokens, width // 2)
        near = ops.new((grids, batch, tokens), FLOAT)
        freqs = ops.new(half, FLOAT)
        del near
        cos = ops.scaled(ops.new(half, FLOAT))
        sin = ops.scaled(ops.new(half, FLOAT))
        sin = ops.new((batch, 1, tokens, width), FLOAT)
        cos = ops.new((batch, 1, tokens, width), FLOAT)
        result = ops.to(cos, step.size), ops.to(sin, step.size)
        del freqs, cos, sin
        return result


def by_token(ops: Operations, angles: Tensor) -> Tensor:
    """Angles [B, 1, T, D] for heads behind tokens: [B, T, 1, D]."""
    batch, _, tokens, width = angles.shape
    return ops.alias(angles, (batch, tokens, 1, width), (*angles.strides[::2], 0, 1))


def complex_angles(step: Step, positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Complex numbers [B, 1, T, width / 2]: `Llama4TextRotaryEmbedding`."""
    ops, (batch, tokens) = step.ops, positions.shape
    half = (batch, 1, tokens, width // 2)
    near = ops.new((batch, tokens), FLOAT)
    freqs = ops.new(half, FLOAT)
    del near
    ones = ops.new(half, FLOAT)
    numbers = ops.new(half, 2 * FLOAT)
    del ones
    numbers = ops.new(half, 2 * FLOAT)
    del freqs
    return numbers, numbers


def scaled_by_position(run: LayerRun, q: Tensor) -> Tensor:
    """Queries [B, H, T, D] times a number of their position: `get_llama_4_attn_scale`."""
    ops, step = run.ops, run.step
    with ops.without_gradients():
        numbers = ops.new((step.batch if step.caches else 1, 1, step.tokens, 1), FLOAT)
        for _ in range(5):
            numbers = ops.scaled(numbers)
        numbers = ops.to(numbers, q.size)
    return ops.mul(q, numbers)


def _rotate_half(ops: Operations, x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    x1 = ops.slice(x, -1, half)
    x2 = ops.slice(x, -1, half)
    return ops.cat([ops.scaled(x2), x1], -1)


def rotated(ops: Operations, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """X times cosines, plus its turned halves times sines."""
    return ops.add(ops.mul(x, cos), ops.mul(_rotate_half(ops, x), sin))


def _halves(run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    ops = run.ops
    q_embed = rotated(ops, q, cos, sin)
    k_embed = rotated(ops, k, cos, sin)
    return q_embed, k_embed


def _wide_halves(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """In float32, as OLMo 2's angles are."""
    q_size, k_size = q.size, k.size
    q_embed = rotated(run.ops, q, cos, sin)
    k_embed = rotated(run.ops, k, cos, sin)
    return run.ops.to(q_embed, q_size), run.ops.to(k_embed, k_size)


def _partial(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The first channels rotate, the others pass; written in one line each."""
    ops, width = run.ops, cos.shape[-1]
    rest = q.shape[-1] - width
    q_rot, q_pass = ops.slice(q, -1, width), ops.slice(q, -1, rest)
    k_rot, k_pass = ops.slice(k, -1, width), ops.slice(k, -1, rest)
    q_embed = ops.cat([rotated(ops, q_rot, cos, sin), q_pass], -1)
    k_embed = ops.cat([rotated(ops, k_rot, cos, sin), k_pass], -1)
    return q_embed, k_embed


def _partial_later(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The first channels rotate, the others pass; joined when both have rotated."""
    ops, width = run.ops, cos.shape[-1]
    rest = q.shape[-1] - width
    q_rot, q_pass = ops.slice(q, -1, width), ops.slice(q, -1, rest)
    k_rot, k_pass = ops.slice(k, -1, width), ops.slice(k, -1, rest)
    q_embed = rotated(ops, q_rot, cos, sin)
    k_embed = rotated(ops, k_rot, cos, sin)
    q_embed = ops.cat([q_embed, q_pass], -1)
    k_embed = ops.cat([k_embed, k_pass], -1)
    return q_embed, k_embed


def _pairs(run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours rotate, in float32: Cohere."""
    ops, size = run.ops, q.size
    q = ops.to(q, FLOAT)
    k = ops.to(k, FLOAT)
    q_embed = rotated(ops, q, cos, sin)
    k_embed = rotated(ops, k, cos, sin)
    return ops.to(q_embed, size), ops.to(k_embed, size)


def _wide_pairs(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Neighbours rotate by angles in float32: Ernie."""
    ops, size, half = run.ops, q.size, cos.shape[-1] // 2
    cos = ops.interleaved(ops.slice(cos, -1, half), -1, 2)
    sin = ops.interleaved(ops.slice(sin, -1, half), -1, 2)

    def turned(x: Tensor) -> Tensor:
        return ops.add(
            ops.mul(ops.to(x, FLOAT), cos), ops.mul(ops.to(_rotate_half(ops, x), FLOAT), sin)
        )

    q_embed = turned(q)
    k_embed = turned(k)
    return ops.to(q_embed, size), ops.to(k_embed, size)


def _interleaved(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Even and odd channels rotate by half as many angles: DeepSeek."""
    q_embed = rotated_pairs(run.ops, q, cos, sin)
    k_embed = rotated_pairs(run.ops, k, cos, sin)
    return q_embed, k_embed


def rotated_pairs(ops: Operations, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Even and odd channels of x, by half of the cosines and sines."""
    half = cos.shape[-1] // 2
    cos, sin = ops.slice(cos, -1, half), ops.slice(sin, -1, half)
    one, other = ops.slice(x, -1, half), ops.slice(x, -1, half)
    return ops.cat(
        [
            ops.add(ops.mul(one, cos), ops.mul(other, sin)),
            ops.add(ops.mul(other, cos), ops.mul(one, sin)),
        ],
        -1,
    )


def _chunked(
    run: LayerRun, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Halves rotate by half as many angles: gpt-oss."""
    ops = run.ops

    def turned(x: Tensor) -> Tensor:
        one, other = halves(ops, x)
        first = ops.add(ops.mul(one, cos), ops.mul(other, sin))
        second = ops.add(ops.mul(other, cos), ops.mul(one, sin))
        return ops.cat([first, second], -1)

    q_embed = turned(q)
    k_embed = turned(k)
    return q_embed, k_embed


Rotation = Callable[[LayerRun, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
ROTATIONS: Mapping[str, Rotation] = {
    "halves": _halves,
    "wide halves": _wide_halves,
    "chunked": _chunked,
    "interleaved": _interleaved,
    "pairs": _pairs,
    "wide pairs": _wide_pairs,
    "partial": _partial,
    "partial later": _partial_later,
}


# Masks


def make_mask(step: Step, window: int | None) -> Tensor | None:
    """The mask of a call, of booleans [B, 1, T, K]; None where `is_causal` says the same.

    `sdpa_mask` of `masking_utils.py`: no mask for one token, nor for a prompt with nothing before
    it, unless a window cuts it. A static cache takes one for one token too.
    """
    ops = step.ops
    past = 0 if step.dialect.masks_forget else step.past
    keys = step.cache_kind.keys(Span(past, step.tokens, window))
    window = window or step.dialect.masked_window or None
    cut = window is not None and keys >= window
    eager = step.dialect.eager
    always = eager or step.dialect.always_masks
    always = always or (step.cache_kind.masks_first and step.tokens == 1)
    if not always and not cut and (step.tokens == 1 or not past):
        return None
    rows = [ops.new((step.batch,), LONG), ops.new((1,), LONG)]
    for length in (step.tokens, keys):
        near = ops.new((length,), LONG)
        rows.append(ops.new((length,), LONG))
        del near
    shape = (1, 1, step.tokens, keys)
    each = (step.batch if step.dialect.chunked else 1, 1, step.tokens, keys)
    mask = ops.new(shape, BOOL) if window is None else _window_mask(ops, shape, each)
    rows.reverse()  # a list lets its last item go first
    rows.clear()
    if eager:
        numbers = [ops.new((), step.size) for _ in range(2)]
        written = ops.new((step.batch, *shape[1:]), step.size)
        del numbers
        return written
    if mask.shape[0] == step.batch:
        return mask
    return ops.alias(mask, (step.batch, *shape[1:]), (0, *contiguous(shape)[1:]))


def _window_mask(
    ops: Operations, shape: tuple[int, int, int, int], each: tuple[int, int, int, int]
) -> Tensor:
    """In the window, and causal: `and_masks`.

    Args:
        ops: makes tensors.
        shape: of a mask for all sequences.
        each: the same, or of a mask for each, as where a chunk begins depends on padding.
    """
    one = ops.new((), BOOL)
    first = ops.new((shape[2],), LONG)
    near = ops.new(each, BOOL)
    del first
    windowed = ops.new(each, BOOL)
    del near, one
    causal = ops.new(shape, BOOL)
    mask = ops.new(each, BOOL)
    del causal, windowed
    return mask
