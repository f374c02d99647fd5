"""Attention with learned relative positions, short convolutions around it, and experts: Inkling."""

from __future__ import annotations

from dataclasses import dataclass

from tritter_mem.models.expert_blocks import Experts, Routed
from tritter_mem.models.layer_run import LayerRun, activated
from tritter_mem.models.recurrent_parts import short_convolution
from tritter_mem.models.shape_tensors import BOOL, FLOAT, LONG, NotPlannedError, Tensor
from tritter_mem.models.transformers_blocks import Attention, FeedForward


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeAttention(Attention):
    """Attention whose scores get a number for the distance of two tokens.

    Attributes:
        relative: channels that each head's numbers are made of; `gate` names their projection.
        extent: distances that have numbers.
        floored: whether scores grow with the position, where there is no window.
    """

    relative: int
    extent: int
    floored: bool = False

    def has_static_cache(self) -> bool:
        """Its numbers are for the tokens that there are, not for all that there is room for."""
        return False

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`InklingAttention`.

        Raises:
            NotPlannedError: it is trained.
        """
        ops, step, name = run.ops, run.step, self.name
        if ops.grad:
            raise NotPlannedError("training of relative positions is not planned")
        heads = (step.batch, step.tokens, self.heads)
        groups = (step.batch, step.tokens, self.kv_heads, self.head_dim)
        q = run.linear(x, f"{name}.q_proj")
        k = short_convolution(run.linear(x, f"{name}.k_proj"), run, f"{name}.k_sconv")
        v = short_convolution(run.linear(x, f"{name}.v_proj"), run, f"{name}.v_sconv")
        places = run.linear(x, f"{name}.{self.gate[0][0]}")
        q = ops.view(q, (*heads, self.head_dim))
        q = ops.transpose(run.norm(q, f"{name}.{self.norm_names[0]}"), 1, 2)
        k = ops.view(k, groups)
        k = ops.transpose(run.norm(k, f"{name}.{self.norm_names[1]}"), 1, 2)
        v = ops.transpose(ops.view(v, groups), 1, 2)
        k, v = run.update({"keys": k, "values": v}, self.window)
        held = [self._numbers(run, k.shape[2]), self._numbers(run, step.tokens)]
        bias = self._bias(run, places, k.shape[2])
        if self.floored and self.window is None:
            q, bias, factor = self._grown(run, q, bias)
            held.append(factor)
        out = self._biased(run, q, k, v, bias)
        out = ops.reshape(out, (*heads[:2], self.out_width))
        out = run.linear(out, f"{name}.{self.out}")
        del places, held, bias
        return out

    @staticmethod
    def _numbers(run: LayerRun, count: int) -> Tensor:
        """`torch.arange(count) + offset`."""
        near = run.ops.new((count,), LONG)
        return run.ops.scaled(near)

    def _bias(self, run: LayerRun, places: Tensor, keys: int) -> Tensor:
        """Numbers [B, H, S, K]: `InklingRelativeLogits`."""
        ops, (batch, tokens, _) = run.ops, places.shape
        flat = ops.view(places, (batch * tokens * self.heads, self.relative))
        made = ops.matmul(flat, run.weights[f"{self.name}.rel_logits_proj.proj"])
        distance = ops.new((1, 1, tokens, keys), LONG)
        index = ops.scaled(distance)
        picked = ops.new((batch, self.heads, tokens, keys), made.size)
        flags = [ops.new(distance.shape, BOOL), ops.new(distance.shape, BOOL)]
        outside = ops.new(distance.shape, BOOL)
        flags.clear()
        result = ops.masked(picked, outside)
        del made, distance, index, picked, outside
        return result

    @staticmethod
    def _grown(run: LayerRun, q: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and numbers times what grows with the logarithm of the position."""
        ops, size = run.ops, q.size
        numbers = ops.scaled(ops.new((run.step.tokens,), LONG), FLOAT)
        factor = numbers
        for _ in range(5):
            factor = ops.scaled(factor)
        column = ops.view(factor, (1, 1, run.step.tokens, 1))
        q = ops.to(ops.mul(ops.to(q, FLOAT), column), size)
        bias = ops.to(ops.mul(ops.to(bias, FLOAT), column), size)
        return q, bias, factor

    def _biased(self, run: LayerRun, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention [B, S, H, E]: `sdpa_attention_forward` with `position_bias`."""
        ops, step, times = run.ops, run.step, self.heads // self.kv_heads
        mask = step.masks[self.window]
        packed = times > 1 and step.tokens == 1 and (mask is not None or self.head_dim > 256)
        repeats = times > 1 and not packed and (mask is not None or self.head_dim > 256)
        if packed:
            q = ops.view(q, (step.batch, self.kv_heads, times, self.head_dim))
            bias = ops.view(bias, (step.batch, self.kv_heads, times, bias.shape[3]))
        if repeats:
            k, v = ops.repeated(k, times), ops.repeated(v, times)
        if mask is None and step.tokens > 1:
            near = [ops.new((count,), LONG) for count in (step.tokens, bias.shape[3])]
            mask = ops.new((step.tokens, bias.shape[3]), BOOL)
            near.clear()
        if mask is not None:
            number = ops.new((), bias.size)
            bias = ops.new(bias.shape, bias.size)
            del number, mask
        out = ops.attention(q, k, v, bias, False)
        if packed:
            out = ops.reshape(out, (step.batch, self.heads, 1, out.shape[3]))
        return ops.contiguous(ops.transpose(out, 1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedFeedForward(FeedForward):
    """An MLP whose result is multiplied by a number."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`InklingMLP`."""
        ops = run.ops
        gate, up, down = (f"{self.name}.{name}" for name in self.names)
        made = ops.mul(activated(run, run.linear(x, gate)), run.linear(x, up))
        made = run.linear(made, down)
        return ops.mul(made, run.weights[f"{self.name}.{self.vectors[0][0]}"])


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSharedExperts(Experts):
    """Experts whose router has numbers for the shared ones too."""

    def run(self, x: Tensor, run: LayerRun) -> Tensor:
        """`InklingMoE`."""
        ops, shape = run.ops, x.shape
        flat = ops.view(x, (x.elements // shape[-1], shape[-1]))
        (logits, values, places), shares = self._routed(flat, run)
        out = ops.view(self._chosen(flat, run, values, places), shape)
        out = ops.add(out, ops.view(self._shared_sum(flat, run, shares), shape))
        del logits, values, places, shares
        return out

    def _routed(self, x: Tensor, run: LayerRun) -> tuple[Routed, Tensor]:
        """`InklingTopkRouter`: of the chosen experts, and shares of the shared ones."""
        ops, rows, name = run.ops, x.shape[0], f"{self.inside}{self.router}"
        logits = ops.linear(ops.to(x, FLOAT), ops.to(run.weights[name], FLOAT))
        scores = ops.pointwise(logits)
        choice = ops.new((rows, self.count), FLOAT)
        places = ops.topk(choice, self.chosen)[1]
        picked = ops.picked(ops.slice(logits, -1, self.count), places)
        both = ops.cat([picked, ops.slice(logits, -1, self.idle)], -1)
        del picked
        chances = ops.pointwise(both)
        ops.inside([chances.nbytes])
        less = ops.subtracted(chances, ops.new((rows, 1), FLOAT))
        weights = ops.pointwise(less)
        del less
        weights = ops.scaled(ops.scaled(weights))
        weights = ops.to(weights, x.size)
        shares = ops.contiguous(ops.slice(weights, -1, self.idle))
        weights = ops.contiguous(ops.slice(weights, -1, self.chosen))
        del scores, choice, both, chances
        return (logits, weights, places), shares

    def _shared_sum(self, x: Tensor, run: LayerRun, shares: Tensor) -> Tensor:
        """`InklingSharedExperts`: all in batched products."""
        ops, (rows, width) = run.ops, x.shape
        wide = ops.expand(ops.view(x, (1, rows, width)), (self.idle, rows, width))
        each = ops.transpose(ops.view(shares, (rows, self.idle, 1)), 0, 1)
        gate, up = (self._product_with(run, wide, part) for part in ("gate_proj", "up_proj"))
        made = ops.mul(ops.mul(activated(run, gate), up), each)
        down = self._product_with(run, made, "down_proj")
        out = ops.to(ops.sum(ops.to(down, FLOAT), [0]), x.size)
        del gate, up, made, down
        return out

    def _product_with(self, run: LayerRun, x: Tensor, part: str) -> Tensor:
        weight = run.weights[f"{self.inside}{self.shared_name}.{part}"]
        return run.ops.matmul(x, run.ops.transpose(weight, 1, 2))
