"""The page of bundled models: `python -m benchmarks.released_models` writes docs/models.md."""

from __future__ import annotations

from pathlib import Path

from tritter_mem.config.bundled_files import released_names
from tritter_mem.models.released import ReleasedModel, read_released
from tritter_mem.units import format_bytes

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
TEXT = """# Bundled models

`tritter-mem plan qwen3-32b --gpu rtx-4090` needs no network: the configurations of {count}
released models are bundled, one small YAML file each in `profiles/released/`. Their names are in
lower case, and any case is taken. `tritter-mem models` lists them, and
`tritter-mem models --show qwen3-32b` prints one.

Each file has the keys of the model's `config.json` that decide what is built, and where they were
read: a file of a package or of a public repository, its version, and its date or the day of
reading. It also has the count of parameters that a second source states, mostly the total of the
checkpoint's safetensors files. A test compares every model with that count and allows 0.5%; {exact}
of {count} have it to the parameter. Where the released checkpoint stores tied embeddings twice, the
count is that of a repository of the same model that stores them once.

- **Parameters** are all that a checkpoint holds: what reads images or sound and layers for
  multi-token prediction are included, scales of quantised weights are not. **Active** are those of
  the language model that one token uses.
- **bfloat16** is the memory of the language model's weights without quantisation, and **stored**
  that of the same weights as the checkpoint has them.
- **KV per token** is what a token adds to a bfloat16 cache, the mean from 32K to 64K tokens. Layers
  with a shorter window, and layers with a state, add nothing there.

This page is written by `python -m benchmarks.released_models`.

| name | type | parameters | active | bfloat16 | stored | KV per token | on the Hub | source |
|---|---|---:|---:|---:|---:|---:|---|---|
{rows}
"""


def page() -> str:
    """The whole page."""
    found = [model for name in released_names() if (model := read_released(name)) is not None]
    exact = sum(model.model.parameters == model.parameters["stated"] for model in found)
    return TEXT.format(count=len(found), exact=exact, rows="\n".join(map(_row, found)))


def _row(released: ReleasedModel) -> str:
    model, source = released.model, released.source
    when = source.get("date") or f"read {source['read']}"
    cells = (
        f"`{released.name}`",
        model.model_type,
        _count(model.parameters),
        _count(model.active_parameters),
        format_bytes(released.bfloat16_bytes),
        format_bytes(model.weight_bytes),
        format_bytes(released.kv_bytes_per_token),
        released.hub,
        f"{source['version']} ({when})",
    )
    return f"| {' | '.join(cells)} |"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:,.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.0f} M"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
