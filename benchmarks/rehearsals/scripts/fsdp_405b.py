"""A step of FSDP2 with a model of Llama-3.1-405B's shape; rehearsed as one rank of many."""

import os
import resource
import time

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

start = time.monotonic()
dist.init_process_group("nccl")
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
config = LlamaConfig(
    hidden_size=16_384, intermediate_size=53_248, num_hidden_layers=126, num_attention_heads=128,
    num_key_value_heads=8, vocab_size=128_256, max_position_embeddings=131_072, use_cache=False,
)  # fmt: skip
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for layer in model.model.layers:
    fully_shard(layer, mp_policy=policy)
fully_shard(model, mp_policy=policy)
model.to_empty(device="cuda")
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(0, 128_256, (1, 8192), device="cuda")
model(tokens, labels=tokens).loss.backward()
optimizer.step()
host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{time.monotonic() - start:.0f} s; host {host / 1024:.0f} MiB")
