"""Every operator at 7B shapes, by its kernel and by its reference, on the same CUDA device.

It rules out, before anything is timed, that a kernel computes something else. It asks for exact
results where sums are of integers, and otherwise for as much as rounding allows; the tests ask for
more. A row that differs names the result, its shape and its largest difference, and no other part
runs after this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.card import device, here
from benchmarks.rows import Refused, Row
from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache, LayerCache
from tritter_model.ops import embedding, rotary_backward
from tritter_model.ops.adamw import adamw_
from tritter_model.ops.adamw_8bit import Moments, adamw_8bit_
from tritter_model.ops.angles import rotary_angles
from tritter_model.ops.append import append
from tritter_model.ops.argmax import argmax
from tritter_model.ops.attention import Mask, attention
from tritter_model.ops.attention_backward import Attended, attention_backward
from tritter_model.ops.cross_entropy import chunked_cross_entropy
from tritter_model.ops.decode_attention import decode_attention, decode_attention_rows
from tritter_model.ops.embedding import embed
from tritter_model.ops.expand import expand, int4_groups
from tritter_model.ops.gated_relu2 import gated_relu2, gated_relu2_rows
from tritter_model.ops.grad_weight import write_grad_weight
from tritter_model.ops.layer_norm import layer_norm
from tritter_model.ops.prefill_attention import prefill_attention
from tritter_model.ops.random_ternary import fill_packed
from tritter_model.ops.registry import use_kernels
from tritter_model.ops.rms_norm import add_rms_norm_rows, rms_norm, rms_norm_rows
from tritter_model.ops.rotary import Heads, rotate_, rotate_into
from tritter_model.ops.rotate_append import rotate_append_
from tritter_model.ops.rows import QuantisedRows, quantise_rows
from tritter_model.ops.ternary import ternary_linear
from tritter_model.ops.ternary_format import pack
from tritter_model.ops.ternary_training import ternarise, trained_ternary_linear

EXACT, FLOAT32, CODES, BFLOAT16, ATTENTION = 0.0, 1e-5, 5e-3, 6e-3, 1e-2
"""Largest relative errors, in the norm. CODES: now and then a number is rounded to the next one."""
FORMATS = ("ternary-2bit", "ternary-1.6bit")
CACHES = ("int4", "int8", "int2", "bfloat16", "fp8")
EPS, THETA = 1e-5, 500_000.0
RATES = [0.01, 0.9, 0.95, 0.1, 1e-8]

Figures = dict[str, Any]
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Shapes of the model whose operators are checked; by default the 7B model's."""

    hidden: int = 4096
    intermediate: int = 11008
    vocabulary: int = 65536
    tokens: int = 2048
    loss_chunk: int = 1024
    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    context: int = 131072
    behind: int = 20_000


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        make: makes its inputs, and returns what computes the results from them. Each call computes
            anew from the same inputs.
        allowed: the largest relative error of a result.
    """

    name: str
    make: Callable[[], Callable[[], Results]]
    allowed: float


def rows(_files: Path) -> Iterator[Row]:
    """A row for each case."""
    return (Row(case.name, partial(check, case)) for case in cases(Sizes()))


def check(case: Case) -> Figures:
    """Compute by kernels and by references, and compare; where nothing computes, only run.

    Raises:
        Refused: a result differs by more than is allowed.
    """
    if device().type != "meta":
        torch.manual_seed(0)
    compute = case.make()
    ours = chosen(True, compute)
    if device().type == "meta":
        return {}
    if here().standin:
        return {"compared": "not compared: nothing computes here"}
    wanted = chosen(False, compute)
    found = {name: difference(ours[name], wanted[name]) for name in wanted}
    worst = max(found, key=lambda name: found[name]["relative_error"])
    if not found[worst]["relative_error"] <= case.allowed:
        shape = list(wanted[worst].shape)
        raise Refused(
            f"MISMATCH: {case.name}: {worst} of {shape} is off by {found[worst]['largest']:.3g} at"
            f" most, relative error {found[worst]['relative_error']:.3g},"
            f" allowed {case.allowed:.3g}",
            {"differences": found},
        )
    return {"allowed": case.allowed, "differences": found}


def chosen(kernels: bool, compute: Callable[[], Results]) -> Results:
    """The results by kernels, or by references."""
    use_kernels(kernels)
    try:
        return compute()
    finally:
        use_kernels(None)


def difference(ours: Tensor, wanted: Tensor) -> dict[str, float]:
    """The largest difference, and the relative error of the norm; infinite where a value is NaN."""
    ours, wanted = ours.detach().float(), wanted.detach().float()
    apart = (ours - wanted).nan_to_num(float("inf"), float("inf"))
    norm, size = float(apart.norm()), float(wanted.norm())
    return {"largest": float(apart.abs().max()), "relative_error": norm / size if size else norm}


def cases(sizes: Sizes) -> Iterator[Case]:
    """Every operator."""
    yield from row_cases(sizes)
    yield from linear_cases(sizes)
    yield from cache_cases(sizes)
    yield from attention_cases(sizes)
    yield from training_cases(sizes)
    yield from table_cases(sizes)


def some(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, device=device()).to(dtype)


def uniform(*shape: int) -> Tensor:
    """Numbers between 0.1 and 1.1."""
    return torch.rand(shape, device=device()) + 0.1


def whole(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Whole numbers, the last left out."""
    return torch.randint(low, high, shape, device=device()).to(dtype)


