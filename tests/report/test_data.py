"""The CSV holds every number once, in bytes, and no formula."""

import csv
import io

from tests.report.records import hostile, many, training_1b
from tritter_mem.report.export import PAGE_COLUMNS, to_csv
from tritter_mem.results.run import COMPONENTS, Result


def rows(results: list[Result]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(results))))


def numbers(found: list[dict[str, str]], group: str) -> dict[str, int]:
    """What was measured in a group, by name."""
    chosen = [row for row in found if (row["kind"], row["group"]) == ("measured", group)]
    return {row["name"]: int(row["bytes"]) for row in chosen}


def test_every_component_total_and_phase_is_there_in_bytes() -> None:
    found = rows([training_1b()])
    measured = training_1b().by_kind()["measured"]
    parts = numbers(found, "component")
    assert parts == measured.components.items()
    assert list(parts) == list(COMPONENTS)
    totals = numbers(found, "total")
    assert totals["device_peak"] == measured.device_peak_bytes
    assert "resident_peak" not in totals
    assert {r["group"] for r in found} == {
        "component", "total", "phase allocated", "phase reserved"
    }  # fmt: skip


def test_profiles_follow_one_another() -> None:
    found = [row["profile"] for row in rows(many(4))]
    assert list(dict.fromkeys(found)) == [result.name for result in many(4)]


def test_a_name_can_be_no_formula_and_no_new_row() -> None:
    name = '=HYPERLINK("http://x","y"),\n"'
    found = rows([hostile(name)])
    assert {row["profile"][:2] for row in found} == {"'="}
    assert all(set(row) == set(PAGE_COLUMNS) and row["bytes"].isdecimal() for row in found)
