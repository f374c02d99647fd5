"""Who allocated what was in use at the peak: a flame graph, and the lines that hold most.

The graph grows downwards: the outermost call or module is at the top, and what it called or holds
is below it, each as wide as its share of the peak. A click makes one as wide as the chart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple

from tritter_mem.report.charts.axes import TABLE_ROWS, Chart, Json, color, plotly_text
from tritter_mem.report.table import BLANK, Bars, Cell, Column, Row, Table, bytes_cell
from tritter_mem.report.words import OUTSIDE, label
from tritter_mem.results.allocations import Allocation, Allocations, Frame
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

MOST_FRAMES = 1500
"""How many frames a chart draws at most: the largest."""
SMALLEST_SHARE = 1 / 2000
"""Of the peak: a smaller frame is less than a pixel wide on most screens."""
MOST_LEVELS = 32
LEVEL_HEIGHT = 24
FRAME_LIMIT = 60
WITHOUT_STACK = "no Python call recorded"
_INSTALLED = ("/site-packages/", "/dist-packages/", "/lib/python", "/torch/", "<frozen ")
# How a module's call gets to its `forward`: two frames a module, which say nothing.
_PLUMBING = ("/torch/nn/modules/module.py", ("_wrapped_call_impl", "_call_impl"))


@dataclass(slots=True)
class Node:
    """A frame of the graph, with all that was allocated in it and below it."""

    box: str
    name: str
    fill: str
    above: Node | None = None
    level: int = 0
    total_bytes: int = 0
    count: int = 0
    children: dict[tuple[str, str, int], Node] = field(default_factory=dict)


def flame_graph(found: Allocations, units: str, *, title: str = "") -> Chart | None:
    """Draw who allocated what was in use at the peak; None where nobody is known.

    Args:
        found: what was in use. The largest frames are drawn; all count.
        units: `GiB` or `GB`.
        title: what stands above the chart; empty: it says what the frames are.

    Returns:
        A chart in which a frame's bytes are those of the frames below it and its own, to the byte.
    """
    if not found.total_bytes or not any(one.path for one in found.allocations):
        return None
    root = tree_of(found)
    frames = _drawn(root)
    by = "call stack" if found.by == "stack" else "module"
    title = title or f"In use at the allocated peak, by {by}"
    return Chart(
        title=title,
        description=_says(found, by, units),
        figure={
            "data": [_icicle(frames, units)],
            "layout": {
                "margin": {"l": 0, "r": 0, "t": 4, "b": 4},
                "uniformtext": {"minsize": 11, "mode": "hide"},
            },
        },
        table=top_allocators(found, units, TABLE_ROWS),
        height=8 + LEVEL_HEIGHT * (1 + max(frame.level for frame in frames)),
        legend=_legend(found),
    )


def _says(found: Allocations, by: str, units: str) -> str:
    total = format_bytes(found.total_bytes, units)
    line, _, size, *_ = top_allocators(found, units, 1).rows[0].cells
    held = "allocated by" if found.by == "stack" else "of"
    return f"A flame graph of {total} by {by}; most, {size.text}, is {held} {line.text}."


def _readable(found: Iterable[Allocation]) -> tuple[Allocation, ...]:
    """Without the frames by which PyTorch gets from a module's call to its `forward`."""
    return tuple(
        replace(one, path=tuple(frame for frame in one.path if not _is_plumbing(frame)))
        for one in found
    )


def _is_plumbing(frame: Frame) -> bool:
    file, names = _PLUMBING
    return frame.name in names and frame.file.endswith(file)


def tree_of(found: Allocations) -> Node:
    """All allocations as a tree, joined where they have outer frames in common.

    What lies deeper than a chart shows counts for its outer frames alone.
    """
    root = Node("", "", "--panel")
    for one in _readable(found.allocations):
        _add(root, one)
        node = root
        for level, step in enumerate(islice(_steps(one, found.by), MOST_LEVELS)):
            made = Node(step.box, step.name, step.fill, node, level + 1)
            node = node.children.setdefault(step.key, made)
            _add(node, one)
    return root


def _add(node: Node, one: Allocation) -> None:
    node.total_bytes += one.allocated_bytes
    node.count += one.count


class Step(NamedTuple):
    """A frame on the way to an allocation: its identity, its short and its whole name, its fill."""

    key: tuple[str, str, int]
    box: str
    name: str
    fill: str


def _steps(one: Allocation, by: str) -> Iterator[Step]:
    """Each frame; a module's last one is what it holds."""
    for frame in one.path:
        yield Step((frame.name, frame.file, frame.line), _box_words(frame), frame_words(frame),
                   _frame_fill(frame))  # fmt: skip
    if by == "module":
        if not one.path:
            yield Step(("", "", 0), OUTSIDE, OUTSIDE, "--frame")
        held = label(one.component)
        yield Step((one.component, "", -1), held, held, color(one.component))
    elif not one.path:
        yield Step(("", "", 0), WITHOUT_STACK, WITHOUT_STACK, "--frame-unknown")


def _frame_fill(frame: Frame) -> str:
    if not frame.file:
        return "--frame"
    return "--frame" if _is_installed(frame) else "--frame-own"


def _is_installed(frame: Frame) -> bool:
    return any(part in frame.file for part in _INSTALLED)


def frame_words(frame: Frame) -> str:
    """`forward (model.py:57)`, or a module's name."""
    if not frame.file:
        return frame.name
    return f"{frame.name} ({_line_words(frame)})"


