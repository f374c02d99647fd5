"""A model of a Llama's shape, made on the meta device and put on the GPU without values.

    python llama.py 8b forward|train|lora|fsdp|shards|compile|generate

`shards` is FSDP2 over the whole group, with a mixed precision as torchtitan's.
"""

import os
import resource
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = {
    "1b": (2048, 5632, 22, 32, 4, 32_000),
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
    "70b": (8192, 28_672, 80, 64, 8, 128_256),
    "405b": (16_384, 53_248, 126, 128, 8, 128_256),
}


def made(shape: str, *, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """The model on the meta device."""
    hidden, between, layers, heads, kv_heads, words = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=between, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=words,
        max_position_embeddings=8192, use_cache=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(dtype)


def sharded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Each layer and the rest, over all ranks."""
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def steps(model: torch.nn.Module, count: int, tokens: int) -> None:
    """Train, and print the median step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    ids = torch.randint(0, 32_000, (1, tokens), device="cuda")
    times = []
    for _ in range(count):
        start = time.monotonic()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.monotonic() - start)
    print(f"median step {sorted(times)[len(times) // 2]:.2f} s", flush=True)


def main(shape: str, what: str) -> None:
    """One run."""
    if what == "forward":
        model = made(shape).to_empty(device="cuda")
        with torch.no_grad():
            model(torch.randint(0, 32_000, (1, 2048), device="cuda"))
    elif what == "generate":
        model = made(shape).to_empty(device="cuda").eval()
        prompt = torch.randint(3, 1000, (1, 512), device="cuda")
        model.generate(prompt, max_new_tokens=16, do_sample=True, use_cache=True)
    elif what == "compile":
        model = made(shape).to_empty(device="cuda")
        steps(torch.compile(model, mode="reduce-overhead"), 3, 512)
    else:
        is_sharded = what in ("fsdp", "shards")
        model = made(shape, dtype=torch.float32 if is_sharded else torch.bfloat16)
        checkpointed = {"use_reentrant": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointed)
        if is_sharded:
            model = sharded(model)
        model.to_empty(device="cuda")
        if what == "lora":
            from peft import LoraConfig, get_peft_model

            model.enable_input_require_grads()
            model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
        steps(model, 1 if is_sharded else 5, 4096 if what == "shards" else 2048)


main(*sys.argv[1:3])
print(f"host {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB", flush=True)
