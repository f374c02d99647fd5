"""Progress on standard error: phase and layer on a terminal, nothing elsewhere."""

from __future__ import annotations

import io
import os
import pty
import sys

import pytest
from rich.console import Console

from tritter_mem.cli import progress as shown
from tritter_mem.simulation.progress import Progress


def drawn(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        console.print(shown.draw(progress))
    return captured.get()


def test_task_phase_and_layer_beside_a_bar() -> None:
    progress = Progress()
    progress.begin("7b")
    progress.total, progress.done = 100, 50
    progress.phase, progress.layer, progress.layers = "prefill", 5, 32
    line = drawn(progress)
    assert "7b" in line
    assert "prefill, layer 5 of 32" in line
    assert line.count("━") == shown.BAR_COLUMNS / 2


def test_there_is_no_bar_where_the_total_is_not_known() -> None:
    progress = Progress()
    progress.begin("7b: measuring")
    assert drawn(progress).strip() == "7b: measuring"


def test_more_passes_than_expected_fill_the_bar_and_no_more() -> None:
    progress = Progress()
    progress.total, progress.done = 2, 3
    assert drawn(progress).count("━") == shown.BAR_COLUMNS


def on_terminal(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> str:
    """What a terminal gets while a simulation is on for a moment."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(shown, "QUIET_SECONDS", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with shown.showing(wanted) as progress:
            progress.begin("tiny")
            progress.phase = "decode"
        terminal.write("end")
        terminal.flush()
        text = ""
        while "end" not in text:
            text += os.read(ours, 4096).decode()
    os.close(ours)
    return text


def test_a_terminal_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = on_terminal(monkeypatch, wanted=True)
    assert "tiny" in text
    assert "decode" in text


def test_json_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal(monkeypatch, wanted=False) == "end"


def test_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "QUIET_SECONDS", -1.0)
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with shown.showing() as progress:
        progress.begin("tiny")
    assert pipe.getvalue() == ""


def test_headers_that_take_long_are_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    seen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", seen)
    monkeypatch.setattr(shown, "QUIET_SECONDS", 0.0)
    with shown.reading() as read:
        read("model-00001-of-00002.safetensors", 1, 2)
    assert "model-00001-of-00002.safetensors" in seen.getvalue()


def test_headers_are_read_silently_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with shown.reading() as read:
        read("model.safetensors", 1, 1)
    assert capsys.readouterr().err == ""