def _box_words(frame: Frame) -> str:
    """What fits into a box: `train_step:59` of the user's code, `linear.py:134` of others'."""
    if not frame.file:
        return frame.name
    file = PurePosixPath(frame.file.replace("\\", "/")).name
    return f"{file if _is_installed(frame) else frame.name}:{frame.line}"


def caller_words(path: Sequence[Frame]) -> str:
    """The innermost line outside of installed packages, else the innermost one."""
    own = [frame for frame in path if not _is_installed(frame)]
    return frame_words((own or list(path))[-1])


def _line_words(frame: Frame) -> str:
    """The file with its folder, which tells `modules/linear.py` from `functional/linear.py`."""
    short = "/".join(PurePosixPath(frame.file.replace("\\", "/")).parts[-2:])
    return f"{short.lstrip('/')}:{frame.line}" if frame.line else short


def _drawn(root: Node) -> list[Node]:
    """The frames that a chart has room for, the root first; each stands behind the one above it.

    No frame is larger than the one above it, so that one is among the largest too.
    """
    found = [root]
    for node in found:
        children = node.children.values()
        found += (n for n in children if n.total_bytes >= root.total_bytes * SMALLEST_SHARE)
    found.sort(key=lambda node: (-node.total_bytes, node.level, node.name))
    return found[:MOST_FRAMES]


def _icicle(frames: Sequence[Node], units: str) -> Json:
    root = frames[0]
    ids = {id(node): str(at) for at, node in enumerate(frames)}
    names = [f"{format_bytes(root.total_bytes, units)} at the peak", *(n.box for n in frames[1:])]
    return {
        "type": "icicle",
        "branchvalues": "total",
        "ids": list(ids.values()),
        "parents": ["" if node.above is None else ids[id(node.above)] for node in frames],
        "labels": [plotly_text(name, FRAME_LIMIT) for name in names],
        "values": [node.total_bytes for node in frames],
        "customdata": [_hover(node, root, units) for node in frames],
        "hovertemplate": "%{customdata}<extra></extra>",
        "texttemplate": "%{label}",
        "tiling": {"orientation": "v", "pad": 1},
        "pathbar": {"visible": False},
        "leaf": {"opacity": 1},
        "marker": {
            "colors": [node.fill for node in frames],
            "line": {"width": 1, "color": "--paper"},
        },
        "textfont": {"size": 12, "color": [f"on {node.fill}" for node in frames]},
    }


def _hover(node: Node, root: Node, units: str) -> str:
    blocks = f"{node.count:,} allocation{'' if node.count == 1 else 's'}"
    share = f"{node.total_bytes / root.total_bytes:.1%} of the peak"
    line = f"{format_bytes(node.total_bytes, units)}, {share}, {blocks}"
    return f"{plotly_text(node.name, 2 * FRAME_LIMIT)}<br>{line}" if node.name else line


def _legend(found: Allocations) -> list[tuple[str, str]]:
    if found.by == "module":
        used = dict.fromkeys(one.component for one in found.allocations)
        return [("--frame", "Module"), *((color(name), label(name)) for name in used)]
    legend = [("--frame-own", "Your code"), ("--frame", "PyTorch and other packages")]
    unknown = any(not one.path for one in found.allocations)
    return [*legend, *([("--frame-unknown", "No Python call recorded")] if unknown else [])]


def top_allocators(found: Allocations, units: str, most: int) -> Table:
    """What holds most at the peak: lines of code with the call in which they did, or modules.

    Args:
        found: what was in use.
        units: `GiB` or `GB`.
        most: how many rows there are at most; one more has all others together.
    """
    lines: defaultdict[tuple[str, str], list[Allocation]] = defaultdict(list)
    for one in _readable(found.allocations):
        lines[_heavy_line(one) if found.by == "stack" else _heavy_module(one)].append(one)
    sizes = {key: sum(one.allocated_bytes for one in same) for key, same in lines.items()}
    ordered = sorted(lines, key=lambda key: (-sizes[key], key))
    rows = [_top_row(key, lines[key], sizes[key], units) for key in ordered[:most]]
    if rest := ordered[most:]:
        others = [one for key in rest for one in lines[key]]
        size = sum(sizes[key] for key in rest)
        rows.append(_top_row((f"{len(rest)} others", ""), others, size, units, total=True))
    first, second = ("Line", "In") if found.by == "stack" else ("Module", "Component")
    return Table(
        caption="Who holds most at the allocated peak",
        columns=(
            Column(label=first, numeric=False),
            Column(label=second, numeric=False, wide=found.by == "stack"),
            Column(label="Size"),
            Column(label="Allocations" if found.by == "stack" else "Modules", wide=True),
        ),
        rows=rows,
        bars=Bars(label="Share", full_bytes=max(found.total_bytes, 1)),
    )


def _heavy_line(one: Allocation) -> tuple[str, str]:
    """The innermost line outside of installed packages, and the function that it called there."""
    if not one.path:
        return WITHOUT_STACK, ""
    line, inner = caller_words(one.path), frame_words(one.path[-1])
    return line, "" if inner == line else inner


def _heavy_module(one: Allocation) -> tuple[str, str]:
    names = ".".join(frame.name for frame in one.path)
    return names or OUTSIDE, label(one.component)


def _top_row(
    key: tuple[str, str], same: Sequence[Allocation], size: int, units: str, *, total: bool = False
) -> Row:
    count = sum(one.count for one in same)
    line, inner = key
    return Row(
        cells=(
            Cell(text=printable(line, 2 * FRAME_LIMIT)),
            Cell(text=printable(inner, FRAME_LIMIT)) if inner else BLANK,
            bytes_cell(size, units),
            Cell(text=f"{count:,}", value=count),
        ),
        bar_bytes=size,
        total=total,
    )
