"""The stand-ins for CUDA's libraries: what they are made of, and what they answer."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tritter_mem.errors import InputError, MeasureError, UsageError
from tritter_mem.rehearsal import build
from tritter_mem.rehearsal.build import DRIVER, LIBRARIES, CudaOfTorch
from tritter_mem.rehearsal.elf import read_library

pytestmark = [
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
    pytest.mark.skipif(
        (platform.system(), platform.machine()) != ("Linux", "x86_64"),
        reason="stand-ins are made on Linux on x86-64",
    ),
]
ASKED = {
    "cudart": {"cudaMalloc": "", "cudaFree": "", "cudaMemGetInfo": ""},
    "cublas": {"cublasSgemm_v2": "", "cublasSasum_v2": "", "cublasCreate_v2": ""},
    "cufft": {"cufftXtMakePlanMany": ""},
    "nvshmem": {"nvshmem_malloc": "", "nvshmemid_init_status": ""},
    "nccl": {"ncclAllReduce": "", "ncclCommShrink": ""},
}


def compiled(path: Path, source: str, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_suffix(".c")
    text.write_text(source)
    command = ["cc", "-shared", "-fPIC", "-w", "-o", str(path), str(text), *options]
    subprocess.run(command, check=True)
    return path


def torch_for(folder: Path, major: int, *, functions: str = "cudaMalloc cublasSgemm_v2") -> Path:
    """A folder as that of the package torch, whose library asks for CUDA of a release."""
    made = compiled(
        folder / f"libcudart.so.{major}",
        "int cudaMalloc(void) { return 0; }",
        f"-Wl,-soname,libcudart.so.{major}",
    )
    script = folder / "versions"
    script.write_text(f"libcudart.so.{major} {{ global: *; }};")
    compiled(made, "int cudaMalloc(void) { return 0; }", f"-Wl,-soname,libcudart.so.{major}",
             f"-Wl,--version-script={script}")  # fmt: skip
    calls = "".join(f"int {name}();" for name in functions.split())
    body = "".join(f"{name}();" for name in functions.split())
    compiled(
        folder / "torch/lib/libtorch_cuda.so", f"{calls} void use(void) {{ {body} }}", str(made)
    )
    return folder / "torch"


@pytest.fixture(scope="module", params=[12, 13])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"cuda-{request.param}")
    build.build(CudaOfTorch(major=request.param, machine="x86-64", functions=ASKED), folder)
    return folder


def run_over(folder: Path, code: str, **environment: str) -> str:
    """What Python prints that has loaded the stand-ins."""
    libraries = ":".join(map(str, build.libraries_of(folder)))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"LD_PRELOAD": libraries} | environment,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return ran.stdout + ran.stderr


def test_a_library_s_symbols_are_read_as_binutils_reads_them(tmp_path: Path) -> None:
    library = torch_for(tmp_path, 12) / "lib/libtorch_cuda.so"
    found = read_library(library)
    assert found.machine == "x86-64"
    assert "libcudart.so.12" in found.needed
    assert found.wanted["cudaMalloc"] == "libcudart.so.12"
    assert found.wanted["cublasSgemm_v2"] == ""
    assert "use" in found.defined
    if shutil.which("nm"):
        listed = subprocess.run(
            ["nm", "-D", "--defined-only", str(library)], check=True, capture_output=True, text=True
        )
        assert found.defined == {line.split()[-1] for line in listed.stdout.splitlines()}


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no").write_bytes(b"\x7fELF\x02\x01 and nothing")
    for path in (tmp_path / "no", tmp_path / "missing", Path(__file__)):
        with pytest.raises(InputError, match="not a readable shared library"):
            read_library(path)


def test_the_names_of_libraries_follow_torch_s_cuda(tmp_path: Path) -> None:
    for major, fft in ((12, "libcufft.so.11"), (13, "libcufft.so.12")):
        cuda = build.cuda_of(torch_for(tmp_path / str(major), major))
        assert (cuda.major, cuda.soname("cudart")) == (major, f"libcudart.so.{major}")
        assert cuda.soname("cufft") == fft
        assert cuda.functions["cublas"] == {"cublasSgemm_v2": ""}


def test_a_torch_that_cannot_be_rehearsed_is_refused(tmp_path: Path) -> None:
    compiled(tmp_path / "cpu/torch/lib/libtorch_cpu.so", "int use(void) { return 1; }")
    with pytest.raises(UsageError, match="built without CUDA"):
        build.cuda_of(tmp_path / "cpu/torch")
    with pytest.raises(UsageError, match="built for CUDA 11; there are stand-ins for CUDA 12, 13"):
        build.cuda_of(torch_for(tmp_path / "old", 11))


def exported(built: Path, family: str) -> set[str]:
    major = 12 if list(built.glob("libcudart.so.12")) else 13
    cuda = CudaOfTorch(major=major, machine="x86-64", functions=ASKED)
    [path] = [path for path in build.libraries_of(built) if path.name == cuda.soname(family)]
    return set(read_library(path).defined)


@pytest.mark.parametrize("family", ASKED)
def test_every_function_that_is_asked_for_is_there(built: Path, family: str) -> None:
    assert ASKED[family].keys() <= exported(built, family)


@pytest.mark.parametrize(
    ("family", "least"),
    [("cudart", 400), ("cuda", 500), ("cublas", 700), ("cublasLt", 150), ("nvml", 350),
     ("nccl", 150)],
)  # fmt: skip
def test_what_nvidia_s_library_exports_is_there(built: Path, family: str, least: int) -> None:
    """As `nm -D` shows it of the wheels; of the driver and NVML, as headers declare it."""
    major = 12 if list(built.glob("libcudart.so.12")) else 13
    listed = (DRIVER / f"functions/{family}-{major}.txt").read_text().split()
    assert len(listed) > least
    assert set(listed) <= exported(built, family)


@pytest.mark.parametrize("family", ["cuda", "cudart", "nvml"])
def test_no_version_of_a_function_hides_one_that_is_there(family: str) -> None:
    """`cuGetProcAddress` takes the second version of a name: where one is there, both are."""
    text = "".join((DRIVER / source).read_text() for source in LIBRARIES[family].sources)
    written = build.definitions(text)
    listed = (DRIVER / f"functions/{family}-13.txt").read_text().split()
    plain = {name: re.sub(r"_v\d$", "", name) for name in listed}
    missing = {name for name, other in plain.items()
               if name not in written and name != other and other in written}  # fmt: skip
    assert missing <= {"cuStreamBeginCaptureToGraph_v2"}, missing


def test_no_quiet_function_of_cublas_writes_to_the_host() -> None:
    """Quiet are products of matrices and what else fills device memory, and settings."""
    stood = LIBRARIES["cublas"]
    written = build.definitions((DRIVER / "libraries.c").read_text())
    for major in (12, 13):
        listed = (DRIVER / f"functions/cublas-{major}.txt").read_text().split()
        quiet = [name for name in listed if re.fullmatch(stood.quiet, name)]
        quiet = [name for name in quiet if name not in written]
        assert len(quiet) > 300
        host = re.compile(r"dot|Dot|asum|nrm2|amax|amin|rotg|rotmg|Get|Vector|Matrix|Alloc|Create")
        assert not [name for name in quiet if host.search(name)]


OUTPUTS = re.compile(r"Get|Query|Size|Create|Count|Find|Version|Find|Exchange|Workspace|Analysis")
"""Words in the names of functions that answer something."""
FAMILIES_LISTED = {
    # torch 2.11 and 2.14 ask these for; names with an answer, of which none may be quiet.
    "cublas": "cublasGetMathMode cublasGetPointerMode_v2 cublasGetVectorAsync cublasSasum_v2 "
              "cublasIsamax_v2 cublasSrotg_v2 cublasSnrm2_v2 cublasSgeqrfBatched",
    "cudnn": "cudnnGetConvolutionForwardAlgorithm_v7 cudnnGetRNNWeightSpaceSize cudnnGetProperty "
             "cudnnBackendCreateDescriptor cudnnDropoutGetStatesSize cudnnGetStream",
    "cufft": "cufftCreate cufftXtMakePlanMany cufftXtExec",
    "cusolver": "cusolverDnSgeqrf_bufferSize cusolverDnXsyevd cusolverDnCreateParams",
    "cusparse": "cusparseCreateCsr cusparseSpMM_bufferSize cusparseSpMatGetSize",
    "nccl": "ncclCommShrink ncclCommWindowRegister ncclGroupSimulateEnd",
    "cudart": "cudaIpcGetMemHandle cudaMemPoolGetAttribute cudaGraphGetEdges",
    "cuda": "cuMemRetainAllocationHandle cuMulticastCreate cuGreenCtxCreate",
}  # fmt: skip


@pytest.mark.parametrize("family", LIBRARIES)
def test_no_function_with_outputs_returns_success_and_writes_nothing(family: str) -> None:
    """What is not implemented fails, but for functions that have no outputs."""
    names = dict.fromkeys(FAMILIES_LISTED.get(family, "").split(), "")
    cuda = CudaOfTorch(major=13, machine="x86-64", functions={family: names})
    source = build.other_functions(family, build.all_functions(family, cuda))
    quiet = re.findall(r"long (\w+)\(void\) \{ return 0; \}", source)
    refused = re.findall(r'long (\w+)\(void\) \{ return session_refuse\("(\w+)"', source)
    assert not [name for name in quiet if OUTPUTS.search(name) and "Set" not in name]
    assert all(one == other for one, other in refused)
    text = "".join((DRIVER / name).read_text() for name in LIBRARIES[family].sources)
    written = build.definitions(text)
    assert names.keys() <= {one for one, _ in refused} | written


def test_a_function_that_is_missing_fails_with_its_name(built: Path, tmp_path: Path) -> None:
    code = (
        "import ctypes; every = ctypes.CDLL(None);"
        "print(every.cufftXtMakePlanMany(), every.cufftXtMakePlanMany(), every.ncclCommShrink());"
        "print(every.cublasSgemm_v2(), every.nvshmem_malloc(), every.nvshmemid_init_status())"
    )
    printed = run_over(built, code, STANDIN_SESSION=str(tmp_path))
    assert printed.splitlines()[:2] == ["16 16 5", "0 0 1"]
    assert printed.count("cufftXtMakePlanMany is not in the stand-ins") == 1
    noted = (tmp_path / "stubs").read_text().splitlines()
    assert noted == [
        "cufftXtMakePlanMany",
        "ncclCommShrink",
        "nvshmem_malloc",
        "nvshmemid_init_status",
    ]


def test_a_card_answers_that_it_is_in_no_fabric(built: Path, tmp_path: Path) -> None:
    """PyTorch 2.13 makes no expandable segment where the question fails."""
    code = (
        "import ctypes; every = ctypes.CDLL(None)\n"
        "info = ctypes.create_string_buffer(b'x' * 40, 40)\n"
        "print(every.nvmlDeviceGetGpuFabricInfoV(None, info), info.raw)"
    )
    answer = b"xxxx" + bytes(28) + b"x" * 8  # a version, the cluster, status, clique and state
    assert run_over(built, code, STANDIN_SESSION=str(tmp_path)) == f"0 {answer!r}\n"
    assert not (tmp_path / "stubs").exists()


def test_a_cudart_that_is_linked_statically_finds_no_device_and_is_noted(
    built: Path, tmp_path: Path
) -> None:
    """It asks the driver for tables of functions that are not documented, before all else."""
    code = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuGetExportTable(None, None))"
    printed = run_over(built, code, STANDIN_SESSION=str(tmp_path))
    assert printed.startswith("801\n")
    assert (tmp_path / "stubs").read_text() == "cuGetExportTable\n"
    from tritter_mem.rehearsal.collect import collect

    [note] = [line for line in collect(tmp_path).uncounted if "statically" in line]
    assert "not counted" in note


def test_cudnn_is_too_old_for_its_attention_until_a_version_is_said(built: Path) -> None:
    code = (
        "import ctypes; every = ctypes.CDLL(None); part = ctypes.c_int()\n"
        "def said():\n"
        "    read = lambda at: every.cudnnGetProperty(at, ctypes.byref(part)) or part.value\n"
        "    return every.cudnnGetVersion(), *map(read, (0, 1, 2))\n"
        "print(said()); every.tritter_standin_cudnn_version(ctypes.c_size_t(91900)); print(said())"
    )
    assert run_over(built, code).splitlines() == ["(80900, 8, 9, 0)", "(91900, 9, 19, 0)"]


MEMORY = """
import ctypes
import errno
every = ctypes.CDLL(None)
def take(size):
    at = ctypes.c_void_p()
    return every.cudaMalloc(ctypes.byref(at), ctypes.c_size_t(size)), at
