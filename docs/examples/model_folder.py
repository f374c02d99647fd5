"""Make a folder with a config and a tokenizer, and no weights, for a rehearsal of a server.

    python docs/examples/model_folder.py qwen3-8b
    tritter-mem rehearse --gpu h100 -- vllm serve ./qwen3-8b --load-format dummy

The shape is Qwen3-8B's. The tokenizer knows single bytes: enough to start a server and to answer.
"""

import json
import sys
from pathlib import Path

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "eos_token_id": 256,
}
END = "<|endoftext|>"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def letters() -> list[str]:
    """How byte-level tokenizers write each byte: itself where it can be seen, else a letter."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(byte if byte in seen else next(other)) for byte in range(256)]


def tokenizer() -> dict[str, object]:
    """`tokenizer.json` of a tokenizer with a token for each byte, and one for the end."""
    end = {"id": 256, "content": END, "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": True}  # fmt: skip
    vocabulary = {letter: number for number, letter in enumerate(letters())}
    return {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": BYTES,
        "decoder": BYTES,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def main(folder: Path) -> None:
    """Write the three files."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    files = {"config": CONFIG, "tokenizer": tokenizer(), "tokenizer_config": settings}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
