"""`tritter-mem check`: a planted regression is found and named, and everything else is not one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from typer.testing import Result as Done

from tests.check.build import entry
from tests.report.records import training_1b
from tritter_mem.check.baseline_file import baseline_text
from tritter_mem.cli.main import app
from tritter_mem.errors import EXIT_DOES_NOT_FIT, EXIT_NOT_MEASURED, EXIT_OK, EXIT_USAGE
from tritter_mem.results.baseline import Baseline
from tritter_mem.units import KiB
from tritter_model.layer import Layer

BUFFER_BYTES = 96 * KiB  # in each of tiny's four layers
STRICT = ("--absolute", "64KiB")


def run(*arguments: str | Path) -> Done:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every check runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def of_tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The baseline of what tiny takes now."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("tiny"))
        patched.delenv("GITHUB_STEP_SUMMARY", raising=False)
        done = run("--update-baseline", "--config", "tiny")
        assert done.exit_code == EXIT_OK, done.output
        return Path("reports/baseline.json").read_bytes()


@pytest.fixture
def baseline(folder: Path, of_tiny: bytes) -> Path:
    """What tiny takes now, committed."""
    path = folder / "reports" / "baseline.json"
    path.parent.mkdir()
    path.write_bytes(of_tiny)
    return path


def edit(baseline: Path, **changes: Any) -> None:
    """Change tiny's entry by hand."""
    record = json.loads(baseline.read_text())
    record["entries"][0] |= changes
    baseline.write_text(json.dumps(record))


def grow(monkeypatch: pytest.MonkeyPatch, size: int = BUFFER_BYTES) -> None:
    """Plant a regression: one more buffer in the MLP of every layer."""
    build = Layer.__init__

    def with_buffer(layer: Layer, *arguments: Any, **named: Any) -> None:
        build(layer, *arguments, **named)
        weight = next(layer.mlp.parameters())
        buffer = torch.empty(size, dtype=torch.uint8, device=weight.device)
        layer.mlp.register_buffer("spare", buffer, persistent=False)

    monkeypatch.setattr(Layer, "__init__", with_buffer)


def test_nothing_changed_is_0_and_a_second_update_changes_no_byte(baseline: Path) -> None:
    before = baseline.read_bytes()
    done = run(*STRICT)
    assert done.exit_code == EXIT_OK
    assert "tiny" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 ok"
    again = run("--update-baseline")
    assert f"{Path('reports/baseline.json')}: nothing changed" in again.stdout
    assert baseline.read_bytes() == before


def test_one_more_buffer_in_the_mlp_is_a_regression_that_names_the_module(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(monkeypatch)
    done = run(*STRICT)
    assert done.exit_code == EXIT_DOES_NOT_FIT
    words = " ".join(done.stdout.split())
    assert "regression: allocated peak" in words
    assert "+384.0 KiB" in words
    assert "module Transformer.layers.*.mlp, 4 of them (Weights):" in words
    shown = json.loads(run(*STRICT, "--json").stdout)
    modules = [r for r in shown["outcomes"][0]["reasons"] if r["group"] == "module"]
    change = modules[0]["change"]
    assert change["now_bytes"] - change["baseline_bytes"] == 4 * BUFFER_BYTES


def test_a_gain_passes_and_asks_to_tighten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as planted:
        grow(planted)
        run("--update-baseline", "--config", "tiny")
    done = run(*STRICT)
    assert done.exit_code == EXIT_OK
    assert "tighten it" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == "1 gain"


def test_an_update_shows_what_it_changes(baseline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(monkeypatch)
    done = run("--update-baseline")
    assert done.exit_code == EXIT_OK
    assert "updated: allocated peak" in done.stdout
    assert "reports/baseline.json: written" in done.stdout
    assert run(*STRICT).exit_code == EXIT_OK


def test_the_tolerance_of_an_entry_counts_and_an_update_keeps_it(
    baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(monkeypatch)
    assert run().exit_code == EXIT_OK  # 16 MiB by default
    edit(baseline, tolerance={"relative": 0.0, "absolute_bytes": 64 * KiB})
    assert run().exit_code == EXIT_DOES_NOT_FIT
    run("--update-baseline")
    assert json.loads(baseline.read_text())["entries"][0]["tolerance"]["absolute_bytes"] == 65536


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"torch": "2.1.0"}, "other torch"),
        ({"profile_hash": "0" * 16}, "other profile"),
        ({"gpu": "h100"}, "no entry"),
    ],
)
def test_what_cannot_be_compared_is_2_and_no_regression(
    baseline: Path, changes: dict[str, str], status: str
) -> None:
    edit(baseline, **changes)
    done = run()
    assert done.exit_code == EXIT_USAGE
    assert done.stdout.splitlines()[-1] == f"1 {status}"
    assert run("--update-baseline").exit_code == EXIT_OK
    assert run().exit_code == EXIT_OK


