"""What Hugging Face transformers allocates when it runs a model: a plan, without PyTorch.

The run's tensors come and go by the descriptions of its modules (`models/transformers_blocks.py`),
in the order in which transformers 5.23 runs them, and what is alive is added up. The same requests
are played through the allocator for what it reserves.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, combinations, islice, pairwise
from math import lcm, prod
from typing import NamedTuple

from tritter_mem.allocator.blocks import Block as Memory
from tritter_mem.allocator.caching_allocator import CachingAllocator, OutOfMemoryError
from tritter_mem.allocator.rules import SMALL_SEGMENT_BYTES
from tritter_mem.config.cards import GpuCard
from tritter_mem.models.formats import ceil_div, storage_format
from tritter_mem.models.huggingface import HuggingFaceModel
from tritter_mem.models.layer_orders import ORDERS, Parts, part_of_layer
from tritter_mem.models.layer_repeats import Repeats
from tritter_mem.models.layer_run import (
    Dialect,
    LayerRun,
    Step,
    complex_angles,
    grid_angles,
    make_mask,
    rotary_angles,
)
from tritter_mem.models.mxfp4_experts import load_again, refusal
from tritter_mem.models.quantised_products import (
    bias_bytes,
    held_bytes,
    is_mxfp4,
    product_of,
    unpack,
)
from tritter_mem.models.quantization import (
    DEQUANTISED_LATER,
    EXPERTS_MXFP4,
    UNPACKED,
    Scheme,
)
from tritter_mem.models.shape_tensors import (
    BOOL,
    FLOAT,
    LONG,
    NotPlannedError,
    Operations,
    Parameter,
    Requests,
    Tensor,
)
from tritter_mem.models.transformers_blocks import Attention, Module, Tables
from tritter_mem.models.transformers_caches import LayerCache, StaticCache
from tritter_mem.models.transformers_run import TransformersRun
from tritter_mem.planner.reserved import find_reserved
from tritter_mem.results.run import COMPONENTS, Components, MemoryUse, Phase

SHORTENED = 3
"""Tokens that are run of those that are generated: the first ones, and the last with its cache."""
EXPERTS_DIMENSIONS = 3
DROPOUTS = (
    "attention_dropout", "attention_probs_dropout_prob", "dropout", "embd_pdrop", "hidden_dropout",
    "resid_pdrop", "residual_dropout", "input_jitter_noise", "router_jitter_noise",
)  # fmt: skip
Weights = dict[str, Parameter]
Masks = dict[int | None, Tensor | None]
"""Of a call, by window of the layers; None: `is_causal` says the same."""


@dataclass
class PlayedRun:
    """A run's requests.

    Attributes:
        requests: in order.
        spans: phases: name, and the events that they begin and end with. The warm-up's names are
            empty: its peak does not count.
    """

    requests: Requests
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    library_bytes: int = 0


def plan_transformers(
    run: TransformersRun,
    card: GpuCard,
    allocator_conf: str = "",
    *,
    plays: bool = True,
    briefly: bool = False,
    budget_bytes: int | None = None,
) -> MemoryUse:
    """Plan what transformers allocates for a run on a card.

    Args:
        run: the model and its work.
        card: it decides which attention kernels run, and what libraries take.
        allocator_conf: as in `PYTORCH_CUDA_ALLOC_CONF`.
        plays: whether to play the run through the allocator; without, what is reserved is unknown.
        briefly: whether to leave tokens out where memory is released too. Then what is reserved
            may be otherwise: good enough to search with, not to be shown.
        budget_bytes: what may be used of the card: the allocator gives cached memory back to stay
            within it, where that suffices. None: there is no cap.

    Raises:
        NotPlannedError: a module of the model, or what is run of it, has no formulas.
        ConfigError: the allocator's settings are unknown.
    """
    found = None
    if plays:
        limit = None
        if budget_bytes is not None:
            limit = budget_bytes - SMALL_SEGMENT_BYTES, card.context_bytes
        served = _Served(run, card, briefly=briefly)
        found = find_reserved(served.play, allocator_conf, limit)
        if found.releases and not (briefly or served.every_token or run.trains):
            # Which memory is free when the cache is released depends on every token before.
            served = _Served(run, card, every_token=True)
            found = find_reserved(served.play, allocator_conf, limit)
        played, blocks = served.played, served.blocks
    else:
        played, blocks = play_run(run, card), None
    # Of tensors of some bytes not each goes when it does in a run: one segment more than is seen.
    reserved = None if found is None else found.peak_bytes + SMALL_SEGMENT_BYTES
    peaks = list(_peaks(played, blocks))
    peak = max(peaks, key=lambda peak: peak.total_bytes)
    return MemoryUse(
        device=card.name,
        components=peak.components,
        phases=tuple(peak.phase() for peak in peaks),
        allocated_peak_bytes=peak.total_bytes,
        peak_at=f"{peak.name}: {peak.place}" if peak.place else peak.name,
        library_workspace_bytes=played.library_bytes,
        reserved_peak_bytes=reserved,
        cache_releases=0 if found is None else found.releases,
        context_bytes=card.context_bytes,
        device_peak_bytes=(reserved or peak.total_bytes) + card.context_bytes,
        caveat=run.caveat_on(card.compute_capability),
    )


def play_run(
    run: TransformersRun,
    card: GpuCard,
    *,
    every_token: Callable[[Requests], bool] = lambda _: False,
) -> PlayedRun:
    """The requests of a run.

    Args:
        run: the model and its work.
        card: the card.
        every_token: asked once the prompt has run: whether all tokens are generated, or the first
            ones and the last.

    Raises:
        NotPlannedError: a module of the model, or what is run of it, has no formulas.
    """
    ops = Operations(card, card.cublas_workspace_bytes)
    model = PlannedModel(run, ops)
    played = PlayedRun(ops.requests)
    with _phase(played, "load"):
        model.load()
    if run.trains:
        _Training(model, played).run()
    else:
        _Generation(model, played, every_token=every_token).run()
    played.library_bytes = ops.library_bytes
    return played


@contextmanager
def _phase(played: PlayedRun, name: str) -> Iterator[None]:
    start = len(played.requests.events)
    yield
    played.spans.append((name, start, len(played.requests.events)))


class _Made(NamedTuple):
    """A weight as transformers makes it.

    Attributes:
        size: bytes of an element.
        trains: whether training changes it.
        scheme: how its numbers are stored; None: one by one, each of `size` bytes.
    """

    name: str
    shape: tuple[int, ...]
    size: int
    trains: bool
    scheme: Scheme | None


class PlannedModel:
    """A model as transformers builds it, and a call of it.

    Args:
        run: the model and its work.
        ops: makes tensors.
    """

    def __init__(self, run: TransformersRun, ops: Operations) -> None:
        self.run, self.ops = run, ops
        self.model: HuggingFaceModel = run.model.held_on(ops.card.compute_capability)
        dialect = self.model.dialect
        if dialect is None:
            kind = self.model.language_type
            raise NotPlannedError(f"activations of {kind} models are not planned")
        self._refuse_quantised()
        self.dialect: Dialect = dialect
        if run.trains:
            _refuse_dropout(run)
        self.size = run.dtype.element_bytes
        if run.trains and run.training.master_dtype == "float32":
            self.size = FLOAT
        self.outside: Weights = {}
        self.layers: list[Weights] = []
        self.parameters: list[Parameter] = []
        self._beside: list[Tensor] = []
        self._packed: list[tuple[Parameter, Scheme, list[Tensor]]] = []
        self.tables = next(m for m in self.model.outside if isinstance(m, Tables))
        steps = {layer: self._layer_step(layer) for layer in dict.fromkeys(self.model.layers)}
        self._steps = [steps[layer] for layer in self.model.layers]
        self._kinds: list[int] = []

    def _refuse_quantised(self) -> None:
        stored = self.model.quantization
        if self.run.trains:
            return
        if stored.unplanned:
            raise NotPlannedError(stored.unplanned)
        if stored.method == DEQUANTISED_LATER and self.model.family.own_class:
            kind = self.model.language_type
            raise NotPlannedError(f"{DEQUANTISED_LATER} in {kind} models is not planned")
        for scheme in stored.all_schemes:
            if scheme.product != UNPACKED and product_of(scheme, self.run.dtype) is None:
                raise NotPlannedError(f"activations of weights in {scheme.name} are not planned")
            if scheme.product == EXPERTS_MXFP4:
                found = refusal(self.model.language_type, self.run.dtype, self.ops.card)
                if found:
                    raise NotPlannedError(found)

    def load(self) -> None:
        """Weights: they stay."""
        ops, prefix = self.ops, self.model.names.prefix
        embedding, *others = self._shapes(self.model.outside, prefix)
        self.outside[embedding.name] = self._weight(embedding, "embeddings")
        known: dict[tuple[Module, ...], list[_Made]] = {}
        kinds: dict[tuple[object, ...], int] = {}
        for number, layer in enumerate(self.model.layers):
            if layer not in known or self.model.quantization.method:
                known[layer] = self._shapes(layer, f"{prefix}.layers.{number}")
            self.layers.append({made.name: self._weight(made) for made in known[layer]})
            self._kinds.append(kinds.setdefault((layer, *known[layer]), len(kinds)))
            for module in layer:
                if (source := module.borrows()) is not None:
                    self.layers[-1] = self.layers[source] | self.layers[-1]
                self._put_beside(module)
        for made in sorted(others, key=lambda made: made.name.startswith("lm_head")):
            kind = "embeddings" if made.name.startswith("lm_head") else "weights"
            self.outside[made.name] = self._weight(made, kind)
        self._beside += [ops.new((), self.size) for _ in range(self.dialect.scalars)]
        if self.dialect.rotary:
            for windowed in self._rotary_kinds():
                self._keep_frequencies(self._rotary_width(windowed) // 2)
        self._load_last_experts()

    def _put_beside(self, module: Module) -> None:
        """What lies beside the weights of a module of a layer."""
        self._beside += [self.ops.new(shape, self.size) for shape in module.beside()]
        for count in module.frequencies():
            self._keep_frequencies(count)

    def _keep_frequencies(self, count: int) -> None:
        """Of a table of rotations: as they are now, and as they were made."""
        self._beside += [self.ops.new((count,), FLOAT) for _ in range(2)]

    def _load_last_experts(self) -> None:
        """The last weight in MXFP4, which is swizzled beside all others; then the cache goes."""
        packed = [w for layer in self.layers for w in layer.values() if is_mxfp4(w)]
        if packed:
            load_again(self.ops, packed[-2])  # gate and up come behind down in a checkpoint
            self.ops.requests.empty_cache()

    def _shapes(self, modules: tuple[Module, ...], prefix: str) -> list[_Made]:
        """Weights of modules as transformers makes them."""
        hidden, dtype = self.model.hidden, self.run.dtype
        if self.run.trains:
            dtype = storage_format(self.run.training.master_dtype)
        weights = {w.name: w for module in modules for w in module.weights(hidden)}
        found = []
        for module in modules:
            for name, shape in module.built(hidden).items():
                weight = weights.get(name)
                trains = weight is None or weight.is_parameter
                own = weight and weight.element_bytes
                size, scheme = own or self.model.element_bytes(name, dtype), None
                is_matrix = weight.is_linear if weight else len(shape) == EXPERTS_DIMENSIONS
                stays = self.model.stays_unquantised(name, self.model.quantization)
                if is_matrix and not stays and not self.run.trains:
                    scheme = self._scheme(f"{prefix}.{name}")
                elif name.endswith("_bias") and not self.run.trains:
                    size = bias_bytes(self._scheme(f"{prefix}.{name.removesuffix('_bias')}"), size)
                found.append(_Made(name, shape, size, trains, scheme))
        return found

    def _scheme(self, name: str) -> Scheme | None:
        if name.startswith(f"{self.model.names.prefix}.lm_head"):
            name = "lm_head"
        return self.model.quantization.scheme_of(name.replace(".experts.", ".experts.*."))

    def _weight(self, made: _Made, component: str = "weights") -> Parameter:
        if made.scheme is not None:
            return self._quantised(made.shape, made.scheme, component)
        trains = self.run.trains and made.trains
        weight = self.ops.weight(made.shape, made.size, component, trains)
        if trains:
            self.parameters.append(weight)
        return weight

    def _quantised(self, shape: tuple[int, ...], scheme: Scheme, component: str) -> Parameter:
        """Codes, whose scales stay beside them."""
        *copies, outputs, inputs = shape
        held = held_bytes(scheme, self.ops.card, outputs, inputs)
        codes, *others = (prod(copies) * size for size in held)
        if found := scheme.refusal(outputs, inputs):
            raise NotPlannedError(f"compressed-tensors unpacks whole groups alone: {found}")
        product = product_of(scheme, self.run.dtype)
        weight = self.ops.quantised_weight(shape, codes, product, component)
        beside = [self.ops.new((size,), 1, component=component) for size in others]
        if scheme.product == UNPACKED:
            zeros = [beside.pop(1)] if scheme.zeros else []
            self._packed.append((weight, scheme, zeros))
        self._beside += beside
        return weight

    def _rotary_width(self, windowed: bool) -> int:
        """Channels of a head that rotate: two for each frequency, of `arange(0, channels, 2)`."""
        channels = (windowed and self.dialect.windowed_dim) or self.dialect.rotary_dim
        return 2 * ceil_div(channels, 2)

    def unpack(self) -> None:
        """Before the first call: packed weights become numbers, one after another."""
        for weight, scheme, zeros in self._packed:
            unpack(self.ops, weight, self.size, scheme, zeros)
            self._beside += zeros
        self._packed.clear()

    def _layer_step(self, layer: tuple[Module, ...]) -> Callable[[Tensor, LayerRun], Tensor]:
        """How a layer runs."""
        for module in layer:
            if not module.ROLE:
                raise NotPlannedError(f"activations of {type(module).__name__} are not planned")
        order = ORDERS[self.dialect.order]
        parts = Parts(
            mixers=tuple(module.run for module in layer if module.ROLE == "mixer"),
            mlps=tuple(module.run for module in layer if module.ROLE == "mlp"),
        )
        return lambda x, run: order(x, run, parts)

    def windows(self) -> list[int | None]:
        """Windows of its layers, each once; layers without one come first."""
        layers = dict.fromkeys(self.model.layers)
        found = {module.reach() for layer in layers for module in layer if module.rows()}
        return sorted(found, key=lambda window: window or 0)

    def _rotate(self, step: Step, positions: Tensor) -> None:
        """Make the angles of positions."""
        if not self.dialect.rotary:
            return
        angles = rotary_angles if self.dialect.grids == 1 else grid_angles
        angles = complex_angles if self.dialect.complex_angles else angles
        for windowed in self._rotary_kinds():
            step.angles[windowed] = angles(step, positions, self._rotary_width(windowed))
        if self.dialect.rotary_kinds == 1:
            step.angles[True] = step.angles[False]

    def _rotary_kinds(self) -> list[bool]:
        """Kinds of layers that have angles for themselves: without a window, with one."""
        if self.dialect.rotary_kinds == 1:
            return [False]
        if self.dialect.all_kinds:
            return [True, False]
        return sorted({window is not None for window in self.windows()})

    def call(
        self,
        ids: Tensor,
        past: int,
        caches: list[LayerCache] | None,
        *,
        checkpoints: bool = False,
        decodes: bool = False,
        masks: Masks | None = None,
    ) -> Tensor:
        """Hidden states [B, T, H] of ids [B, T]: `forward` of the model without its head.

        Args:
            ids: of the tokens that run.
            past: tokens of each sequence that are cached.
            caches: of each layer; None: there is no cache.
            checkpoints: whether each layer saves its input alone.
            decodes: whether tokens are generated.
            masks: that it is given, by window; None: it makes them.
        """
        ops = self.ops
        batch, tokens = ids.shape
        step = self._step(batch, tokens, past, caches=caches is not None, decodes=decodes)
        ops.requests.enter("embedding")
        outside = LayerRun(step=step, kind=self.model.language_type, weights=self.outside, cache={})
        embeds = self._embedded(ids, outside)
        for module in self.model.outside:
            module.prepare(ids, embeds, outside)
        if caches is None and self.dialect.grids == 1:
            positions = self._positions(tokens)
        else:
            positions = self._given(batch, tokens)
        if masks is None:
            for window in (*self.windows(), *self.dialect.more_masks):
                step.masks[window] = make_mask(step, window)
        else:
            step.masks.update(masks)
        begun = [embeds]
        for module in self.model.outside:
            begun.append(module.begin(begun.pop(), outside))
        self._rotate(step, positions)
        ended = [self._through_layers(begun.pop(), step, caches, checkpoints=checkpoints)]
        for module in self.model.outside:
            ended.append(module.end(ended.pop(), outside))
        x = ended.pop()
        ops.requests.enter("last norm")
        x = outside.norm(x, self.model.names.norm)
        return ops.scaled(x) if self.dialect.scales_hidden else x

    def _embedded(self, ids: Tensor, outside: LayerRun) -> Tensor:
        """Embeddings [B, T, H], scaled or normed where the family does so."""
        name = self.tables.embedding
        embeds = self.ops.embedding(ids, self.outside[name])
        if f"{name}.embed_norm" in self.outside:
            return outside.norm(embeds, f"{name}.embed_norm")
        return self.ops.scaled(embeds) if self.dialect.scales_embedding else embeds

    def _step(
        self, batch: int, tokens: int, past: int, *, caches: bool = True, decodes: bool = False
    ) -> Step:
        return Step(
            ops=self.ops, dialect=self.dialect, size=self.size, batch=batch, tokens=tokens,
            past=past, caches=caches, cache_kind=self.run.cache_kind, decodes=decodes,
        )  # fmt: skip

    def masks(self, batch: int, tokens: int, past: int) -> Masks | None:
        """Masks that `generate()` makes for a call: `create_masks_for_generate`."""
        if not self.run.cache_kind.masks_first:
            return None
        step = self._step(batch, tokens, past)
        made: Masks = {-number: make_mask(step, None) for number in range(self.dialect.same_masks)}
        made |= {window: make_mask(step, window) for window in self.windows()}
        return {window: mask and self.ops.contiguous(mask) for window, mask in made.items()}

    def make_caches(self, caches: list[LayerCache], batch: int) -> None:
        """A static cache of a prompt that runs in chunks is there before: `early_initialization`.

        Raises:
            NotPlannedError: a layer's keys and values differ in width.
        """
        kind = self.run.cache_kind
        if not isinstance(kind, StaticCache):
            return
        for layer, cache in zip(self.model.layers, caches, strict=True):
            for module in layer:
                if isinstance(module, Attention) and module.rows():
                    if module.value_width != module.key_width:
                        raise NotPlannedError(
                            "transformers makes static caches of prompts in chunks with values as "
                            "wide as keys, which this model has not"
                        )
                    shape = (batch, module.kv_heads, kind.room(module.window), module.head_dim)
                    kind.make(self.ops, cache, {"keys": shape, "values": shape}, self.size)

    def skip(self, caches: list[LayerCache], tokens: int) -> None:
        """Make caches those behind so many more calls of one token each, which are not run."""
        for layer, cache in zip(self.model.layers, caches, strict=True):
            cached = next((module for module in layer if module.rows()), None)
            if cached is not None and tokens:
                cached.skip(self.ops, cache, tokens, self.run.cache_kind)

    def _through_layers(
        self, x: Tensor, step: Step, caches: list[LayerCache] | None, *, checkpoints: bool
    ) -> Tensor:
        ops = self.ops
        repeats = Repeats(ops.requests)
        for number, part in enumerate(self._steps):
            if number == self.dialect.last_token_from and step.caches and step.tokens > 1:
                x, step = self.last_token(x), step.of_last_token()
            run = LayerRun(
                step=step,
                kind=self.model.language_type,
                weights=self.layers[number],
                cache={} if caches is None else caches[number],
                part=part_of_layer(step),
            )
            ops.requests.enter(f"layer {number}")
            if checkpoints:
                x = ops.checkpoint(partial(_part_alone, part=part, run=run), x)
            elif ops.grad:
                x = part(x, run)
            else:
                x = repeats.run(self._kinds[number], part, x, run)
            run.returned.clear()
        return x

    def last_token(self, x: Tensor) -> Tensor:
        """A view [B, 1, H] of hidden states [B, T, H]."""
        batch, _, width = x.shape
        return self.ops.alias(x, (batch, 1, width), (x.strides[0], width, 1))

    def _positions(self, tokens: int) -> Tensor:
        """Positions of a row, which is one sequence: that is looked up."""
        ops = self.ops
        made = ops.new((tokens,), LONG)
        moved = ops.new((tokens,), LONG)
        del made
        first = ops.new((1, 1), LONG)
        joined = ops.new((1, tokens + 1), LONG)
        steps = ops.new((1, tokens), LONG)
        del joined
        ends = ops.new((1, tokens), BOOL)
        numbers = ops.new((1, tokens), LONG)
        del ends
        ops.inside([BOOL, BOOL])
        del first, steps, numbers
        return ops.alias(moved, (1, tokens), (tokens, 1))

    def _given(self, batch: int, tokens: int) -> Tensor:
        """Positions that `generate()` gives: part of what it holds."""
        return Tensor((batch, tokens), (tokens, 1), LONG, None)

    def head(self, x: Tensor) -> Tensor:
        """Logits of hidden states."""
        ops = self.ops
        ops.requests.enter("logits")
        name = self.tables.head or self.tables.embedding
        weight = self.outside[name]
        if self.dialect.float_logits:
            x = ops.to(x, weight.size)
        logits = ops.linear(x, weight, self.outside.get("lm_head.bias"))
        if self.dialect.float_logits:
            logits = ops.to(logits, FLOAT)
        if 0 < self.dialect.logits_width < logits.shape[-1]:
            logits = ops.slice(logits, -1, self.dialect.logits_width)
        for _ in range(self.dialect.logits_steps):
            logits = ops.pointwise(logits, saves="output" if _ == 1 else "")
        return logits


def _part_alone(x: Tensor, part: Callable[[Tensor, LayerRun], Tensor], run: LayerRun) -> Tensor:
    """A layer, and nothing of what its modules return beside its result."""
    try:
        return part(x, run)
    finally:
        run.returned.clear()


def _refuse_dropout(run: TransformersRun) -> None:
    """Raise NotPlannedError where training drops activations, or multiplies them by noise.

    Phi-3.5-MoE calls so what says which experts are near the best one.
    """
    kind = run.model.language_type
    sections = [run.config, *(v for v in run.config.values() if isinstance(v, Mapping))]
    for section in sections:
        for name in DROPOUTS:
            if section.get(name) and (kind, name) != ("phimoe", "router_jitter_noise"):
                raise NotPlannedError(f"training with {name} is not planned")


class _Generation:
    """The loop of greedy `generate()`."""

    def __init__(
        self, model: PlannedModel, played: PlayedRun, *, every_token: Callable[[Requests], bool]
    ) -> None:
        self.model, self.ops, self.played = model, model.ops, played
        self.work, self.every_token = model.run.work, every_token
        self.caches: list[LayerCache] = [{} for _ in model.model.layers]

    def run(self) -> None:
        """The prompt, then tokens."""
        ops, work, prompt = self.ops, self.work, self.model.run.prompt
        with _phase(self.played, "prefill"):
            given = ops.new((work.batch, prompt), LONG)
            mask = ops.new((work.batch, prompt), LONG)
            positions = of_prompt = self._positions(mask)  # `generate()` holds them to its end
            del mask
            ops.inside([work.batch * prompt, 1])  # whether an id is out of range
            if self.model.run.prefill_chunk:
                self.model.make_caches(self.caches, work.batch)
            open_ends = ops.new((work.batch,), LONG)
            logits = self._prefill(given)
            ids, positions, scores, token, open_ends = self._chosen(
                logits, given, positions, open_ends
            )
            del logits
        if work.new_tokens == 1:
            return
        with _phase(self.played, "decode"):
            inputs: tuple[list[Tensor], Masks | None] = [], None
            for past, skipped in self._pasts():
                if skipped:  # what the loop holds of the step before
                    del ids, positions
                    ids, positions = (ops.new((work.batch, past + 1), LONG) for _ in range(2))
                shape = (work.batch, 1)
                inputs_now = [ops.new(shape, LONG), ops.new(shape, LONG)]
                inputs = inputs_now, self.model.masks(work.batch, 1, past)
                del inputs_now
                ids_now, masks = inputs[0][0], inputs[1]
                hidden = self.model.call(ids_now, past, self.caches, decodes=True, masks=masks)
                del ids_now, masks
                logits = self._adopted(self.model.head(hidden))
                del hidden
                length = past + 2
                positions = self._next_positions(length)
                scores = self._scores(logits)
                made = ops.new((work.batch,), LONG)
                token = made
                del made
                ids = ops.new((work.batch, length), LONG)
                open_ends = self._checked(open_ends)
                del logits
        del ids, positions, of_prompt, scores, token, open_ends

    def _pasts(self) -> Iterator[tuple[int, bool]]:
        """Tokens that are cached at each step that is run, and whether steps before it are not.

        What is cached then is what is there behind all steps before it.
        """
        first, steps = self.model.run.prompt, self.work.new_tokens - 1
        numbers = list(range(steps))
        if steps > SHORTENED and not self.every_token(self.ops.requests):
            high = self.model.run.cache_kind.high_steps(self.caches[0], steps)
            whole = self._last_wholes(first, steps)
            numbers = sorted({*range(SHORTENED - 1), *high, *whole, steps - 1})
        for before, number in pairwise([-1, *numbers]):
            self.model.skip(self.caches, number - before - 1)
            yield first + number, number > before + 1

    def _last_wholes(self, first: int, steps: int) -> Iterator[int]:
        """The last steps that end a period of layers, and those that end periods of several.

        Args:
            first: tokens that are cached before the first step.
            steps: how many there are, of one token each.
        """
        layers = dict.fromkeys(self.model.model.layers)
        periods = {module.period() for layer in layers for module in layer} - {1}
        for count in range(1, len(periods) + 1):
            for together in combinations(sorted(periods), count):
                period = lcm(*together)
                last = (first + steps) // period * period - first - 1
                if last >= 0:
                    yield last

    def _positions(self, mask: Tensor) -> Tensor:
        """Of a prompt without padding, from its mask."""
        ops = self.ops
        sums = ops.new(mask.shape, LONG)
        less = ops.new(mask.shape, LONG)
        del sums
        padded = ops.new(mask.shape, BOOL)
        positions = ops.new(mask.shape, LONG)
        del padded, less
        ops.inside([mask.elements, 1])
        return positions

    def _prefill(self, given: Tensor) -> Tensor:
        """The prompt, whole or in chunks: the logits of its last token."""
        ops, batch, prompt = self.ops, self.work.batch, self.model.run.prompt
        size = self.model.run.prefill_chunk or prompt
        if size < prompt and not self.model.dialect.cuts_prompts:
            kind = self.model.model.language_type
            raise NotPlannedError(f"transformers runs prompts of {kind} models whole alone")
        starts = range(0, prompt, size)
        logits = ops.new((0,), LONG)
        for start in starts:
            ids = ops.new((batch, min(size, prompt - start)), LONG)
            masks = self.model.masks(batch, ids.shape[1], start)
            self.model.unpack()
            hidden = self.model.call(ids, start, self.caches, masks=masks)
            last = self.model.last_token(hidden)
            del hidden
            made = self.model.head(last)
            del last
            logits = self._adopted(made)
            del made
        return logits

    def _adopted(self, logits: Tensor) -> Tensor:
        self.ops.account(logits, "logits")
        return logits

    def _scores(self, logits: Tensor) -> Tensor:
        return self._adopted(self.ops.new((logits.shape[0], logits.shape[-1]), FLOAT))

    def _chosen(
        self, logits: Tensor, given: Tensor, positions: Tensor, open_ends: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Ids with the next token, and what else the loop holds."""
        ops, (batch, length) = self.ops, given.shape
        positions = self._next_positions(length + 1)
        scores = self._scores(logits)
        token = ops.new((batch,), LONG)
        ids = ops.new((batch, length + 1), LONG)
        return ids, positions, scores, token, self._checked(open_ends)

    def _next_positions(self, length: int) -> Tensor:
        ops, batch = self.ops, self.work.batch
        one = ops.new((1,), LONG)
        moved = ops.new((1,), LONG)
        del one
        last = ops.new((batch, 1), LONG)
        del moved
        positions = ops.new((batch, length), LONG)
        del last
        return positions

    def _checked(self, open_ends: Tensor) -> Tensor:
        """Which sequences go on."""
        ops, batch = self.ops, open_ends.elements
        ops.inside([batch, batch, batch, -batch, -batch])
        ends = ops.new((batch,), BOOL)
        going = ops.new((batch,), LONG)
        del ends
        ops.inside([LONG, BOOL])
        return going


