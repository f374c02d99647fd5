"""A replayed snapshot as tables in a terminal and as one HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.flame_graph import caller_words, flame_graph, top_allocators
from tritter_mem.report.charts.replay_charts import segment_map, timeline_chart
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import (
    BLANK,
    Bars,
    Cell,
    Column,
    Piece,
    Row,
    Table,
    Tone,
    bytes_cell,
    on_scale,
    without_empty_columns,
)
from tritter_mem.report.words import NAME_LIMIT
from tritter_mem.results.replay import DeviceReplay, Replay, Scenario, ScenarioOutOfMemory
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

CONF_LIMIT = 120
UNITS = "GiB"
HOLDERS, HOLDERS_ON_A_PAGE = 8, 200
USED, UNUSED = "--accent", "--c-cached"


def render_replay(replay: Replay, console: Console) -> None:
    """Draw every device: fidelity, the scenarios, the advice.

    Args:
        replay: a finished replay.
        console: where to draw; its width decides which columns there are.
    """
    from tritter_mem.report.terminal import STYLES, render_line, render_list, render_table

    for device in replay.devices:
        render_line(console, _title(replay, device), "bold")
        render_line(console, fidelity_sentence(device), STYLES[_fidelity_tone(device)])
        render_table(scenario_table(device), console)
        if device.held_at_peak is not None:
            render_table(top_allocators(device.held_at_peak, UNITS, HOLDERS), console)
        render_list(console, "Notes", notes(device))
        render_line(console, "")
        render_line(console, printable(device.advice.text), "bold")


def _title(replay: Replay, device: DeviceReplay) -> str:
    return " · ".join([_name(replay), f"device {device.device}", *facts(device)])


def _name(replay: Replay) -> str:
    return printable(PurePath(replay.snapshot).name, NAME_LIMIT)


def facts(device: DeviceReplay) -> list[str]:
    """What was recorded, and the capacity it is judged by."""
    conf = printable(device.recorded_conf, CONF_LIMIT)
    found = [f"{device.recorded_events:,} events", conf or "PyTorch's default settings"]
    if device.capacity_bytes is not None:
        source = (
            " (from the recorded out-of-memory event)"
            if device.capacity_source == "recorded"
            else ""
        )
        found.append(f"capacity {format_bytes(device.capacity_bytes)}{source}")
    return found


def fidelity_sentence(device: DeviceReplay) -> str:
    """How well a replay with the recorded settings agrees with the recording."""
    found = device.fidelity
    segments = found.segments_matched + found.segments_missed
    peaks = device.recorded.reserved_peak_bytes, device.replayed.reserved_peak_bytes
    peak = "reserved peak equal" if peaks[0] == peaks[1] else (
        f"reserved peak {format_bytes(peaks[1])} instead of {format_bytes(peaks[0])}")  # fmt: skip
    return (
        f"Replayed with its own settings: {found.segments_matched:,} of {segments:,} segment "
        f"allocations as recorded, {found.segments_extra:,} extra; {found.addresses_matched:,} of "
        f"{found.addresses_total:,} addresses as recorded; {peak}."
    )


def _fidelity_tone(device: DeviceReplay) -> Tone:
    return "good" if device.fidelity.exact and device.recorded == device.replayed else "warn"


def scenario_table(device: DeviceReplay) -> Table:
    """One row a scenario: the peaks, what is unused at the reserved one, whether it fits."""
    judged = device.capacity_bytes is not None
    table = Table(
        caption="Allocator settings compared",
        columns=(
            Column(label="Settings", numeric=False),
            Column(label="Allocated peak", wide=True),
            Column(label="Reserved peak"),
            Column(label="Unused at the peak"),
            Column(label="Largest free", wide=True),
            Column(label="Retries", wide=True),
            *([Column(label="Fits", numeric=False)] if judged else []),
        ),
        rows=[_row(device, scenario) for scenario in device.scenarios],
    )
    return without_empty_columns(table)


def _with_bars(table: Table, device: DeviceReplay) -> Table:
    """With bars of what was reserved at the peak, used and unused, and the capacity."""
    most = max(1, *(scenario.reserved_peak_bytes for scenario in device.scenarios))
    capacity = device.capacity_bytes
    near = capacity if capacity is not None and on_scale(capacity, most) else None
    return replace(
        table,
        bars=Bars(
            label="Reserved peak" if near is None else "Reserved peak and capacity",
            full_bytes=max(most, near or 0),
            limit_bytes=near,
            legend=[(USED, "In use"), (UNUSED, "Reserved, not in use")],
        ),
    )


def _row(device: DeviceReplay, scenario: Scenario) -> Row:
    unused = scenario.fragmentation
    judged = device.capacity_bytes is not None
    used = scenario.reserved_peak_bytes - unused.reserved_not_allocated_bytes
    fits = Cell(text="yes", tone="good") if scenario.fits else Cell(text="no", tone="bad")
    return Row(
        cells=(
            Cell(text=printable(scenario.name, CONF_LIMIT)),
            bytes_cell(scenario.allocated_peak_bytes, "GiB"),
            bytes_cell(scenario.reserved_peak_bytes, "GiB"),
            Cell(
                text=f"{format_bytes(unused.reserved_not_allocated_bytes)} {unused.ratio:6.1%}",
                value=unused.reserved_not_allocated_bytes,
            ),
            bytes_cell(unused.largest_free_block_bytes, "GiB"),
            Cell(text=f"{scenario.alloc_retries:,}", value=scenario.alloc_retries)
            if scenario.alloc_retries
            else BLANK,
            *([fits] if judged else []),
        ),
        bar_bytes=scenario.reserved_peak_bytes,
        pieces=(
            _piece(USED, "in use", used),
            _piece(UNUSED, "reserved, not in use", unused.reserved_not_allocated_bytes),
        ),
        best=device.advice.conf is not None and scenario is _advised(device),
    )


def _piece(color: str, words: str, size_bytes: int) -> Piece:
    return Piece(color=color, words=f"{format_bytes(size_bytes)} {words}", size_bytes=size_bytes)


def _advised(device: DeviceReplay) -> Scenario | None:
    """The scenario of the settings that the advice names, with an empty cache at the start."""
    same = [s for s in device.scenarios if s.conf == device.advice.conf]
    return next((s for s in same if s.fresh), next(iter(same), None))


def notes(device: DeviceReplay) -> list[str]:
    """What a reader must know to read the table right."""
    found = _failures(device)
    found += [_without_effect(scenario) for scenario in device.scenarios if scenario.without_effect]
    if any(scenario.fresh for scenario in device.scenarios) and (
        device.recorded.reserved_start_bytes
    ):
        found.append(
            "The recording begins with memory already cached. The first row keeps it; the other "
            "rows begin with an empty cache, so compare them with the second row."
        )
    if device.capacity_bytes is None and any(_collects(s) for s in device.scenarios):
        found.append(
            "garbage_collection_threshold only acts under a limit: add --capacity to see it act."
        )
    return found + [printable(warning) for warning in device.warnings]


def _failures(device: DeviceReplay) -> list[str]:
    """Which request ran out of memory, under which settings and with how much memory then."""
    names: dict[ScenarioOutOfMemory, list[str]] = {}
    for scenario in device.scenarios:
        failure = scenario.out_of_memory
        if failure is not None:
            state = (
                f"{printable(scenario.name, CONF_LIMIT)} "
                f"({format_bytes(failure.reserved_bytes)} reserved, "
                f"{format_bytes(failure.allocated_bytes)} allocated)"
            )
            same = replace(failure, allocated_bytes=0, reserved_bytes=0, segment_bytes=0)
            names.setdefault(same, []).append(state)
    lines = [f"{_failure(failure, device)}: {'; '.join(at)}." for failure, at in names.items()]
    return [*lines, "The peaks of these rows end there."] if lines else []


def _failure(failure: ScenarioOutOfMemory, device: DeviceReplay) -> str:
    if failure.event is None:
        return "Out of memory at the beginning"
    called = f", called from {printable(caller_words(failure.path))}" if failure.path else ""
    return (
        f"Out of memory at event {failure.event + 1:,} of {device.recorded_events:,}, a request "
        f"for {format_bytes(failure.requested_bytes)} on stream {failure.stream}{called}"
    )


def _without_effect(scenario: Scenario) -> str:
    keys = ", ".join(scenario.without_effect)
    return f"Without effect on memory in {printable(scenario.name, CONF_LIMIT)}: {keys}."


def _collects(scenario: Scenario) -> bool:
    return "garbage_collection_threshold" in scenario.conf


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioView:
    """One scenario's pictures; `open` where a reader sees them at once."""

    name: str
    words: str
    tone: Tone
    open: bool
    charts: Sequence[Chart]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """Who asked for what was in use at the peak: the lines with most, and all of it as a graph."""

    table: Table
    chart: Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device in reading order; `setting` is what to put into the environment, if anything."""

    title: str
    facts: Sequence[str]
    number: str
    words: str
    setting: str
    tone: Tone
    fidelity: str
    table: Table
    notes: Sequence[str]
    holders: Sequence[Holders]
    scenarios: Sequence[ScenarioView]


def render_replay_html(replay: Replay, *, plotlyjs: PlotlyJs = "inline") -> str:
    """Render a replay, made with `segment_maps`, as one page that opens offline.

    Args:
        replay: a finished replay.
        plotlyjs: `inline` puts the chart library into the page, `cdn` fetches it, `directory`
            expects it beside the page.

    Raises:
        UsageError: `plotlyjs` is another word.
    """
    return render_page(
        "replay.html.j2",
        plotlyjs=plotlyjs,
        name=_name(replay),
        made=f"{replay.tool_version}, {replay.created}",
        devices=device_views(replay),
        record=replay.to_dict(),
    )


def device_views(replay: Replay) -> list[DeviceView]:
    """What a page draws of each device; the replay was made with `segment_maps`."""
    return [_device_view(replay, device) for device in replay.devices]


def _device_view(replay: Replay, device: DeviceReplay) -> DeviceView:
    conf = device.advice.conf
    return DeviceView(
        title=f"{_name(replay)}, device {device.device}",
        facts=facts(device),
        number=_number(device),
        words=_advice_words(device),
        setting=f"PYTORCH_CUDA_ALLOC_CONF={shlex.quote(printable(conf))}" if conf else "",
        tone=_tone(device),
        fidelity=fidelity_sentence(device),
        table=_with_bars(scenario_table(device), device),
        notes=notes(device),
        holders=list(_holders(device)),
        scenarios=[_scenario_view(device, scenario) for scenario in device.scenarios],
    )


def _holders(device: DeviceReplay) -> Iterator[Holders]:
    """Who held what at the peak: by module where that is known, and by call stack."""
    for found in (device.held_by_module, device.held_at_peak):
        chart = flame_graph(found, UNITS) if found is not None else None
        if found is not None and chart is not None:
            table = top_allocators(found, UNITS, HOLDERS_ON_A_PAGE)
            yield Holders(
                table=replace(table, search="Find a line", first_rows=HOLDERS), chart=chart
            )


def _tone(device: DeviceReplay) -> Tone:
    """Bad where nothing helps; good where the advice does, or a capacity is kept."""
    if device.advice.conf is not None:
        return "good"
    if not device.fits:
        return "bad"
    return "" if device.capacity_bytes is None else "good"


def _number(device: DeviceReplay) -> str:
    """The advice in a few words."""
    advised = _advised(device) if device.advice.conf is not None else None
    if advised is not None:
        return _use_words(advised)
    if not device.fits:
        return "No setting is enough"
    return "No change needed"


def _use_words(advised: Scenario) -> str:
    return f"Use {printable(advised.conf or advised.name, CONF_LIMIT)}"


def _advice_words(device: DeviceReplay) -> str:
    """The advice without what the headline says already."""
    text = printable(device.advice.text)
    advised = _advised(device) if device.advice.conf is not None else None
    before, found, after = text.partition(f"{_use_words(advised)}: ") if advised else (text, "", "")
    return f"{before}{after[:1].upper()}{after[1:]}" if found else text


def _scenario_view(device: DeviceReplay, scenario: Scenario) -> ScenarioView:
    unused = scenario.fragmentation
    words = (
        f"{format_bytes(scenario.reserved_peak_bytes)} reserved, {unused.ratio:.1%} of it unused"
    )
    return ScenarioView(
        name=printable(scenario.name, CONF_LIMIT),
        words=words if scenario.fits else f"out of memory, {words}",
        tone="" if scenario.fits else "bad",
        open=scenario in (device.scenarios[0], _advised(device)),
        charts=[timeline_chart(scenario, device.capacity_bytes), segment_map(scenario)],
    )
