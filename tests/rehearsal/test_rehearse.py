"""Commands, unchanged, over the stand-ins, with PyTorch's CUDA build."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.environment import ROOT, SCRIPTS
from tritter_mem.units import GiB, MiB

pytestmark = pytest.mark.timeout(900)  # the first one installs PyTorch's CUDA build
CONTEXT = 320 * MiB  # of an RTX 4090
INTERPRETED = "TRITON_INTERPRET"  # which tests of kernels set: Triton then computes on the host


class Rehearsed:
    """What `tritter-mem rehearse --json` came to."""

    def __init__(self, ran: subprocess.CompletedProcess[str]) -> None:
        self.exit_code = ran.returncode
        self.printed = ran.stderr
        self.record: dict[str, Any] = json.loads(ran.stdout) if ran.stdout else {}

    @property
    def trust(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["trust"]
        return found


@pytest.fixture
def rehearse(environment: Path, tmp_path: Path) -> Any:
    """Rehearses a script of `scripts/`, and looks that it leaves nothing behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    def run(script: str, *words: str, options: str = "", program: str = "python",
            gpu: str = "rtx-4090") -> Rehearsed:  # fmt: skip
        command = [
            sys.executable, "-m", "tritter_mem", "rehearse", "--json", "--gpu", gpu,
            "--env", str(environment), *options.split(), "--", *program.split(),
            *([str(SCRIPTS / script)] if script else []), *words,
        ]  # fmt: skip
        variables = {name: one for name, one in os.environ.items() if name != INTERPRETED}
        ran = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=150,
            env=variables | {"TMPDIR": str(temporary)},
        )  # fmt: skip
        left = [path.name for path in temporary.iterdir() if path.name.startswith("tritter-mem")]
        assert not left, ran.stderr
        return Rehearsed(ran)

    return run


def lines_with(script: str, word: str) -> set[int]:
    text = (SCRIPTS / script).read_text().splitlines()
    return {number for number, line in enumerate(text, 1) if f"# {word}" in line}


def lines_of(found: list[str], script: str) -> set[int]:
    return {int(number) for line in found for number in re.findall(rf"{script}:(\d+) ", line)}


def test_a_script_s_peaks_are_those_that_pytorch_counted(rehearse: Any, tmp_path: Path) -> None:
    page, kept = tmp_path / "page.html", tmp_path / "kept"
    found = rehearse("training.py", options=f"--html {page} --snapshot {kept}")
    assert found.exit_code == 0, found.printed
    allocated, reserved = map(int, re.findall(r"peak (\d+) (\d+)", found.printed)[0])
    [use] = found.record["ranks"]
    assert use == found.record["rehearsed"]
    assert (use["allocated_peak_bytes"], use["reserved_peak_bytes"]) == (allocated, reserved)
    assert use["device_peak_bytes"] == reserved + CONTEXT
    assert found.record["verdict"]["fits"] is True
    assert found.record["verdict"]["basis"] == "rehearsed"
    assert found.record["schema"] == "tritter-mem.rehearsal/1"
    assert found.trust["trusted"] is True
    assert found.record["versions"]["torch"].startswith("2.14.0")
    assert found.record["command"]["exit_code"] == 0
    assert "Rehearsal of" in page.read_text()
    assert page.stat().st_size < 8 << 20
    from tritter_mem.recordings.replay_snapshot import replay

    [device] = replay(kept / Path(use["snapshot"]).name).devices
    assert device.fidelity.exact
    assert device.scenarios[0].allocated_peak_bytes == allocated
    assert device.recorded.reserved_peak_bytes == reserved
    again = rehearse("training.py")
    figures = ("allocated_peak_bytes", "reserved_peak_bytes", "device_peak_bytes")
    assert [again.record["rehearsed"][name] for name in figures] == [use[name] for name in figures]


def test_who_holds_the_peak_is_known_by_line_and_by_module(rehearse: Any, tmp_path: Path) -> None:
    found = rehearse("modules.py", options=f"--snapshot {tmp_path}")
    peak = found.record["rehearsed"]["allocated_peak_bytes"]
    from tritter_mem.recordings.replay_snapshot import replay
    from tritter_mem.report.charts.flame_graph import tree_of

    [device] = replay(found.record["rehearsed"]["snapshot"]).devices
    by_line, by_module = device.held_at_peak, device.held_by_module
    assert by_line is not None
    assert by_module is not None
    for one in (by_line, by_module):
        assert tree_of(one).total_bytes == one.total_bytes == peak
    held = {(".".join(frame.name for frame in one.path), one.component): one.allocated_bytes
            for one in by_module.allocations}  # fmt: skip
    weights = 4 * 4 * 1024 * 4096
    assert held["Model.layers.*.up", "weights"] == weights + 4 * 4 * 4096
    assert held["Model.layers.*.down", "optimizer_state"] == 2 * (weights + 4 * 4 * 1024)
    assert held["Model.layers.*.up", "activations"] > 0
    for heavy in by_line.allocations[:5]:
        assert heavy.path[0].file.endswith("modules.py"), "outermost is the user's line"
    files = {frame.file for one in by_line.allocations for frame in one.path}
    assert not [file for file in files if "tritter_mem/rehearsal/inside" in file]


