"""A profile: what model runs, how, and on which card. One class a section.

Sizes in tokens accept `128k` and `1M`, sizes in bytes `15 GiB` and `15 GB`. `model` uses the key
names of a Hugging Face `config.json`. Unknown keys are errors, and a wrong profile reports all its
problems at once. The text below each field is its documentation, in the JSON Schema too.
"""

# No `from __future__ import annotations`: the annotations are read as objects, not as text.
from typing import Annotated, Any, Literal

from tritter_mem.config.kinds import Real, Text, Whole, count, memory
from tritter_mem.config.sections import Problem, Section

VISION_PREFIX_TOKENS = {"siglip-base": 196}
QUANTISED_KV_BITS = {"int8": 8, "int4": 4, "int2": 2}

Tokens = Annotated[int, count(1, 1 << 30)]
TokensOrZero = Annotated[int, count(0, 1 << 30)]
Width = Annotated[int, count(1, 1 << 20)]
Vocabulary = Annotated[int, count(1, 1 << 24)]
Small = Annotated[int, Whole(1, 4096)]
Bytes = Annotated[int, memory(1, 1 << 50)]


class Model(Section):
    """The architecture, in Hugging Face's key names."""

    hidden_size: Width
    """Width of the residual stream."""
    num_hidden_layers: Small
    """Number of transformer layers."""
    num_attention_heads: Small
    """Number of query heads."""
    num_key_value_heads: Small | None = None
    """Number of key and value heads; default: as many as query heads (no grouping)."""
    head_dim: Width | None = None
    """Width of one head; default: hidden_size / num_attention_heads."""
    intermediate_size: Width
    """Width of the gated MLP."""
    vocab_size: Vocabulary
    """Number of tokens in the vocabulary."""
    tie_word_embeddings: bool = False
    """Whether the output projection shares the input embedding's weights."""
    rms_norm_eps: Annotated[float, Real(0, 1)] = 1e-5
    """Epsilon of every RMSNorm."""
    rope_theta: Annotated[float, Real(0, 1e12)] = 500_000.0
    """Base of the rotary position embedding."""
    qk_norm: bool = True
    """RMSNorm on queries and keys, per head, before the rotary embedding."""
    sliding_window: Tokens | None = None
    """Attend to this many last tokens only (and to the attention sinks); null: to all."""
    global_attention_every: Small | None = None
    """With a window: every n-th layer attends to all tokens."""
    vision: Literal["siglip-base"] | None = None
    """Frozen vision tower whose patch embeddings are a prefix of the prompt; null: none."""

    @classmethod
    def derived(cls, values: dict[str, Any]) -> dict[str, Any]:
        """As many key and value heads as query heads; heads that share the hidden size out."""
        heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
        if heads and values.get("num_key_value_heads", 0) is None:
            values["num_key_value_heads"] = heads
        if heads and hidden and hidden % heads == 0 and values.get("head_dim", 0) is None:
            values["head_dim"] = hidden // heads
        return values

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads, never None."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Width of one head, never None."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Weights(Section):
    """How weights are stored for inference; in training the master weights stand for them."""

    format: Literal[
        "ternary-2bit", "ternary-1.6bit", "bfloat16", "float16", "float32", "int8", "int4"
    ] = "ternary-2bit"
    """Storage of the linear layers."""
    embedding_dtype: Literal["bfloat16", "float16", "float32", "int8"] = "bfloat16"
    """Storage of the token embedding and the output projection."""


class KVCache(Section):
    """The key-value cache of inference."""

    dtype: Literal["bfloat16", "float16", "fp8", "int8", "int4", "int2"] = "int4"
    """Storage of keys and values."""
    group_size: Annotated[int, Whole(8, 4096)] = 128
    """Tokens that share a key's scale and minimum; channels that share a value's."""
    attention_sinks: TokensOrZero = 4
    """First tokens that stay in the cache, in full precision, whatever the window."""


class Workload(Section):
    """What is run."""

    mode: Literal["inference", "training"] = "inference"
    """inference: prefill and decode; training: forward, backward, optimizer."""
    context: Tokens = 4096
    """Tokens of each sequence: prompt and new tokens together, or the training sequence."""
    batch: Annotated[int, Whole(1, 65536)] = 1
    """Sequences at once."""
    prefill_chunk: Tokens = 2048
    """Tokens of the prompt that run at a time."""
    new_tokens: Tokens = 32
    """Tokens that inference generates; part of the context."""
    cuda_graph: bool = False
    """Whether decode replays a CUDA graph of its step, which has a memory pool of its own."""


class Checkpointing(Section):
    """Which activations training recomputes instead of keeping."""

    policy: Literal[
        "none", "every-layer", "every-nth", "segments", "selective-attention", "selective-matmul"
    ] = "none"
    """none; every-layer; every-nth: the layers with i % n == 0; segments: n layers each;
    selective-attention: every layer, attention output kept; selective-matmul: every second
    matrix product kept too."""
    n: Small = 1
    """The n of every-nth and segments."""


class Training(Section):
    """Settings that only training uses."""

    optimizer: Literal["adamw", "adamw-8bit", "sgd"] = "adamw"
    """Optimizer; its state is kept in float32, or in 8 bits with a scale for each block."""
    master_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the trained (shadow) weights and of their gradients."""
    checkpointing: Checkpointing = Checkpointing()
    """Which activations are recomputed."""
    loss_chunk: Tokens = 2048
    """Tokens whose logits exist at a time."""


class Gpu(Section):
    """The card to fit."""

    name: Annotated[str, Text(1, 100)] = "rtx-5080"
    """A name of `tritter-mem gpus`, or `auto` for the card that is present."""
    budget: Bytes | None = None
    """Memory that may be used; default: the card's memory less a margin."""


class Allocator(Section):
    """PyTorch's CUDA caching allocator."""

    conf: Annotated[str, Text(0, 1000)] = ""
    """Settings as in PYTORCH_CUDA_ALLOC_CONF."""


class Profile(Section):
    """One profile, resolved: every default filled in, every size a number."""

    name: Annotated[str, Text(1, 200)]
    """What reports call it."""
    description: Annotated[str, Text(0, 2000)] = ""
    """One line for `tritter-mem profiles`."""
    model: Model
    weights: Weights = Weights()
    kv_cache: KVCache = KVCache()
    workload: Workload = Workload()
    training: Training = Training()
    gpu: Gpu = Gpu()
    allocator: Allocator = Allocator()

    @classmethod
    def broken_rules(cls, known: Any) -> list[Problem]:
        """Rules between fields, of one section or of several."""
        from tritter_mem.config.rules import broken_rules

        return broken_rules(known)
