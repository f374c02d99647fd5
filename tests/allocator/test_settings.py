"""PYTORCH_CUDA_ALLOC_CONF: every key, and every way to get one wrong."""

import pytest

from tritter_mem.allocator.settings import AllocatorSettings, parse_alloc_conf
from tritter_mem.errors import ConfigError
from tritter_mem.units import MiB


def problems(conf: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_alloc_conf(conf)
    return [problem.removeprefix("allocator settings: ") for problem in caught.value.problems]


def test_nothing_set_is_pytorchs_default() -> None:
    assert parse_alloc_conf("") == AllocatorSettings(
        expandable_segments=False,
        max_split_bytes=None,
        max_non_split_rounding_bytes=20 * MiB,
        roundup_power2_divisions=None,
        garbage_collection_threshold=0.0,
        large_segment_bytes=20 * MiB,
        per_process_memory_fraction=1.0,
        throw_on_cudamalloc_oom=False,
    )


def test_every_key_that_changes_memory() -> None:
    conf = (
        "expandable_segments:True,max_split_size_mb:64,max_non_split_rounding_mb:128,"
        "roundup_power2_divisions:8,garbage_collection_threshold:0.6,large_segment_size_mb:32,"
        "per_process_memory_fraction:0.9,throw_on_cudamalloc_oom:True"
    )
    assert parse_alloc_conf(conf) == AllocatorSettings(
        expandable_segments=True,
        max_split_bytes=64 * MiB,
        max_non_split_rounding_bytes=128 * MiB,
        roundup_power2_divisions=(8,) * 16,
        garbage_collection_threshold=0.6,
        large_segment_bytes=32 * MiB,
        per_process_memory_fraction=0.9,
        throw_on_cudamalloc_oom=True,
    )


def test_the_whole_memory_is_a_fraction_and_no_threshold() -> None:
    assert parse_alloc_conf("per_process_memory_fraction:1").per_process_memory_fraction == 1
    assert len(problems("garbage_collection_threshold:1")) == 1


def test_spaces_and_a_last_comma_do_not_matter() -> None:
    found = parse_alloc_conf(" expandable_segments : True , ")
    assert found == AllocatorSettings(expandable_segments=True)


def test_keys_without_effect_on_memory_are_accepted_and_named() -> None:
    found = parse_alloc_conf(
        "backend:native,pinned_num_register_threads:8,expandable_segments:True"
    )
    assert found.expandable_segments
    assert found.without_effect == ("backend", "pinned_num_register_threads")


def test_divisions_by_size() -> None:
    found = parse_alloc_conf("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]")
    assert found.roundup_power2_divisions == (1,) * 9 + (2, 4) + (8,) * 5


def test_divisions_between_the_sizes_named_stay_off() -> None:
    found = parse_alloc_conf("roundup_power2_divisions:[4:2,64:8]")
    assert found.roundup_power2_divisions == (2, 2, 2, 0, 0, 0, 8) + (0,) * 9


@pytest.mark.parametrize(
    "conf", ["roundup_power2_divisions:1", "roundup_power2_divisions:[1:0,>:1]"]
)
def test_one_division_is_none(conf: str) -> None:
    assert parse_alloc_conf(conf).roundup_power2_divisions is None


def test_the_large_segment_counts_whatever_its_place() -> None:
    first = parse_alloc_conf("large_segment_size_mb:40,max_split_size_mb:40")
    assert parse_alloc_conf("max_split_size_mb:40,large_segment_size_mb:40") == first
    assert first.max_non_split_rounding_bytes == 40 * MiB
    assert problems("max_split_size_mb:30,large_segment_size_mb:40") == [
        "max_split_size_mb: got '30', expected a whole number of at least 40"
    ]


def test_every_problem_is_named_at_once() -> None:
    assert problems(
        "expandible_segments:True,max_split_size_mb:19,expandable_segments:yes,oops"
    ) == [
        "got 'oops', expected key:value",
        "unknown key 'expandible_segments'; did you mean expandable_segments?",
        "max_split_size_mb: got '19', expected a whole number of at least 20",
        "expandable_segments: got 'yes', expected True or False, written so",
    ]


@pytest.mark.parametrize(
    "conf",
    [
        "garbage_collection_threshold:0",
        "garbage_collection_threshold:1.0",
        "garbage_collection_threshold:nan",
        "garbage_collection_threshold:much",
        "per_process_memory_fraction:1.5",
        "per_process_memory_fraction:0",
        "per_process_memory_fraction:all",
        "large_segment_size_mb:10",
        "max_split_size_mb:-1",
        "max_split_size_mb:1e3",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[64:3]",
        "roundup_power2_divisions:[60:4]",
        "roundup_power2_divisions:[64:4",
        "roundup_power2_divisions:[]",
        "backend:cudaMallocAsync",
        "pinned_use_background_threads:1",
        "expandable_segments",
    ],
)
def test_a_wrong_value_is_one_problem(conf: str) -> None:
    assert len(problems(conf)) == 1


def test_an_unknown_key_far_from_any_lists_what_there_is() -> None:
    assert "known keys: expandable_segments, max_split_size_mb" in problems("frobnicate:1")[0]


def test_hostile_text_is_shown_escaped_and_short() -> None:
    (problem,) = problems("\x1b[31m" + "x" * 300 + ":1")
    assert "\x1b" not in problem
    assert len(problem) < 1000
    assert "at most 4,096" in problems("a" * 5000)[0]
