"""Words: one vocabulary, and names from files that can do no harm."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.records import planned_7b, profile, record, tiny_on_cpu, training_1b
from tritter_mem.report.words import (
    LABELS,
    flatten,
    headroom_words,
    label,
    notes,
    percent,
    setup_facts,
    signed_bytes,
    suggestion_options,
    suggestion_sentence,
    verdict_of,
)
from tritter_mem.results.run import COMPONENTS, Suggestion
from tritter_mem.text import operators_by_name, printable
from tritter_mem.units import GiB, MiB


def test_every_component_has_a_label() -> None:
    assert set(COMPONENTS) <= set(LABELS)


def test_a_name_without_a_label_is_its_own() -> None:
    assert label("first_token") == "First token"


@given(st.text(st.characters()))
def test_printable_leaves_no_control_or_direction_character(text: str) -> None:
    shown = printable(text)
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F for c in shown)
    assert not set(shown) & set(
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f"
    )
    shown.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "M"]), max_size=50))
def test_printable_leaves_letters_of_every_script_alone(text: str) -> None:
    assert printable(text) == text


def test_printable_cuts_and_says_so() -> None:
    assert printable("n" * 10_000, 5) == "nnnn…"
    assert printable("nnnnn", 5) == "nnnnn"


def test_a_terminal_escape_is_shown_and_not_sent() -> None:
    assert printable("\x1b]0;title\x07") == "\\x1b]0;title\\x07"


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(0, "equal"), (0.05, "+5.0%"), (-0.5, "−50.0%"), (2.938, "+293.8%")],  # noqa: RUF001
)
def test_percent(ratio: float, shown: str) -> None:
    assert percent(ratio) == shown


def test_percent_tells_a_small_difference_from_none() -> None:
    assert percent(3e-5) == "+0.003%"
    assert percent(0.00099) == "+0.1%"


def test_signs_of_bytes() -> None:
    assert signed_bytes(300 * MiB, "GiB") == "+300.0 MiB"
    assert signed_bytes(-2 * GiB, "GiB") == "−2.00 GiB"  # noqa: RUF001


def test_headroom_is_said_in_words() -> None:
    assert headroom_words(2 * GiB, "GiB") == "2.00 GiB to spare"
    assert headroom_words(-2 * GiB, "GiB") == "2.00 GiB over budget"
    assert headroom_words(-2 * 10**9, "GB") == "2.00 GB over budget"


def test_the_verdict_names_need_budget_and_difference() -> None:
    assert verdict_of(planned_7b(), "GiB") == (
        "does not fit: needs 20.33 GiB (planned), 5.33 GiB over the budget of 15.00 GiB"
    )
    assert verdict_of(training_1b(), "GiB") == (
        "fits: needs 12.08 GiB (measured), 2.92 GiB less than the budget of 15.00 GiB"
    )


def test_no_verdict_is_not_a_verdict() -> None:
    sentence = verdict_of(replace(planned_7b(), verdict=None), "GiB")
    assert sentence.startswith("no verdict")
    assert "fit" not in sentence


def suggest(**changes: object) -> Suggestion:
    good = Suggestion(text="t", settings={}, saves_bytes=GiB, fits=True, headroom_bytes=GiB)
    return replace(good, **changes)  # type: ignore[arg-type]


def test_a_suggestion_says_whether_it_is_enough() -> None:
    assert suggestion_sentence(suggest(), "GiB") == "t: −1.00 GiB, fits with 1.00 GiB to spare"  # noqa: RUF001
    less = suggest(fits=False, headroom_bytes=-MiB)
    assert suggestion_sentence(less, "GiB") == "t: −1.00 GiB, still 1.0 MiB over budget"  # noqa: RUF001


def test_a_suggestion_can_be_pasted_into_a_shell() -> None:
    settings = {"kv_cache.dtype": "int2", "model": {"sliding_window": None}, "name": "a b; c"}
    assert suggestion_options(suggest(settings=settings)) == (
        "--set kv_cache.dtype=int2 --set model.sliding_window=null --set 'name=a b; c'"
    )


def test_settings_are_flattened_to_dotted_keys() -> None:
    nested = {"a": {"b": 1, "c": {"d": True}}, "e": {}, "f": [1, 2]}
    assert flatten(nested) == [("a.b", "1"), ("a.c.d", "true"), ("e", "{}"), ("f", "[1, 2]")]


def test_what_was_run_depends_on_the_mode() -> None:
    assert setup_facts(planned_7b()) == [
        "inference", "128K tokens", "batch 1", "ternary-2bit weights", "int4 KV cache", "rtx-5080"
    ]  # fmt: skip
    assert setup_facts(training_1b()) == [
        "training", "8K tokens", "batch 2", "adamw", "checkpointing every-nth", "rtx-5080"
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"workload": "text"}, {"workload": {"mode": ["x"]}}])
def test_a_profile_of_another_shape_is_no_error(settings: dict[str, object]) -> None:
    assert isinstance(setup_facts(record(profile=settings)), list)


def test_notes_give_devices_peaks_and_what_is_missing() -> None:
    assert notes(planned_7b()) == [
        "planned for rtx-5080",
        "planned peak at prefill: MLP of a layer",
        "not simulated and not measured: this command only plans",
    ]
    assert notes(tiny_on_cpu()) == [
        "planned for rtx-5080, measured on cpu",
        "not simulated: simulation was not asked for",
        "* a run on the CPU has no cuBLAS workspace (8.1 MiB on rtx-5080) and no allocator that "
        "rounds sizes up; the comparison leaves both out",
    ]


def test_a_reason_beside_a_number_is_not_shown() -> None:
    both = replace(planned_7b(), planned_reason="left over", profile=profile("x"))
    assert not [note for note in notes(both) if "left over" in note]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("prefill: Transformer.layers.0.mlp (aten.new_empty.default)",
         "prefill: Transformer.layers.0.mlp, new_empty()"),
        ("aten.add_.Tensor", "add_()"),
        ("aten.mm", "mm()"),
        ("aten::empty_strided", "empty_strided()"),
        ("out of memory (aten.mm.default): 1 B", "out of memory, mm(): 1 B"),
        (" (aten.mm)", " (mm())"),
        ("Transformer.layers.3 (mlp.py:7)", "Transformer.layers.3 (mlp.py:7)"),
        ("my.aten_like.module", "my.aten_like.module"),
    ],
)  # fmt: skip
def test_operators_are_called_as_people_call_them(text: str, shown: str) -> None:
    assert operators_by_name(text) == shown


def test_notes_name_no_overload_of_an_operator() -> None:
    planned = planned_7b().planned
    assert planned
    use = replace(planned, peak_at="prefill: Transformer.out (aten.mm.default)")
    assert "planned peak at prefill: Transformer.out, mm()" in notes(record(planned=use))
