"""Third-party code: what its memory is for, its phases, and that the CPU and meta agree."""

import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tritter_mem.devices.nvml import find_gpu
from tritter_mem.errors import InputError, SimulationError, UsageError
from tritter_mem.models.user_code import ModuleCase, read_case
from tritter_mem.results.run import MemoryUse
from tritter_mem.simulation.cuda.dispatch import as_on_cuda
from tritter_mem.simulation.events import EventLog
from tritter_mem.simulation.peaks import find_peaks
from tritter_mem.simulation.recorder import Recorder
from tritter_mem.simulation.user_module import run_module, simulate_module

CODE = """
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.utils.checkpoint import checkpoint

    class Net(nn.Module):
        def __init__(self, width, tied):
            super().__init__()
            self.table = nn.Embedding(100, width)
            self.register_buffer("mask", torch.ones(width, width))
            self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, 100, bias=False)
            if tied:
                self.head.weight = self.table.weight

        def forward(self, ids, again=False):
            x = self.table(ids)
            for layer in self.layers:
                block = nn.Sequential(layer, nn.GELU())
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            return self.head(self.norm(x))

    def train(device, width=64, tied=False, again=False, accumulate=1):
        with device:
            net = Net(width, tied)
        ids = torch.zeros(8, 32, dtype=torch.long, device=device)
        optimizer = torch.optim.AdamW(net.parameters(), foreach=True)

        def step():
            for _ in range(accumulate):
                logits = net(ids, again).flatten(0, 1)
                functional.cross_entropy(logits, ids.flatten()).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def infer(device):
        with device:
            net = Net(64, False).eval()
        ids = torch.zeros(8, 32, dtype=torch.long, device=device)

        @torch.inference_mode()
        def step():
            net(ids)

        return step

    def functions_only(device):
        weight = torch.ones(64, 64, device=device, requires_grad=True)
        return lambda: (weight @ weight).sum().backward()
"""
CARD = find_gpu("rtx-4090")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "net.py"
    path.write_text(textwrap.dedent(CODE))
    return path


def case(file: Path, function: str, warmup: int = 1, **arguments: Any) -> ModuleCase:
    return ModuleCase(path=str(file), function=function, arguments=arguments, warmup=warmup)


def record(case: ModuleCase, device: str) -> EventLog:
    as_there = as_on_cuda(CARD.compute_capability) if device == "meta" else nullcontext()
    with Recorder(device) as recorder, as_there:
        run_module(case, device, recorder)
    return recorder.log


def simulated(file: Path, function: str, **options: Any) -> MemoryUse:
    return simulate_module(case(file, function, **options), CARD)


class TestCategories:
    """What memory is for, read from PyTorch's own structures."""

    def components(self, file: Path, **arguments: Any) -> dict[str, int]:
        peaks = find_peaks(record(case(file, "train", **arguments), "meta"))
        optimizer = next(phase for phase in peaks.phases if phase.name == "optimizer")
        assert optimizer.components is not None
        return optimizer.components.items()

    def test_each_byte_has_its_kind(self, file: Path) -> None:
        found = self.components(file)
        linear = 3 * (64 * 64 + 64) * 4
        norm, head, table, mask = 2 * 64 * 4, 100 * 64 * 4, 100 * 64 * 4, 64 * 64 * 4
        assert found["weights"] == linear + norm + head + mask
        assert found["embeddings"] == table
        assert found["gradients"] == linear + norm + head + table
        assert found["optimizer_state"] == 2 * found["gradients"]

    def test_a_tied_head_is_an_embedding(self, file: Path) -> None:
        found = self.components(file, tied=True)
        assert found["embeddings"] == 100 * 64 * 4
        assert found["weights"] == (3 * (64 * 64 + 64) + 2 * 64 + 64 * 64) * 4

    def test_inference_has_weights_and_activations(self, file: Path) -> None:
        found = simulated(file, "infer").components.items()
        kinds = {name for name, size in found.items() if size} - {"rounding"}
        assert kinds == {"weights", "embeddings", "activations", "workspace"}


