"""Steps of AdamW with a model of Llama-3-8B's shape, checkpointed, made on the meta device.

python train_8b.py [steps] [lora]
"""

import resource
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
config = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, vocab_size=128_256, max_position_embeddings=8192, use_cache=False,
)  # fmt: skip
with torch.device("meta"):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
model.to_empty(device="cuda")
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
if sys.argv[2:] == ["lora"]:
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained)
tokens = torch.randint(0, 128_256, (1, 2048), device="cuda")
times = []
for _ in range(steps):
    start, used = time.monotonic(), time.process_time()
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append((time.monotonic() - start, time.process_time() - used))
host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
median, processor = (sorted(one)[len(times) // 2] for one in zip(*times, strict=True))
print(f"step {median:.2f} s, {processor:.2f} s of the processor; host {host / 1024:.0f} MiB")
