"""Build the stand-ins that let PyTorch's CUDA build load, and its allocator run, without a GPU.

The functions that PyTorch's libraries ask of CUDA's are read off them. What `driver/` implements is
compiled; of the rest, a function that only computes on the device or sets something returns
success, and every other one fails with its name. So none returns success and leaves an output
unwritten.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tritter_mem.errors import MeasureError, UsageError
from tritter_mem.rehearsal.elf import SharedLibrary, read_library

DRIVER = Path(__file__).parent / "driver"
NVML = "nvml"
"""NVML's folder within the libraries', for containers lack it now and then."""
COMPILER_VARIABLE = "TRITTER_MEM_CC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stood:
    """A library of CUDA that is stood in for.

    Attributes:
        prefixes: how the names of its functions begin.
        soname: a pattern of its file's name; `{major}` stands for CUDA's release.
        error: what a function that is not implemented returns.
        quiet: of functions that have no outputs on the host: they compute on the device, or set
            something, and return success. Those with outputs among them are implemented.
        pointers: of functions that return addresses: 0 is their failure.
        sources: its files.
    """

    prefixes: tuple[str, ...]
    soname: str
    error: int
    quiet: str = r"(?!)"
    pointers: str = r"(?!)"
    sources: tuple[str, ...] = ("libraries.c",)


LIBRARIES = {
    "cuda": Stood(prefixes=("cu",), soname="libcuda.so.1", error=801,
                  sources=("driver.c", "capture.c", "session.c", "host.c")),
    "cudart": Stood(prefixes=("__cuda", "cuda"), soname="libcudart.so.{major}", error=801,
                    sources=("runtime.c",)),
    "cublasLt": Stood(prefixes=("cublasLt",), soname="libcublasLt.so.{major}", error=15,
                      quiet=r"cublasLtMatmul|\w+SetAttribute"),
    "cublas": Stood(prefixes=("cublas",), soname="libcublas.so.{major}", error=15,
                    quiet=r"cublasSet(?!Vector|Matrix)\w+|cublas\w*(Gemm|gemm|Scal|Axpy)\w*"
                          r"|cublas[SDCZ](?!\w*(asum|nrm2|rotm?g|geqrf|gels|dot|et|hutdown))\w+"
                    ),
    "cudnn": Stood(prefixes=("cudnn",), soname="libcudnn.so.9", error=3000,
                   quiet=r"cudnn(Set|Destroy)\w+|cudnnConvolution\w+|cudnnBatchNormalization\w+"
                         r"|cudnnPoolingForward"),
    "cufft": Stood(prefixes=("cufft",), soname="libcufft.so.{fft}", error=16),
    "curand": Stood(prefixes=("curand",), soname="libcurand.so.10", error=201),
    "cusolver": Stood(prefixes=("cusolver",), soname="libcusolver.so.{solver}", error=9),
    "cusparseLt": Stood(prefixes=("cusparseLt",), soname="libcusparseLt.so.0", error=10),
    "cusparse": Stood(prefixes=("cusparse",), soname="libcusparse.so.12", error=10,
                      quiet=r"cusparseSet(Stream|PointerMode)"),
    "cuFile": Stood(prefixes=("cuFile",), soname="libcufile.so.0", error=5),
    "cupti": Stood(prefixes=("cupti",), soname="libcupti.so.{major}", error=1,
                   quiet=r"cupti(Activity(Disable|Enable\w*|FlushAll|Push\w+|Register\w+|SetAttribute)"
                         r"|EnableCallback|EnableDomain|Finalize|Unsubscribe)"),
    "nccl": Stood(prefixes=("nccl",), soname="libnccl.so.2", error=5, sources=("nccl.c",)),
    "nvrtc": Stood(prefixes=("nvrtc",), soname="libnvrtc.so.{major}", error=11,
                   quiet=r"nvrtc(AddNameExpression|CompileProgram)"),
    "nvshmem": Stood(prefixes=("nvshmem",), soname="libnvshmem_host.so.3", error=1,
                     pointers=r"nvshmem_(malloc|ptr)|nvshmemx_mc_ptr"),
    "nvml": Stood(prefixes=("nvml",), soname="libnvidia-ml.so.1", error=3, sources=("nvml.c",)),
}  # fmt: skip
"""By family."""

LOOKED_UP = {
    "cuda": (
        "cuCtxFromGreenCtx", "cuDevResourceGenerateDesc", "cuDevSmResourceSplitByCount",
        "cuDeviceGetDevResource", "cuGreenCtxCreate", "cuGreenCtxDestroy",
        "cuGreenCtxStreamCreate", "cuLogsRegisterCallback", "cuLogsUnregisterCallback",
        "cuMemExportToShareableHandle", "cuMemGetAddressRange", "cuMemGetAddressRange_v2",
        "cuMemGetAllocationPropertiesFromHandle", "cuMemImportFromShareableHandle",
        "cuMemRetainAllocationHandle", "cuMemsetD32Async", "cuMulticastAddDevice",
        "cuMulticastBindMem", "cuMulticastCreate", "cuMulticastUnbind", "cuStreamWriteValue32",
    ),
    "nvml": (
        "nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetNvLinkRemoteDeviceType",
        "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    ),
    "nvrtc": (
        "nvrtcAddNameExpression", "nvrtcCompileProgram",
    ),
}  # fmt: skip
"""Functions that PyTorch looks up by name, all at its first use of any of their library."""
_BY_MAJOR = {12: {"fft": "11", "solver": "11"}, 13: {"fft": "12", "solver": "12"}}
"""Numbers in the names of libraries that are not CUDA's release."""