class TestPhases:
    """Forward, backward and optimizer where a step has them."""

    def names(self, file: Path, function: str, **options: Any) -> list[str]:
        log = record(case(file, function, **options), "meta")
        return [span.name for span in log.spans]

    def test_training(self, file: Path) -> None:
        phases = ["load", "warmup", "forward", "backward", "optimizer"]
        assert self.names(file, "train") == phases

    def test_accumulated_gradients_go_back_and_forth(self, file: Path) -> None:
        names = self.names(file, "train", accumulate=2)
        assert names[2:] == ["forward", "backward"] * 2 + ["optimizer"]

    def test_recomputation_is_backward(self, file: Path) -> None:
        assert self.names(file, "train", again=True)[2:] == ["forward", "backward", "optimizer"]

    def test_inference_is_one_step(self, file: Path) -> None:
        assert self.names(file, "infer") == ["load", "warmup", "step"]

    def test_without_modules_forward_begins_with_the_step(self, file: Path) -> None:
        assert self.names(file, "functions_only")[2:] == ["forward", "backward"]

    def test_without_a_warmup_nothing_is_known_of_the_step(self, file: Path) -> None:
        assert self.names(file, "train", warmup=0) == ["load", "warmup", "step"]

    def test_every_step_counts(self, file: Path) -> None:
        log = record(ModuleCase(path=str(file), function="infer", warmup=2, steps=3), "meta")
        assert [span.name for span in log.spans] == ["load", "warmup", "step", "step", "step"]


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("train", {}), ("train", {"tied": True}), ("train", {"again": True}), ("infer", {})],
)
def test_meta_and_cpu_leave_the_same_events(
    file: Path, function: str, arguments: dict[str, Any]
) -> None:
    """But scalars: an optimizer's counters stay on the host where the model is on a card."""
    asked = case(file, function, **arguments)
    logs = [
        [(e.kind, e.bytes, e.phase, e.category) for e in record(asked, device) if e.bytes > 8]
        for device in ("meta", "cpu")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) > 50


@pytest.mark.parametrize(("function", "again"), [("train", False), ("train", True)])
def test_simulation_is_within_half_a_percent_of_the_cpu(
    file: Path, function: str, again: bool
) -> None:
    """Less what only a GPU has: libraries' workspaces, and whole blocks for small tensors."""
    asked = case(file, function, width=512, again=again)
    peak = simulate_module(asked, CARD)
    measured = find_peaks(record(asked, "cpu")).allocated_peak_bytes
    held = peak.allocated_peak_bytes - peak.components.workspace_bytes
    assert held == pytest.approx(measured, rel=0.005)


