"""Memory against context length: a curve for each kind of cache, and where it meets the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from tritter_mem.report.charts.axes import Chart, Json, Scale, budget_note, limit_line, plotly_text
from tritter_mem.report.table import Cell, Column, Row, Table, bytes_cell, on_scale
from tritter_mem.report.words import NAME_LIMIT, name_of
from tritter_mem.results.run import LONGEST_CONTEXT, ContextCurve, Result
from tritter_mem.text import printable
from tritter_mem.units import format_bytes, format_count

COLORS = ("--c-weights", "--c-kv-cache", "--c-gradients", "--c-logits", "--c-embeddings")
DASHES = {"solid": "full lines", "dash": "dashed", "dot": "dotted"}
OF_BUDGET = 2
"""How far above the budget the axis goes, as its multiple: beyond it curves only run away."""
POINTS = "a point is the longest that fits, with what the allocator reserves beyond tensors"


def context_chart(result: Result, units: str) -> Chart | None:
    """Draw the record's curves; None where it has none, or no budget."""
    if result.verdict is None or not result.context_curves:
        return None
    curves, budget_bytes = result.context_curves, result.verdict.budget_bytes
    most = max(need for curve in curves for _, need in curve.points)
    near = on_scale(budget_bytes, most)
    scale = Scale.of(min(most, OF_BUDGET * budget_bytes) if near else most, units)
    types = dict.fromkeys(curve.cache_dtype for curve in curves)
    heads = dict.fromkeys(curve.kv_heads for curve in curves)
    colors = dict(zip(types, cycle(COLORS), strict=False))
    dashes = dict(zip(heads, cycle(DASHES), strict=False))
    crossings = _crossings(curves, budget_bytes, scale) if near else None
    notes = [*_dashes_in_words(dashes), *([POINTS] if crossings and crossings["x"] else [])]
    title = ": ".join(
        ["Memory against context length (planned)", *filter(None, ["; ".join(notes)])]
    )
    data = [
        _line(curve, (colors[curve.cache_dtype], dashes[curve.kv_heads]), scale, units)
        for curve in curves
    ]
    if crossings is not None:
        data.append(crossings)
    return Chart(
        title=title,
        description=_says(name_of(result), curves),
        figure={
            "data": data,
            "layout": _layout(curves, budget_bytes if near else None, scale, units),
        },
        table=_table(curves, title, units),
        height=380,
        legend=[
            (color, f"{printable(dtype, NAME_LIMIT)} cache") for dtype, color in colors.items()
        ],
    )


def _dashes_in_words(dashes: Mapping[int, str]) -> list[str]:
    """What the lines mean; nothing of a named model, which has one line."""
    known = {heads: dash for heads, dash in dashes.items() if heads}
    words = ", ".join(f"{DASHES[dash]} {heads} KV heads" for heads, dash in known.items())
    return [words] if words else []


def _says(name: str, curves: Sequence[ContextCurve]) -> str:
    own = next((curve for curve in curves if curve.own), None)
    start = f"What {name} would need at each context length, for {len(curves)} kinds of KV cache."
    return start if own is None else f"{start} Its own fits {_longest(own)}."


def _longest(curve: ContextCurve) -> str:
    if curve.largest_context is None:
        return "at no length"
    if curve.largest_context >= LONGEST_CONTEXT:
        return f"beyond {format_count(LONGEST_CONTEXT)} tokens"
    return f"up to {curve.largest_context:,} tokens"


def _kind_of(curve: ContextCurve) -> str:
    heads = f", {curve.kv_heads} KV heads" if curve.kv_heads else ""
    return printable(f"{curve.cache_dtype}{heads}", NAME_LIMIT)


def _line(curve: ContextCurve, look: tuple[str, str], scale: Scale, units: str) -> Json:
    color, dash = look
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plotly_text(_kind_of(curve)),
        "x": [length for length, _ in curve.points],
        "y": [scale.of_bytes(need) for _, need in curve.points],
        "line": {"color": color, "dash": dash, "width": 4 if curve.own else 1.5},
        "customdata": [
            f"{format_count(length)} tokens, {format_bytes(need, units)}"
            for length, need in curve.points
        ],
        "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
    }


def _crossings(curves: Sequence[ContextCurve], budget_bytes: int, scale: Scale) -> Json:
    """Where each curve that does meets the budget."""
    crossed = [
        (curve.largest_context, curve)
        for curve in curves
        if curve.largest_context is not None and curve.largest_context < curve.points[-1][0]
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "fits up to",
        "x": [length for length, _ in crossed],
        "y": [scale.of_bytes(budget_bytes)] * len(crossed),
        "marker": {"color": "--limit", "size": 7},
        "customdata": [
            plotly_text(f"{_kind_of(curve)}: {_longest(curve)}") for _, curve in crossed
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _layout(
    curves: Sequence[ContextCurve], budget_bytes: int | None, scale: Scale, units: str
) -> Json:
    lengths = [length for length, _ in curves[0].points]
    powers = [length for length in lengths if length & (length - 1) == 0]
    layout: Json = {
        "xaxis": {
            "type": "log",
            "title": {"text": "context, tokens"},
            "tickvals": powers,
            "ticktext": [format_count(length) for length in powers],
            "fixedrange": True,
        },
        "yaxis": scale.axis(),
        "hovermode": "closest",
    }
    if budget_bytes is None:
        return layout
    at = scale.of_bytes(budget_bytes)
    note = budget_note(budget_bytes, scale, units) | {"x": 0, "xref": "paper", "xanchor": "left"}
    return layout | {
        "shapes": [limit_line((lengths[0], at), (lengths[-1], at))],
        "annotations": [note | {"y": at, "yref": "y"}],
    }


def _table(curves: Sequence[ContextCurve], caption: str, units: str) -> Table:
    lengths = [n for n, _ in curves[0].points if n & (n - 1) == 0]
    return Table(
        caption=caption,
        columns=(
            Column(label="KV cache", numeric=False),
            Column(label="Fits", numeric=False),
            *(Column(label=format_count(length)) for length in lengths),
        ),
        rows=[_row(curve, lengths, units) for curve in curves],
    )


def _row(curve: ContextCurve, lengths: Sequence[int], units: str) -> Row:
    need = dict(curve.points)
    heads = f", {curve.kv_heads} heads" if curve.kv_heads else ""
    name = printable(f"{curve.cache_dtype}{heads}", NAME_LIMIT)
    return Row(
        cells=(
            Cell(text=f"{name} (this profile)" if curve.own else name),
            Cell(text=_longest(curve), value=curve.largest_context or 0),
            *(bytes_cell(need[length], units) for length in lengths),
        )
    )
