"""What the model is and what it runs, as plain frozen data. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

TERNARY_FORMATS = ("ternary-2bit", "ternary-1.6bit")
QUANTISED_KV_BITS = {"int8": 8, "int4": 4, "int2": 2}
SHORTENED = 3
"""Chunks and tokens of a shortened run: the first, one like all those between, and the last."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture, in Hugging Face's key names, and how its weights are stored.

    Attributes:
        sliding_window: tokens that a layer attends to, sinks aside; None: all.
        global_attention_every: with a window, every n-th layer attends to all tokens.
        vision: whether a SigLIP-B/16 tower puts its patch embeddings before the prompt.
        weight_format: `ternary-2bit`, `ternary-1.6bit`, a float type, `int8` or `int4`.
        embedding_dtype: a float type or `int8`, for the embedding and the output projection.
        master_dtype: storage of the weights in training.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    qk_norm: bool = True
    sliding_window: int | None = None
    global_attention_every: int | None = None
    vision: bool = False
    weight_format: str = "ternary-2bit"
    embedding_dtype: str = "bfloat16"
    master_dtype: str = "float32"

    @property
    def is_ternary(self) -> bool:
        """Whether the linear layers take int8 activations and ternary weights."""
        return self.weight_format in TERNARY_FORMATS

    @property
    def compute_dtype(self) -> str:
        """Type of the residual stream: the weights' own float type, bfloat16 otherwise."""
        return self.weight_format if self.weight_format in ("float16", "float32") else "bfloat16"

    def window_of(self, layer: int) -> int | None:
        """The window of one layer; None where it attends to every token."""
        every = self.global_attention_every
        if every is not None and (layer + 1) % every == 0:
            return None
        return self.sliding_window


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The key-value cache: its type, the tokens that share a key's scale, the sinks."""

    dtype: str = "int4"
    group_size: int = 128
    attention_sinks: int = 4


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a training step runs. `checkpointing` and its number `n`: see `checkpointing.py`.

    Attributes:
        micro_batch: sequences whose gradients are computed at a time and added up; None: all.
    """

    optimizer: str = "adamw"
    checkpointing: str = "none"
    n: int = 1
    loss_chunk: int = 2048
    micro_batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One whole case: the model, its cache, and the work.

    Attributes:
        context: tokens of each sequence, prompt and new tokens together.
        multiprocessors: of the card that runs it or that it stands for; decides how far decode
            attention is split.
        cuda_graph: whether decode replays a CUDA graph of its step; see `decode_graph.py`.
        shortened: leave out the chunks and tokens that take the memory of those before them. For a
            run on `meta`, whose results nobody reads.
    """

    model: ModelConfig
    cache: CacheConfig = CacheConfig()
    training: TrainingConfig = TrainingConfig()
    mode: str = "inference"
    context: int = 4096
    batch: int = 1
    prefill_chunk: int = 2048
    new_tokens: int = 32
    multiprocessors: int = 132
    seed: int = 0
    cuda_graph: bool = False
    shortened: bool = False

    @property
    def captures(self) -> bool:
        """Whether there is a step to capture."""
        return self.cuda_graph and self.mode == "inference" and self.new_tokens > 1

    @property
    def steps(self) -> int:
        """Tokens that decode runs for: the prompt's last logits already give the first one."""
        return min(self.new_tokens - 1, SHORTENED) if self.shortened else self.new_tokens - 1

    @property
    def warm_up_prompts(self) -> list[int]:
        """Tokens of the prompts that warm-up runs one after another, each shortened.

        A last chunk of one token is decoded; then the prompt without it has the longest history
        that a chunk attends to.
        """
        prompt = self.context - self.new_tokens
        decoded = prompt % self.prefill_chunk == 1 < prompt
        return [prompt - 1, prompt] if decoded else [prompt]

    @property
    def chunks(self) -> int:
        """Chunks of the prompt that run."""
        chunks = -(-(self.context - self.new_tokens) // self.prefill_chunk)
        return min(chunks, SHORTENED) if self.shortened else chunks