def test_autocast_shrinks_activations(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "gpt.py"
    text = example.read_text()
    plain = tmp_path / "plain.py"
    plain.write_text(text.replace("dtype=torch.bfloat16)", "enabled=False)"))
    arguments = {"layers": 2, "width": 128, "batch": 4, "tokens": 256}
    sizes = {
        path: simulate_module(
            ModuleCase(path=str(path), function="build", arguments=arguments), CARD
        ).components.activations_bytes
        for path in (example, plain)
    }
    assert sizes[example] < 0.95 * sizes[plain]


def test_out_of_memory_names_the_module(file: Path) -> None:
    found = simulated(file, "train", width=32768)
    assert found.out_of_memory is not None
    assert found.out_of_memory.phase in ("load", "warmup")


class TestWhatGoesWrong:
    """One line that names the line of the code."""

    def run(self, tmp_path: Path, body: str) -> MemoryUse:
        path = tmp_path / "user.py"
        head = "import torch\nfrom torch import nn\ndef build(device):\n"
        path.write_text(head + textwrap.indent(textwrap.dedent(body), "    "))
        return simulate_module(ModuleCase(path=str(path), function="build"), CARD)

    @pytest.mark.parametrize(
        "line",
        [
            "x.sum().item()",
            "x.tolist()",
            "1 if x.sum() > 0 else 2",
            "x[x > 0]",
            "x.nonzero()",
            "x.cpu()",
            "x.numpy()",
            "torch.unique(x)",
            "torch.zeros(int(x.sum()))",
        ],
    )
    def test_values_are_not_there(self, line: str, tmp_path: Path) -> None:
        body = f"x = torch.ones(3, device=device)\ndef step():\n    {line}\nreturn step"
        with pytest.raises(SimulationError) as caught:
            self.run(tmp_path, body)
        [problem] = caught.value.problems
        assert problem.startswith(f"{tmp_path / 'user.py'}:6: `{line}` needs the values of a tens")
        assert "is_meta" in problem
        assert caught.value.exit_code == 3

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("torch.cuda.get_device_properties(0)", "user.py:4: .* asks for a CUDA device"),
            ("torch.Generator(device)", "user.py:4: .* does not work on PyTorch's `meta` device"),
        ],
    )
    def test_a_device_is_not_there(self, body: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(SimulationError, match=message):
            self.run(tmp_path, body)

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("raise ValueError('no\\nsuch')", "user.py:4: .* failed: ValueError: no such"),
            ("raise SystemExit(3)", "user.py:4: .* failed: SystemExit: 3"),
            ("return 3", "user.py:build: returned int; it must return a function"),
            ("return nn.Linear(3, 3, device=device)", "returned Linear; it must return a func"),
            ("x = torch.ones(3)\nreturn lambda: x * 2", "created no tensor on the device"),
            (
                "net = nn.Linear(3, 3, device=device)\nx = torch.ones(2, 3)\nreturn lambda: net(x)",
                "Linear was called with its weight on meta, its bias on meta, an input on cpu",
            ),
            (
                "net = nn.Linear(3, 3)\nx = torch.ones(2, 3, device=device)\nreturn lambda: net(x)",
                "its weight on cpu, its bias on cpu, an input on meta",
            ),
            ("return lambda step: None", r"user.py:build failed: TypeError: .*lambda"),
        ],
    )
    def test_the_code_fails(self, body: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=message) as caught:
            self.run(tmp_path, body)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)

    def test_the_file_fails(self, tmp_path: Path) -> None:
        for text, message in (
            ("def build(:", r"broken.py:1: SyntaxError"),
            ("import no_such_thing", r"broken.py:1: `import no_such_thing` failed: ModuleNotF"),
            ("x = 3", r"there is no function 'build'; it has no functions"),
            ("def make(): pass", r"there is no function 'build'; its functions: make"),
        ):
            path = tmp_path / "broken.py"
            path.write_text(text)
            with pytest.raises(InputError, match=message):
                simulate_module(ModuleCase(path=str(path), function="build"), CARD)

    def test_arguments_that_it_does_not_take(self, file: Path) -> None:
        with pytest.raises(UsageError, match="'widht'; arguments that it takes: width, tied"):
            simulated(file, "train", widht=3)


class TestCase:
    """What a command line says of third-party code."""

    def test_reads_all(self, file: Path) -> None:
        found = read_case(f"{file}:train", '{"width": 8}', warmup=0, steps=2)
        assert found == ModuleCase(
            path=str(file), function="train", arguments={"width": 8}, warmup=0, steps=2
        )
        assert found.name == "net.py:train"

    def test_says_every_problem_at_once(self) -> None:
        with pytest.raises(UsageError) as caught:
            read_case("nowhere.py:train", "[1]", warmup=-1, steps=0)
        assert len(caught.value.problems) == 4

    @pytest.mark.parametrize("module", ["train.py", "train.py:", ":build", "train.py:not a name"])
    def test_names_the_form(self, module: str) -> None:
        with pytest.raises(UsageError, match=r"expected FILE\.py:FUNCTION"):
            read_case(module)


def test_what_lies_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("SIZE = 5\n")
    path = tmp_path / "main_file.py"
    path.write_text(
        "import torch\nimport beside_it\ndef build(device):\n"
        "    return lambda: torch.ones(beside_it.SIZE, device=device)\n"
    )
    found = simulate_module(ModuleCase(path=str(path), function="build"), CARD)
    assert found.allocated_peak_bytes == 512
    assert torch.get_default_device().type == "cpu"
