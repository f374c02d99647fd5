"""The whole model: packing, chunks, windows, tied tables, real parameter counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritter_model.config import CacheConfig, ModelConfig, RunConfig, TrainingConfig
from tritter_model.kv_cache import KVCache
from tritter_model.transformer import Transformer

CPU, META = torch.device("cpu"), torch.device("meta")
SEVEN_B = ModelConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    intermediate_size=11008,
    vocab_size=65536,
)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def some_ids(config: ModelConfig, batch: int, tokens: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (batch, tokens))


def test_7b_has_the_published_parameters() -> None:
    model = Transformer(SEVEN_B, META, trainable=True)
    linear = [p for n, p in model.layers.named_parameters() if "norm" not in n]
    assert sum(p.numel() for p in linear) == 6_476_005_376
    assert sum(p.numel() for p in model.parameters()) == 6_476_005_376 + 536_870_912 + (
        65 * 4096 + 32 * 2 * 128
    )


@pytest.mark.parametrize(
    ("weight_format", "packed"),
    [("ternary-2bit", 1_619_001_344), ("ternary-1.6bit", 1_311_768_576)],
)
def test_7b_packs_into_these_bytes(weight_format: str, packed: int) -> None:
    """At 1.6 bits 1,296,236,544, were rows not padded to 16 bytes so that they load whole."""
    model = Transformer(replace(SEVEN_B, weight_format=weight_format), META)
    state = model.state_dict()
    sizes = dict.fromkeys(("packed", "scale", "norm", "table"), 0)
    for name, tensor in state.items():
        kind = name.rpartition(".")[2] if "layers" in name else "table"
        sizes["norm" if "norm" in name else kind] += tensor.nbytes
    outputs = 3 * 4096 + 4096 + 2 * 11008 + 4096
    assert sizes == {
        "packed": packed,
        "scale": 32 * outputs * 4,
        "norm": (65 * 4096 + 32 * 2 * 128) * 2,
        "table": 1_073_741_824,
    }


@pytest.mark.parametrize("weight_format", ["ternary-2bit", "ternary-1.6bit"])
@pytest.mark.parametrize("settings", [{}, {"qk_norm": False}, {"sliding_window": 7}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_the_packed_model_gives_the_trained_logits(
    config: ModelConfig, run: RunConfig, seed: int, weight_format: str, settings: Any, tied: bool
) -> None:
    """A prompt as one chunk, so that no token sees a rounded key.

    Layers and norms are equal bit for bit. Attention sums in another order, in float32; now and
    then its rounding to bfloat16 falls the other way, and an int8 code by one with it.
    """
    config = replace(config, weight_format=weight_format, tie_word_embeddings=tied, **settings)
    model = Transformer(config, CPU, trainable=True, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    ids, packed = some_ids(config, 2, 50), model.packed()
    cache = CacheConfig(dtype="bfloat16", attention_sinks=2)
    with torch.inference_mode():
        residual = packed.extend(
            ids, KVCache(replace(run, model=config, cache=cache, batch=2), CPU), 3
        )
        got = packed.all_logits(residual)
        x = model.embedding.embed(ids.flatten(), None, model.dtype)
        hidden = model.hidden_states(x, 2, TrainingConfig(), sinks=2)
        wanted = hidden @ model.head.weight.to(hidden.dtype).T
    assert relative_error(got.flatten(0, 1), wanted) <= 0.01
    assert not any("weight" in name for name in packed.layers.state_dict() if "norm" not in name)


def test_packing_rounds_tables_to_int8_where_that_is_asked(trained: Transformer) -> None:
    trained.config = replace(trained.config, embedding_dtype="int8")
    packed = trained.packed()
    for ours, theirs in ((trained.embedding, packed.embedding), (trained.head, packed.head)):
        assert theirs.scale is not None
        back = theirs.weight * theirs.scale[:, None]
        assert ((back - ours.weight).abs() <= theirs.scale[:, None] * 0.5001).all()


def test_only_ternary_weights_pack(config: ModelConfig) -> None:
    model = Transformer(replace(config, weight_format="bfloat16"), META, trainable=True)
    with pytest.raises(ValueError, match="got bfloat16 weights; only ternary ones pack"):
        model.packed()


@torch.inference_mode()
def logits_in_chunks(model: Transformer, run: RunConfig, ids: Tensor, chunk: int) -> Tensor:
    cache = KVCache(run, CPU)
    residual = [model.extend(part, cache, run.multiprocessors) for part in ids.split(chunk, 1)]
    assert cache.length == ids.shape[1]
    return model.all_logits(torch.cat(residual, 1)).float()


@pytest.mark.parametrize(
    "settings", [{}, {"sliding_window": 7, "global_attention_every": 2}], ids=str
)
def test_chunks_change_nothing_but_rounding(
    config: ModelConfig, run: RunConfig, seed: int, settings: Any
) -> None:
    """Through a bfloat16 cache a chunked prompt sees the keys that it would see as a whole.

    What is left is the order of float32 sums: a bfloat16 rounding that falls the other way, an int8
    code by one. Where a token's two best logits lie further apart than that, it is the same token.
    """
    config = replace(config, **settings)
    run = replace(run, model=config, cache=CacheConfig(dtype="bfloat16"), batch=3)
    model, ids = Transformer(config, CPU, seed=seed), some_ids(config, 3, 50)
    whole = logits_in_chunks(model, run, ids, 50)
    for chunk in (1, 2, 13, 49):
        parts = logits_in_chunks(model, run, ids, chunk)
        assert relative_error(parts, whole) <= 0.02
        best = whole.topk(2).values
        clear = best[..., 0] - best[..., 1] > 2 * (parts - whole).abs().amax(-1)
        assert torch.equal(parts.argmax(-1)[clear], whole.argmax(-1)[clear])
        assert clear.float().mean() > 0.5


def test_the_last_token_s_logits_are_the_last_of_all(
    config: ModelConfig, run: RunConfig, seed: int
) -> None:
    model, run = Transformer(config, CPU, seed=seed), replace(run, batch=3)
    with torch.inference_mode():
        residual = model.extend(some_ids(config, 3, 17), KVCache(run, CPU), 3)
        last, every = model.logits(residual), model.all_logits(residual)
    assert (last.shape, every.shape) == ((3, 131), (3, 17, 131))
    torch.testing.assert_close(last, every[:, -1], rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(("every", "is_global"), [(None, "000000"), (1, "111111"), (2, "010101"),
                                                  (4, "000100"), (7, "000000")])  # fmt: skip
def test_every_nth_layer_attends_to_all_tokens(
    config: ModelConfig, run: RunConfig, every: int | None, is_global: str
) -> None:
    config = replace(
        config, num_hidden_layers=6, sliding_window=7, global_attention_every=every
    )  # fmt: skip
    model, cache = Transformer(config, META), KVCache(replace(run, model=config), META)
    for layer, stored, everywhere in zip(model.blocks, cache.layers, is_global, strict=True):
        assert layer.window == stored.window == (0 if everywhere == "1" else 7)
        assert stored.slots == (52 if everywhere == "1" else 7)


@pytest.mark.parametrize("every", [None, 2])
def test_a_token_beyond_every_window_is_seen_through_a_global_layer_alone(
    config: ModelConfig, seed: int, every: int | None
) -> None:
    config = replace(config, sliding_window=7, global_attention_every=every)
    model = Transformer(config, CPU, trainable=True, seed=seed)
    ids = some_ids(config, 1, 30)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % config.vocab_size
    with torch.no_grad():
        one, two = (
            model.hidden_states(
                model.embedding.embed(x.flatten(), None, model.dtype), 1, TrainingConfig()
            )
            for x in (ids, other)
        )
    reach = 2 * (7 - 1)  # two layers of windows of seven
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[reach + 1 :], two[reach + 1 :]) == (every is None)


def test_sequences_of_a_batch_do_not_see_each_other(
    config: ModelConfig, run: RunConfig, seed: int
) -> None:
    model, ids = Transformer(config, CPU, seed=seed), some_ids(config, 3, 50)
    together = logits_in_chunks(model, replace(run, batch=3), ids, 13)
    for i in range(3):
        alone = logits_in_chunks(model, run, ids[i : i + 1], 13)
        assert relative_error(together[i], alone[0]) <= 0.02


def test_a_tied_table_has_one_weight_and_the_sum_of_both_gradients(
    config: ModelConfig, seed: int
) -> None:
    tied = Transformer(replace(config, tie_word_embeddings=True), CPU, trainable=True, seed=seed)
    untied = Transformer(config, CPU, trainable=True, seed=seed)
    untied.load_state_dict(tied.state_dict())
    ids = some_ids(config, 2, 17)
    losses = [model.loss(ids, ids.roll(-1, 1), TrainingConfig()) for model in (tied, untied)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    table, embedding, head = (m.weight.grad for m in (tied.head, untied.embedding, untied.head))
    assert table is not None
    torch.testing.assert_close(table, embedding + head)
    assert tied.head is tied.embedding
    total = sum(p.numel() for p in untied.parameters())
    assert sum(p.numel() for p in tied.parameters()) == total - table.numel()


def test_a_full_cache_refuses_another_token(config: ModelConfig, run: RunConfig) -> None:
    model, cache = Transformer(config, META), KVCache(run, META)
    model.extend(torch.zeros(1, 56, dtype=torch.int64, device=META), cache, 3)
    with pytest.raises(ValueError, match="got 1 tokens behind 56, expected 56 in all"):
        model.extend(torch.zeros(1, 1, dtype=torch.int64, device=META), cache, 3)
    assert cache.length == 56
