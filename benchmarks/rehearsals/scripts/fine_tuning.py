"""One step of fine-tuning a text model of Qwen3.5's shape, as a published worker did it.

    python fine_tuning.py 0.8b|2b full|lora|sharded|sharded-lora TOKENS [checkpointed] [2]

bfloat16, batch 1, AdamW without `foreach`; the first half of the labels is masked; adapters of rank
8 on all linear layers, in float32 as peft makes them. With 2, gradients of two batches are added
up. What the model returned stays until the end. `sharded` is FSDP by layers, without prefetch;
`sharded-lora` is FSDP2. Prints the step's peak of allocated memory.
"""

import os
import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.models.qwen3_5 import Qwen3_5TextConfig

size, method, tokens, *more = sys.argv[1:]
length, batches = int(tokens), 2 if "2" in more else 1
width, between = {"0.8b": (1024, 3584), "2b": (2048, 6144)}[size]
config = Qwen3_5TextConfig(
    hidden_size=width, intermediate_size=between, num_hidden_layers=24, num_attention_heads=8,
    num_key_value_heads=2, head_dim=256, linear_num_key_heads=16, linear_num_value_heads=16,
    linear_key_head_dim=128, linear_value_head_dim=128, tie_word_embeddings=True, use_cache=False,
)  # fmt: skip
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
there: dict[torch.Tensor, torch.Tensor] = {}


def on_gpu(one: torch.Tensor) -> torch.Tensor:
    """Tied weights stay one, which `to_empty` takes apart."""
    if one not in there:
        there[one] = torch.empty_like(one, device="cuda")
    return there[one]


if "sharded" in method:
    import torch.distributed as dist

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
if method == "sharded":
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    layer = type(model.model.layers[0])
    model.to_empty(device="cpu").tie_weights()
    model = FullyShardedDataParallel(
        model.train(), auto_wrap_policy=ModuleWrapPolicy({layer}), device_id=device,
        backward_prefetch=None, use_orig_params=False,
    )  # fmt: skip
else:
    model._apply(on_gpu)
    there.clear()
    model.tie_weights()
if "lora" in method:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    )
if "checkpointed" in more:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if "lora" in method:
        model.enable_input_require_grads()
model.train()
if method == "sharded-lora":
    from torch.distributed.fsdp import fully_shard

    for layer in model.base_model.model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=True)
inputs = []
for _ in range(batches):
    ids = torch.randint(100, config.vocab_size, (1, length))
    labels = ids.clone()
    labels[:, : length // 2] = -100
    places = torch.arange(length).view(1, 1, length).expand(3, 1, length).clone()
    inputs.append({"input_ids": ids.cuda(), "labels": labels.cuda(), "position_ids": places.cuda()})
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, foreach=False)
torch.cuda.reset_peak_memory_stats()
for at, batch in enumerate(inputs, 1):
    output = model(**batch, use_cache=False)
    loss = output.loss / batches
    loss.backward()
    if at < batches:
        del output, loss
optimizer.step()
torch.cuda.synchronize()
print("trained", sum(p.numel() for p in trained), trained[0].dtype, flush=True)
print(f"peak {torch.cuda.max_memory_allocated() / 2**30:.3f} GiB", flush=True)
if "sharded" in method:
    dist.destroy_process_group()
