"""A mixture of experts, with its experts one by one and grouped: every expert is called."""

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

peaks = {}
for way in ("eager", "grouped_mm"):
    config = Qwen3MoeConfig(
        hidden_size=512, intermediate_size=1024, moe_intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=8000, num_experts=16,
        num_experts_per_tok=4, experts_implementation=way,
    )  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    model = Qwen3MoeForCausalLM(config).to("cuda", torch.bfloat16)
    tokens = torch.randint(3, 1000, (2, 512), device="cuda")
    model(tokens, labels=tokens).loss.backward()
    experts = [p for name, p in model.named_parameters() if "experts" in name]
    assert experts and all(p.grad is not None for p in experts)
    peaks[way] = torch.cuda.max_memory_allocated()
    del model, tokens, experts
ratio = peaks["eager"] / peaks["grouped_mm"]
assert 0.9 < ratio < 1.1, peaks
