"""Generate with a small Llama: `greedy` looks for an end token, `sampled` has none."""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

greedy = sys.argv[1] == "greedy"
config = LlamaConfig(
    hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, vocab_size=32_000, eos_token_id=2 if greedy else None, pad_token_id=0,
)  # fmt: skip
model = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
prompt = torch.randint(3, 1000, (2, 64), device="cuda")
found = model.generate(prompt, max_new_tokens=8, do_sample=not greedy)
assert found.shape == (2, 72), found.shape