def at(position: int) -> Tensor:
    """A position, as operators take it."""
    return torch.full((1,), position, dtype=torch.int32, device=device())


def dequantised(quantised: QuantisedRows) -> Results:
    """What codes stand for, and what their sums are off by."""
    codes, scale, total = quantised
    sums = codes.sum(1, dtype=torch.int32)
    return {"rows": codes * scale[:, None], "sums of codes": total - sums}


def row_cases(sizes: Sizes) -> Iterator[Case]:
    """Norms, the activation, and their quantisation."""
    hidden, gate_up = sizes.hidden, 2 * sizes.intermediate
    for tokens in (1, sizes.tokens):

        def quantise(tokens: int = tokens) -> Callable[[], Results]:
            x = some(tokens, sizes.intermediate)
            return lambda: dequantised(quantise_rows(x))

        def norm_rows(tokens: int = tokens) -> Callable[[], Results]:
            x, weight = some(tokens, hidden), some(hidden)
            return lambda: dequantised(rms_norm_rows(x, weight, EPS))

        def add_norm_rows(tokens: int = tokens) -> Callable[[], Results]:
            x, delta, weight = some(tokens, hidden), some(tokens, hidden), some(hidden)

            def added() -> Results:
                stream = x.clone()
                return dequantised(add_rms_norm_rows(stream, delta, weight, EPS)) | {"sum": stream}

            return added

        def gate_rows(tokens: int = tokens) -> Callable[[], Results]:
            x = some(tokens, gate_up)
            return lambda: dequantised(gated_relu2_rows(x))

        yield Case(f"quantise rows, {tokens} tokens", quantise, CODES)
        yield Case(f"RMSNorm, quantised, {tokens} tokens", norm_rows, CODES)
        yield Case(f"addition, RMSNorm, quantised, {tokens} tokens", add_norm_rows, CODES)
        yield Case(f"gate, quantised, {tokens} tokens", gate_rows, CODES)
    yield Case("RMSNorm and its gradients", partial(norm, sizes), BFLOAT16)
    yield Case("gate and its gradient", partial(gate, sizes), BFLOAT16)
    yield Case("layer norm", layer_norms, BFLOAT16)


def norm(sizes: Sizes) -> Callable[[], Results]:
    """Forward and backward."""
    x, grad = some(sizes.tokens, sizes.hidden), some(sizes.tokens, sizes.hidden)
    weight = some(sizes.hidden, dtype=torch.float32)
    return lambda: with_gradients(lambda x, w: rms_norm(x, w, EPS), (x, weight), grad)


def gate(sizes: Sizes) -> Callable[[], Results]:
    """Forward and backward."""
    x, grad = some(sizes.tokens, 2 * sizes.intermediate), some(sizes.tokens, sizes.intermediate)
    return lambda: with_gradients(gated_relu2, (x,), grad)


