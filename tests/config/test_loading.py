"""Profiles load from files and names, over what they extend, with every problem in one error."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tritter_mem.config.loading import load_profile, merged, profile_hash, profile_yaml
from tritter_mem.errors import EXIT_USAGE, ConfigError

WRONG = """\
name: wrong
extends: 7b
model:
  num_key_value_heads: 7
  hiden_size: 4096
  vocab_size: 15 GiB
weights: ternary
kv_cache:
  dtype: int3
  dtype: int4
workload:
  context: 1000000000000000
  batch: -1
  new_tokens: 8k
gpu:
  name: rtx-580
contxt: 5
"""


@pytest.fixture(autouse=True)
def _work_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


def refused(name: str, overrides: dict[str, Any] | None = None, **labels: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_profile(name, overrides, **labels)
    assert caught.value.exit_code == EXIT_USAGE
    return list(caught.value.problems)


def test_every_problem_of_a_wrong_profile_is_reported_with_its_line() -> None:
    assert refused(write("wrong.yaml", WRONG)) == [
        "wrong.yaml:10: kv_cache.dtype: duplicate key, first at wrong.yaml:9",
        "wrong.yaml:6: model.vocab_size: got '15 GiB', expected a whole number such as "
        "4096, 128k or 1M, from 1 to 16M",
        "wrong.yaml:5: model.hiden_size: unknown key; did you mean hidden_size?",
        "wrong.yaml:7: weights: got 'ternary', expected a mapping with the keys format, "
        "embedding_dtype",
        "wrong.yaml:12: workload.context: got 1000000000000000, expected a whole number such "
        "as 4096, 128k or 1M, from 1 to 1024M",
        "wrong.yaml:13: workload.batch: got -1, expected a whole number from 1 to 65,536",
        "wrong.yaml:17: contxt: unknown key; did you mean workload.context?",
        "wrong.yaml:4: model.num_key_value_heads: got 7, expected a divisor of "
        "num_attention_heads (32), such as 8",
        "wrong.yaml:16: gpu.name: 'rtx-580' is not a known card; "
        "did you mean rtx-5080, rtx-5090 or rtx-5070?",
    ]


def test_what_is_missing_is_placed_at_its_section() -> None:
    text = "name: x\nmodel:\n  hidden_size: 4\n  num_attention_heads: 2\n  vocab_size: 8\n"
    missing = refused(write("part.yaml", text))
    assert [problem.split(";")[0] for problem in missing] == [
        "part.yaml:2: model.num_hidden_layers: missing",
        "part.yaml:2: model.intermediate_size: missing",
    ]


def test_a_profile_without_a_model_is_placed_at_the_file() -> None:
    [problem] = refused(write("none.yaml", "name: x\n"))
    assert problem.startswith("none.yaml: model: missing; expected a mapping with the keys hidden_")


def test_overrides_go_over_the_file_and_accept_sizes_as_text() -> None:
    profile = load_profile("7b", {"workload.context": "32k", "model.sliding_window": 4096})
    assert (profile.workload.context, profile.model.sliding_window) == (32768, 4096)
    assert profile.workload.prefill_chunk == 2048


def test_problems_of_overrides_name_the_option() -> None:
    overrides = {
        "model.hiden_size": 3,
        "workload.context": "lots",
        "model.vision.size": 5,
        "extends": "tiny",
        "training": None,
    }
    assert refused("7b", overrides, labels={"workload.context": "--context"}) == [
        "--set model.vision.size: unknown key; model.vision holds no keys",
        "--set model.hiden_size: unknown key; did you mean hidden_size?",
        "--context: got 'lots', expected a whole number such as 4096, 128k or 1M, from 1 to 1024M",
        "--set training: got nothing (null), expected a mapping with the keys optimizer, "
        "master_dtype, checkpointing, loss_chunk",
        "--set extends: unknown key; the keys are name, description, model, weights, kv_cache, "
        "workload, training, gpu, allocator",
    ]


def test_a_rule_that_an_override_breaks_names_the_override() -> None:
    [problem] = refused("7b", {"workload.new_tokens": "128k"})
    assert problem.startswith("--set workload.new_tokens: got 131072, expected fewer than")


def test_an_override_hides_no_problem_of_the_file() -> None:
    name = write("wrong.yaml", "extends: tiny\nworkload: 5\n")
    assert refused(name, {"workload.context": "64"}, labels={"workload.context": "--context"}) == [
        "--context: unknown key; workload holds no keys",
        "wrong.yaml:2: workload: got 5, expected a mapping with the keys mode, context, batch, "
        "prefill_chunk, new_tokens, cuda_graph",
    ]


def test_a_budget_beyond_the_card_is_refused() -> None:
    assert refused("7b", {"gpu.budget": "17 GiB"}) == [
        "--set gpu.budget: got 17 GiB, but rtx-5080 has 15.92 GiB of memory"
    ]
    assert load_profile("7b", {"gpu.budget": "15.5 GiB"}).gpu.budget == 31 << 29


def test_the_card_present_is_not_looked_at_while_loading() -> None:
    assert load_profile("7b", {"gpu.name": "auto", "gpu.budget": "1 TiB"}).gpu.name == "auto"


def test_extending_goes_key_by_key_down_a_chain() -> None:
    write("base.yaml", "extends: tiny\nmodel: {num_hidden_layers: 8}\nworkload: {context: 256}\n")
    name = write("top.yaml", "extends: base.yaml\nworkload: {batch: 3}\n")
    profile = load_profile(name)
    assert profile.model.num_hidden_layers == 8
    assert (profile.workload.context, profile.workload.batch) == (256, 3)
    assert profile.model.hidden_size == 128


def test_name_and_description_are_a_profile_s_own() -> None:
    write("base.yaml", "name: base\ndescription: of the base\nextends: tiny\n")
    child = load_profile(write("child.yaml", "extends: base.yaml\n"))
    assert (child.name, child.description) == ("child", "")


def test_paths_to_extend_start_at_the_file_that_names_them() -> None:
    write("deep/base.yaml", "extends: tiny\nworkload: {batch: 5}\n")
    write("deep/side/top.yaml", "extends: ../base.yaml\n")
    assert load_profile("deep/side/top.yaml").workload.batch == 5


def test_problems_in_what_is_extended_name_that_file() -> None:
    write("base.yaml", "extends: tiny\nworkload: {batch: 0}\n")
    [problem] = refused(write("top.yaml", "extends: base.yaml\n"))
    assert problem.startswith("base.yaml:2: workload.batch: got 0,")


def test_a_loop_is_shown_as_a_chain() -> None:
    write("a.yaml", "extends: b.yaml\n")
    write("b.yaml", "name: b\nextends: ./a.yaml\n")
    assert refused("a.yaml") == [
        "b.yaml:2: extends: it extends itself: a.yaml -> b.yaml -> a.yaml",
    ]
    assert refused(write("self.yaml", "extends: self.yaml\n")) == [
        "self.yaml:1: extends: it extends itself: self.yaml -> self.yaml",
    ]


def test_a_loop_through_a_link_is_found() -> None:
    write("a.yaml", "extends: link.yaml\n")
    Path("link.yaml").symlink_to("a.yaml")
    [problem] = refused("a.yaml")
    assert "it extends itself: a.yaml -> link.yaml" in problem


def test_long_chains_are_refused() -> None:
    for number in range(12):
        write(f"{number}.yaml", f"extends: {number + 1}.yaml\n")
    [problem] = refused("0.yaml")
    assert problem.startswith("8.yaml:1: extends: more than 8 in a row: 0.yaml -> 1.yaml ->")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("7c", "top.yaml:1: extends: 7c: no bundled model and no file of this name; did you"),
        ("none/x.yaml", "top.yaml:1: extends: none/x.yaml: no such file"),
        ("[7b]", "top.yaml:1: extends: not text, expected a profile's name or path"),
        ("null", "top.yaml:1: extends: not text, expected a profile's name or path"),
        ('"\\0"', "top.yaml:1: extends: '\\x00': no bundled model and no file of this name;"),
    ],
)
def test_what_cannot_be_extended_is_named(value: str, problem: str) -> None:
    [found] = refused(write("top.yaml", f"extends: {value}\n"))
    assert found.startswith(problem)


def test_a_bundled_profile_loads_with_or_without_suffix() -> None:
    assert load_profile("7b") == load_profile("7b.yaml")


def test_a_file_comes_before_a_bundled_profile_of_its_name() -> None:
    write("7b.yaml", "extends: tiny\n")
    assert load_profile("7b.yaml").model.hidden_size == 128
    assert load_profile("7b").model.hidden_size == 4096


def test_a_profile_may_extend_the_bundled_one_of_its_own_name() -> None:
    assert load_profile(write("7b.yaml", "extends: 7b\nworkload: {batch: 2}\n")).workload.batch == 2


def test_profiles_load_from_a_pipe() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"name: piped\nextends: tiny\n")
    os.close(writer)
    try:
        assert load_profile(f"/dev/fd/{reader}").name == "piped"
    finally:
        os.close(reader)


def test_the_hash_is_of_the_content_and_not_of_the_name() -> None:
    same = write("same.yaml", "name: other\ndescription: words\nextends: 7b\n")
    assert profile_hash(load_profile(same)) == profile_hash(load_profile("7b"))
    longer = load_profile("7b", {"workload.context": "64k"})
    assert profile_hash(longer) != profile_hash(load_profile("7b"))
    assert len(profile_hash(longer)) == 16


def test_the_hash_does_not_tell_how_a_size_was_written() -> None:
    written = [load_profile("7b", {"workload.context": size}) for size in ("64k", 65536, "65,536")]
    assert len({profile_hash(profile) for profile in written}) == 1


@settings(deadline=None)  # files, on a machine that may be busy
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "workload.context": st.integers(100, 1 << 20),
            "workload.batch": st.integers(1, 64),
            "kv_cache.dtype": st.sampled_from(["bfloat16", "fp8", "int8", "int4"]),
            "model.sliding_window": st.none() | st.integers(1, 1 << 20),
            "model.rms_norm_eps": st.floats(1e-12, 0.5),
            "name": st.text(min_size=1, max_size=20).filter(str.isprintable),
        },
    )
)
def test_a_profile_written_as_yaml_loads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, overrides: dict[str, Any]
) -> None:
    profile = load_profile("tiny", overrides)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(profile_yaml(profile))
    assert load_profile(str(path)) == profile
    assert yaml.safe_load(profile_yaml(profile)) == profile.model_dump()


KEYS = st.sampled_from(["model", "workload", "context", "batch", "gpu", "name", "extends", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)  # files, on a machine that may be busy
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_mapping_loads_or_is_refused_in_plain_lines(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({"extends": "tiny", **content}))
    problems: Sequence[str] = []
    try:
        load_profile(str(path))
    except ConfigError as error:
        problems = error.problems or ["no problem at all"]
    assert all(problem.startswith((f"{path}:", "profiles/")) for problem in problems)
    assert all("\n" not in problem for problem in problems)


@given(VALUES, VALUES)
def test_merging_keeps_everything_of_the_upper_mapping(base: Any, over: Any) -> None:
    result = merged({"a": base, "b": 1}, {"a": over})
    assert result["b"] == 1
    if not (isinstance(base, dict) and isinstance(over, dict)):
        assert result["a"] is over
    else:
        assert set(result["a"]) == set(base) | set(over)


@pytest.mark.parametrize("name", ["1e5", "010", "0o17", ".5", "1.", "1:30", ".inf", "12", "1e-5"])
def test_a_name_that_looks_like_a_number_survives_being_written(name: str) -> None:
    profile = load_profile("tiny", {"name": name})
    assert profile.name == name
    assert load_profile(write("again.yaml", profile_yaml(profile))).name == name


@pytest.mark.parametrize(
    "removed",
    [["num_attention_heads"], ["num_attention_heads", "num_key_value_heads"], ["hidden_size"],
     ["num_attention_heads", "num_key_value_heads", "head_dim"],
     ["num_attention_heads", "head_dim", "hidden_size"]],
)  # fmt: skip
@pytest.mark.parametrize("value", [None, "x", 0, 10**400])
def test_what_follows_from_a_wrong_value_is_not_judged(removed: list[str], value: object) -> None:
    model = load_profile("tiny").model_dump()["model"]
    for key in removed:
        model.pop(key, None)
        if value is not None:
            model[key] = value
    found = refused(write("p.yaml", yaml.safe_dump({"model": model})))
    assert all("model." in line for line in found)
    needed = {"hidden_size", "num_attention_heads"} & set(removed)
    assert all(any(f"model.{key}" in line for line in found) for key in needed)