class _Training:
    """Two steps of `Trainer`, the first of which makes the optimizer's state."""

    def __init__(self, model: PlannedModel, played: PlayedRun) -> None:
        self.model, self.ops, self.played = model, model.ops, played
        self.work, self.training = model.run.work, model.run.training
        self.parameters = model.parameters
        self.state: list[Tensor] = []

    def run(self) -> None:
        """The first step makes the optimizer's state; the second one counts."""
        ids = self.ops.new((self.work.batch, self.work.context), LONG)
        for names in (("", "", ""), ("forward", "backward", "optimizer")):
            with _phase(self.played, names[0]):
                loss = self.forward(ids)
            with _phase(self.played, names[1]):
                self.ops.backward(loss)
                del loss
            with _phase(self.played, names[2]):
                self.optimize()

    def forward(self, ids: Tensor) -> Tensor:
        """Loss of the batch."""
        ops, model = self.ops, self.model
        if self.training.master_dtype == "float32" and model.run.dtype.element_bytes < FLOAT:
            ops.autocast = model.run.dtype.element_bytes
        ops.grad = True
        checkpoints = self.training.checkpointing.policy != "none"
        hidden = model.call(ids, 0, None, checkpoints=checkpoints)
        first = len(ops.requests.sizes)
        logits = model.head(hidden)
        del hidden
        wide = ops.to(logits, FLOAT)
        labels = ops.new((self.work.batch, self.work.context + 1), LONG)
        if self.work.batch > 1:  # what is left of several rows does not lie side by side
            labels = ops.new((self.work.batch, self.work.context), LONG)
        rows = ops.view(wide, (ids.elements, wide.shape[-1]))
        del wide
        loss = ops.cross_entropy(rows, labels)
        del rows, labels, logits
        ops.end_autocast()
        self._are_logits(first)
        ops.autocast = 0
        ops.grad = False
        return loss

    def _are_logits(self, first: int) -> None:
        components = self.ops.requests.components
        for number in range(first, len(components)):
            if components[number] == "activations":
                components[number] = "logits"

    def optimize(self) -> None:
        """The norm of all gradients, for clipping; then they go."""
        ops = self.ops
        trained = [weight for weight in self.parameters if weight.grad is not None]
        norms = [ops.new((), weight.size) for weight in trained]
        chunks = [-(-weight.elements // 65_536) for weight in trained]
        ops.inside([len(chunks) * max(chunks) * 4])
        del norms
        if not self.state:
            self._make_state(trained)
        for weight in trained:
            weight.grad = None

    def _make_state(self, trained: list[Parameter]) -> None:
        """As `optimizer.step()` makes it, of weights with a gradient."""
        for weight in trained:
            match self.training.optimizer:
                case "adamw":
                    self._keep((), FLOAT)
                    self._keep(weight.shape, weight.size)
                    self._keep(weight.shape, weight.size)
                case "sgd":
                    pass
                case _:
                    self._keep_eight_bits(weight)

    def _keep(self, shape: tuple[int, ...], size: int) -> None:
        self.state.append(self.ops.new(shape, size, component="optimizer_state"))

    def _keep_eight_bits(self, weight: Parameter) -> None:
        small = weight.elements < 4096
        for _ in range(2):
            if small:
                self._keep(weight.shape, FLOAT)
            else:
                self._keep(weight.shape, 1)
                self._keep((-(-weight.elements // 256),), FLOAT)


@dataclass(frozen=True)
class _Peak:
    """The most that is alive in a phase.

    Attributes:
        name: of the phase.
        place: what runs then, in words.
        components: what is alive.
    """

    name: str
    place: str
    components: Components

    @property
    def total_bytes(self) -> int:
        """Everything that is alive."""
        return self.components.total_bytes

    def phase(self) -> Phase:
        """As the result record has it."""
        return Phase(
            name=self.name,
            allocated_peak_bytes=self.total_bytes,
            components=self.components,
        )


def _peaks(played: PlayedRun, blocks: list[int] | None) -> Iterator[_Peak]:
    """The peak of each phase. A phase begins with what was alive before it.

    Args:
        played: the run.
        blocks: bytes of the block that each storage got; None: of what was asked for.
    """
    requests = played.requests
    sizes, components, events = requests.sizes, requests.components, requests.events
    taken = sizes if blocks is None else blocks
    live: set[int] = set()
    at = 0

    def move(end: int) -> None:
        nonlocal at
        passed = events[at:end]
        live.update(event for event in passed if event >= 0)
        live.difference_update([~event for event in passed if event < 0])
        at = end

    for name, start, end in played.spans:
        if not name:
            continue
        move(start)
        changes = [taken[e] if e >= 0 else -taken[~e] for e in events[start:end]]
        totals = list(accumulate(changes, initial=sum(taken[number] for number in live)))
        where = start + totals.index(max(totals))
        move(where)
        parts = dict.fromkeys((f"{component}_bytes" for component in COMPONENTS), 0)
        for number in live:
            parts[f"{components[number]}_bytes"] += sizes[number]
            parts["rounding_bytes"] += taken[number] - sizes[number]
        yield _Peak(name, _place(requests, where), Components(**parts))
        move(end)


def _place(requests: Requests, event: int) -> str:
    """What runs at an event, in words."""
    at = bisect_right(requests.places, event, key=lambda place: place[0])
    return requests.places[at - 1][1] if at else ""


class _Served:
    """A run whose requests an allocator serves.

    Args:
        run: the model and its work.
        card: the card.
        every_token: whether all tokens are generated. Where the allocator releases memory for the
            prompt, they are anyway.
        briefly: whether they never are.

    Attributes:
        played: the run; there once it was played.
        blocks: bytes of the block that each storage got when it was last played.
        every_token: whether all tokens were generated.
    """

    played: PlayedRun

    def __init__(
        self,
        run: TransformersRun,
        card: GpuCard,
        *,
        every_token: bool = False,
        briefly: bool = False,
    ) -> None:
        self._run, self._card, self._briefly = run, card, briefly
        self.every_token = every_token
        self.blocks: list[int] = []
        self._is_made = False

    def play(self, allocator: CachingAllocator) -> None:
        """Ask an allocator for all that the run asks for.

        Raises:
            OutOfMemoryError: it does not have so much.
        """
        held: dict[int, Memory] = {}
        self.blocks = []
        done, problem = 0, None

        def of_prompt(requests: Requests) -> bool:
            nonlocal done, problem
            if self._briefly or self.every_token:
                return self.every_token
            done = len(requests.events)
            try:
                self._serve(allocator, requests, 0, held)
            except OutOfMemoryError as error:
                # The run goes on, for an allocator without a limit. A traceback would hold its
                # tensors.
                problem = error.with_traceback(None)
            else:
                self.every_token = allocator.counters.num_alloc_retries > 0
            return self.every_token

        if not self._is_made:
            self.played = play_run(self._run, self._card, every_token=of_prompt)
            self._is_made = True
        if problem is not None:
            raise problem
        requests = self.played.requests
        self._serve(allocator, requests, done, held)

    def _serve(
        self, allocator: CachingAllocator, requests: Requests, start: int, held: dict[int, Memory]
    ) -> None:
        """Serve what is asked for from an event on."""
        sizes, events = requests.sizes, requests.events
        for at in [at for at in requests.emptied if at > start]:
            self.blocks += allocator.serve(sizes, islice(events, start, at), held)
            allocator.empty_cache()
            start = at
        self.blocks += allocator.serve(sizes, islice(events, start, None), held)