def with_gradients(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor | None
) -> Results:
    """A function's value, and its gradients by each input."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    grads = torch.autograd.grad(out, leaves, grad)
    return {"result": out, **{f"gradient {i}": g for i, g in enumerate(grads)}}


def layer_norms() -> Callable[[], Results]:
    """The vision tower's."""
    x, weight, bias = some(196, 768), some(768), some(768)
    return lambda: {"result": layer_norm(x, weight, bias, 1e-6)}


def linear_cases(sizes: Sizes) -> Iterator[Case]:
    """Ternary layers, which are exact, and random weights."""
    hidden, intermediate = sizes.hidden, sizes.intermediate
    kv = sizes.kv_heads * sizes.width
    layers = {
        "QKV": (hidden, hidden + 2 * kv),
        "gate and up": (hidden, 2 * intermediate),
        "down": (intermediate, hidden),
    }
    for form in FORMATS:
        for tokens in (1, 16, 128, sizes.tokens):
            for name, shape in layers.items():
                title = f"{form}, {name}, {tokens} tokens"
                yield Case(title, partial(linear, form, tokens, *shape), EXACT)
        make = partial(random_weights, sizes, form)
        yield Case(f"random weights, {form}", make, EXACT)


def linear(form: str, tokens: int, inputs: int, outputs: int) -> Callable[[], Results]:
    """A packed layer on rows that the reference has quantised."""
    quantised = chosen_rows(some(tokens, inputs))
    packed = pack(whole(0, 3, outputs, inputs, dtype=torch.uint8), form)
    scale = uniform(outputs)
    return lambda: {"result": ternary_linear(quantised, packed, scale, torch.bfloat16)}


def chosen_rows(x: Tensor) -> QuantisedRows:
    """Rows by the reference, whatever is being checked."""
    use_kernels(False)
    try:
        return quantise_rows(x)
    finally:
        use_kernels(None)


