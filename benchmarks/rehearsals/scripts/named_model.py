"""Greedy generation of a model of transformers, from the keys of its configuration.

    python named_model.py CONFIG.json TOKENS NEW_TOKENS [DTYPE]

The model is made on the meta device and gets random values on the GPU, so that its experts get
tokens as they would. No token ends a sequence.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

file, tokens, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dtype = getattr(torch, sys.argv[4] if len(sys.argv) > 4 else "bfloat16")
config = AutoConfig.for_model(**json.loads(Path(file).read_text())).get_text_config(decoder=True)
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
there: dict[torch.Tensor, torch.Tensor] = {}


def on_gpu(one: torch.Tensor) -> torch.Tensor:
    """Tied weights stay one, which `to_empty` takes apart."""
    if one not in there:
        there[one] = torch.empty_like(one, device="cuda")
        if one.is_floating_point():
            there[one].normal_(0, 0.02)
    return there[one]


model.eval()._apply(on_gpu)
there.clear()
model.tie_weights()
model.generation_config.eos_token_id = None
ids = torch.randint(3, 1000, (1, tokens), device="cuda")
with torch.no_grad():
    model.generate(ids, max_new_tokens=new_tokens, do_sample=False, use_cache=True)
print(f"peak {torch.cuda.max_memory_allocated()} {torch.cuda.max_memory_reserved()}", flush=True)
