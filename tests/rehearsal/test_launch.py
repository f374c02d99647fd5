"""Starting a command: in which environment, on which machine, until when; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tritter_mem.cli.main import app
from tritter_mem.config.cards import find_card
from tritter_mem.errors import InputError, MeasureError, UsageError
from tritter_mem.rehearsal import engines, environment_setup, launch
from tritter_mem.rehearsal.build import cache_folder
from tritter_mem.rehearsal.collect import Left, collect
from tritter_mem.rehearsal.environment_setup import nvidia_requirements, write_empty_distribution
from tritter_mem.rehearsal.launch import Machine, Until, python_of, torch_of, until_ready
from tritter_mem.rehearsal.rehearse import Options, _trust, _verdict, rehearse
from tritter_mem.report.rehearsal_report import verdict_words
from tritter_mem.results.rehearsal import (
    Command,
    EngineFigures,
    RankUse,
    Refusal,
    Rehearsal,
    Trust,
    fullest,
)
from tritter_mem.results.verdict import KINDS
from tritter_mem.units import GiB, MiB


def environment_with(folder: Path, *, cuda: str | None, version: str = "2.14.0") -> Path:
    """An environment whose Python finds a torch that was built for a CUDA, or for none."""
    site = folder / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text("")
    (site / "torch/version.py").write_text(
        f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n"
    )
    python = folder / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["rehearse", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "missing COMMAND: write it after `--`"),
        (("--", "python"), "missing --gpu: name the GPU"),
        (("--gpu", "rtx-9999", "--", "python"), "'rtx-9999' is not a known card"),
        (("--gpu", "h100", "--", "no-such-program"), "no-such-program: no such command"),
        (("--gpu", "h100", "--gpus", "17", "--", "python"), "--gpus: got 17, expected 1 to 16"),
        (("--gpu", "h100", "--budget", "much", "--", "python"), "--budget: got 'much'"),
        (
            ("--gpu", "h100", "--budget", "1MiB", "--", "python"),
            "the CUDA context alone needs more",
        ),
        (("--gpu", "h100", "--rank", "8", "--world-size", "8", "--", "python"), "expected 0 to 7"),
        (("--gpu", "h100", "--until", "nan", "--", "python"), "--until: got nan s"),
        (("--gpu", "h100", "--until", "1e400", "--", "python"), "--until: got 1e400 s"),
        (("--gpu", "h100", "--until", "-3", "--", "python"), "--until: got -3 s"),
    ],
)
def test_wrong_usage_is_one_clear_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_torch_without_cuda_is_refused_and_what_to_do_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for cuda_torch, words in ((True, "a build for the CPU"), (False, "has no torch")):
        folder = environment_with(tmp_path / str(cuda_torch), cuda=None)
        if not cuda_torch:
            (folder / "site/torch/__init__.py").unlink()
            (folder / "site/torch/version.py").unlink()
            (folder / "site/torch").rmdir()
            python = folder / "bin/python"
            python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        with pytest.raises(MeasureError, match=words) as error:
            rehearse(["python", "-c", "0"], "h100", Options(environment=folder))
        assert "rehearse --setup" in str(error.value)


def test_torch_is_found_without_importing_it(tmp_path: Path) -> None:
    folder = environment_with(tmp_path, cuda="12.8", version="2.9.1+cu128")
    found = torch_of(str(folder / "bin/python"))
    assert (found.version, found.cuda) == ("2.9.1+cu128", "12.8")
    assert found.torch == tmp_path / "site/torch"
    with pytest.raises(UsageError, match="cannot be run"):
        torch_of(str(tmp_path / "missing"))


def test_a_script_runs_in_the_python_of_its_first_line(tmp_path: Path) -> None:
    script = tmp_path / "torchrun"
    script.write_text("#!/opt/other/bin/python3.11\n")
    assert python_of(script) == "/opt/other/bin/python3.11"
    script.write_text(f"#!/usr/bin/env {Path(sys.executable).name}\n")
    assert Path(python_of(script)).name.startswith("python")
    assert python_of(Path("/x/bin/python3.12")) == "/x/bin/python3.12"


def test_the_command_s_environment_stays_but_for_what_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("LD_PRELOAD", "/mine.so")
    machine = Machine(card=find_card("rtx-4090"), devices=2, memory_bytes=20 * GiB)
    found = launch.environment_for(machine, tmp_path, tmp_path / "session", None)
    assert found["PYTHONPATH"].split(os.pathsep) == [str(launch.INSIDE), "/mine"]
    assert found["LD_PRELOAD"].split(":")[-1] == "/mine.so"
    assert found["STANDIN_MEMORY_MIB"] == str(20 * 1024)
    assert (found["STANDIN_CAPABILITY"], found["STANDIN_DEVICES"]) == ("8.9", "2")
    assert "RANK" not in machine.environment()


def test_a_rehearsal_neither_reads_nor_keeps_what_compilers_and_autotuners_keep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/mine")
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    machine = Machine(card=find_card("h100"), devices=1, memory_bytes=20 * GiB)
    found = launch.environment_for(machine, tmp_path, tmp_path / "session", None)
    folders = [Path(found[name]) for name in launch.CACHES]
    assert all(tmp_path / "session" in folder.parents for folder in folders)
    assert len(set(folders)) == len(folders) > 4


def test_a_card_shows_less_than_it_has() -> None:
    for name, least, most in (("rtx-4090", 23.6, 23.7), ("h100", 79.1, 79.2), ("l4", 22.0, 22.2),
                              ("rtx-3090", 23.6, 23.7), ("rtx-5090", 31.3, 31.4)):  # fmt: skip
        assert least < launch.shown_bytes(find_card(name)) / GiB < most


def test_servers_are_ended_once_they_are_ready() -> None:
    assert until_ready(["/x/bin/vllm", "serve", "model"]).text == "Application startup complete"
    assert until_ready(["python", "-m", "sglang.launch_server"]).text.startswith("The server is")
    assert until_ready(["vllm", "serve", "m", "--port", "8123"]).ask == "http://127.0.0.1:8123"
    assert until_ready(["python", "serve.py"]) == Until()


def test_an_engine_s_figures_are_read_from_its_output() -> None:
    lines = (
        "(EngineCore pid=1) INFO [x.py:1] Model loading took 15.27 GiB memory and 3.1 seconds",
        "INFO [x.py:2] Available KV cache memory: 53.73 GiB",
        "INFO [x.py:3] GPU KV cache size: 391,216 tokens, Maximum concurrency for 32,768 tokens "
        "per request: 11.94x",
        "INFO [x.py:4] Graph capturing finished in 3 secs, took 0.38 GiB",
        "INFO [x.py:5] Available KV cache memory: 1 GiB",
    )
    assert all(engines.LINE.search(line) for line in lines)
    engine = engines.engine_of(["vllm", "serve", "model"])
    assert engine is not None
    assert engines.figures_of(engine, lines) == EngineFigures(
        name="vllm", weights_bytes=round(15.27 * GiB), graphs_bytes=round(0.38 * GiB),
        kv_cache_bytes=round(53.73 * GiB), kv_cache_tokens=391_216, context_tokens=32_768,
        max_concurrency=11.94,
    )  # fmt: skip


def test_a_server_that_does_not_answer_is_said() -> None:
    assert "was not answered" in engines.ask("http://127.0.0.1:9")


def test_empty_distributions_stand_for_nvidia_s(tmp_path: Path) -> None:
    metadata = tmp_path / "torch-2.14.0.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(
        'Requires-Dist: nvidia-nccl-cu13==2.30.7; platform_system == "Linux"\n'
        "Requires-Dist: cuda-toolkit[cublas,cudart]==13.0.3; x\nRequires-Dist: sympy>=1.13.3\n"
        "Requires-Dist: cuda-bindings<14,>=13.0.3\n"
    )
    found = list(nvidia_requirements(tmp_path))
    assert found == [("nvidia-nccl-cu13", "2.30.7"), ("cuda-toolkit", "13.0.3")]
    real = tmp_path / "nvidia_nccl_cu13-2.0.dist-info"
    real.mkdir()
    (real / "INSTALLER").write_text("pip\n")
    for name, version in found:
        write_empty_distribution(tmp_path, name, version)
    write_empty_distribution(tmp_path, "cuda-toolkit", "13.1")
    assert {path.name for path in tmp_path.iterdir()} == {
        "torch-2.14.0.dist-info", "nvidia_nccl_cu13-2.0.dist-info", "cuda_toolkit-13.1.dist-info",
    }  # fmt: skip


def test_an_environment_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        environment_setup.set_up(tmp_path, None, tmp_path / "missing.txt")
    monkeypatch.setattr(environment_setup, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(MeasureError, match="GiB of disk are free"):
        environment_setup.set_up(tmp_path / "new", None, None)
    python = tmp_path / "old/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\necho 'ERROR: Cannot install torch===9, which a constraint refuses' >&2\n"
        "echo 'ERROR: ResolutionImpossible: for help visit a page' >&2\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(MeasureError, match="Cannot install torch===9"):
        environment_setup.set_up(tmp_path / "old", "9", None)


def test_a_folder_that_is_gone_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="was deleted while the command ran"):
        collect(tmp_path / "gone")
    (tmp_path / "processes").write_bytes(b"x" * 64)
    with pytest.raises(InputError, match="not a table"):
        collect(tmp_path)


def test_what_the_rehearsal_s_own_request_draws_decides_only_its_end(tmp_path: Path) -> None:
    notes = [{"kind": "decided", "text": text, "at": at} for text, at in (("a", 1.0), ("b", 3.0))]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps(note) + "\n" for note in notes))
    found = collect(tmp_path, asked_at=2.0)
    assert (found.decided, found.assumed) == (("a",), ("b",))
    assert collect(tmp_path).decided == ("a", "b")


def test_what_a_full_disk_cut_off_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "process-1.json").write_text('{"pid": 1, "ra')
    (tmp_path / "process-2.json").write_text('{"pid": 2}\n[1]\n')
    (tmp_path / "notes.jsonl").write_text("[" * 100_000)
    assert collect(tmp_path).versions == {}
    head = struct.pack("<QQQQ", 0x7472697474657231, 1 << 62, 1416, 32)
    for table in (b"", head[:20], head):
        (tmp_path / "processes").write_bytes(table)
        with pytest.raises(InputError, match="not a table"):
            collect(tmp_path)


def test_a_command_ends_when_nobody_reads_its_output(tmp_path: Path) -> None:
    environment = {**os.environ, launch.SESSION: str(tmp_path)}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb", buffering=0) as output:
        ended = launch.run(["yes"], environment, Until(text="never"), output)
    assert ended.exit_code == -signal.SIGPIPE


def test_a_text_is_seen_in_a_line_without_an_end(tmp_path: Path) -> None:
    """The line is not kept whole, however long it grows; the text lies over two of its pieces."""
    environment = {**os.environ, launch.SESSION: str(tmp_path)}
    script = "head -c 65533 /dev/zero; printf ready; exec sleep 300 >/dev/null 2>&1"
    with Path(os.devnull).open("wb") as output:
        ended = launch.run(["sh", "-c", script], environment, Until(text="ready"), output)
    assert ended.by == "--until"
    assert ended.seconds < 200


def test_the_folder_that_we_are_in_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    found = torch_of(sys.executable)
    assert found.torch is None or found.torch != tmp_path / "torch"


def test_nothing_is_preloaded_from_where_others_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"tritter-mem-{os.getuid()}"
    assert cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(MeasureError, match="others may write there"):
        cache_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MeasureError, match="others may write there"):
        cache_folder()


def test_a_torch_without_true_values_is_not_trusted() -> None:
    """PyTorch before 2.10 does not let its kernels be replaced: no value would be true."""
    machine = Machine(card=find_card("h100"), devices=1, memory_bytes=GiB)
    old = Left(uncounted=("this PyTorch is too old for true values: none is computed",))
    assert not _trust(old, machine, launch.Ended(0, 1.0)).trusted
    assert _trust(Left(), machine, launch.Ended(0, 1.0)).trusted


def use(rank: int, peak: int) -> RankUse:
    return RankUse(
        rank=rank, process=rank, title="", device=rank, allocated_peak_bytes=peak,
        reserved_peak_bytes=peak, active_peak_bytes=peak, requested_peak_bytes=peak,
        device_peak_bytes=peak, allocated_end_bytes=0, reserved_end_bytes=0, retries=0, refusals=0,
    )  # fmt: skip


def rehearsal(exit_code: int = 0, *, ended_by: str = "", **of: object) -> Rehearsal:
    base: dict[str, object] = {
        "created": "", "tool_version": "", "gpu": "h100", "title": "", "devices": 1,
        "total_bytes": GiB, "context_bytes": MiB, "context_source": "", "trust": Trust(),
        "command": Command(argv=("x",), exit_code=exit_code, seconds=1.0, ended_by=ended_by),
        "rehearsed": use(0, MiB), "ranks": (use(0, MiB),),
    }  # fmt: skip
    return Rehearsal(**base | of)  # type: ignore[arg-type]


REFUSED = Refusal(process=1, device=0, where="", requested_bytes=1, allocated_bytes=0,
                  reserved_bytes=0, free_bytes=0)  # fmt: skip
DECIDED = Trust(values_decided_shapes=("a.py:1",))


@pytest.mark.parametrize(
    ("done", "code"),
    [
        (rehearsal(), 0),
        (rehearsal(1, refusals=(REFUSED,)), 1),
        (rehearsal(0, refusals=(REFUSED,)), 0),
        (rehearsal(1), 2),
        (rehearsal(-15, ended_by="--until"), 0),
        (rehearsal(trust=DECIDED), 3),
        (rehearsal(trust=DECIDED, accepted=True), 0),
        (rehearsal(trust=Trust(assumed=("a.py:1",))), 0),
        (rehearsal(trust=Trust(problems=("x",))), 3),
        (rehearsal(rehearsed=None), 3),
        (rehearsal(1, interrupted=True, refusals=(REFUSED,)), 130),
    ],
)
def test_exit_codes(done: Rehearsal, code: int) -> None:
    assert done.exit_code == code


@pytest.mark.parametrize(
    ("done", "fits"),
    [
        (rehearsal(), True),
        (rehearsal(1, refusals=(REFUSED,)), False),
        (rehearsal(1), None),
        (rehearsal(rehearsed=None), None),
        (rehearsal(trust=DECIDED), None),
        (rehearsal(trust=DECIDED, accepted=True), True),
    ],
)
def test_a_run_that_cannot_be_trusted_has_no_verdict(done: Rehearsal, fits: bool | None) -> None:
    verdict = _verdict(done)
    assert (verdict.fits if verdict else None) is fits
    assert ("fits: " in verdict_words(replace(done, verdict=verdict))) is (fits is True)


def test_the_top_figures_are_those_of_the_fullest_rank() -> None:
    assert fullest((use(0, 5), use(1, 9), use(2, 9))) == use(1, 9)
    assert fullest(()) is None
    assert "rehearsed" in KINDS