def random_weights(sizes: Sizes, form: str) -> Callable[[], Results]:
    """The same seed."""

    def filled() -> Results:
        packed = torch.empty(sizes.hidden, sizes.hidden // 4, dtype=torch.uint8, device=device())
        generator: Any = None if packed.is_meta else torch.Generator(packed.device).manual_seed(0)
        fill_packed(packed, generator, form == FORMATS[0])
        return {"bytes": packed}

    return filled


def layer_cache(sizes: Sizes, dtype: str, kv_heads: int | None = None) -> LayerCache:
    """One layer's cache of random contents; numbers are about zero, as large as queries take."""
    model = ModelConfig(
        hidden_size=sizes.hidden, num_hidden_layers=1, num_attention_heads=sizes.heads,
        num_key_value_heads=kv_heads or sizes.kv_heads, head_dim=sizes.width,
        intermediate_size=sizes.intermediate, vocab_size=sizes.vocabulary,
    )  # fmt: skip
    run = RunConfig(model=model, cache=CacheConfig(dtype=dtype), context=sizes.context)
    layer = KVCache(run, device()).layers[0]
    for tensor in layer.tensors():
        if tensor.dtype == torch.uint8:
            tensor.random_(0, 256)
        elif tensor.numel():
            tensor.copy_(torch.empty(tensor.shape, device=tensor.device).normal_())
    if layer.bits:
        middle = (2**layer.bits - 1) / 2
        for step, minimum in ((layer.key_scale, layer.key_minimum),
                              (layer.value_scale, layer.value_minimum)):  # fmt: skip
            step.uniform_(0.5 / middle, 1.5 / middle)
            minimum.copy_(step * -middle)
    return layer


def contents(layer: LayerCache) -> Results:
    """Whatever a cache holds."""
    names = [field.name for field in fields(LayerCache)[-len(layer.tensors()) :]]
    named = zip(names, layer.tensors(), strict=True)
    return {name: tensor for name, tensor in named if tensor.numel()}


def bytes_of(layer: LayerCache) -> Results:
    """The same, byte by byte."""
    return {name: tensor.view(torch.uint8) for name, tensor in contents(layer).items()}


def copied(layer: LayerCache) -> LayerCache:
    """A cache to write into."""
    return LayerCache.of([tensor.clone() for tensor in layer.tensors()], layer.layout())


def new_tokens(sizes: Sizes, tokens: int, kv_heads: int | None = None) -> Tensor:
    """Queries, keys and values, [tokens, A + 2G, D]."""
    return some(tokens, sizes.heads + 2 * (kv_heads or sizes.kv_heads), sizes.width)


def angles(sizes: Sizes, tokens: int) -> Callable[[], Results]:
    """Cosine and sine of the last tokens of the context."""
    position = at(sizes.context - tokens)
    return lambda: {"angles": rotary_angles(position, tokens, sizes.width, THETA)}


def cache_cases(sizes: Sizes) -> Iterator[Case]:
    """RoPE, and tokens into caches, whose bytes are the reference's."""
    heads = Heads(1, sizes.heads, sizes.kv_heads, THETA, EPS)

    def rotate(tokens: int) -> Callable[[], Results]:
        qkv, norms = new_tokens(sizes, tokens), some(2, sizes.width)
        place = at(sizes.context - tokens)
        return lambda: {"result": rotate_(qkv.clone(), norms, heads, place)}

    def put(dtype: str) -> Callable[[], Results]:
        cache, qkv = layer_cache(sizes, dtype), new_tokens(sizes, sizes.tokens)
        place = at(sizes.behind)

        def appended() -> Results:
            copy = copied(cache)
            append(qkv, copy, place, sizes.heads)
            return bytes_of(copy)

        return appended

    def rotate_and_put(dtype: str) -> Callable[[], Results]:
        cache, qkv, norms = layer_cache(sizes, dtype), new_tokens(sizes, 1), some(2, sizes.width)
        place = at(sizes.behind)

        def rotated() -> Results:
            turned, copy = qkv.clone(), copied(cache)
            rotate_append_(turned, norms, heads, place, copy)
            return {"rotated": turned, **contents(copy)}

        return rotated

    for tokens in (1, sizes.tokens):
        yield Case(f"rotary, {tokens} tokens", partial(rotate, tokens), BFLOAT16)
        yield Case(f"rotary angles, {tokens} tokens", partial(angles, sizes, tokens), FLOAT32)
    for dtype in CACHES:
        yield Case(f"append, {dtype}", partial(put, dtype), EXACT)
        yield Case(f"rotary and append, {dtype}", partial(rotate_and_put, dtype), BFLOAT16)


def attention_cases(sizes: Sizes) -> Iterator[Case]:
    """One token over a cache of each type; a chunk over none, one and several blocks of history."""
    grouped = sizes.kv_heads
    for dtype, kv_heads in (*((dtype, grouped) for dtype in CACHES), ("int4", sizes.heads)):
        title = f"decode attention, {dtype}, {kv_heads} KV heads, {sizes.context - 1:,} tokens"
        yield Case(title, partial(decode, sizes, dtype, kv_heads), ATTENTION)
    title = f"decode attention, int4, quantised, {sizes.context - 1:,} tokens"
    yield Case(title, partial(decode_quantised, sizes), ATTENTION)
    for dtype, behind in (("int4", 0), ("int4", sizes.behind), ("bfloat16", sizes.behind)):
        title = f"prefill attention, {dtype}, behind {behind:,} tokens"
        yield Case(title, partial(prefill, sizes, dtype, behind), ATTENTION)
    yield Case("attention and its gradients", partial(whole_attention, sizes), BFLOAT16)


def decode(sizes: Sizes, dtype: str, kv_heads: int) -> Callable[[], Results]:
    """One token behind as many as there is room for."""
    layer, held = layer_cache(sizes, dtype, kv_heads), sizes.context - 1
    qkv, position = new_tokens(sizes, 1, kv_heads), at(held)
    processors = here().multiprocessors
    return lambda: {"result": decode_attention(qkv, layer, position, held, sizes.heads, processors)}


def decode_quantised(sizes: Sizes) -> Callable[[], Results]:
    """The same, whose merged splits are quantised in one launch: a switch of `tuning`."""
    layer, held = layer_cache(sizes, "int4"), sizes.context - 1
    qkv, position = new_tokens(sizes, 1), at(held)
    processors = here().multiprocessors

    def rows() -> Results:
        return dequantised(
            decode_attention_rows(qkv, layer, position, held, sizes.heads, processors)
        )

    return rows


def prefill(sizes: Sizes, dtype: str, behind: int) -> Callable[[], Results]:
    """A chunk."""
    layer, qkv = layer_cache(sizes, dtype), new_tokens(sizes, sizes.tokens)
    return lambda: {"result": prefill_attention(qkv, layer, behind, sizes.heads)}


def whole_attention(sizes: Sizes) -> Callable[[], Results]:
    """Forward and backward over one sequence."""
    qkv, grad = new_tokens(sizes, sizes.tokens), some(sizes.tokens, sizes.heads * sizes.width)
    parts = [sizes.heads, sizes.kv_heads, sizes.kv_heads]

    def attended() -> Results:
        q, k, v = qkv.split(parts, 1)
        out, lse = attention(q, k, v, 1, Mask())
        grads = torch.empty_like(qkv)
        dq, dk, dv = grads.split(parts, 1)
        attention_backward(grad, Attended(q, k, v, out, lse), 1, Mask(), (dq, dk, dv))
        return {"result": out, "log-sum-exp": lse, "gradient": grads}

    return attended


def training_cases(sizes: Sizes) -> Iterator[Case]:
    """Layers, the loss, rotation's gradients, and the optimizers' steps."""
    yield Case("ternarise", partial(rounded, sizes), FLOAT32)
    yield Case("ternary layer and its gradients", partial(trained, sizes), BFLOAT16)
    yield Case("gradient of a weight", partial(weight_gradient, sizes), BFLOAT16)
    yield Case("rotary, gradients", partial(rotation_gradients, sizes), BFLOAT16)
    for ternary in (False, True):
        title = f"chunked loss and its gradients{', ternary' * ternary}"
        yield Case(title, partial(loss, sizes, ternary), 2e-2)
    yield Case("AdamW", partial(step_of_adamw, sizes), FLOAT32)
    yield Case("AdamW, 8 bits", partial(step_of_adamw_8bit, sizes), CODES)


def rounded(sizes: Sizes) -> Callable[[], Results]:
    """Master weights to packed ones; a weight on the border may round to either side."""
    weight = some(sizes.hidden, sizes.hidden, dtype=torch.float32)

    def packed() -> Results:
        _, scale = ternarise(weight)
        return {"scale": scale}

    return packed


def trained(sizes: Sizes) -> Callable[[], Results]:
    """Weights that are far from a border, so that rounding is no matter of the last bit."""
    x, grad = some(sizes.tokens, sizes.hidden), some(sizes.tokens, sizes.hidden)
    weight = whole(-1, 2, sizes.hidden, sizes.hidden).float()
    return lambda: with_gradients(trained_ternary_linear, (x, weight), grad)


def weight_gradient(sizes: Sizes) -> Callable[[], Results]:
    """Of a float layer."""
    grad, x = some(sizes.tokens, sizes.hidden), some(sizes.tokens, sizes.hidden)

    def written() -> Results:
        out = torch.empty(sizes.hidden, sizes.hidden, device=device())
        write_grad_weight(grad, x, None, out)
        return {"result": out}

    return written


def rotation_gradients(sizes: Sizes) -> Callable[[], Results]:
    """Of the projection, and of the norms' weights."""
    heads = Heads(1, sizes.heads, sizes.kv_heads, THETA, EPS)
    qkv, norms = new_tokens(sizes, sizes.tokens), some(2, sizes.width, dtype=torch.float32)
    grad = some(sizes.tokens, heads.rotated, sizes.width)

    def gradients() -> Results:
        out, grads = torch.empty_like(grad), (torch.empty_like(grad), torch.empty_like(norms))
        rotate_into(qkv, norms, heads, None, out)
        rotary_backward.rotate_backward(grad, qkv, norms, heads, grads)
        return {"rotated": out, "gradient": grads[0], "gradient of the norms": grads[1]}

    return gradients


def loss(sizes: Sizes, ternary: bool) -> Callable[[], Results]:
    """In chunks; one target is left out."""
    hidden = some(sizes.tokens, sizes.hidden)
    table = some(sizes.vocabulary, sizes.hidden, dtype=torch.float32) / sizes.hidden**0.5
    targets = whole(0, sizes.vocabulary, sizes.tokens)
    targets[1] = -100

    def chunked(hidden: Tensor, table: Tensor) -> Tensor:
        return chunked_cross_entropy(hidden, table, targets, sizes.loss_chunk, ternary)

    return lambda: with_gradients(chunked, (hidden, table), None)


def step_of_adamw(sizes: Sizes) -> Callable[[], Results]:
    """A later step."""
    weight, grad, first = (some(sizes.hidden, sizes.hidden, dtype=torch.float32) for _ in range(3))
    second = uniform(sizes.hidden, sizes.hidden)

    def stepped() -> Results:
        parameter, moments = weight.clone(), (first.clone(), second.clone())
        adamw_(parameter, grad, moments, RATES, 10)
        return {"parameter": parameter, "first": moments[0], "second": moments[1]}

    return stepped


def step_of_adamw_8bit(sizes: Sizes) -> Callable[[], Results]:
    """The first step, from moments that are zero, and the one after it."""
    weight, grad = (some(sizes.hidden, sizes.hidden, dtype=torch.float32) for _ in range(2))

    def stepped() -> Results:
        parameter, moments = weight.clone(), Moments.zero(weight)
        for number in (1, 2):
            adamw_8bit_(parameter, grad, moments, RATES, number)
        return {"parameter": parameter, **moments._asdict()}

    return stepped


def table_cases(sizes: Sizes) -> Iterator[Case]:
    """Embeddings, expanded weights, the likeliest token."""
    yield Case("embed", partial(embedded, sizes, torch.bfloat16), EXACT)
    yield Case("embed, int8", partial(embedded, sizes, torch.int8), EXACT)
    yield Case("embed, gradient", partial(embedding_gradient, sizes), FLOAT32)
    yield Case("expand int8", partial(expanded, sizes, 8), EXACT)
    yield Case("expand int4", partial(expanded, sizes, 4), EXACT)
    yield Case("argmax", partial(likeliest, sizes), EXACT)


def embedded(sizes: Sizes, dtype: torch.dtype) -> Callable[[], Results]:
    """Rows of a table."""
    table = (some(sizes.vocabulary, sizes.hidden, dtype=torch.float32) * 9).to(dtype)
    scale = uniform(sizes.vocabulary) if dtype == torch.int8 else None
    ids = whole(0, sizes.vocabulary, sizes.tokens)
    return lambda: {
        "result": embed(
            ids, table, scale, None,
            torch.zeros(sizes.tokens, sizes.hidden, dtype=torch.bfloat16, device=device()),
        )
    }  # fmt: skip


def embedding_gradient(sizes: Sizes) -> Callable[[], Results]:
    """With tokens that come again."""
    ids = whole(0, sizes.tokens // 2, sizes.tokens)
    grad = some(sizes.tokens, sizes.hidden)

    def gradient() -> Results:
        table = torch.empty(sizes.vocabulary, sizes.hidden, device=device())
        embedding._embed_backward(grad, ids, table)
        return {"result": table}

    return gradient


def expanded(sizes: Sizes, bits: int) -> Callable[[], Results]:
    """A table in bfloat16."""
    shape = (sizes.vocabulary // 4, sizes.hidden)
    if bits == 8:
        codes, scale = whole(-128, 128, *shape, dtype=torch.int8), uniform(shape[0])
    else:
        codes = whole(0, 256, shape[0], shape[1] // 2, dtype=torch.uint8)
        scale = uniform(shape[0], int4_groups(shape[1])).half()

    def written() -> Results:
        out = torch.empty(shape, dtype=torch.bfloat16, device=device())
        expand(codes, scale, out)
        return {"result": out}

    return written


def likeliest(sizes: Sizes) -> Callable[[], Results]:
    """In bfloat16 many are equal: the first of them."""
    logits = some(1, sizes.vocabulary)
    return lambda: {"result": argmax(logits)}
