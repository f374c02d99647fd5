"""Mixtures of experts: their weights, how tokens are routed, and what each step allocates.

The router of each family is one entry of `ROUTINGS`, as transformers 5.23 writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tritter_mem.errors import ConfigError
from tritter_mem.models.architecture import Weight
from tritter_mem.models.layer_run import LayerRun, activated, halves
from tritter_mem.models.mxfp4_experts import run_experts
from tritter_mem.models.quantised_products import is_mxfp4
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
    FeedForward,
    Module,
    linear,
    vector,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts(Module):
    """A mixture of experts, of which a token passes through a few.

    Attributes:
        chosen: experts of a token.
        idle: experts without weights that the router may choose.
        spare: copies of gate and up beside those of the experts, that idle ones do not use.
        shared: inner width of the experts that all tokens pass through; 0: there are none.
        shared_copies: how many of that width.
        shared_gate: whether a gate multiplies their result.
        shared_bias: whether they have biases.
        shared_fused: name of their one projection that makes gate and up; empty: they are two.
        width: channels that experts take; None: the residual stream's.
        router: name of the router; with a dot it is a linear layer of the router's module.
        router_bias: whether it has one. `bias`: whether the experts have.
        correction: name of a bias for choosing experts, and whether it is trained.
        gated: whether a gate multiplies what goes up.
        packed: whether a checkpoint holds all experts in one tensor, whose rows are the inputs.
        routing: how experts are chosen, of `ROUTINGS`; `all`: each runs over all tokens; empty:
            that is not planned.
        normalised: whether the weights of a token's experts are made to sum to one.
        shared_at: when shared experts run: `behind` the others, `first`, or `between` the router
            and the others. `averaged`: whether their sum with the others is halved. `wide_sum`:
            whether it is made in float32.
        groups: of experts; `chosen_groups`: those that a token takes.
        vectors: elements of other weights, by name.
        name: of the module. `shared_name`: of the shared experts.

    Raises:
        ConfigError: a token takes more experts than there are.
    """

    count: int
    chosen: int
    inner: int
    idle: int = 0
    spare: int = 0
    shared: int = 0
    shared_copies: int = 1
    shared_gate: bool = False
    shared_bias: bool = False
    shared_fused: str = ""
    width: int | None = None
    router: str = "gate"
    router_bias: bool = False
    bias: bool = False
    correction: tuple[str, bool] | None = None
    gated: bool = True
    packed: bool = False
    routing: str = ""
    normalised: bool = True
    shared_at: str = "behind"
    averaged: bool = False
    wide_sum: bool = False
    groups: int = 1
    chosen_groups: int = 1
    vectors: tuple[tuple[str, int], ...] = ()
    name: str = "mlp"
    shared_name: str = "shared_experts"
    ROLE = "mlp"

    def __post_init__(self) -> None:
        there = self.count + self.idle
        if self.chosen > there:
            raise ConfigError(
                f"experts of a token: got {self.chosen:,}, expected at most the {there:,} that "
                "there are"
            )

    def refuse_quantised(self, run: LayerRun) -> None:
        """For experts that run one after another.

        Raises:
            NotPlannedError: their weights are quantised.
        """
        if run.weights[f"{self.inside}experts.{self._up}"].product is not None:
            raise NotPlannedError("quantised experts one after another are not planned")

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """The experts of each token, in products over groups of tokens, and the shared ones.

        As on CUDA: `grouped_mm`, and `batched_mm` for tokens that are generated.
        """
        if self.routing == "all":
            return self._all(x, run)
        is_latent = f"{self.inside}fc1_latent_proj" in run.weights
        if self.routing not in ROUTINGS or self.idle or (self.width and not is_latent):
            raise NotPlannedError(f"activations of {run.kind} experts are not planned")
        ops, shape = run.ops, x.shape
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        if is_mxfp4(run.weights[f"{self.inside}experts.{self._up}"]):
            return ops.view(self._in_mxfp4(flat, run), shape)
        if self.shared_gate:
            return ops.view(self._with_gated(flat, run), shape)
        early = self.shared_at if self.shared else ""
        shared = self._shared_run(flat, run) if early == "first" else None
        chosen = self.route(flat, run)
        if early == "between":
            shared = self._shared_run(flat, run)
        rows = run.linear(flat, f"{self.inside}fc1_latent_proj") if is_latent else flat
        rows = self._chosen(rows, run, chosen[1], chosen[2])
        rows = run.linear(rows, f"{self.inside}fc2_latent_proj") if is_latent else rows
        out = ops.view(rows, shape)
        del rows
        if self.shared:
            del flat
            out = self._summed_up(run, out, shared or self._shared_run(x, run))
        return out

    def _summed_up(self, run: LayerRun, routed: Tensor, shared: Tensor) -> Tensor:
        """What the chosen and the shared experts give."""
        ops, size = run.ops, routed.size
        if self.wide_sum:
            return ops.to(ops.add(ops.to(routed, FLOAT), ops.to(shared, FLOAT)), size)
        shared = ops.view(shared, routed.shape)
        total = ops.add(routed, shared)
        return ops.scaled(total) if self.averaged else total

    def route(self, x: Tensor, run: LayerRun) -> Routed:
        """Logits of the router for rows [T, H], and weights and places of their experts."""
        return ROUTINGS[self.routing](self, x, run)

    def _all(self, x: Tensor, run: LayerRun) -> Tensor:
        """Every expert over every token, times its score: `Llama4TextMoe`."""
        ops, (batch, tokens, width) = run.ops, x.shape
        rows = batch * tokens
        flat = ops.view(x, (rows, width))
        logits = run.linear(flat, f"{self.inside}{self.router}")
        best, places = ops.topk(logits, self.chosen)
        scores = ops.scattered(best, places, logits.shape)
        del best, places
        scores = ops.to(ops.pointwise(ops.to(scores, FLOAT), saves="output"), logits.size)
        routed = ops.stacked(flat, self.count)
        column = ops.reshape(ops.transpose(scores, 0, 1), (self.count * rows, 1))
        routed = ops.mul(routed, column)
        del column
        out = self._every_expert(run, ops.view(routed, (self.count, rows, width)))
        shared = self._shared_run(flat, run)
        summed = ops.sum(ops.view(out, (self.count, rows, width)), [0])
        ops.added_in_place(shared, ops.view(summed, (rows, width)))
        del summed, logits, scores, routed, out
        return ops.view(shared, x.shape)

    def _every_expert(self, run: LayerRun, x: Tensor) -> Tensor:
        """Rows [E, T, H] of each expert, in batched products."""
        ops, (count, _, width) = run.ops, x.shape
        up, down = (
            ops.view(run.weights[f"{self.inside}experts.{part}"], shape)
            for part, shape in (
                (self._up, (count, width, 2 * self.inner)),
                ("down_proj", (count, self.inner, width)),
            )
        )
        made = ops.matmul(x, up)
        gate, raised = halves(ops, made)
        out = ops.mul(raised, activated(run, gate))
        return ops.matmul(out, down)

    def _with_gated(self, flat: Tensor, run: LayerRun) -> Tensor:
        """Shared experts first, whose result a gate multiplies: Qwen."""
        ops = run.ops
        shared = self._shared_run(flat, run)
        chosen = self.route(flat, run)
        out = self._chosen(flat, run, chosen[1], chosen[2])
        gate = run.linear(flat, f"{self.inside}{self.shared_name}_gate")
        shared = ops.mul(ops.pointwise(gate, saves="output"), shared)
        del gate
        return ops.add(out, shared)

    def _shared_run(self, x: Tensor, run: LayerRun) -> Tensor:
        inner = FeedForward(
            inner=self.shared,
            gated=self.gated,
            fused=self.shared_fused,
            name=f"{self.inside}{self.shared_name}",
        )
        return inner.run(x, run)

    def _in_mxfp4(self, x: Tensor, run: LayerRun) -> Tensor:
        """By Triton kernels: `Mxfp4GptOssMLP`, which returns its logits too.

        The layer calls them what it called the weights of attention before.
        """
        logits = run.linear(x, f"{self.inside}{self.router}")
        up, down = (run.weights[f"{self.inside}experts.{part}"] for part in (self._up, "down_proj"))
        out = run_experts(run.ops, x, logits, self.chosen, up, down)
        run.returned[:] = [logits]
        return out

    def _chosen(self, x: Tensor, run: LayerRun, scores: Tensor, places: Tensor) -> Tensor:
        batched = run.step.decodes
        return (self._batched if batched else self._grouped)(x, run, scores, places)

    def _grouped(self, x: Tensor, run: LayerRun, scores: Tensor, places: Tensor) -> Tensor:
        """`grouped_mm_experts_forward`: tokens sorted by their experts."""
        ops, rows = run.ops, places.elements
        flat_scores = ops.view(scores, (rows,))
        ids, order = ops.sort(ops.view(places, (rows,)))
        tokens = ops.new((rows,), LONG)
        selected = ops.rows_of(x, tokens)
        del tokens
        sorted_scores = ops.rows_of(flat_scores, order)
        numbers = ops.new((rows,), 4)
        each = ops.new((self.count,), 4)
        ends = ops.new((self.count,), 4)
        biases = self._biases(run, self._up, ids)
        out = self._product(run, selected, self._up, ends, biases)
        out = self._through(run, out)
        biases = self._biases(run, "down_proj", ids)
        out = self._product(run, out, "down_proj", ends, biases)
        weighted = self._weighted(run, out, sorted_scores)
        back = ops.new((rows,), LONG)
        ops.inside([rows * LONG])
        weighted = ops.rows_of(weighted, back)
        total = ops.to(self._summed(run, weighted, x), x.size)
        del ids, order, selected, sorted_scores, numbers, each, ends, biases, out, weighted, back
        return total

    def _weighted(self, run: LayerRun, x: Tensor, scores: Tensor) -> Tensor:
        """Rows times their scores, which float8 experts take in the rows' type."""
        if run.weights[f"{self.inside}experts.{self._up}"].size == QUANTISED:
            scores = run.ops.to(scores, x.size)
        return run.ops.mul(x, run.ops.view(scores, (*scores.shape, 1)))

    def _summed(self, run: LayerRun, weighted: Tensor, x: Tensor) -> Tensor:
        ops, width = run.ops, weighted.shape[-1]
        by_token = ops.view(weighted, (x.shape[0], self.chosen, width))
        return ops.view(ops.sum(by_token, [1]), (x.shape[0], width))

    def _biases(self, run: LayerRun, part: str, ids: Tensor) -> Tensor | None:
        """A row's bias is that of its expert."""
        bias = run.weights.get(f"{self.inside}experts.{part}_bias")
        return None if bias is None else run.ops.rows_of(bias, ids)

    def _product(
        self, run: LayerRun, x: Tensor, part: str, ends: Tensor, biases: Tensor | None
    ) -> Tensor:
        """Rows times the weights of their experts."""
        out = run.ops.grouped_product(x, run.weights[f"{self.inside}experts.{part}"], ends)
        if biases is not None:
            run.ops.added_in_place(out, biases)
        return out

    def _batched(self, x: Tensor, run: LayerRun, scores: Tensor, places: Tensor) -> Tensor:
        """`batched_mm_experts_forward`: a copy of its experts' weights for each token."""
        ops, rows = run.ops, places.elements
        selected = ops.new((rows, x.shape[1]), x.size)
        taken = self._weights_of(run, self._up, rows)
        out = self._product_of(run, self._up, selected, taken)
        out = self._through(run, out)
        taken = self._weights_of(run, "down_proj", rows)
        out = self._product_of(run, "down_proj", out, taken)
        weighted = self._weighted(run, out, ops.view(scores, (rows,)))
        total = ops.to(self._summed(run, weighted, x), x.size)
        del selected, taken, out, weighted
        return total

    def _weights_of(self, run: LayerRun, part: str, rows: int) -> list[Tensor]:
        """A copy of its expert's weights for each row; none of float8, which the kernel finds."""
        name = f"{self.inside}experts.{part}"
        found = (run.weights[name], run.weights.get(f"{name}_bias"))
        return [
            run.ops.new((rows, *weight.shape[1:]), weight.size)
            for weight in found if weight is not None and weight.size != QUANTISED
        ]  # fmt: skip

    def _product_of(self, run: LayerRun, part: str, x: Tensor, taken: list[Tensor]) -> Tensor:
        weight = run.weights[f"{self.inside}experts.{part}"]
        out = run.ops.new((x.shape[0], weight.shape[1]), x.size)
        if taken:
            run.ops.product()
        return out

    @property
    def _up(self) -> str:
        return "gate_up_proj" if self.gated else "up_proj"

    def _through(self, run: LayerRun, made: Tensor) -> Tensor:
        """Gate and activation."""
        if not self.gated:
            return activated(run, made)
        if self.packed:
            return _clamped_gate(run, made)
        gate, up = halves(run.ops, made)
        return run.ops.mul(activated(run, gate), up)

    @property
    def inside(self) -> str:
        """What names of its weights begin with; without a name its parts lie in the layer."""
        return f"{self.name}." if self.name else ""

    def built(self, hidden: int) -> dict[str, tuple[int, ...]]:
        """Experts in one tensor each: [E, N, K]."""
        width, name = hidden if self.width is None else self.width, f"{self.inside}experts"
        up = 2 * self.inner if self.gated else self.inner
        shapes: dict[str, tuple[int, ...]] = {
            f"{name}.{self._up}": (self.count + self.spare, up, width),
            f"{name}.down_proj": (self.count, width, self.inner),
        }
        if self.bias:
            shapes[f"{name}.{self._up}_bias"] = (self.count, up)
            shapes[f"{name}.down_proj_bias"] = (self.count, width)
        others = (w for w in self.weights(hidden) if not w.name.startswith(f"{name}."))
        return shapes | {w.name: w.shape if w.copies == 1 else (w.copies, *w.shape) for w in others}

    def weights(self, hidden: int) -> tuple[Weight, ...]:
        """The router, the experts, and the shared ones."""
        return tuple(self._weights(hidden))

    def _weights(self, hidden: int) -> Iterator[Weight]:
        rows = self.count + self.idle
        yield Weight(
            name=f"{self.inside}{self.router}", shape=(rows, hidden), is_linear="." in self.router
        )
        if self.router_bias:
            yield vector(f"{self.inside}{self.router}.bias", rows)
        if self.correction is not None:
            name, trained = self.correction
            yield Weight(name=f"{self.inside}{name}", shape=(rows,), is_parameter=trained)
        yield from self._experts(hidden if self.width is None else self.width)
        yield from self._shared(hidden)
        for name, elements in self.vectors:
            yield vector(f"{self.inside}{name}", elements)

    def _experts(self, width: int) -> Iterator[Weight]:
        ups = ("gate_up_proj",) if self.packed else ("gate_proj", "up_proj")
        size = 2 * self.inner if self.packed else self.inner
        for up in ups if self.gated else ("up_proj",):
            yield from self._matrices(up, size, width, self.count + self.spare)
        yield from self._matrices("down_proj", width, self.inner, self.count)

    def _matrices(self, part: str, outputs: int, inputs: int, copies: int) -> Iterator[Weight]:
        name = f"{self.inside}experts.{part}" if self.packed else f"{self.inside}experts.*.{part}"
        yield Weight(
            name=name, shape=(outputs, inputs), is_linear=True, copies=copies, active=self.chosen
        )
        if self.bias:
            name = f"{name}_bias" if self.packed else f"{name}.bias"
            yield Weight(name=name, shape=(outputs,), copies=copies, active=self.chosen)

    def _shared(self, hidden: int) -> Iterator[Weight]:
        name = f"{self.inside}{self.shared_name}"
        if not self.shared:
            return
        ups = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        parts = [(up, self.shared) for up in ups]
        if self.shared_fused:
            parts = [(self.shared_fused, 2 * self.shared)]
        for part, outputs in parts:
            yield from self._shared_matrix(f"{name}.{part}", outputs, hidden)
        yield from self._shared_matrix(f"{name}.down_proj", hidden, self.shared)
        if self.shared_gate:
            yield from linear(f"{self.inside}{self.shared_name}_gate", 1, hidden)

    def _shared_matrix(self, name: str, outputs: int, inputs: int) -> Iterator[Weight]:
        copies = self.shared_copies
        yield Weight(name=name, shape=(outputs, inputs), is_linear=True, copies=copies)
        if self.shared_bias:
            yield Weight(name=f"{name}.bias", shape=(outputs,), copies=copies)


