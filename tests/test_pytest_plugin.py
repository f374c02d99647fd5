"""The plugin in sessions of pytest: budgets, bodies, baselines, reports, xdist, and its cost."""

import json
import re
import sys
import weakref
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from tritter_mem.check.budget import following, result_of
from tritter_mem.check.budget_mark import read_mark
from tritter_mem.pytest_plugin import MarkedTest
from tritter_mem.report.words import MINUS
from tritter_mem.results.from_json import from_plain
from tritter_mem.results.run import Result
from tritter_mem.units import MiB

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[1] / "docs" / "pytest.md"
EXAMPLES = [
    text
    for text in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    if "rehearse=True" not in text  # tests/rehearsal/test_gates.py
]
BODY = """
import os
import pytest

@pytest.mark.xdist_group("heavy")  # which xdist adds to the test's id
@pytest.mark.memory_budget("64 MiB", device="cpu")
def test_body():
    import torch
    from torch import nn
    model = nn.Linear(1024, 1024, bias=False)
    model(torch.ones(int(os.environ.get("ROWS", 1024)), 1024))
"""
PROFILE = """
import pytest

@pytest.mark.memory_budget("1 GiB", profile="tiny")
def test_profile():
    pass
"""
NOTHING = "def test_nothing(): pass"
NET = """
import torch

def build(device, width=64):
    with device:
        model, inputs = torch.nn.Linear(width, width), torch.ones(1, width)
    return lambda: model(inputs)

def reads(device):
    inputs = torch.ones(1, device=device)
    return lambda: inputs.item()
"""


PLUGIN = "tritter_mem.pytest_plugin"
INSTALLED = bool(entry_points(group="pytest11", name="tritter_mem"))
# Where the package is only on PYTHONPATH there is no entry point that loads it.
LOADED = () if INSTALLED else ("-p", PLUGIN)
# What they do at the end of a session takes a second where PyTorch is loaded.
NOT_NEEDED = ("-p", "no:unraisableexception", "-p", "no:hypothesispytest", "-p", "no:cov")


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Import all that a session needs: pytester forgets what a session in its process imports."""
    result_of(read_mark(("1 GiB",), {"profile": "tiny"}))
    with following(read_mark((1,), {"device": "cpu"})):
        pass


def results_in(path: Path) -> list[Result]:
    """A report's records."""
    return [from_plain(Result, record) for record in json.loads(path.read_text())]


def marked(mark: str) -> str:
    """A test with a mark, and nothing in it."""
    return f"import pytest\n\n@pytest.mark.memory_budget({mark})\ndef test_it(): pass\n"


