"""What the tests of pages look for is found where it is."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser.actions import PHONE, problems, show

SVG = "<div class='drawing js-plotly-plot' style='width: 300px; height: 90px'><svg width='300' height='90'>{}</svg></div>"  # noqa: E501
LABEL = "<text x='{}' y='40' fill='{}'>{}</text>"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("<p>Text that can be read</p>", None),
        ("<p style='width: 900px'>wide</p>", "wider than the page: "),
        ("<p style='color: #999'>pale</p>", "contrast 2.85: pale"),
        ("<main><p style='width: 9px; overflow: hidden'>long</p></main>", "clipped: long"),
        (
            "<table><tr><td style='width: 40px; max-width: 40px; overflow-wrap: anywhere'>"
            "Transformer</td></tr></table>",
            "a word is broken: Transformer",
        ),
        (SVG.format(LABEL.format(10, "#000", "fine")), None),
        (SVG.format(LABEL.format(290, "#000", "too far")), "a label is cut off: too far"),
        (SVG.format(LABEL.format(10, "#aaa", "pale")), "contrast 2.32 of a label: pale"),
        (
            SVG.format(LABEL.format(10, "#000", "one") + LABEL.format(20, "#000", "two")),
            "labels cover each other: one / two",
        ),
    ],
)
def test_a_problem_is_named(browser: Any, tmp_path: Path, body: str, problem: str | None) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><html><head><link rel='icon' href='data:,'></head>"
        f"<body style='background: #fff; color: #000'>{body}</body></html>"
    )
    show(browser, page, size=PHONE)
    found = problems(browser)
    if problem is None:
        assert found == []
    else:
        assert any(line.startswith(problem) for line in found), found
