"""One step of fine-tuning a text model of Qwen3.5-0.8B's shape, as a published worker did it.

    python fine_tuning.py full|lora TOKENS [checkpointed] [ACCUMULATED]

bfloat16, batch 1, AdamW without `foreach`. Prints the peak of allocated memory.
"""

import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5 import Qwen3_5TextConfig

method, tokens, *more = sys.argv[1:]
config = Qwen3_5TextConfig(
    hidden_size=1024, intermediate_size=3584, num_hidden_layers=24, num_attention_heads=8,
    num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=16,
    linear_key_head_dim=128, linear_value_head_dim=128, tie_word_embeddings=True, use_cache=False,
)  # fmt: skip
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
model.to_empty(device="cuda")
model.tie_weights()  # which `to_empty` takes apart
if "checkpointed" in more:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
if method == "lora":
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "in_proj_b",
             "in_proj_a", "out_proj", "gate_proj", "up_proj", "down_proj"]  # fmt: skip
    model = get_peft_model(model, LoraConfig(r=8, target_modules=names))
model.train()
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, foreach=False)
ids = torch.randint(0, 1000, (1, int(tokens)), device="cuda")
torch.cuda.reset_peak_memory_stats()
for _ in range(2 if "2" in more else 1):
    model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
torch.cuda.synchronize()
print("trained", sum(p.numel() for p in trained), flush=True)
print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB", flush=True)