def left():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    every.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return free.value >> 20, total.value >> 20
"""


def test_a_device_has_as_much_memory_as_it_is_said_to_have(built: Path) -> None:
    code = MEMORY + (
        "print(left()); error, first = take(600 << 20); print(error, left());"
        "print(take(300 << 20)[0]); print(every.cudaFree(first), left()[0]);"
        "print(take(900 << 20)[0], every.cudaSetDevice(1), every.cudaSetDevice(2)); "
    )
    printed = run_over(built, code, STANDIN_MEMORY_MIB="1000", STANDIN_CONTEXT_MIB="100",
                       STANDIN_DEVICES="2")  # fmt: skip
    assert printed.splitlines() == ["(900, 1000)", "0 (300, 1000)", "0", "0 600", "2 0 101"]


def test_devices_have_their_memory_each(built: Path) -> None:
    code = MEMORY + (
        "take(100 << 20); every.cudaSetDevice(1); take(200 << 20); print(left()[0]);"
        "every.cudaSetDevice(0); print(left()[0])"
    )
    settings = {"STANDIN_MEMORY_MIB": "1000", "STANDIN_CONTEXT_MIB": "10", "STANDIN_DEVICES": "2"}
    assert run_over(built, code, **settings).split() == ["790", "890"]
    # The first that a process sees may be the machine's second.
    count = "n = ctypes.c_int(); print(every.cudaGetDeviceCount(ctypes.byref(n)), n.value)"
    for visible, answer in (("1", "0 1"), ("", "100 0"), ("0,1", "0 2"), ("1,7", "0 1")):
        found = run_over(built, MEMORY + count, **settings, CUDA_VISIBLE_DEVICES=visible)
        assert found.strip() == answer


def test_processes_share_a_device_and_the_dead_give_back(built: Path, tmp_path: Path) -> None:
    code = MEMORY + (
        "import os, sys\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    take(500 << 20); os.kill(os.getpid(), 9)\n"
        "os.waitpid(child, 0)\n"
        "print(left()[0], take(700 << 20)[0], take(300 << 20)[0])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    print(take(300 << 20)[0], flush=True); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    printed = run_over(built, code, STANDIN_SESSION=str(tmp_path), STANDIN_MEMORY_MIB="1000",
                       STANDIN_CONTEXT_MIB="10")  # fmt: skip
    assert printed.split() == ["990", "0", "2", "2"]


def test_many_processes_are_remembered(built: Path, tmp_path: Path) -> None:
    """More than there is room for, one after another: the largest stays known."""
    code = MEMORY + (
        "import os\n"
        "for number in range(2100):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        take((200 if number == 7 else 2) << 20); os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
    )
    run_over(built, code, STANDIN_SESSION=str(tmp_path), STANDIN_MEMORY_MIB="1000",
             STANDIN_CONTEXT_MIB="10")  # fmt: skip
    from tritter_mem.rehearsal.collect import collect

    uses = collect(tmp_path).uses
    assert max(use.device_peak_bytes for use in uses) == 210 << 20
    assert len(uses) >= 2000


CAPTURE = """
import ctypes
import errno
every = ctypes.CDLL(None)
def made(function):
    handle = ctypes.c_void_p()
    flags = [1] if "Flags" in function else []
    assert getattr(every, function)(ctypes.byref(handle), *flags) == 0
    return handle