def definitions(source: str) -> set[str]:
    """The functions that a source in C defines, at the beginning of a line."""
    function = r"^(?!static|#|//|\s)[\w \*]+?[ \*](\w+)\([^;{]*\)\s*\{"
    plain = re.findall(function, source, re.MULTILINE)
    made = re.findall(r"^(?:HANDLE|RELEASE|DOT|DOT_EX|SOLVE)\((\w+)", source, re.MULTILINE)
    return {*plain, *made}


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaOfTorch:
    """What a torch's libraries ask for.

    Attributes:
        major: CUDA's release.
        machine: for which processor they are.
        functions: by family, each function and its version.
    """

    major: int
    machine: str
    functions: dict[str, dict[str, str]]

    def soname(self, family: str) -> str:
        """The file name of a library."""
        stood = LIBRARIES[family]
        return stood.soname.format(major=self.major, **_BY_MAJOR[self.major])


def cuda_of(torch: Path) -> CudaOfTorch:
    """Read what the package `torch` in a folder asks of CUDA's libraries.

    Raises:
        UsageError: it is a build for the CPU, or for a CUDA that is not known here.
    """
    libraries = [read_library(path) for path in sorted((torch / "lib").glob("lib*.so"))]
    needed = {name for library in libraries for name in library.needed}
    majors = [
        int(found[1]) for name in needed if (found := re.fullmatch(r"libcudart\.so\.(\d+)", name))
    ]
    if not majors:
        raise UsageError(
            f"{torch}: this PyTorch is built without CUDA; a rehearsal needs a CUDA build"
        )
    if majors[0] not in _BY_MAJOR:
        known = ", ".join(map(str, _BY_MAJOR))
        raise UsageError(
            f"{torch}: built for CUDA {majors[0]}; there are stand-ins for CUDA {known}"
        )
    return CudaOfTorch(
        major=majors[0], machine=libraries[0].machine, functions=_functions(libraries)
    )


