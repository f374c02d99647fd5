"""Training: what each layer keeps, and what is alive at each step of both passes.

Which tensors are alive at a step of a block, and which the backward pass needs, is in the block's
tables. Here blocks become layers, and layers the two passes, under a checkpointing policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tritter_mem.models.architecture import Layer, SteppedBlock, Tensors
from tritter_mem.planner.case import Case
from tritter_mem.planner.moments import Moment, alive, highest
from tritter_mem.planner.vision import prefix_bytes, vision_moments
from tritter_mem.planner.weights import gradient_bytes

TARGET_AND_ID_BYTES = 16
SCALAR_BYTES = 4
ALL, INPUT, NOTHING = "all", "input", "nothing"
"""What a layer keeps between the passes, beside what the selective policies keep."""


def training_moments(case: Case) -> Iterator[Moment]:
    """The highest moment of each phase, without what is alive throughout."""
    step = TrainingStep.of(case)
    # The loss of the step before is alive too, then this one's, then the gradient of it: float32.
    batch = step.tokens * TARGET_AND_ID_BYTES + SCALAR_BYTES
    prefix = {"activations": prefix_bytes(case)}
    forward = [moment.plus(prefix) for moment in step.forward()]
    yield Moment("load", "weights")
    yield highest([*forward, *vision_moments(case, "forward")]).plus({"activations": batch})
    yield highest(step.backward()).plus({"activations": batch + 2 * SCALAR_BYTES})
    last = {"gradients": gradient_bytes(case), "activations": batch + SCALAR_BYTES}
    yield Moment("optimizer", "step", last)


@dataclass(frozen=True)
class BlockStep:
    """A block in a training step: its tables, with the bytes of their tensors."""

    block: SteppedBlock
    tensors: Tensors
    gradients: Mapping[str, int]

    def bytes_of(self, names: Collection[str]) -> int:
        """Of some tensors together."""
        return sum(sum(self.tensors[name]) for name in names)

    @property
    def gradient_bytes(self) -> int:
        """Of all its weights."""
        return sum(self.gradients.values())

    def forward(self, kept: Collection[str], there: Collection[str]) -> Iterator[Moment]:
        """The forward pass, step by step.

        Args:
            kept: what is kept for the backward pass, from the step on that makes it.
            there: what is there already, and not made again; a step whose result is there computes
                nothing, and has only what is saved.
        """
        since, results = self.block.SAVED_SINCE, self.block.RESULTS
        for number, (name, text) in enumerate(self.block.FORWARD.items()):
            made = [tensor for tensor in text.split() if tensor not in there]
            if results.get(name) in there:
                made = [tensor for tensor in made if tensor in since]
            kept_now = (tensor for tensor in kept if since[tensor] <= number)
            yield Moment("forward", name, alive([*made, *kept_now], self.tensors))

    def backward(self) -> Iterator[Moment]:
        """The backward pass, step by step, with the gradients of its weights."""
        for name, (tensors, weights) in self.block.BACKWARD.items():
            gradients = sum(self.gradients[weight] for weight in weights.split())
            parts = {**alive(tensors.split(), self.tensors), "gradients": gradients}
            yield Moment("backward", name, parts)


class LayerStep:
    """A layer in a training step, over whole sequences."""

    def __init__(self, layer: Layer[SteppedBlock], case: Case) -> None:
        rows, element = case.rows(case.work.context), case.master.element_bytes
        self.blocks = [
            BlockStep(
                block,
                block.trained_tensors(rows),
                {name: n * element for name, n in block.parameters(rows.hidden).items()},
            )
            for block in layer.blocks
        ]
        self.saved_bytes = self.bytes_of(self.kept(ALL))
        self.gradient_bytes = sum(block.gradient_bytes for block in self.blocks)

    def kept(self, what: str) -> list[tuple[str, ...]]:
        """Tensors kept between the passes, by block; the first block's input is the layer's."""
        if what == ALL:
            return [tuple(step.block.SAVED_SINCE) for step in self.blocks]
        if what == NOTHING:
            return [()] * len(self.blocks)
        selected = [step.block.KEPT.get(what, ()) for step in self.blocks]
        return [("x", *selected[0]), *selected[1:]]

    def bytes_of(self, names: Sequence[Collection[str]]) -> int:
        """Of some tensors of each block together."""
        return sum(step.bytes_of(own) for step, own in zip(self.blocks, names, strict=True))

    def forward(self, what: str) -> Moment:
        """The highest moment of the forward pass, which keeps `what`."""
        return highest(self._forward(self.kept(what), [()] * len(self.blocks)))

    def again(self, what: str, is_last: bool) -> tuple[Moment, int]:
        """The highest moment where a layer that kept `what` runs again and keeps everything.

        The last layer of those that are recomputed together stops as soon as all is there: before
        its last product is computed, with room for its result.

        Returns:
            The moment, and the bytes that are there from the beginning beside the layer's input.
        """
        there = [tuple(name for name in names if name != "x") for names in self.kept(what)]
        made = [
            [name for name in step.block.SAVED_SINCE if name not in own]
            for step, own in zip(self.blocks, there, strict=True)
        ]
        moments = [*self._forward(made, there)]
        if is_last:
            *moments, product, _ = moments
            room = sum(self.blocks[-1].tensors["y"])
            moments.append(replace(product, parts={"activations": room + self.bytes_of(made)}))
        return highest(moments), self.bytes_of(there)

    def _forward(
        self, kept: Sequence[Collection[str]], there: Sequence[Collection[str]]
    ) -> Iterator[Moment]:
        before = 0
        for number, (step, own, have) in enumerate(zip(self.blocks, kept, there, strict=True)):
            for moment in step.forward(own, have):
                yield moment.plus({"activations": before})
            # The layer's input stays, kept or not: its caller holds it.
            before += step.bytes_of({*own, "x"} if number == 0 else own)

    @cached_property
    def backward(self) -> Moment:
        """The highest moment of the backward pass, from the last block to the first."""
        return highest(self._backward())

    def _backward(self) -> Iterator[Moment]:
        saved, gradients = self.saved_bytes, 0
        for step in reversed(self.blocks):
            saved -= step.bytes_of(step.block.SAVED_SINCE)
            for moment in step.backward():
                yield moment.plus({"activations": saved, "gradients": gradients})
            gradients += step.gradient_bytes


@dataclass(frozen=True)
class TrainingStep:
    """Both passes under the case's checkpointing policy."""

    case: Case
    layers: Sequence[LayerStep]

    @classmethod
    def of(cls, case: Case) -> TrainingStep:
        """A step over whole sequences; equal layers are one object."""
        made = {layer: LayerStep(layer, case) for layer in case.architecture.counted_layers}
        return cls(case, [made[layer] for layer in case.architecture.layers])

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.case.work.batch * self.case.work.context

    @property
    def stream_bytes(self) -> int:
        """Of the residual stream."""
        rows = self.case.rows(self.case.work.context)
        return rows.activation_bytes(rows.hidden)

    def kept_by(self, layer: int) -> str:
        """What a layer keeps between the passes; in a segment the first one does."""
        checkpointing = self.case.training.checkpointing
        policy, n = checkpointing.policy, checkpointing.n
        if policy in ("none", "every-nth"):
            return ALL if policy == "none" or layer % n else INPUT
        return policy if policy.startswith("selective") else INPUT

    def segment_start(self, layer: int) -> int:
        """First of the layers that are recomputed together with this one."""
        checkpointing = self.case.training.checkpointing
        return layer - layer % checkpointing.n if checkpointing.policy == "segments" else layer

    def segment_end(self, start: int) -> int:
        """Last of the layers that are recomputed together with the first, `start`."""
        checkpointing = self.case.training.checkpointing
        length = checkpointing.n if checkpointing.policy == "segments" else 1
        return min(start + length, len(self.layers)) - 1

    def kept_bytes(self, layer: int) -> int:
        """What a layer holds at the end of the forward pass."""
        if self.segment_start(layer) != layer:
            return 0
        step = self.layers[layer]
        return step.bytes_of(step.kept(self.kept_by(layer)))

    def forward(self) -> Iterator[Moment]:
        """From the first layer to the loss."""
        before = 0
        highest_of: dict[tuple[LayerStep, str], Moment] = {}
        for number, step in enumerate(self.layers):
            kept = self.kept_by(number) if self.segment_start(number) == number else NOTHING
            if (step, kept) not in highest_of:
                highest_of[step, kept] = step.forward(kept)
            yield highest_of[step, kept].at(f"layer {number}").plus({"activations": before})
            before += self.kept_bytes(number)
        yield self._loss("forward").plus({"activations": before + SCALAR_BYTES})

    def backward(self) -> Iterator[Moment]:
        """From the loss down to the embedding.

        `before` is what the layers that come later still hold, `gradients` what is there already.
        """
        numbers = range(len(self.layers))
        before = sum(self.kept_bytes(number) for number in numbers)
        gradients = self._table_bytes(self.case.master.element_bytes)
        yield self._loss("backward").plus({
            "activations": self.stream_bytes + before, "gradients": gradients})  # fmt: skip
        gradients += self.case.architecture.hidden * self.case.master.element_bytes
        for number in reversed(numbers):
            start = self.segment_start(number)
            if number == self.segment_end(start):
                before -= self.kept_bytes(start)
                for moment in self._recompute(start, number):
                    yield moment.plus({"activations": before, "gradients": gradients})
            there = {"activations": before + self._saved_bytes(start, number)}
            step = self.layers[number]
            yield step.backward.at(f"layer {number}").plus({**there, "gradients": gradients})
            gradients += step.gradient_bytes
        # A shared table has two gradients for a moment, before one is added to the other.
        gradients += self._table_bytes(self.case.master.element_bytes)
        parts = {"activations": self.stream_bytes, "gradients": gradients}
        yield Moment("backward", "embedding", parts)

    def _saved_bytes(self, start: int, end: int) -> int:
        """What layers from `start` on, before `end`, hold once they are recomputed."""
        return sum(step.saved_bytes for step in self.layers[start:end])

    def _recompute(self, start: int, end: int) -> Iterator[Moment]:
        """Layers `start` to `end` run again and keep all; the gradient of the last is there."""
        kept = self.kept_by(start)
        if kept == ALL:
            return
        for number in range(start, end + 1):
            moment, held = self.layers[number].again(kept, is_last=number == end)
            beside = self._saved_bytes(start, number) + held + self.stream_bytes
            again = moment.at(f"layer {number} again").plus({"activations": beside})
            yield replace(again, phase="backward")

    def _loss(self, phase: str) -> Moment:
        """Hidden states before and after the last norm, two float32 a token, logits, cast table.

        And one float32, the number of tokens that count.
        """
        compute = self.case.compute.element_bytes
        chunk = min(self.case.training.loss_chunk, self.tokens)
        casts = self.case.compute is not self.case.master
        return Moment(phase, "loss", {
            "activations": 2 * self.stream_bytes + 8 * self.tokens + SCALAR_BYTES,
            "logits": chunk * self.case.architecture.vocabulary * compute,
            "workspace": casts * self._table_bytes(compute),
        })  # fmt: skip

    def _table_bytes(self, element_bytes: int) -> int:
        """An embedding table, or its gradient, in a type."""
        model = self.case.architecture
        return model.vocabulary * model.hidden * element_bytes
