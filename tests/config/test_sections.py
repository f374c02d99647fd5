"""Sections check themselves however they are made, cannot be changed, and copy."""

import copy
import pickle
from typing import Any

import pytest

from tritter_mem.config.profile import Checkpointing, Model, Profile, Training, Workload
from tritter_mem.errors import ConfigError

MODEL: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 352,
    "vocab_size": 512,
}


def problems_of(section: Any, **values: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        section.model_validate(values)
    return list(caught.value.problems)


def test_sizes_are_numbers_once_read() -> None:
    work = Workload.model_validate({"context": "128k", "prefill_chunk": "2k"})
    assert (work.context, work.prefill_chunk) == (131072, 2048)


def test_a_section_made_directly_is_the_one_from_a_mapping() -> None:
    direct = Profile(name="mine", model=Model(**MODEL), workload=Workload(batch=2))
    mapped = Profile.model_validate({"name": "mine", "model": MODEL, "workload": {"batch": 2}})
    assert direct == mapped
    assert hash(direct) == hash(mapped)
    assert direct != Workload(batch=2)


def test_making_one_directly_reports_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        Workload(batch=0, contxt=5)  # type: ignore[call-arg]
    assert caught.value.problems == (
        "batch: got 0, expected a whole number from 1 to 65,536",
        "contxt: unknown key; did you mean context?",
    )


def test_missing_fields_are_named_with_what_they_may_be() -> None:
    found = problems_of(Model, **{k: v for k, v in MODEL.items() if k != "vocab_size"})
    assert found == [
        "vocab_size: missing; expected a whole number such as 4096, 128k or 1M, from 1 to 16M"
    ]


def test_a_section_that_is_no_mapping_is_refused_with_its_keys() -> None:
    found = problems_of(Training, checkpointing="every-layer")
    assert found == ["checkpointing: got 'every-layer', expected a mapping with the keys policy, n"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("hiden_size", "did you mean hidden_size?"),
        ("num_layers", "did you mean num_hidden_layers?"),
        ("zzz", "the keys are hidden_size, num_hidden_layers,"),
    ],
)
def test_unknown_keys_suggest_near_ones_or_list_all(key: str, hint: str) -> None:
    [problem] = problems_of(Model, **MODEL, **{key: 1})
    assert problem.startswith(f"{key}: unknown key; ")
    assert hint in problem


def test_a_key_of_a_deeper_section_is_suggested_with_its_path() -> None:
    [problem] = problems_of(Profile, name="x", model=MODEL, context="128k")
    assert problem == "context: unknown key; did you mean workload.context?"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "nothing (null)"),
        ({}, "a mapping"),
        ([1], "a list"),
        (True, "true"),
        (1.5, "1.5"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        pytest.param(10**5000, "a number of more than 60 digits", id="5001 digits"),
        ("\x1b[31m", r"'\x1b[31m'"),
    ],
)
def test_what_was_found_is_shown_short_and_harmless(value: object, shown: str) -> None:
    [problem] = problems_of(Workload, batch=value)
    assert problem == f"batch: got {shown}, expected a whole number from 1 to 65,536"


def test_key_value_heads_default_to_the_query_heads() -> None:
    model = Model(**MODEL)
    assert (model.num_key_value_heads, model.kv_heads) == (4, 4)


def test_head_width_defaults_to_the_share_of_the_hidden_size() -> None:
    model = Model(**MODEL)
    assert (model.head_dim, model.head_width) == (32, 32)
    assert Model(**MODEL, head_dim=64).head_width == 64


def test_a_wrong_value_is_not_replaced_by_a_derived_one() -> None:
    assert problems_of(Model, **MODEL, num_key_value_heads="four") == [
        "num_key_value_heads: got 'four', expected a whole number from 1 to 4,096, or null"
    ]


def test_sections_cannot_be_changed() -> None:
    work = Workload()
    with pytest.raises(AttributeError, match=r"Workload\.batch cannot be changed"):
        work.batch = 2  # type: ignore[misc]


def test_a_copy_takes_new_values_unchecked_and_leaves_the_first_alone() -> None:
    work = Workload(context=100)
    assert work.model_copy(update={"context": 5}).context == 5
    assert work.context == 100


def test_sections_survive_pickling_and_deep_copies() -> None:
    profile = Profile(name="x", model=Model(**MODEL))
    assert pickle.loads(pickle.dumps(profile)) == profile  # noqa: S301  (its own pickle)
    assert copy.deepcopy(profile) == profile


def test_a_dump_is_plain_and_makes_the_same_section_again() -> None:
    training = Training(checkpointing=Checkpointing(policy="segments", n=2))
    assert training.model_dump() == {
        "optimizer": "adamw",
        "master_dtype": "float32",
        "checkpointing": {"policy": "segments", "n": 2},
        "loss_chunk": 2048,
    }
    assert Training.model_validate(training.model_dump()) == training


def test_a_representation_makes_the_same_section_again() -> None:
    checkpointing = Checkpointing(policy="segments", n=2)
    assert repr(checkpointing) == "Checkpointing(policy='segments', n=2)"
