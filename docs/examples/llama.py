"""A Hugging Face model built from a config, without weights: one training step or one prefill.

pip install 'tritter-mem[hf]'
tritter-mem profile --module docs/examples/llama.py:train --gpu rtx-4090
tritter-mem profile --module docs/examples/llama.py:prefill --args '{"tokens": 8192}'
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


def model(device: torch.device, layers: int, width: int) -> PreTrainedModel:
    """A Llama with grouped-query attention, in bfloat16."""
    heads = width // 64
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def train(
    device: torch.device, layers: int = 16, width: int = 2048, batch: int = 1, tokens: int = 2048
) -> Callable[[], None]:
    """Model, optimizer and inputs on a device; returns one training step."""
    llama = model(device, layers, width).train()
    ids = torch.randint(32000, (batch, tokens), device=device)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-5)

    def step() -> None:
        llama(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prefill(
    device: torch.device, layers: int = 16, width: int = 2048, batch: int = 1, tokens: int = 2048
) -> Callable[[], None]:
    """Model and inputs on a device; returns one prefill, its cache dropped at the end."""
    llama = model(device, layers, width).eval()
    ids = torch.randint(32000, (batch, tokens), device=device)

    @torch.inference_mode()
    def step() -> None:
        llama(input_ids=ids, use_cache=True, logits_to_keep=1)

    return step
