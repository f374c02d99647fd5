"""What the key-value cache's types cost: attention over them against attention over bfloat16.

`python -m benchmarks.codec_quality` prints the table of `docs/kv-cache.md`. Needs no GPU.

Sixteen queries attend to 8,192 remembered tokens, in four heads of 128 over two key-value heads.
In the second case four channels of the keys are ten times the others, as models' keys have them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tritter_model.config import CacheConfig, ModelConfig, RunConfig
from tritter_model.kv_cache import KVCache
from tritter_model.ops import kv_codec
from tritter_model.ops.append import append
from tritter_model.ops.prefill_attention import prefill_attention

TOKENS, QUERIES, HEADS, KV_HEADS, WIDTH = 8192, 16, 4, 2, 128
CASES = {"Gaussian": 1.0, "four channels x10": 10.0}
TYPES = {"bfloat16": 128, "float16": 128, "fp8": 128, "int8": 128, "int4": 128, "int2": 32}
"""Each type and the tokens that share a key's scale."""
CONTRAST = "int4, keys per token"
SEED, SEEDS = 0, 8


@dataclass(frozen=True)
class Quality:
    """Of attention's outputs: relative L2 error and cosine, the mean over tokens and heads."""

    error: float
    cosine: float


def some_tokens(outlier: float, seed: int) -> Tensor:
    """bfloat16 [tokens, heads, channels]."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(TOKENS + QUERIES, HEADS + 2 * KV_HEADS, WIDTH, generator=generator)
    qkv[:, HEADS : HEADS + KV_HEADS, :4] *= outlier
    return qkv.bfloat16()


def attended(qkv: Tensor, dtype: str) -> Tensor:
    """The last tokens' attention over a cache of the others, float64."""
    model = ModelConfig(
        hidden_size=1, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=WIDTH, intermediate_size=1, vocab_size=1,
    )  # fmt: skip
    group = TYPES[dtype]
    settings = CacheConfig(dtype=dtype, group_size=group, attention_sinks=0)
    run = RunConfig(model=model, cache=settings, context=TOKENS + QUERIES)
    cache = KVCache(run, torch.device("cpu")).layers[0]
    append(qkv[:TOKENS], cache, torch.zeros(1, dtype=torch.int32), HEADS)
    return prefill_attention(qkv[TOKENS:], cache, TOKENS, HEADS).double()


def quantised_per_token(qkv: Tensor) -> Tensor:
    """Keys and values as 4 bits with one scale a token give them back: what not to do to keys."""
    old = qkv[:TOKENS, HEADS:]
    codes = kv_codec.quantise_values(old, 4, WIDTH)
    back = kv_codec.dequantise_values(*codes, 4).to(qkv.dtype)
    return torch.cat((torch.cat((qkv[:TOKENS, :HEADS], back), 1), qkv[TOKENS:]))


def quality(name: str, outlier: float, seed: int) -> Quality:
    """Of a cache type, or of the contrast."""
    qkv = some_tokens(outlier, seed)
    wanted = attended(qkv, "bfloat16")
    per_token = name == CONTRAST
    got = attended(quantised_per_token(qkv), "bfloat16") if per_token else attended(qkv, name)
    got, wanted = (out.view(-1, WIDTH) for out in (got, wanted))
    error = (got - wanted).norm(dim=1) / wanted.norm(dim=1)
    return Quality(float(error.mean()), float(torch.cosine_similarity(got, wanted, 1).mean()))


def rows() -> list[tuple[str, str]]:
    """Cache and case of each row of the table."""
    return [(name, case) for name in (*TYPES, CONTRAST) for case in CASES]


def table() -> str:
    """The table in Markdown: the first seed's figures, and the range over all."""
    lines = ["| cache | keys and values | relative error | range | cosine | range |"]
    lines.append("|---|---|---|---|---|---|")
    for name, case in rows():
        found = [quality(name, CASES[case], seed) for seed in range(SEED, SEED + SEEDS)]
        errors, cosines = [q.error for q in found], [q.cosine for q in found]
        lines.append(
            f"| {name} | {case} | {errors[0]:.3f} | {min(errors):.3f} to {max(errors):.3f}"
            f" | {cosines[0]:.4f} | {min(cosines):.4f} to {max(cosines):.4f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
