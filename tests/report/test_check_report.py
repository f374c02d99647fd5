"""A check in every format: the same words, and names that can do no harm."""

import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from markdown_it import MarkdownIt

from tests.check.build import every_status, regression
from tests.report.records import HOSTILE_NAMES
from tritter_mem.report import check_report
from tritter_mem.report.check_report import (
    annotation,
    details,
    escape_markdown,
    fitting_summary,
    headline,
    name_of_outcome,
    render_annotations,
    render_check,
    render_junit,
    render_markdown,
)
from tritter_mem.report.terminal import make_console
from tritter_mem.report.words import NAME_LIMIT
from tritter_mem.results.check import CaseOutcome, CheckReport
from tritter_mem.text import printable
from tritter_mem.units import MiB

# What else a format could stumble over: commands, tables, entities, XML's own gaps.
NAMES = (
    *HOSTILE_NAMES,
    "::error title=x::y\n::set-output name=a::b\r::stop-commands::z",
    "a|b\\|c\\\\|d `e` [f](https://g) ![h](i) @j #1 :k: &lt; ~~l~~ *m* __n__ $o$",
    "\ufffe\uffff\x0b%0A%25 100%, a: b",
)
DETAILS = [
    "component Activations: 2.00 GiB → 2.50 GiB, +512.0 MiB (+25.0%)",
    "phase prefill: 8.00 GiB → 8.50 GiB, +512.0 MiB (+6.2%)",
    "module Transformer.layers.*.mlp (Activations): 2.00 GiB → 2.50 GiB, +512.0 MiB (+25.0%)",
]


def many(count: int, outcome: CaseOutcome | None = None) -> CheckReport:
    return CheckReport(baseline="b.json", outcomes=(outcome or regression(),) * count)


def test_a_regression_is_told_with_its_size_its_tolerance_and_what_grew() -> None:
    assert headline(regression()) == (
        "regression: allocated peak 8.00 GiB → 8.50 GiB, +512.0 MiB (+6.2%), tolerated 81.9 MiB"
    )
    assert details(regression()) == DETAILS


def test_a_gain_asks_to_tighten_the_baseline() -> None:
    gain = every_status().with_status(["gain"])[0]
    assert headline(gain).endswith("grow back unnoticed: tritter-mem check --update-baseline")


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console()
    console.width = width
    render_check(every_status("1b workload.mode=training"), console)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    assert ("rtx-5080  " in shown) == (width == 120)
    assert all(line in shown for line in DETAILS[:2])
    assert (
        "1 failed, 1 other profile, 1 other torch, 1 no entry, 1 regression, 1 gain, 1 ok" in shown
    )


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_show_as_text_in_markdown(name: str) -> None:
    shown = printable(name, NAME_LIMIT)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(render_markdown(every_status(name)))
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children or ()}
    assert kinds <= {"text", "text_special", "softbreak"}
    texts = ["".join(child.content for child in token.children or ()) for token in inline]
    assert any(text.strip() == shown.strip() for text in texts)
    assert not [token for token in tokens if token.type.startswith("html")]
    cells = sum(token.type in ("td_open", "th_open") for token in tokens)
    assert cells == 7 * (1 + len(every_status().outcomes))


def test_links_mentions_and_emoji_are_escaped_in_markdown() -> None:
    assert escape_markdown("@me :+1: https://x.y #1") == r"\@me \:+1: https\://x.y \#1"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_survive_in_xml(name: str) -> None:
    root = ET.fromstring(render_junit(every_status(name)))  # noqa: S314  (our own)
    first = next(root.iter("testcase")).attrib["name"]
    gone = re.sub("[\ufffe\uffff]", lambda m: f"\\u{ord(m[0]):04x}", printable(name, NAME_LIMIT))
    assert first == f"{gone} (simulated, rtx-5080, torch 2.13.0)"


ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "time", "skipped", "timestamp"},
    "testcase": {"name", "classname", "time", "group"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "system-out"},
}
REQUIRED = {"testsuite": {"name", "tests", "failures", "errors"}, "testcase": {"name"}}


def test_junit_is_as_the_common_schema_has_it() -> None:
    """The schema of Jenkins' xUnit plug-in, which others follow, in as much as we use of it."""
    root = ET.fromstring(render_junit(every_status()))  # noqa: S314  (our own)
    assert root.tag == "testsuites"
    for element in root.iter():
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
        assert set(element.attrib) <= ATTRIBUTES[element.tag]
        assert set(element.attrib) >= REQUIRED.get(element.tag, set())


def test_junit_counts_what_it_holds() -> None:
    suite = next(ET.fromstring(render_junit(every_status())).iter("testsuite"))  # noqa: S314
    assert suite.attrib["tests"] == str(len(list(suite.iter("testcase")))) == "7"
    assert suite.attrib["failures"] == str(len(list(suite.iter("failure")))) == "1"
    assert suite.attrib["errors"] == str(len(list(suite.iter("error")))) == "4"
    failure = next(suite.iter("failure"))
    assert all(line in str(failure.text) for line in DETAILS)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_cannot_begin_a_command_of_its_own(name: str) -> None:
    lines = render_annotations(every_status(name)).split("\n")
    assert lines.pop() == ""
    levels = ["error", "error", "warning", "warning", "warning", "notice"]
    assert [line.split(" ")[0] for line in lines] == [f"::{level}" for level in levels]
    for line in lines:
        assert re.fullmatch(r"::\w+ title=[^:,\r\n]*::[^\r\n]*", line)


def test_annotations_escape_as_the_actions_toolkit_does() -> None:
    shown = annotation("error", "100%: a,b\r\n", "50%: c,d\r\n")
    assert shown == "::error title=100%25%3A a%2Cb%0D%0A::50%25: c,d%0D%0A"


def test_an_annotation_says_what_grew() -> None:
    line = render_annotations(many(1)).strip()
    assert line.startswith("::error title=Memory%3A 7b (simulated%2C rtx-5080%2C torch 2.13.0)::")
    assert "%0Amodule Transformer.layers.*.mlp (Activations):" in line


def test_ten_annotations_of_a_level_are_shown_and_of_more_the_rest_is_counted() -> None:
    assert len(render_annotations(many(10)).splitlines()) == 10
    lines = render_annotations(many(12)).splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("::error title=Memory%3A 3 more::")


def test_long_titles_and_messages_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_report, "MAX_MESSAGE_BYTES", 5)
    line = annotation("notice", "t" * 300, "ä" * 10)
    assert line == f"::notice title={'t' * 255}::ää"


def test_a_summary_takes_whole_lines_up_to_its_limit() -> None:
    text = "line\n" * 10
    assert fitting_summary(text, 0) == text
    cut = fitting_summary("ä line\n" * MiB, 1000)
    assert len(cut.encode()) <= MiB - 1000
    assert cut.endswith("ä line" + check_report.CUT)
    assert fitting_summary(text, MiB - 3) == ""


def test_what_failed_before_a_gpu_was_known_has_a_name_all_the_same() -> None:
    failed = replace(regression("x"), gpu="", torch="", status="failed")
    assert name_of_outcome(failed) == "x (simulated)"