class Session:
    """Sessions of pytest on files of a folder of their own."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester
        self.path = pytester.path

    def write(self, **files: str) -> None:
        self._pytester.makepyfile(**files)

    def run(self, *options: str) -> pytest.RunResult:
        return self._pytester.runpytest_inprocess(*LOADED, *NOT_NEEDED, *options)

    def run_apart(self, *options: str) -> pytest.RunResult:
        return self._pytester.runpytest_subprocess(*LOADED, *NOT_NEEDED, *options)


@pytest.fixture
def session(pytester: pytest.Pytester) -> Session:
    return Session(pytester)


def test_a_profile_within_its_budget_passes_and_its_need_is_shown(
    session: Session,
) -> None:
    session.write(test_it=PROFILE)
    result = session.run()
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines([r".*::test_profile +\d+\.\d MiB +1\.00 GiB +\d+\.\d MiB$"])


def test_over_budget_fails_before_the_body_and_says_what_holds_most_and_what_to_change(
    session: Session,
) -> None:
    session.write(
        test_it="""
        import pytest

        @pytest.mark.memory_budget("500 MiB", profile="125m", context="8k", fast=True)
        def test_large():
            raise RuntimeError("not reached")
    """
    )
    result = session.run()
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"memory_budget: does not fit: needs .* \(simulated\), .* over the budget of 500\.0 M",
            r"  the need is the device peak: .* reserved by PyTorch, 384\.0 MiB CUDA context",
            r"  component \w+.*: .* of .* allocated at the peak",
            r"  phase \w+: .* allocated, the peak at \w+: Transformer",
            r"  module Transformer.*: .*",
            r"  what to change, by the plan:",
            rf"    .*: {MINUS}.* MiB, (fits with|still) .*",
            r"      --set \w+\.\w+=.*",
        ]
    )
    assert "not reached" not in str(result.stdout)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ('"1 GiB", profile="tinny"', "tinny: no bundled model and no file of this name; did"),
        ('"1 GB!", profile="tiny"', "budget: got '1 GB!', expected a memory size"),
        ('"1 GiB", profile="tiny", context="1z"', "context: got '1z', expected a whole number"),
        ('"1 GiB", profile="tiny", gpu="rtx-508"', "gpu: 'rtx-508' is not a known card; did you"),
        ('"80 GiB", profile="tiny"', "budget: got '80 GiB', expected up to 17,094,934,528 bytes"),
        ('"1 GiB", module="none.py:build"', "module: none.py: there is no such file"),
        ('"1 GiB", module="net.py:build", args={"x": 1}', "arguments that it takes: width"),
        ('"1 GiB", module="net.py:reads"', "needs the values of a tensor, and a simulation has"),
    ],
)
def test_a_wrong_mark_is_an_error_of_the_test_and_names_the_mark(
    session: Session, mark: str, expected: str
) -> None:
    session.write(
        net=NET,
        test_it=marked(mark),
    )
    result = session.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"memory_budget: *{expected}*"])
    assert "Traceback" not in str(result.stdout)
    assert "above exception" not in str(result.stdout)


def test_several_marks_on_one_test_are_an_error_and_its_own_comes_before_its_classs(
    session: Session,
) -> None:
    session.write(
        test_it="""
        import pytest

        @pytest.mark.memory_budget("1 KiB", device="cpu")
        class TestClass:
            @pytest.mark.memory_budget("1 GiB", device="cpu")
            def test_own(self):
                import torch
                torch.empty(2048, dtype=torch.uint8)

            def test_of_class(self):
                import torch
                torch.empty(2048, dtype=torch.uint8)

        @pytest.mark.memory_budget("1 GiB")
        @pytest.mark.memory_budget("2 GiB")
        def test_two():
            pass
    """
    )
    result = session.run()
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "memory_budget: got several on one test, expected one; *",
            "memory_budget: does not fit: needs 2.0 KiB (measured), 1.0 KiB over the "
            "budget of 1.0 KiB",
        ]
    )


def test_a_module_is_found_from_the_rootdir_wherever_pytest_is_called(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = '"1 GiB", module="net.py:build", args={"width": 4096}, gpu="h100"'
    (session.path / "inside").mkdir()
    session.write(**{"net": NET, "inside/test_it": marked(mark)})
    monkeypatch.chdir(session.path / "inside")
    result = session.run(f"--rootdir={session.path}", "--memory-report=results.json")
    result.assert_outcomes(passed=1)
    (record,) = results_in(Path("results.json"))
    assert record.name == "inside/test_it.py::test_it"
    assert record.simulated is not None
    assert record.simulated.device == "h100"
    assert record.simulated.components.weights_bytes == 4096 * 4096 * 4 + 4096 * 4


def test_a_body_counts_what_it_makes_and_the_models_it_calls(session: Session) -> None:
    session.write(
        test_it="""
        import pytest
        import torch
        from torch import nn

        @pytest.fixture
        def model():
            return nn.Linear(1024, 1024, bias=False)

        @pytest.mark.memory_budget("5 MiB", device="cpu")
        def test_model(model):
            model(torch.ones(256, 1024))

        @pytest.mark.memory_budget("1 MiB", device="cpu")
        def test_fails_on_its_own():
            assert False, "its own reason"
    """
    )
    result = session.run("--memory-report", "results.json")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*its own reason*"])
    result.stdout.fnmatch_lines(
        [
            "memory_budget: does not fit: needs 6.0 MiB (measured), 1.0 MiB over the "
            "budget of 5.0 MiB",
            "  component Weights: 4.0 MiB of 6.0 MiB allocated at the peak",
        ]
    )
    (record,) = results_in(session.path / "results.json")
    assert record.measured is not None
    assert record.measured.components.weights_bytes == 4 * MiB
    assert record.measured.allocated_peak_bytes == 6 * MiB


def test_the_tracker_begins_with_each_test(session: Session) -> None:
    session.write(
        test_it="""
        import pytest
        import torch

        only_cpu = pytest.mark.parametrize("memory_tracker", ["cpu"], indirect=True)

        @only_cpu
        @pytest.mark.parametrize("megabytes", [3, 1])
        def test_peak(memory_tracker, megabytes):
            torch.empty(megabytes * 10**6, dtype=torch.uint8)
            assert memory_tracker.snapshot().peak == megabytes / 1000

        @only_cpu
        @pytest.mark.memory_budget("1 MB", device="cpu")
        def test_beside_the_mark(memory_tracker):
            torch.empty(10**6, dtype=torch.uint8)
            assert memory_tracker.snapshot().peak == 0.001
    """
    )
    session.run().assert_outcomes(passed=3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_what_is_to_be_measured_is_skipped(session: Session) -> None:
    session.write(test_it=PROFILE.replace('"tiny"', '"tiny", kind="measured"'))
    result = session.run("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*memory_budget: *CUDA*"])


def test_a_baseline_is_made_under_xdist_and_holds_without_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.write(test_body=BODY, test_profile=PROFILE)
    options = ["--memory-baseline", "memory.json"]
    under_xdist = ["-n2", "--dist=loadgroup", "--memory-report=results.json"]
    made = session.run_apart(*options, "--memory-update-baseline", *under_xdist)
    made.assert_outcomes(passed=2)
    made.stdout.fnmatch_lines(["memory.json: 2 of 2 entries written again"])
    ids = ["test_body.py::test_body", "test_profile.py::test_profile"]
    assert [result.name for result in results_in(Path("results.json"))] == ids
    baseline = json.loads(Path("memory.json").read_text())
    assert [entry["config"] for entry in baseline["entries"]] == ids

    session.run(*options).assert_outcomes(passed=2)
    monkeypatch.setenv("ROWS", str(6 * 1024))
    grown = session.run(*options)
    grown.assert_outcomes(passed=1, failed=1)
    grown.stdout.fnmatch_lines(
        [
            "memory_budget: regression: allocated peak 12.0 MiB → 52.0 MiB, +40.0 MiB*",
            "  component Activations: 8.0 MiB → 48.0 MiB, *",
            "*::test_body * +40.0 MiB regression",
        ]
    )
    again = session.run(*options, "--memory-update-baseline", "test_body.py")
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["memory.json: 1 of 2 entries written again"])
    monkeypatch.setenv("ROWS", "1024")
    shrunk = session.run(*options)
    shrunk.assert_outcomes(passed=2)
    shrunk.stdout.fnmatch_lines(["1 smaller than the baseline: tighten it,*--memory-update-*"])


def test_a_test_that_the_baseline_does_not_have_fails_and_a_changed_budget_changes_nothing(
    session: Session,
) -> None:
    session.write(test_it=PROFILE)
    options = ["--memory-baseline", "memory.json"]
    session.run(*options, "--memory-update-baseline").assert_outcomes(passed=1)
    session.write(test_it=PROFILE.replace("1 GiB", "2 GiB") + PROFILE.replace("_profile", "_new"))
    result = session.run(*options)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["memory_budget: no entry: not in the baseline; if that is intended: pytest --memory-base*"]
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--memory-update-baseline"], "*needs --memory-baseline FILE*"),
        (["--memory-baseline", "none.json"], "*none.json: no such baseline; create it: pytest *"),
        (["--memory-baseline", "broken.json"], "*broken.json: no JSON: *"),
        (["--memory-report", "folder"], "*folder: cannot be written: *"),
    ],
)
def test_wrong_options_end_the_session_before_it_begins(
    session: Session, options: list[str], expected: str
) -> None:
    session.write(test_it=NOTHING)
    (session.path / "folder").mkdir()
    (session.path / "broken.json").write_text("{")
    result = session.run(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([expected])


def test_without_the_plugin_the_mark_is_unknown_and_nothing_else_changes(
    session: Session,
) -> None:
    session.write(test_it=PROFILE)
    result = session.run_apart("-p", "no:tritter_mem", "-p", f"no:{PLUGIN}")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*PytestUnknownMarkWarning: Unknown pytest.mark.memory_budget*"])


def test_the_mark_is_registered(session: Session) -> None:
    session.write(test_it=NOTHING)
    result = session.run("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.memory_budget(budget, *, profile=None, *"])


@pytest.mark.skipif(not INSTALLED, reason="needs the package installed, not only on PYTHONPATH")
def test_the_plugin_is_found_by_its_entry_point() -> None:
    (found,) = entry_points(group="pytest11", name="tritter_mem")
    assert found.value == PLUGIN


def test_a_session_without_the_mark_imports_nothing_heavy(session: Session) -> None:
    session.write(
        test_it=NOTHING,
        conftest="""
            import sys

            def pytest_unconfigure(config):
                print("modules", *sys.modules)
        """,
    )
    result = session.run_apart("-s")
    (found,) = (line for line in result.outlines if line.startswith("modules "))
    modules = {name.split(".")[0] for name in found.split()}
    assert "tritter_mem.pytest_plugin" in found.split()
    assert not modules & {"torch", "rich", "pandas", "pydantic", "pydantic_core", "numpy", "yaml"}


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_page_run(session: Session, number: int) -> None:
    quick = EXAMPLES[number].replace('"7b-128k-gqa"', '"7b-128k-gqa", fast=True')
    session.write(train=NET, test_page=quick)
    session.run().assert_outcomes(passed=quick.count("def test_"))


@pytest.mark.gpu
def test_on_a_gpu_a_body_counts_there_and_a_profile_is_measured(session: Session) -> None:
    session.write(
        test_it="""
        import pytest

        @pytest.mark.memory_budget("64 MiB", device="cuda")
        def test_body():
            import torch
            torch.empty(65 * 2**20, dtype=torch.uint8, device="cuda")

        @pytest.mark.memory_budget("4 GiB", profile="tiny", kind="measured")
        def test_profile():
            pass
        """
    )
    result = session.run("--memory-report", "results.json")
    result.assert_outcomes(passed=1, failed=1)
    records = results_in(session.path / "results.json")
    measured = [record.measured or record.rehearsed for record in records]
    assert [found is not None and found.device[:4] for found in measured] == ["cuda", "cuda"]


@pytest.mark.gpu
def test_on_a_gpu_a_tracker_that_the_body_resets_hides_nothing_from_the_budget(
    session: Session,
) -> None:
    session.write(
        test_it="""
        import pytest
        import torch

        @pytest.mark.memory_budget("64 MiB", device="cuda")
        def test_body(memory_tracker):
            torch.empty(100 * 2**20, dtype=torch.uint8, device="cuda")
            memory_tracker.reset()
            assert memory_tracker.snapshot().peak < 0.1
        """
    )
    result = session.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["memory_budget: does not fit: needs *"])


class Held:
    """What a test has when it fails."""


def failed_holding() -> tuple[AssertionError, weakref.ref[Held]]:
    held = Held()
    try:
        raise AssertionError
    except AssertionError as error:
        return error, weakref.ref(held)


def test_what_an_earlier_test_held_when_it_failed_is_gone_before_the_peak_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pytest has laid the failure into `sys` for debuggers."""
    error, held = failed_holding()
    monkeypatch.setitem(vars(sys), "last_type", type(error))
    monkeypatch.setitem(vars(sys), "last_value", error)
    monkeypatch.setitem(vars(sys), "last_traceback", error.__traceback__)
    del error
    assert held() is not None
    marked = MarkedTest(name="test", mark=read_mark(("1 GiB",), {"device": "cpu"}))
    with marked.around_body(None):
        assert held() is None