def _clamped_gate(run: LayerRun, made: Tensor) -> Tensor:
    """Of gpt-oss: gate and up alternate, and are limited."""
    ops = run.ops
    gate, up = halves(ops, made)
    gate = ops.pointwise(gate)
    up = ops.pointwise(up)
    glu = ops.mul(gate, ops.pointwise(ops.scaled(gate), saves="output"))
    return ops.mul(ops.shifted(up), glu)


Routed = tuple[Tensor, Tensor, Tensor]
"""Logits of a router, weights of each token's experts, and which they are."""


def _softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of float32 logits, back in their type: Qwen."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    chances = ops.softmax(logits, FLOAT)
    values, places = ops.topk(chances, experts.chosen)
    if experts.normalised:
        ops.divided_in_place(values, ops.sum(values, [-1]))
    values = ops.to(values, logits.size)
    return logits, values, places


def _float_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of float32 logits, which it stays: Mixtral."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    chances = ops.softmax(ops.to(logits, FLOAT))
    values, places = ops.topk(chances, experts.chosen)
    ops.divided_in_place(values, ops.sum(values, [-1]))
    return logits, values, places


def _sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """With a bias for choosing: MiniMax."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    weights = ops.pointwise(ops.to(logits, FLOAT), saves="output")
    choice = ops.add(weights, run.weights[_correction(experts)])
    _, places = ops.topk(choice, experts.chosen)
    values = ops.picked(weights, places)
    ops.divided_in_place(values, ops.sum(values, [-1]))
    return logits, values, places


def _grouped_sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """In float32, among the experts of some groups: DeepSeek."""
    ops = run.ops
    weight = run.weights[f"{experts.name}.{experts.router}"]
    logits = _float_linear(run, x, weight)
    scores = ops.pointwise(logits, saves="output")
    choice = ops.add(scores, run.weights[_correction(experts)])
    return logits, *_among_groups(experts, ops, scores, choice)


def _grouped_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """The same of chances in the rows' type: Mistral 4."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    scores = ops.softmax(ops.widened(logits))
    return logits, *_among_groups(experts, ops, scores, scores)


