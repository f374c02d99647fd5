"""Colours: WCAG AA contrast in both themes, and parts that colour-blind readers tell apart."""

import itertools
import math
import re

import pytest

from tritter_mem.report.charts.axes import color
from tritter_mem.report.page import TEMPLATES
from tritter_mem.report.tables import PARTS

Rgb = tuple[float, float, float]
COLORS = {
    name: (light, dark)
    for name, light, dark in re.findall(
        r"(--[a-z-]+): light-dark\((#\w{6}), (#\w{6})\)", (TEMPLATES / "style.css").read_text()
    )
}
# Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}


def linear(color: str) -> Rgb:
    levels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in levels)
    return red, green, blue


def contrast(first: str, second: str) -> float:
    """WCAG 2.2's contrast ratio."""
    lights = sorted(
        sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(x), strict=True)) + 0.05
        for x in (first, second)
    )
    return lights[1] / lights[0]


def times(matrix: tuple[Rgb, ...], vector: Rgb) -> Rgb:
    a, b, c = (sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)
    return a, b, c


def oklab(rgb: Rgb) -> Rgb:
    cones = times(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        rgb,
    )
    roots = tuple(max(c, 0) ** (1 / 3) for c in cones)
    return times(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        roots,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "accent", "good", "warn", "bad", "limit"])
def test_text_is_readable_on_paper_and_panel(name: str, theme: int) -> None:
    for ground in ("--paper", "--panel"):
        assert contrast(COLORS[f"--{name}"][theme], COLORS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_colour_that_stands_out(part: str, theme: int) -> None:
    assert contrast(COLORS[color(part)][theme], COLORS["--paper"][theme]) >= 3


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_any_two_parts_can_be_told_apart(vision: str, theme: int) -> None:
    seen = {p: oklab(times(VISION[vision], linear(COLORS[color(p)][theme]))) for p in PARTS}
    for (a, x), (b, y) in itertools.combinations(seen.items(), 2):
        distance = sum((i - j) ** 2 for i, j in zip(x, y, strict=True)) ** 0.5
        assert distance >= 0.085, f"{a} and {b}"


GREY = 0.06
"""Colours of less chroma have no hue that people see."""


@pytest.mark.parametrize("part", PARTS)
def test_a_part_keeps_its_hue_in_the_dark(part: str) -> None:
    light, dark = (oklab(linear(shown)) for shown in COLORS[color(part)])
    if math.hypot(*light[1:]) < GREY:
        assert math.hypot(*dark[1:]) < GREY + 0.04
        return
    first, second = (math.degrees(math.atan2(lab[2], lab[1])) for lab in (light, dark))
    assert abs((first - second + 180) % 360 - 180) <= 15


def on(fill: str) -> str:
    """What `page.js` writes on a fill."""
    red, green, blue = linear(fill)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if light > 0.179 else "#ffffff"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", [*map(color, PARTS), "--frame", "--frame-own", "--frame-unknown"])
def test_text_on_a_frame_is_readable(name: str, theme: int) -> None:
    fill = COLORS[name][theme]
    assert contrast(on(fill), fill) >= 4.5
