"""What every chart shares: the figure with its words and table, the axes, the limit line.

Figures are plain Plotly JSON. Colours are names of the page's CSS variables (`--c-weights`), which
the page resolves, so that a chart follows the theme. Text that comes from a file is escaped,
because Plotly reads markup in labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tritter_mem.report.table import Table
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

Json = dict[str, Any]
AXIS_NAME_LIMIT = 24
TABLE_ROWS = 20
"""How many rows the numbers behind a chart have at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A Plotly figure, what it says in a sentence, its legend, and the numbers behind it.

    Attributes:
        legend: colour variable and label of each part, in drawing order.
        height: in CSS pixels.
    """

    title: str
    description: str
    figure: Json
    table: Table
    height: int
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis of memory: its unit, how many bytes that is, and how far the axis goes."""

    unit: str
    unit_bytes: int
    most_bytes: int

    @classmethod
    def of(cls, most_bytes: int, units: str) -> Scale:
        """The largest unit of the family of `units` in which `most_bytes` is one or more."""
        decimal = units == "GB"
        base, names = (1000, "B kB MB GB") if decimal else (1024, "B KiB MiB GiB")
        power = max((p for p in range(4) if most_bytes >= base**p), default=0)
        return cls(unit=names.split()[power], unit_bytes=base**power, most_bytes=most_bytes)

    def of_bytes(self, count: float) -> float:
        """Bytes as a number on the axis."""
        return round(count / self.unit_bytes, 5)

    def axis(self) -> Json:
        """From zero to a little beyond the largest number."""
        most = self.of_bytes(self.most_bytes) or 1
        return {
            "title": {"text": self.unit, "standoff": 6},
            "range": [0, most * 1.04],
            "fixedrange": True,
        }


def color(part: str) -> str:
    """The CSS variable of a part's colour."""
    return f"--c-{part.replace('_', '-')}"


def plotly_text(text: str, limit: int | None = None) -> str:
    """Text for a label of Plotly's, which reads `<b>` and `&lt;` as markup, but not `&quot;`."""
    return escape(printable(text, limit), quote=False)


def name_axis(names: Sequence[str]) -> Json:
    """Names from top to bottom, by position, so that equal names stay apart."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [plotly_text(name, AXIS_NAME_LIMIT) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
    }


def limit_line(start: tuple[float, float], end: tuple[float, float]) -> Json:
    """A dashed line from one point to another, where memory ends."""
    return {
        "type": "line",
        **dict(zip(("x0", "y0"), start, strict=True)),
        **dict(zip(("x1", "y1"), end, strict=True)),
        "line": {"color": "--limit", "width": 2, "dash": "dash"},
    }


def budget_note(budget_bytes: int, scale: Scale, units: str) -> Json:
    """A label above a chart of horizontal bars, at the limit line or towards it."""
    text = f"budget {format_bytes(budget_bytes, units)}"
    beyond = budget_bytes > scale.most_bytes
    at = min(budget_bytes, scale.most_bytes)
    return {
        "text": f"{text} →" if beyond else text,
        "x": scale.of_bytes(at),
        "xanchor": "right" if at > scale.most_bytes / 2 else "left",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"color": "--limit"},
    }