def _float_grouped_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """The same of chances of a product in float32: Mistral Large 4."""
    ops = run.ops
    logits = _float_linear(run, x, run.weights[f"{experts.name}.{experts.router}"])
    scores = ops.softmax(ops.widened(logits))
    return logits, *_among_groups(experts, ops, scores, scores)


def _among_groups(
    experts: Experts, ops: Operations, scores: Tensor, choice: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and places of the experts with the highest of `choice` in the best groups."""
    rows, size = choice.shape[0], choice.size
    shape = (rows, experts.groups, experts.count // experts.groups)
    best, _ = ops.topk(ops.view(choice, shape), 2)
    group_scores = ops.view(ops.sum(best, [-1]), shape[:2])
    del best, _
    found, index = ops.topk(group_scores, experts.chosen_groups)
    del found
    mask = ops.new(shape[:2], size)
    wide = ops.new((rows, experts.count), size)
    flags = ops.new((rows, experts.count), 1)
    inverse = ops.new((rows, experts.count), 1)
    del flags
    masked = ops.pointwise(choice, saves="")
    del inverse
    choice = masked
    del masked
    found, places = ops.topk(choice, experts.chosen)
    del found
    values = ops.picked(scores, places)
    if experts.normalised:
        total = ops.shifted(ops.sum(values, [-1]))
        ops.divided_in_place(values, total)
    values = ops.scaled(values)
    del scores, choice, group_scores, index, mask, wide
    return values, places


def _wide_sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of float32 logits: AFMoE."""
    ops = run.ops
    logits = ops.to(run.linear(x, f"{experts.name}.{experts.router}"), FLOAT)
    return logits, *_by_sigmoid(experts, run, logits)


def _float_sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of logits of a product in float32: Hunyuan 3."""
    logits = _float_linear(run, x, run.weights[f"{experts.name}.{experts.router}"])
    return logits, *_by_sigmoid(experts, run, logits)


def _by_sigmoid(experts: Experts, run: LayerRun, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and places, with a bias for choosing."""
    ops = run.ops
    scores = ops.pointwise(logits, saves="output")
    choice = ops.add(scores, run.weights[_correction(experts)])
    places = ops.topk(choice, experts.chosen)[1]
    values = ops.picked(scores, places)
    values = ops.divided(values, ops.shifted(ops.sum(values, [-1])))
    values = ops.scaled(values)
    del scores, choice
    return values, places


def _float_chances(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of logits of a product in float32 without autocast, with a bias for choosing: Ernie."""
    ops = run.ops
    autocast, ops.autocast = ops.autocast, 0
    logits = _float_linear(run, x, run.weights[f"{experts.name}.{experts.router}"])
    chances = ops.softmax(logits)
    choice = ops.add(chances, ops.view(run.weights[_correction(experts)], (experts.count,)))
    places = ops.topk(choice, experts.chosen)[1]
    del choice
    values = ops.picked(chances, places)
    values = ops.divided(values, ops.clamped(ops.sum(values, [-1])))
    ops.autocast = autocast
    return logits, ops.to(values, x.size), places


def _chosen_chances(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Softmax of the chosen experts' logits in float32: Command A's experts."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    values, places = ops.topk(logits, experts.chosen)
    return logits, ops.to(ops.softmax(values, FLOAT), x.size), places


def _chosen_sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Sigmoid of the chosen experts' logits: Command A's experts."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    values, places = ops.topk(logits, experts.chosen)
    values = ops.pointwise(values, saves="output")
    if experts.normalised:
        values = ops.divided(values, ops.sum(ops.widened(values), [-1]))
    return logits, ops.to(values, x.size), places


def _float_linear(run: LayerRun, x: Tensor, weight: Tensor) -> Tensor:
    """In float32, of copies, whatever autocast says."""
    ops = run.ops
    return ops.linear(ops.to(x, FLOAT), ops.to(weight, FLOAT))


def _wide_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Chances of a product in float32, with a bias for choosing: LongCat."""
    ops = run.ops
    logits = _float_linear(run, x, run.weights[f"{experts.name}.{experts.router}"])
    scores = ops.softmax(ops.widened(logits))
    with ops.without_gradients():
        choice = ops.add(scores, run.weights[_correction(experts)])
        places = ops.topk(choice, experts.chosen)[1]
        del choice
    values = ops.picked(scores, places)
    values = ops.to(ops.scaled(values), logits.size)
    del scores
    return logits, values, places


def _chosen_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of the chosen experts' logits: gpt-oss."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    values, places = ops.topk(logits, experts.chosen)
    return logits, ops.softmax(values), places


def _chosen_float_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of the chosen experts' logits in float32, back in the rows' type: Granite."""
    ops = run.ops
    logits = ops.to(run.linear(x, f"{experts.name}.{experts.router}"), FLOAT)
    values, places = ops.topk(logits, experts.chosen)
    return logits, ops.to(ops.softmax(values), x.size), places


def _correction(experts: Experts) -> str:
    return f"{experts.name}.{experts.correction[0]}" if experts.correction else ""


def _plain_sigmoid(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """In the rows' type, with a bias for choosing where there is one: LFM2."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    weights = ops.pointwise(logits, saves="output")
    if experts.correction:
        choice = ops.add(weights, run.weights[_correction(experts)])
        places = ops.topk(choice, experts.chosen)[1]
        weights = ops.picked(weights, places)
        del choice
    else:
        weights, places = ops.topk(weights, experts.chosen)
    if experts.normalised:
        weights = ops.divided(weights, ops.shifted(ops.sum(weights, [-1])))
    return logits, ops.scaled(weights), places


def _given_softmax(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of float32 logits, not made to sum to one, in the rows' type: Jamba."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    chances = ops.softmax(logits, FLOAT)
    values, places = ops.topk(chances, experts.chosen)
    return logits, ops.to(values, x.size), places


MIXED = 2
"""Experts that `sparsemixer` chooses, whatever the keys say."""


def _mixed(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """One of the experts near the best, then one of those near the best other: `sparsemixer`.

    Raises:
        NotPlannedError: a token is to take another number of experts.
    """
    if experts.chosen != MIXED:
        raise NotPlannedError("num_experts_per_tok other than the 2 of sparsemixer is not planned")
    ops, name = run.ops, f"{experts.name}.{experts.router}"
    logits = run.linear(x, name)
    limit, best = _largest(ops, logits)
    factor = ops.scaled(ops.scaled(logits.detached()))
    limit = _far(ops, limit, logits, factor)
    gates = ops.masked(logits.detached(), limit)
    place = _sampled(ops, gates) if ops.grad else best
    gates = ops.softmax(ops.widened(gates))
    first = ops.picked(gates, place)
    given = logits, first, place, gates, limit
    values, best, share, one = _third_order(ops, given, best)
    del given
    others = ops.masked(logits.detached(), place)
    limit, best = _largest(ops, others)
    factor = ops.scaled(ops.scaled(logits.detached()))
    limit = _far(ops, limit, logits, factor)
    near = ops.masked(others, limit)
    other_place = _sampled(ops, near) if ops.grad else best
    near = ops.softmax(ops.widened(near))
    second = ops.picked(near, other_place)
    given = logits, second, other_place, near, limit
    values, best, other_share, other = _third_order(ops, given, best)
    del given
    one = ops.cat([one, other], -1)
    place = ops.cat([place, other_place], -1)
    del limit, best, factor, gates, first, values, share, others, near, other_place, second
    del other_share, other
    return logits, one, place


def _largest(ops: Operations, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each row and its place, without a gradient."""
    shape = (*x.shape[:-1], 1)
    return ops.new(shape, x.size), ops.new(shape, LONG)


def _far(ops: Operations, limit: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """Which scores are far below the largest, without a gradient."""
    return ops.scaled(ops.divided(ops.subtracted(limit, x.detached()), factor), BOOL)


def _sampled(ops: Operations, gates: Tensor) -> Tensor:
    """A place of each row, by chance: `(gates - noise.log()).max(dim=-1)[1]`."""
    noise = ops.new(gates.shape, gates.size)
    noise = ops.scaled(ops.widened(noise))
    moved = ops.subtracted(gates, noise)
    del noise
    return _largest(ops, moved)[1]


def _third_order(
    ops: Operations, given: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], best: Tensor
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
    """What a chosen expert is multiplied by, whose gradient is that of all scores alone.

    `PhimoeMultiplier`; no gradient passes through the softmax, which saves what it would need.

    Args:
        ops: makes tensors.
        given: scores [T, E], the gate of the chosen expert and its place [T, 1], all gates, and
            which are far.
        best: the place of the best one.

    Returns:
        What has names there: the largest gates, their places, shares, and the result.
    """
    scores, found, place, gates, far = given
    if not ops.grad:
        return None, best, None, found
    values, best = _largest(ops, gates)
    same = ops.new(place.shape, BOOL)
    more = ops.scaled(ops.new(values.shape, values.size), BOOL)
    either = ops.new(place.shape, BOOL)
    del same, more
    share = ops.to(ops.new(place.shape, FLOAT), gates.size)
    del either
    out = ops.new(found.shape, found.size)

    def rule(saved: list[Tensor], grads: list[Tensor | None]) -> list[Tensor | None]:
        found, _, gates, _ = saved
        grad = ops.scaled(found)
        of_scores = ops.mul(gates, ops.scaled(grad))
        del grad
        return [of_scores]

    ops.record([scores], [found, place, gates, far], rule, out)
    return values, best, share, out


def _root_softplus(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """Of the root of the logits' softplus, with a bias for choosing: DeepSeek-V4."""

    def chosen(scores: Tensor) -> Tensor:
        bias = run.weights[_correction(experts)]
        return run.ops.topk(run.ops.add(scores, bias), experts.chosen)[1]

    return _by_root(experts, x, run, chosen)


def _hashed(experts: Experts, x: Tensor, run: LayerRun) -> Routed:
    """The same of experts that a table has for each token of the vocabulary."""
    return _by_root(
        experts, x, run, lambda scores: run.ops.new((scores.shape[0], experts.chosen), LONG)
    )


def _by_root(
    experts: Experts, x: Tensor, run: LayerRun, choose: Callable[[Tensor], Tensor]
) -> Routed:
    """Scores of the experts that are chosen by all scores, made to sum to a number."""
    ops = run.ops
    logits = run.linear(x, f"{experts.name}.{experts.router}")
    scores = ops.pointwise(ops.pointwise(ops.widened(logits)), saves="output")
    places = choose(scores)
    values = ops.picked(scores, places)
    values = ops.divided(values, ops.shifted(ops.sum(ops.widened(values), [-1])))
    shares = ops.scaled(values)
    del scores, values
    return logits, shares, places


ROUTINGS: Mapping[str, Callable[[Experts, Tensor, LayerRun], Routed]] = {
    "softmax": _softmax,
    "float softmax": _float_softmax,
    "sigmoid": _sigmoid,
    "grouped sigmoid": _grouped_sigmoid,
    "grouped softmax": _grouped_softmax,
    "float grouped softmax": _float_grouped_softmax,
    "wide softmax": _wide_softmax,
    "plain sigmoid": _plain_sigmoid,
    "wide sigmoid": _wide_sigmoid,
    "float sigmoid": _float_sigmoid,
    "float chances": _float_chances,
    "chosen chances": _chosen_chances,
    "chosen sigmoid": _chosen_sigmoid,
    "given softmax": _given_softmax,
    "sparse mixer": _mixed,
    "root of softplus": _root_softplus,
    "hash": _hashed,
    "chosen softmax": _chosen_softmax,
    "chosen float softmax": _chosen_float_softmax,
}