def test_what_few_elements_need_is_computed(rehearse: Any) -> None:
    found = rehearse("true_values.py")
    assert found.exit_code == 0, found.printed
    assert "true values fine" in found.printed
    assert "scaler fine" in found.printed
    assert found.trust["assumed"]


def test_lines_at_which_uncomputed_values_decide_are_named(rehearse: Any) -> None:
    found = rehearse("decisions.py")
    assert found.record["command"]["exit_code"] == 0, found.printed
    assert found.exit_code == 3
    decided = lines_of(found.trust["values_decided_shapes"], "decisions.py")
    assert decided == lines_with("decisions.py", "DECIDES")
    assert lines_of(found.trust["assumed"], "decisions.py") == lines_with("decisions.py", "assumed")
    left = lines_of(found.trust["not_followed"], "decisions.py")
    assert left == lines_with("decisions.py", "not followed")
    assert "known [4, 5, 6, 7, 8, 9] 45" in found.printed
    assert "host known" in found.printed


def test_out_of_memory_has_pytorch_s_words_and_the_line(rehearse: Any) -> None:
    code = "import torch; kept = torch.empty(3 << 30, dtype=torch.uint8, device='cuda'); " \
           "torch.empty(2 << 30, dtype=torch.uint8, device='cuda')"  # fmt: skip
    found = rehearse("", "-c", code, options="--budget 4GiB")
    assert found.exit_code == 1, found.printed
    [refused] = found.record["refusals"]
    assert refused["requested_bytes"] == 2 * GiB
    assert refused["allocated_bytes"] == 3 * GiB
    assert "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total" in refused["text"]
    assert "capacity of 4.00 GiB of which 704.00 MiB is free" in refused["text"]
    assert found.record["verdict"]["fits"] is False
    assert found.record["verdict"]["headroom_bytes"] == -(GiB + CONTEXT)


def test_two_ranks_exchange_small_values_truly(rehearse: Any) -> None:
    program = "python -m torch.distributed.run --nproc-per-node 2"
    found = rehearse("two_ranks.py", options="--gpus 2", program=program)
    assert found.exit_code == 0, found.printed
    ranks = found.record["ranks"]
    assert [(use["rank"], use["device"]) for use in ranks] == [(0, 0), (1, 1)]
    counted = dict(re.findall(r"rank (\d) fine (\d+)", found.printed))
    assert {str(use["rank"]): str(use["allocated_peak_bytes"]) for use in ranks} == counted, (
        found.printed
    )
    assert any("NCCL" in line for line in found.trust["uncounted"])


def test_what_a_collective_held_is_free_behind_the_backward_pass_and_not_within(
    rehearse: Any,
) -> None:
    """It was chance: PyTorch's watchdog looks every 100 ms, and a step takes less here."""
    program = "python -m torch.distributed.run --nproc-per-node 2"
    found = rehearse("futures.py", options="--gpus 2", program=program)
    assert found.exit_code == 0, found.printed
    assert found.printed.count("behind [0, 0, 0, 0, 0], within [4]") == 2, found.printed


def test_one_rank_of_many_is_rehearsed_alone(rehearse: Any) -> None:
    found = rehearse("one_rank.py", options="--rank 3 --world-size 64")
    assert found.exit_code == 0, found.printed
    [use] = found.record["ranks"]
    assert use["rank"] == 3
    [counted] = re.findall(r"peak (\d+)", found.printed)
    assert use["allocated_peak_bytes"] == int(counted)


@pytest.mark.parametrize(("way", "code"), [("greedy", 3), ("sampled", 0)])
def test_generation_ends_and_says_whether_values_decided_its_length(
    way: str, code: int, rehearse: Any
) -> None:
    found = rehearse("generate.py", way)
    assert found.record["command"]["exit_code"] == 0, found.printed
    assert found.exit_code == code, found.trust
    lines = found.trust["values_decided_shapes"]
    assert bool(lines) == (way == "greedy")
    assert all("transformers/generation" in line and "generate.py:" in line for line in lines)