main, side = made("cudaStreamCreateWithFlags"), made("cudaStreamCreateWithFlags")
def work(stream): every.cudaMemsetAsync(None, 0, ctypes.c_size_t(0), stream)
def record(stream):
    event = made("cudaEventCreate")
    every.cudaEventRecord(event, stream)
    return event
def wait(stream, event): return every.cudaStreamWaitEvent(stream, event, 0)
assert every.cudaStreamBeginCapture(main, 0) == 0
wait(side, record(main))
work(side); older = record(side); work(side); newer = record(side)
"""


@pytest.mark.parametrize(
    ("waits", "error"),
    [("older newer", 0), ("newer older", 0), ("older", 904), ("newer", 0)],
)
def test_a_capture_is_joined_by_the_latest_event_that_was_waited_for(
    waits: str, error: int, built: Path
) -> None:
    code = (
        CAPTURE
        + "".join(f"wait(main, {event});" for event in waits.split())
        + (
            "\ngraph = ctypes.c_void_p()"
            "\nprint(every.cudaStreamEndCapture(main, ctypes.byref(graph)))"
        )
    )
    assert run_over(built, code).strip() == str(error)


def test_a_card_of_another_generation_has_its_limits(built: Path) -> None:
    code = (
        "import ctypes; every = ctypes.CDLL(None); n = ctypes.c_int()\n"
        "for a in (75, 76, 16, 39, 81, 97):\n"
        "    every.cudaDeviceGetAttribute(ctypes.byref(n), a, 0); print(n.value)"
    )
    printed = run_over(built, code, STANDIN_CAPABILITY="8.9", STANDIN_MULTIPROCESSORS="128")
    assert printed.split() == ["8", "9", "128", "1536", "102400", "101376"]


def test_the_layout_of_properties_is_cuda_s(tmp_path: Path) -> None:
    """Offsets as NVIDIA's headers of 12.8 and 13.0 have them."""
    fields = (
        "totalGlobalMem", "major", "multiProcessorCount", "l2CacheSize",
        "sharedMemPerMultiprocessor", "sharedMemPerBlockOptin", "reservedSharedMemPerBlock",
    )  # fmt: skip
    prints = "".join(f'printf("%zu ", offsetof(struct cudaDeviceProp, {name}));' for name in fields)
    source = (
        f'#include "cuda_types.h"\n#include <stdio.h>\nint main(void) {{ {prints}'
        'printf("%zu %zu", sizeof(struct cudaDeviceProp), sizeof(struct cudaPointerAttributes)); }'
    )
    (tmp_path / "layout.c").write_text(source)
    found = {}
    for major in (12, 13):
        command = ["cc", f"-DCUDA_MAJOR={major}", f"-I{DRIVER}", "-o", str(tmp_path / "layout")]
        subprocess.run([*command, str(tmp_path / "layout.c")], check=True)
        ran = subprocess.run([tmp_path / "layout"], check=True, capture_output=True, text=True)
        found[major] = ran.stdout
    assert found == LAYOUTS


