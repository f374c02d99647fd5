"""A replayed snapshot as tables in a terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from tritter_mem.report.charts.axes import Chart
from tritter_mem.report.charts.replay_charts import peaks_chart, segment_map, timeline_chart
from tritter_mem.report.page import PlotlyJs, render_page
from tritter_mem.report.table import BLANK, Cell, Column, Row, Table, Tone, bytes_cell
from tritter_mem.report.words import NAME_LIMIT
from tritter_mem.results.replay import DeviceReplay, Replay, Scenario, ScenarioOutOfMemory
from tritter_mem.text import printable
from tritter_mem.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

CONF_LIMIT = 120


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
        source = " (told by the recording)" if device.capacity_source == "recorded" else ""
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
    return Table(
        caption="Scenarios",
        columns=(
            Column(label="Settings", numeric=False),
            Column(label="Allocated peak", wide=True),
            Column(label="Reserved peak"),
            Column(label="Unused at the peak"),
            Column(label="Largest free", wide=True),
            Column(label="Retries", wide=True),
            *([Column(label="Fits", numeric=False)] if judged else []),
        ),
        rows=[_row(scenario, judged=judged) for scenario in device.scenarios],
    )


def _row(scenario: Scenario, *, judged: bool) -> Row:
    unused = scenario.fragmentation
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
        )
    )


def notes(device: DeviceReplay) -> list[str]:
    """What a reader must know to read the table right."""
    found = _failures(device)
    found += [_without_effect(scenario) for scenario in device.scenarios if scenario.without_effect]
    if any(scenario.fresh for scenario in device.scenarios) and (
        device.recorded.reserved_start_bytes
    ):
        found.append(
            "The recording begins with a warm cache. All rows but the first begin with an empty "
            "one, what was live allocated anew: compare them with the second row."
        )
    if device.capacity_bytes is None and any(_collects(s) for s in device.scenarios):
        found.append("Garbage collection acts only under a limit: give --capacity to see it.")
    return found + [printable(warning) for warning in device.warnings]


def _failures(device: DeviceReplay) -> list[str]:
    """Which request ran out of memory, and under which settings; alike failures together."""
    names: dict[ScenarioOutOfMemory, list[str]] = {}
    for scenario in device.scenarios:
        if scenario.out_of_memory is not None:
            name = printable(scenario.name, CONF_LIMIT)
            names.setdefault(scenario.out_of_memory, []).append(name)
    lines = [
        f"{_failure(failure, device)}: {'; '.join(found)}." for failure, found in names.items()
    ]
    return [*lines, "The peaks of these rows are those up to there."] if lines else []


def _failure(failure: ScenarioOutOfMemory, device: DeviceReplay) -> str:
    reserved = format_bytes(failure.reserved_bytes)
    state = f"{reserved} reserved, {format_bytes(failure.allocated_bytes)} allocated"
    if failure.event is None:
        return f"Out of memory at the beginning, with {state}"
    size = format_bytes(failure.requested_bytes)
    return (
        f"Out of memory at event {failure.event + 1:,} of {device.recorded_events:,}, "
        f"a request for {size} on stream {failure.stream} with {state}"
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
class DeviceView:
    """One device in reading order."""

    title: str
    facts: Sequence[str]
    number: str
    words: str
    tone: Tone
    fidelity: str
    table: Table
    peaks: Chart
    notes: Sequence[str]
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
    return DeviceView(
        title=f"{_name(replay)}, device {device.device}",
        facts=facts(device),
        number=_number(device),
        words=printable(device.advice.text),
        tone="" if device.capacity_bytes is None else "good" if device.fits else "bad",
        fidelity=fidelity_sentence(device),
        table=scenario_table(device),
        peaks=peaks_chart(device),
        notes=notes(device),
        scenarios=[_scenario_view(device, scenario) for scenario in device.scenarios],
    )


def _number(device: DeviceReplay) -> str:
    if device.capacity_bytes is not None:
        return "fits" if device.fits else "does not fit"
    return f"{format_bytes(device.scenarios[0].reserved_peak_bytes)} reserved"


def _scenario_view(device: DeviceReplay, scenario: Scenario) -> ScenarioView:
    unused = scenario.fragmentation
    words = (
        f"{format_bytes(scenario.reserved_peak_bytes)} reserved, {unused.ratio:.1%} of it unused"
    )
    return ScenarioView(
        name=printable(scenario.name, CONF_LIMIT),
        words=words if scenario.fits else f"out of memory, {words}",
        tone="" if scenario.fits else "bad",
        open=scenario is device.scenarios[0] or scenario.conf == device.advice.conf,
        charts=[timeline_chart(scenario, device.capacity_bytes), segment_map(scenario)],
    )