def _functions(libraries: list[SharedLibrary]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for family, names in LOOKED_UP.items():
        found[family] |= dict.fromkeys(names, "")
    own = set().union(*(library.defined for library in libraries))
    for library in libraries:
        for name, version in library.wanted.items():
            whose = _family(name)
            if whose is not None and name not in own:
                found[whose][name] = version
    return found


@cache
def _family(function: str) -> str | None:
    """Whose function it is, by the longest beginning."""
    if not re.match(r"(__)?(cu|nccl|nv)[A-Za-z]", function):
        return None
    fits = [
        (len(prefix), family)
        for family, stood in LIBRARIES.items()
        for prefix in stood.prefixes
        if function.startswith(prefix)
    ]
    return max(fits)[1] if fits else None


def all_functions(family: str, cuda: CudaOfTorch) -> dict[str, str]:
    """What torch asks of a library, and what NVIDIA's own exports, where a list of that is kept.

    Other packages ask for more than torch does. A function that is missing ends their process; one
    that fails says its name. The lists are what `nm -D` shows of NVIDIA's libraries.
    """
    listed = DRIVER / "functions" / f"{family}-{cuda.major}.txt"
    names = listed.read_text().split() if listed.exists() else []
    asked = cuda.functions.get(family, {})
    version = next(filter(None, asked.values()), "")
    return dict.fromkeys(names, version) | asked


def other_functions(family: str, names: dict[str, str]) -> str:
    """Source in C of what a library's sources do not define: success or failure, see `Stood`."""
    stood = LIBRARIES[family]
    text = "".join((DRIVER / source).read_text() for source in stood.sources)
    missing = sorted(names.keys() - definitions(text))
    lines = [f"long {name}(void) {{ return {_returned(stood, name)}; }}" for name in missing]
    return "\n".join(['#include "device.h"', *lines, ""])


def _returned(stood: Stood, name: str) -> str:
    if re.fullmatch(stood.quiet, name):
        return "0"
    error = 0 if re.fullmatch(stood.pointers, name) else stood.error
    return f'session_refuse("{name}", {error})'


def compiler() -> list[str]:
    """The command of a C compiler: the machine's, else that of the package ziglang.

    Raises:
        MeasureError: there is none; says what to install.
    """
    named = os.environ.get(COMPILER_VARIABLE) or os.environ.get("CC")
    if named:
        return named.split()
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if found is not None:
        return [found]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    raise MeasureError(
        "no C compiler: install one (gcc or clang), or pip install 'tritter-mem[rehearse]', which "
        "brings ziglang"
    )


def compile_library(family: str, cuda: CudaOfTorch, output: Path) -> None:
    """One shared library: its sources, the other functions, versions as they are asked for."""
    names, stood, soname = all_functions(family, cuda), LIBRARIES[family], cuda.soname(family)
    rest, script = output / f"{family}.c", output / f"{family}.map"
    rest.write_text(other_functions(family, names))
    versions = sorted({version for version in names.values() if version})
    script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
    command = [
        *compiler(), "-shared", "-fPIC", "-O1", "-s", "-w", f"-I{DRIVER}",
        f"-DCUDA_MAJOR={cuda.major}", f"-DLIBRARY_{family}", f"-Wl,-soname,{soname}",
        "-o", str(output / soname), *(str(DRIVER / source) for source in stood.sources), str(rest),
    ]  # fmt: skip
    if compiler()[-1] == "cc" and "ziglang" in compiler():
        command += ["-target", f"{platform.machine()}-linux-gnu.2.17"]
    command += [f"-Wl,--version-script={script}"] if versions else []
    command += [str(output / cuda.soname("cuda"))] if family != "cuda" else []
    command += [str(output / cuda.soname("cudart"))] if family == "nccl" else []
    made = subprocess.run(  # noqa: S603  (the compiler, on this package's sources)
        [*command, "-ldl", "-lpthread", "-Wl,-rpath,$ORIGIN"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        shown = "; ".join(made.stderr.strip().splitlines()[-3:])
        raise MeasureError(f"the stand-in {soname} cannot be compiled: {shown}")
    rest.unlink()
    script.unlink()


def build(cuda: CudaOfTorch, output: Path) -> None:
    """All libraries into one folder; the driver first, since the others are linked to it.

    Raises:
        MeasureError: there is no compiler, or it fails.
    """
    output.mkdir(parents=True, exist_ok=True)
    for family in LIBRARIES:
        compile_library(family, cuda, output)
    apart = output / NVML
    apart.mkdir(exist_ok=True)
    (output / cuda.soname("nvml")).replace(apart / cuda.soname("nvml"))
    (apart / "libnvidia-ml.so").unlink(missing_ok=True)


def libraries_of(folder: Path) -> list[Path]:
    """The libraries that were built into a folder, the driver's first, as they are preloaded."""
    found = sorted([*folder.glob("lib*.so*"), *(folder / NVML).glob("lib*.so*")])
    return sorted(found, key=lambda path: not path.name.startswith("libcuda.so"))


def cache_folder() -> Path:
    """Where what was built is kept: `XDG_CACHE_HOME`, the home; where read-only, elsewhere."""
    named = os.environ.get("XDG_CACHE_HOME")
    root = Path(named) if named else Path.home() / ".cache"
    folder = root / "tritter-mem"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return _own_folder(Path(tempfile.gettempdir()) / f"tritter-mem-{os.getuid()}")


def _own_folder(folder: Path) -> Path:
    """A folder where others may make one too: what is in it is preloaded, so it must be ours.

    Raises:
        MeasureError: somebody else made it, or may write in it.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise MeasureError(
            f"{folder}: others may write there, so nothing is run from it; set XDG_CACHE_HOME to a "
            "folder of yours"
        )
    return folder


def stand_ins_for(torch: Path) -> Path:
    """The folder with the stand-ins for a torch, which is made at the first call.

    Two that make it at once each make their own, and one stays.

    Raises:
        UsageError: it is no CUDA build.
        MeasureError: they cannot be built here.
    """
    refuse_other_machines()
    cuda = cuda_of(torch)
    target = cache_folder() / "stand-ins" / _key(cuda)
    if re.search(r"[\s:]", str(target)):
        raise MeasureError(
            f"{target}: a library in a folder with a space or a colon cannot be preloaded; set "
            "XDG_CACHE_HOME to another one"
        )
    if (target / "complete").exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as folder:
            made = Path(folder) / "made"
            build(cuda, made)
            (made / "complete").touch()
            _keep(made, target)
    except OSError as error:
        raise MeasureError(
            f"{target}: the stand-ins cannot be written: {error.strerror}"
        ) from error
    return target


def _keep(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not (target / "complete").exists():
            raise


def _key(cuda: CudaOfTorch) -> str:
    """Names what the libraries are made of: the sources and what is asked for."""
    of = hashlib.sha256()
    files = [path for path in DRIVER.rglob("*") if path.is_file()]
    for path in sorted([*files, Path(__file__)]):
        of.update(path.read_bytes())
    asked = sorted((family, *sorted(names.items())) for family, names in cuda.functions.items())
    of.update(repr((cuda.major, cuda.machine, asked)).encode())
    return of.hexdigest()[:16]


def refuse_other_machines() -> None:
    """Rehearsals run on Linux on x86-64.

    Raises:
        MeasureError: this is another machine.
    """
    here = platform.system(), platform.machine()
    if here not in (("Linux", "x86_64"), ("Linux", "aarch64")):
        raise MeasureError(f"a rehearsal needs Linux on x86-64; this is {' on '.join(here)}")