def test_cudnn_s_attention_asks_for_what_it_asked_for_on_a_gpu(rehearse: Any) -> None:
    """Every request and every one given back, in order, as measured on an H200."""
    measured = ROOT / "tests/models/cudnn_attention.json"
    calls = json.loads(measured.read_text())["calls"]
    found = rehearse("attention.py", str(measured), gpu="h200")
    assert found.exit_code == 0, found.printed
    asked = json.loads(found.printed.splitlines()[0])
    assert len(asked) == len(calls)
    for call, events in zip(calls, asked, strict=True):
        wanted = [call[part] for part in ("forward", "backward") if part in call]
        assert events == wanted, call
    assert not [line for line in found.trust["uncounted"] if "cuDNN" in line]


@pytest.mark.parametrize(
    ("card", "program", "taken"),
    [
        ("h200", "python", "Cudnn"),
        ("h200", "env TORCH_CUDNN_SDPA_DEPRIORITIZED=1 python", "Flash"),
        ("a100-40gb", "python", "Flash"),
        ("rtx-4090", "python", "Flash"),
    ],
)
def test_cudnn_s_attention_is_taken_where_a_gpu_takes_it(
    card: str, program: str, taken: str, rehearse: Any
) -> None:
    found = rehearse("attention.py", gpu=card, program=program)
    assert found.exit_code == 0, found.printed
    lines = found.printed.splitlines()
    assert {
        "version 92400", f"default {taken} {taken}", "FLASH_ATTENTION Flash",
        "CUDNN_ATTENTION Cudnn", "float32 Efficient", f"autocast {taken}", "fine",
    } <= set(lines)  # fmt: skip
    noted = {line for line in found.trust["uncounted"] if "cuDNN" in line}
    packed = any("packed" in line for line in noted)
    assert packed == (card == "h200"), "there, PyTorch gives packed sequences to cuDNN too"
    assert any("measured on an H200" in line for line in noted) == (card != "h200")


def test_gradients_are_added_up_in_place_as_on_a_gpu(rehearse: Any) -> None:
    """Autograd does so with what nothing else holds: four tensors, where it would make five."""
    code = (
        "import torch; x = torch.ones(1 << 20, device='cuda', requires_grad=True); y = x * 1.0\n"
        "z = (y * 2 + y * 3).sum(); torch.cuda.reset_accumulated_memory_stats(); z.backward()\n"
        "print('made', torch.cuda.memory_stats()['allocation.all.allocated'])"
    )
    found = rehearse("", "-c", code)
    assert "made 4\n" in found.printed


def test_experts_are_routed_by_a_rule(rehearse: Any) -> None:
    found = rehearse("experts.py")
    assert found.exit_code == 0, found.printed
    assert any("qwen3_moe" in line for line in found.trust["assumed"])


def test_peaks_survive_every_end_of_a_process(rehearse: Any) -> None:
    found = rehearse("deaths.py", "all")
    assert found.exit_code == 0, found.printed
    assert "[0, -9, -11, 0]" in found.printed
    peaks = sorted(use["allocated_peak_bytes"] // MiB for use in found.record["ranks"])
    assert peaks == [100, 120, 140, 160, 240, 260]
    time.sleep(0.5)
    shown = subprocess.run(["ps", "ax", "-o", "args"], check=False, capture_output=True, text=True)
    assert "deaths.py daemon" not in shown.stdout


def test_other_libraries_answer_by_rule_or_fail_with_their_name(rehearse: Any) -> None:
    found = rehearse("libraries.py", options="--gpus 2")
    assert found.exit_code == 0, found.printed
    assert found.trust["stubs_called"] == ["cufftCreate"]
    assert "fft: cuFFT error" in found.printed
    assert "workspace of cudnnConvolutionForward" in found.trust["uncounted"]
    assert any("autotuners take the first" in line for line in found.trust["uncounted"])
    assert [use["device"] for use in found.record["ranks"]] == [0, 1]


def test_a_server_is_ended_at_a_text(rehearse: Any) -> None:
    code = "import torch, time; torch.empty(5 << 20, device='cuda', dtype=torch.uint8); " \
           "print('now ready', flush=True); time.sleep(600)"  # fmt: skip
    found = rehearse("", "-c", code, options="--until ready")
    assert found.exit_code == 0, found.printed
    assert found.record["command"]["ended_by"] == "--until"
    assert found.record["rehearsed"]["allocated_peak_bytes"] == 5 * MiB


@pytest.mark.parametrize(
    ("options", "ended_by", "exit_code"),
    [("--until 2", "--until", 3), ("--host-limit 40MiB", "--host-limit", 2)],
)
def test_what_hangs_or_takes_the_host_s_memory_is_ended(
    options: str, ended_by: str, exit_code: int, rehearse: Any
) -> None:
    code = "import time; kept = bytearray(50 << 20); time.sleep(600)"
    found = rehearse("", "-c", code, options=options)
    assert found.exit_code == exit_code, found.printed
    assert found.record["command"]["ended_by"] == ended_by


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("raise SystemExit(7)", 2), ("print('no device')", 3), ("import torch; torch.ones(3)", 3)],
)
def test_commands_that_fail_or_use_no_device(code: str, exit_code: int, rehearse: Any) -> None:
    found = rehearse("", "-c", code)
    assert found.exit_code == exit_code, found.printed
    assert found.record["command"]["exit_code"] == (7 if exit_code == 2 else 0)
    assert found.record["rehearsed"] is None
    assert found.record["verdict"] is None


