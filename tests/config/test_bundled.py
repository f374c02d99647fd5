"""Every bundled profile loads, is runnable in principle, and says what it is."""

from pathlib import Path

import pytest

from tritter_mem.config.bundled_files import bundled_profiles, find_profile
from tritter_mem.config.loading import load_profile, profile_hash, profile_yaml
from tritter_mem.config.profile import Profile
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.units import parse_count

NAMES = bundled_profiles()
ROUTES = ("7b-128k-gqa", "7b-128k-hybrid", "7b-128k-int2", "7b-streaming-4k")
GOLDEN = Path(__file__).parent / "golden"

# Specification, section 6: context, batch, mode and checkpointing as written.
SPECIFICATION = {
    "spec-maximum-context": ("128k", 1, "inference", None),
    "spec-balanced": ("32k", 4, "inference", None),
    "spec-throughput": ("8k", 16, "inference", None),
    "spec-streaming": ("128k", 1, "inference", None),
    "spec-train-full-context": ("128k", 1, "training", ("every-nth", 4)),
    "spec-train-efficient": ("32k", 4, "training", ("every-nth", 4)),
    "spec-train-development": ("8k", 8, "training", ("none", 4)),
}


def parameters(profile: Profile) -> int:
    """Weights of the linear layers and embeddings, as the descriptions count them."""
    model = profile.model
    heads = model.num_attention_heads + model.kv_heads
    attention = 2 * model.hidden_size * model.head_width * heads
    layer = attention + 3 * model.hidden_size * model.intermediate_size
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    return model.num_hidden_layers * layer + embeddings


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_own_name_for_a_known_card(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert find_gpu(profile.gpu.name).default_budget_bytes > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_description_that_fits_a_list(name: str) -> None:
    assert 10 < len(load_profile(name).description) < 120


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_as_the_same_from_its_resolved_form(name: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    written = tmp_path / "written.yaml"
    written.write_text(profile_yaml(profile))
    assert load_profile(str(written)) == profile


def test_the_models_and_everything_of_the_specification_are_there() -> None:
    assert {"tiny", "125m", "1b", "3b", "7b", *ROUTES, *SPECIFICATION} == set(NAMES)


def test_the_models_stand_alone() -> None:
    for name in ("tiny", "125m", "1b", "3b", "7b"):
        text = find_profile(name).read_text()
        assert "extends" not in text
        assert all(f"{section}:" in text for section in Profile.kinds if section != "allocator")


@pytest.mark.parametrize(
    ("name", "count", "words"),
    [
        ("tiny", 868_352, "0.87 M parameters"),
        ("125m", 128_188_416, "128 M parameters"),
        ("1b", 1_023_410_176, "1.02 B parameters"),
        ("3b", 3_019_898_880, "3.02 B parameters"),
        ("7b", 7_012_876_288, "7.01 B parameters"),
    ],
)
def test_descriptions_state_the_parameters(name: str, count: int, words: str) -> None:
    profile = load_profile(name)
    assert parameters(profile) == count
    assert words in profile.description


@pytest.mark.parametrize("name", SPECIFICATION)
def test_the_specification_s_configurations_are_as_written(name: str) -> None:
    context, batch, mode, checkpointing = SPECIFICATION[name]
    profile = load_profile(name)
    assert profile.model.kv_heads == 32
    assert profile.kv_cache.dtype == "int4"
    assert (profile.workload.context, profile.workload.batch) == (parse_count(context), batch)
    assert profile.workload.mode == mode
    if checkpointing is not None:
        found = profile.training.checkpointing
        assert (found.policy, found.n) == checkpointing
    assert "claimed to need about" in profile.description


def test_only_the_streaming_configuration_has_a_window() -> None:
    windows = {name: load_profile(name).model.sliding_window for name in SPECIFICATION}
    assert {name for name, window in windows.items() if window} == {"spec-streaming"}
    assert windows["spec-streaming"] == 4096


@pytest.mark.parametrize("name", ROUTES)
def test_routes_change_one_thing_and_say_what_they_give_up(name: str) -> None:
    base, route = load_profile("7b").model_dump(), load_profile(name)
    changed = {
        f"{section}.{key}"
        for section, values in route.model_dump().items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != base[section][key]
    }
    assert (
        changed
        == {
            "7b-128k-gqa": {"model.num_key_value_heads"},
            "7b-128k-hybrid": {"model.sliding_window", "model.global_attention_every"},
            "7b-128k-int2": {"kv_cache.dtype"},
            "7b-streaming-4k": {"model.sliding_window"},
        }[name]
    )
    assert "gives up" in route.description


def test_the_7b_resolves_to_what_was_agreed() -> None:
    """Every number of the specification's model, and the hash that baselines are kept under."""
    profile = load_profile("7b")
    assert profile_yaml(profile) == (GOLDEN / "7b.yaml").read_text()
    assert profile_hash(profile) == "7711cdd0376c840f"