def test_settings_make_an_entry_of_their_own(baseline: Path) -> None:
    missing = run("--config", "tiny", "--context", "256")
    assert missing.exit_code == EXIT_USAGE
    assert "no entry: not in the baseline" in missing.stdout
    run("--update-baseline", "--config", "tiny", "--context", "256", "--fast")
    entries = json.loads(baseline.read_text())["entries"]
    assert [(e["config"], e.get("settings"), e.get("fast")) for e in entries] == [
        ("tiny", None, None),
        ("tiny", {"workload.context": "256"}, True),
    ]
    assert run().stdout.splitlines()[-1] == "2 ok"
    assert run("--config", "tiny").stdout.splitlines()[-1] == "1 ok"


def test_results_are_checked_without_a_run(baseline: Path, folder: Path) -> None:
    file = folder / "tiny.json"
    profiled = ["profile", "--config", "tiny", "--device", "none", "--output", str(file)]
    CliRunner().invoke(app, profiled)
    done = run("--results", file)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (EXIT_OK, "1 ok")
    record = json.loads(file.read_text())
    record["simulated"]["allocated_peak_bytes"] += 1 << 30
    file.write_text(json.dumps(record))
    assert run("--results", file).exit_code == EXIT_DOES_NOT_FIT


def test_what_cannot_be_profiled_is_told_and_an_update_then_writes_nothing(
    baseline: Path,
) -> None:
    edit(baseline, config="./gone.yaml")
    before = baseline.read_bytes()
    done = run("--update-baseline")
    assert done.exit_code == EXIT_USAGE
    assert "./gone.yaml: no such file" in done.stdout
    assert baseline.read_bytes() == before


def test_measuring_without_its_device_is_3(baseline: Path) -> None:
    edit(baseline, kind="measured", gpu="NVIDIA L4")
    done = run("--measured", "--device", "cuda:99")
    assert done.exit_code == EXIT_NOT_MEASURED
    assert "failed: device cuda:99:" in " ".join(done.stdout.split())


def test_measuring_what_the_baseline_has_only_simulated_is_no_pass(baseline: Path) -> None:
    done = run("--measured")
    assert done.exit_code == EXIT_USAGE
    assert "nothing measured in it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "reports/baseline.json: no such baseline"),
        (("--fast",), "--fast and options that change a profile need MODEL or --config"),
        (("--context", "4k"), "need MODEL or --config"),
        (("--relative", "x"), "--relative: got 'x', expected 0% to 100%"),
        (("--absolute", "16 parsecs"), "--absolute: got '16 parsecs'"),
        (("--device", "cpu"), "--device needs --measured"),
        (("--gpus", "2"), "--gpus needs --rehearse"),
        (("--rehearse", "python t.py"), "--rehearse needs --gpu"),
        (("--rehearse", "", "--gpu", "h100"), "--rehearse: got '', expected a command"),
        (("--rehearse", "a 'b", "--gpu", "h100"), '--rehearse: got "a \'b": No closing'),
        (("--rehearse", "a", "7b", "--gpu", "h100"), "cannot be combined with MODEL"),
        (("--rehearse", "a", "--gpu", "h100", "--batch", "2"), "takes no options of a profile"),
        (("--rehearse", "a", "--gpu", "h100", "--results", "a.json"), "--results cannot be"),
        (("--update-baseline", "--gate", "reserved"), "cannot be combined with --update-baseline"),
        (("--results", "a.json", "--config", "7b"), "--results cannot be combined with --config"),
        (("--update-baseline",), "no such baseline"),
    ],
)
def test_wrong_usage_is_explained(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == EXIT_USAGE
    assert words in done.stderr


def test_the_formats_are_what_they_say(baseline: Path, folder: Path) -> None:
    edit(baseline, torch="2.1.0")
    assert run("--format", "markdown").stdout.startswith("### Memory against")
    assert run("--format", "junit").stdout.startswith("<?xml")
    assert json.loads(run("--format", "json").stdout)["schema"] == "tritter-mem.check/1"


def test_on_github_there_are_annotations_and_a_step_summary(
    baseline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = folder / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    edit(baseline, torch="2.1.0")
    done = run("--format", "github")
    assert done.stdout.startswith("::warning title=Memory%3A tiny (simulated")
    assert done.stdout.splitlines()[-1] == "memory: 1 other torch"
    assert summary.read_text().startswith("# Before\n### Memory against")


def test_results_and_wrong_usage_need_no_pytorch(
    baseline: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "one.json"
    file.write_text(json.dumps(training_1b().to_dict()))
    monkeypatch.setitem(sys.modules, "torch", None)
    done = run("--results", file)
    assert done.exit_code == EXIT_USAGE
    words = " ".join(done.stdout.split())
    assert "no entry: not in the baseline" in words
    assert "not in the results: tiny" in words
    assert run("--config", "gone").exit_code == EXIT_USAGE


def test_a_command_of_a_baseline_runs_only_if_it_is_named(tmp_path: Path) -> None:
    """A baseline may come from anybody."""
    file, made = tmp_path / "baseline.json", tmp_path / "made"
    listed = entry("", command=("touch", str(made)), kind="rehearsed", gpu="h100")
    file.write_text(baseline_text(Baseline(entries=(listed,))))
    found = run("--baseline", file)
    assert found.exit_code == EXIT_USAGE
    assert f"a command has to be named: --rehearse 'touch {made}' --gpu h100" in found.stderr
    assert not made.exists()