def test_an_interrupt_ends_it(environment: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tritter_mem", "rehearse", "--gpu", "h100", "--env",
               str(environment), "--", "python", "-c",
               "import time; print('here', flush=True); time.sleep(600)"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tritter-mem")]


def test_what_other_kernels_write_is_not_known_any_more(rehearse: Any) -> None:
    found = rehearse("other_kernels.py")
    assert found.record["command"]["exit_code"] == 0, found.printed
    assert "read fine" in found.printed
    decided = lines_of(found.trust["values_decided_shapes"], "other_kernels.py")
    assert decided == lines_with("other_kernels.py", "DECIDES")


def test_tokens_that_an_engine_s_warm_up_throws_away_decide_nothing(
    rehearse: Any, tmp_path: Path
) -> None:
    """What it does in other ways with values that are not known still decides."""
    folder = tmp_path / "vllm/v1/worker/gpu"
    folder.mkdir(parents=True)
    (folder / "runner.py").write_text("def run(tokens):\n    tokens.cpu()\n")
    (folder / "warmup.py").write_text(
        "def run(tokens):\n    tokens.cpu()\n\ndef decide(tokens):\n    tokens.item()\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch; from vllm.v1.worker.gpu import warmup, runner\n"
        "large = torch.randn(512, 512, device='cuda') @ torch.randn(512, 512, device='cuda')\n"
        "token = large[0].argmax()\nwarmup.run(token)\n"
        "if len(sys.argv) > 1: warmup.decide(token); runner.run(token)"
    )
    found = rehearse("", "-c", code)
    assert found.exit_code == 0, found.trust
    assert lines_of(found.trust["assumed"], "warmup.py") == {2}
    found = rehearse("", "-c", code, "more")
    assert lines_of(found.trust["values_decided_shapes"], "warmup.py") == {5}
    assert lines_of(found.trust["values_decided_shapes"], "runner.py") == {2}


def test_two_rehearsals_at_once_know_nothing_of_each_other(
    environment: Path, tmp_path: Path
) -> None:
    """Each has its own card: 3 GiB of 4 are taken in both while the other waits.

    Their home cannot be written, so both make stand-ins in the folder for temporary files.
    """
    code = (
        "import pathlib, sys, time, torch;"
        "kept = torch.empty(int(sys.argv[1]) << 20, dtype=torch.uint8, device='cuda');"
        "own, other = map(pathlib.Path, sys.argv[2:]); own.touch();\n"
        "while not other.exists(): time.sleep(0.1)"
    )
    sizes, files = (3000, 3100), (tmp_path / "a", tmp_path / "b")
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tritter_mem",
                "rehearse",
                "--json",
                "--gpu",
                "rtx-4090",
                "--budget",
                "4GiB",
                "--env",
                str(environment),
                "--until",
                "300",
                "--",
                "python",
                "-c",
                code,
                str(size),
                str(own),
                str(other),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HOME": "/proc", "XDG_CACHE_HOME": "", "TMPDIR": str(tmp_path)},
        )
        for size, own, other in zip(sizes, files, files[::-1], strict=True)
    ]
    for size, process in zip(sizes, running, strict=True):
        printed, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        record = json.loads(printed)
        assert record["command"]["ended_by"] == ""
        assert [use["allocated_peak_bytes"] for use in record["ranks"]] == [size * MiB]
