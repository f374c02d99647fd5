"""Hugging Face's Trainer, on a model of 1.1 B parameters and random tokens."""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Tokens(Dataset):
    """Rows of 512 tokens."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        row = torch.full((512,), at + 3)
        return {"input_ids": row, "labels": row}


config = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, vocab_size=32_000, use_cache=False,
)  # fmt: skip
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model.to_empty(device="cuda")
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=2, max_steps=8, bf16=True, report_to=[],
        save_strategy="no", logging_steps=4,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=Tokens()).train()
