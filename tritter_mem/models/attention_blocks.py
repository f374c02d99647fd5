"""Kinds of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tritter_mem.models.architecture import Cache, Rows, Shape, SteppedBlock, Storages, Tensors
from tritter_mem.models.formats import ceil_div
from tritter_model.ops.tuning import splits_for_the_card, tuning

HISTORY_BLOCK = 8192
"""Cached tokens that a chunk of the prompt expands at a time."""
SPLIT_TOKENS = 256
"""Cached tokens that a split of one token's attention has at least."""
NORM_SUMS = 256
"""Parts of the tokens, at most, for which gradients of QK-norms are summed apart."""


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention(SteppedBlock):
    """Query heads that share key and value heads, with a norm before a fused QKV projection.

    Saved bytes of a layer in training, with T tokens, hidden h, ratio g = key-value heads / heads,
    a heads, in a type of 2 bytes: 2Th(4 + 2g) + 4Ta + 4T.

    Attributes:
        window: last tokens that are attended to, sinks aside; None: all.
        qk_norm: whether queries and keys are normalised, per head.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qk_norm: bool = False

    STORED: ClassVar = ("input_norm", "qkv", "qk_norms", "out")
    # rows_in, rows_out: what the two projections take; lse: log-sum-exp of each query.
    INFERENCE: ClassVar = {
        "QKV projection": "x rows_in qkv expanded_qkv",
        "attention": "x qkv out attention_scratch",
        "output projection": "x out rows_out y expanded_out",
    }
    # Where one token's attention quantises what it merges: its output is a part of its scratch.
    MERGED: ClassVar = {
        **INFERENCE,
        "attention": "x qkv rows_out attention_scratch",
        "output projection": "x rows_out y",
    }
    FORWARD: ClassVar = {
        "QKV projection": "x norm rows_in packed_qkv qkv",
        "attention": "x qkv rotated out lse",
        "output projection": "x out rows_out packed_out y",
        "residual": "x out y sum",
    }
    SAVED_SINCE: ClassVar = {"x": 0, "norm": 0, "rstd": 0, "qkv": 0, "out": 1, "lse": 1}
    RESULTS: ClassVar = {"QKV projection": "qkv", "attention": "out"}
    KEPT: ClassVar = {
        "selective-attention": ("out", "lse"),
        "selective-matmul": ("qkv", "out", "lse"),
    }
    BACKWARD: ClassVar = {
        "output projection, input gradient": (
            "x norm rstd qkv out lse grad grad_out packed_out", ""),
        "output projection, weight gradient": (
            "x norm rstd qkv out lse grad grad_out rows_out", "out"),
        "attention": (
            "x norm rstd qkv out lse grad grad_out rotated grad_qkv grad_rotated delta", "out"),
        "rotation": (
            "x norm rstd qkv out lse grad grad_out rotated grad_qkv grad_rotated norm_sums",
            "out qk_norms"),
        "QKV projection, input gradient": (
            "x norm rstd grad grad_qkv grad_norm packed_qkv", "out qk_norms"),
        "QKV projection, weight gradient": (
            "x norm rstd grad grad_qkv grad_norm rows_in", "out qk_norms qkv"),
        "input norm": ("x rstd grad grad_norm grad_x", "out qk_norms qkv input_norm"),
    }  # fmt: skip

    @property
    def width(self) -> int:
        """Of the attention's output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    def linears(self, hidden: int) -> dict[str, Shape]:
        """The fused projection of queries, keys and values, and that of the output."""
        return {"qkv": (self.width + 2 * self.kv_width, hidden), "out": (hidden, self.width)}

    def norms(self, hidden: int) -> dict[str, int]:
        """That of the input, and those of queries and keys."""
        return {"input_norm": hidden, "qk_norms": 2 * self.head_dim if self.qk_norm else 0}

    def cache_slots(self, cache: Cache) -> int:
        """Tokens behind the sinks that are held: the context, or a window that is shorter."""
        behind = cache.context - cache.sinks
        return max(0, behind if self.window is None else min(self.window, behind))

    def cache(self, cache: Cache) -> Storages:
        """Keys and values of all slots; keys and values of the sinks; scales, minima, the tail.

        The plain formula, 2 * heads * head_dim * tokens * batch * bits / 8, with the key-value
        heads for the heads, and what it leaves out. Of a quantised cache, keys lie in groups of
        tokens, values in groups of channels, each with a scale and a minimum in float16; keys wait
        for their group in a tail in the activations' type.
        """
        slots, width, element = self.cache_slots(cache), self.head_dim, cache.compute.element_bytes
        sinks = cache.sinks * width * element
        if cache.format.is_float:
            plain = slots * width * cache.format.element_bytes
            parts = [plain, plain, sinks, sinks]
        else:
            group, bits = cache.group, int(cache.format.bits)
            groups = min(ceil_div(slots, group), (cache.context - cache.sinks) // group)
            row, value_groups = width * bits // 8, width // min(group, width)
            keys, values = groups * group * row, slots * row
            key_scale, value_scale = 2 * groups * width, 2 * slots * value_groups
            tail = group * width * element
            scales = (key_scale, key_scale, value_scale, value_scale)
            parts = [keys, values, sinks, sinks, tail, *scales]
        return tuple(cache.batch * self.kv_heads * part for part in parts)

    def tensors(self, rows: Rows) -> Tensors:
        """The tensors of `INFERENCE`, the scratch of the cache aside."""
        stream, shapes = rows.activation(rows.hidden), self.linears(rows.hidden)
        return {
            "x": stream,
            "y": stream,
            # Other layers than ternary ones take the norm's result, and their input as it is.
            "rows_in": rows.quantised(rows.hidden) or stream,
            "rows_out": rows.quantised(self.width),
            "qkv": rows.activation(self.width + 2 * self.kv_width),
            "out": rows.activation(self.width),
            **{f"expanded_{name}": rows.expanded(shape) for name, shape in shapes.items()},
        }

    def inference_steps(self, rows: Rows) -> Mapping[str, str]:
        """The tables, as the model's launches are chosen."""
        return self.MERGED if _merges_rows(rows) else self.INFERENCE

    def inference_shared(self, rows: Rows) -> Storages:
        """Cosine and sine of each position, float32, where they are computed once a step."""
        if not tuning().angles_once:
            return ()
        return (4 * rows.tokens // rows.batch * self.head_dim,)

    def cache_scratch(
        self, rows: Rows, cache: Cache, cached: bool, multiprocessors: int
    ) -> Storages:
        """A block of history expanded, and the state of the queries; or the splits of one token.

        The state is an unnormalised output, float32, a largest score and a sum.
        """
        slots = self.cache_slots(cache)
        if rows.tokens == rows.batch:
            return self._splits(rows, slots, multiprocessors)
        if not cached or cache.format is cache.compute:
            return ()
        block = min(HISTORY_BLOCK, slots)
        history = 2 * rows.batch * self.kv_width * block * rows.compute.element_bytes
        return history, 4 * rows.tokens * self.width, 4 * rows.tokens * 2 * self.heads

    def _splits(self, rows: Rows, slots: int, multiprocessors: int) -> Storages:
        """float32 partial outputs and their log-sum-exp for each split of the cache.

        Enough splits for the model's `decode_programs` a multiprocessor, none below 256 tokens, one
        more for tail, sinks and the new token.
        """
        wanted = splits_for_the_card(rows.batch * self.kv_heads, multiprocessors)
        splits = max(1, min(wanted, ceil_div(slots, SPLIT_TOKENS))) + 1
        scores = 4 * splits * rows.batch * self.heads
        merged = (rows.activation_bytes(self.width), 4 * rows.batch) if _merges_rows(rows) else ()
        return scores * self.head_dim, scores, *merged

    def trained_tensors(self, rows: Rows) -> Tensors:
        """The tensors of `FORWARD` and `BACKWARD`.

        Sums of the QK-norms' gradients are float32, one for each of up to 256 parts of the tokens.
        """
        stream = rows.activation(rows.hidden)
        qkv = rows.activation(self.width + 2 * self.kv_width)
        rotated = rows.activation(self.width + self.kv_width)
        out = rows.activation(self.width)
        norm_sums = 4 * min(NORM_SUMS, rows.tokens) * 2 * self.head_dim
        return {
            **dict.fromkeys(("x", "sum", "y", "norm", "grad", "grad_norm", "grad_x"), stream),
            "rstd": (4 * rows.tokens,),
            **dict.fromkeys(("lse", "delta"), (4 * rows.tokens * self.heads,)),
            **dict.fromkeys(("qkv", "grad_qkv"), qkv),
            **dict.fromkeys(("rotated", "grad_rotated"), rotated),
            **dict.fromkeys(("out", "grad_out"), out),
            "rows_in": rows.quantised(rows.hidden),
            "rows_out": rows.quantised(self.width),
            "norm_sums": (norm_sums,) if self.qk_norm else (),
            **{
                f"packed_{name}": rows.rounded(shape)
                for name, shape in self.linears(rows.hidden).items()
            },
        }


def _merges_rows(rows: Rows) -> bool:
    """Whether attention gives quantised rows, as it may where there is one token a sequence."""
    return rows.weights.is_ternary and rows.tokens == rows.batch and tuning().fused_merge