LAYOUTS = {
    12: "288 360 388 616 640 696 720 1032 24",
    13: "288 360 384 596 624 672 696 1008 88",
}


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    for name in (build.COMPILER_VARIABLE, "CC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MeasureError, match=r"no C compiler: .*ziglang"):
        build.compiler()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(build.COMPILER_VARIABLE, "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MeasureError, match=r"libcuda\.so\.1 cannot be compiled"):
        build.stand_ins_for(torch_for(tmp_path, 13))
    assert not list((tmp_path / "cache").rglob("complete"))


def test_they_are_built_once_and_a_read_only_cache_is_passed_by(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch = torch_for(tmp_path, 13)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = build.stand_ins_for(torch)
    assert first.is_relative_to(tmp_path / "cache")
    before = (first / "libcuda.so.1").stat().st_mtime_ns
    assert build.stand_ins_for(torch) == first
    assert (first / "libcuda.so.1").stat().st_mtime_ns == before
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not build.cache_folder().is_relative_to(tmp_path / "file")


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(MeasureError, match="needs Linux on x86-64; this is Darwin"):
        build.refuse_other_machines()
    assert ctypes.sizeof(ctypes.c_void_p) == 8


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*of: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "build", full)
    with pytest.raises(MeasureError, match="No space left on device"):
        build.stand_ins_for(torch_for(tmp_path, 13))
    assert not list((tmp_path / "cache").rglob("made"))
