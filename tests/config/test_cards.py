"""Every card is complete and found by the names that people and drivers use."""

import pytest

from tritter_mem.config import cards
from tritter_mem.config.cards import (
    card_names,
    default_budget_bytes,
    known_as,
    read_card,
    unknown_card,
)
from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import ConfigError
from tritter_mem.units import GiB, MiB

CARDS = [read_card(name) for name in card_names()]
# What capability each generation has, by the beginning of its cards' names.
CAPABILITIES = {
    "v100": (7, 0),
    "t4": (7, 5),
    "rtx-20": (7, 5),
    "a100": (8, 0),
    "a30": (8, 0),
    "a10": (8, 6),
    "a40": (8, 6),
    "rtx-30": (8, 6),
    "rtx-a": (8, 6),
    "l4": (8, 9),
    "rtx-40": (8, 9),
    "rtx-6000-ada": (8, 9),
    "h": (9, 0),
    "gh": (9, 0),
    "b200": (10, 0),
    "rtx-50": (12, 0),
    "rtx-pro-6000": (12, 0),
    "mi30": (9, 4),
    "mi32": (9, 4),
    "mi35": (9, 5),
    "rx-7900": (11, 0),
}


def test_the_table_goes_from_t4_to_b200() -> None:
    assert len(CARDS) >= 24
    assert {"t4", "a100-80gb", "rtx-4090", "rtx-5080", "h100", "h200", "b200"} <= set(card_names())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_numbers_are_whole_and_in_proportion(card: cards.GpuCard) -> None:
    assert 8000 * MiB < card.total_bytes < 300_000 * MiB
    assert card.total_bytes % MiB == 0
    assert 200e9 < card.bandwidth_bytes_per_second <= 8e12
    assert 20 < card.multiprocessors < (200 if card.vendor == "nvidia" else 400)
    assert 0.13 * GiB < card.context_bytes < 0.8 * GiB


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_says_where_its_numbers_are_from(card: cards.GpuCard) -> None:
    assert ("nvidia-smi" if card.vendor == "nvidia" else "AMD's published") in card.source
    assert card.context_source.startswith(("assumed, not measured", "measured: torch "))
    assert card.context_measured is card.context_source.startswith("measured")
    assert (card.measured_cublas_bytes is None) is (card.cublas_source is None)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_capability_is_that_of_the_generation(card: cards.GpuCard) -> None:
    prefix = max((p for p in CAPABILITIES if card.name.startswith(p)), key=len)
    assert card.compute_capability == CAPABILITIES[prefix]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_default_budget_leaves_a_margin(card: cards.GpuCard) -> None:
    margin = card.total_bytes - card.default_budget_bytes
    assert 0.05 * card.total_bytes <= margin <= 0.05 * card.total_bytes + 513 * MiB
    assert card.default_budget_bytes % (512 * MiB) == 0


def test_the_budget_of_the_specification_s_card_is_15_gib() -> None:
    assert find_gpu("rtx-5080").default_budget_bytes == 15 * GiB
    assert default_budget_bytes(81559 * MiB) == 151 * 512 * MiB


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_driver_s_name_finds_the_card(card: cards.GpuCard) -> None:
    assert find_gpu(card.title) == card


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rtx-5080", "rtx-5080"),
        ("RTX 5080", "rtx-5080"),
        ("5080", "rtx-5080"),
        ("NVIDIA GeForce RTX 5080", "rtx-5080"),
        ("4060 Ti 16GB", "rtx-4060-ti-16gb"),
        ("H100 SXM", "h100"),
        ("h100-80gb", "h100"),
        ("a100", "a100-80gb"),
        ("V100", "v100-16gb"),
        ("RTX 6000 Ada", "rtx-6000-ada"),
        ("Tesla T4", "t4"),
    ],
)
def test_cards_are_found_as_people_write_them(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("rtx-580", "did you mean rtx-5080, "),
        ("h1000", "did you mean h100, "),
        ("xyzzy", "`tritter-mem gpus` lists the cards"),
        ("", "`tritter-mem gpus` lists the cards"),
        ("../../etc/passwd", "`tritter-mem gpus` lists the cards"),
        ("x" * 4000, "`tritter-mem gpus` lists the cards"),
    ],
)
def test_unknown_cards_suggest_near_ones(written: str, advice: str) -> None:
    with pytest.raises(ConfigError, match="is not a known card; ") as caught:
        find_gpu(written)
    assert advice in str(caught.value)


def test_a_memory_size_tells_cards_of_one_name_apart() -> None:
    """There is a 4060 Ti with 8 GB too: the bare name is of neither, and both are listed."""
    assert known_as("rtx-4060-ti") is None
    both = "'rtx-4060-ti' could be rtx-4060-ti-16gb or rtx-4060-ti-8gb; name one of them"
    assert unknown_card("rtx-4060-ti") == both
    assert known_as("4060ti 8gb") == "rtx-4060-ti-8gb"
    assert known_as("4090 24GB") == "rtx-4090"
    assert known_as("4090 48GB") is None


def test_no_two_cards_share_a_name() -> None:
    keys = [cards._key(other) for n in card_names() for other in {*cards._read_file(n).aliases, n}]
    assert len(keys) == len(set(keys))


def test_a_card_by_its_own_name_reads_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning reads one file, not forty."""
    read = []
    monkeypatch.setattr(cards, "read_document", lambda path, _: read.append(path.stem) or _stop())
    read_card.cache_clear()
    with pytest.raises(_StopError):
        find_gpu("rtx-5080")
    assert read == ["rtx-5080"]


class _StopError(Exception):
    pass


def _stop() -> None:
    raise _StopError
