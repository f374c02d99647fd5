"""Build the stand-ins that let PyTorch's CUDA build load, and its allocator run, without a GPU.

    python -m benchmarks.standin.build --torch SITE/torch --headers INCLUDE --output FOLDER

`driver.c` and `runtime.c` stand for the driver and the runtime, `capture.c` has what both refuse
while a graph is captured. Of the other libraries, the functions
that PyTorch's own libraries ask for are read off them, and made to return success.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = {
    "__cuda": "libcudart.so.13",
    "cuda": "libcudart.so.13",
    "cublasLt": "libcublasLt.so.13",
    "cublas": "libcublas.so.13",
    "cudnn": "libcudnn.so.9",
    "cufft": "libcufft.so.12",
    "curand": "libcurand.so.10",
    "cusolver": "libcusolver.so.12",
    "cusparseLt": "libcusparseLt.so.0",
    "cusparse": "libcusparse.so.12",
    "cuFile": "libcufile.so.0",
    "cupti": "libcupti.so.13",
    "nccl": "libnccl.so.2",
    "nvrtc": "libnvrtc.so.13",
    "nvshmem": "libnvshmem_host.so.3",
    "nvml": "libnvidia-ml.so.1",
    "cu": "libcuda.so.1",
}
"""The library of a function, by how its name begins; a longer beginning stands before a shorter."""
SOURCES = {"libcuda.so.1": ("driver.c", "capture.c"), "libcudart.so.13": ("runtime.c",),
           "libnvidia-ml.so.1": ("nvml.c",)}  # fmt: skip
OTHERS = ("libraries.c",)
NVML = "nvml"
"""NVML's folder within the libraries', for containers lack it now and then."""
LOOKED_UP = {"libcuda.so.1": (
    "cuCtxFromGreenCtx", "cuDevResourceGenerateDesc", "cuDevSmResourceSplitByCount",
    "cuDeviceGetDevResource", "cuGreenCtxCreate", "cuGreenCtxDestroy", "cuGreenCtxStreamCreate",
    "cuLogsRegisterCallback", "cuLogsUnregisterCallback", "cuMemGetAddressRange",
    "cuMemExportToShareableHandle", "cuMemGetAllocationPropertiesFromHandle",
    "cuMemImportFromShareableHandle", "cuMemRetainAllocationHandle", "cuMemsetD32Async",
    "cuMulticastAddDevice", "cuMulticastBindMem", "cuMulticastCreate", "cuMulticastUnbind",
    "cuStreamWriteValue32",
), "libnvidia-ml.so.1": (
    "nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGpuFabricInfoV",
    "nvmlDeviceGetNvLinkRemoteDeviceType", "nvmlDeviceGetNvLinkRemotePciInfo_v2",
)}  # fmt: skip
"""Functions that PyTorch looks up by name, all at its first use of any of their library."""


def symbols(library: Path, which: str) -> dict[str, str]:
    """Names and versions of a library's dynamic symbols, `--undefined-only` or `--defined-only`."""
    command = ["nm", "-D", which, str(library)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    words = [line.split()[-1].partition("@") for line in printed.splitlines()]
    return {name: version.lstrip("@") for name, _, version in words}


def wanted(torch: Path) -> dict[str, dict[str, str]]:
    """The functions and versions that PyTorch's libraries ask of each other library."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    found |= {library: dict.fromkeys(names, "") for library, names in LOOKED_UP.items()}
    for library in sorted((torch / "lib").glob("lib*.so")):
        for name, version in symbols(library, "--undefined-only").items():
            owner = next((LIBRARIES[start] for start in LIBRARIES if name.startswith(start)), None)
            if owner:
                found[owner][name] = version
    return found


def stubs(names: dict[str, str], sources: list[Path]) -> str:
    """Functions that return 0, for what the sources do not have."""
    text = "".join(source.read_text() for source in sources)
    missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)]
    return "".join(f"long {name}(void) {{ return 0; }}\n" for name in missing)


def compile_library(name: str, names: dict[str, str], headers: Path, output: Path) -> None:
    """One shared library: its sources, stubs for what they lack, versions as they are asked for."""
    sources = [HERE / source for source in SOURCES.get(name, OTHERS)]
    rest, script = output / f"{name}.c", output / f"{name}.map"
    rest.write_text(stubs(names, sources))
    versions = sorted({version for version in names.values() if version})
    script.write_text("".join(f"{version} {{ global: *; }};\n" for version in versions))
    command = ["cc", "-shared", "-fPIC", "-O1", f"-I{headers}", f"-Wl,-soname,{name}"]
    command += ["-o", str(output / name), *map(str, sources), str(rest)]
    command += [f"-Wl,--version-script={script}"] if versions else []
    command += [str(output / "libcuda.so.1")] if name == "libcudart.so.13" else []
    subprocess.run([*command, "-ldl", "-lpthread", "-Wl,-rpath,$ORIGIN"], check=True)
    rest.unlink()
    script.unlink()


def build(torch: Path, headers: Path, output: Path) -> None:
    """All libraries into one folder; the driver first, since the runtime is linked to it."""
    output.mkdir(parents=True, exist_ok=True)
    asked = wanted(torch)
    for name in dict.fromkeys(["libcuda.so.1", *LIBRARIES.values()]):
        compile_library(name, asked[name], headers, output)
    apart = output / NVML
    apart.mkdir(exist_ok=True)
    (output / LIBRARIES["nvml"]).replace(apart / LIBRARIES["nvml"])


def parse() -> argparse.Namespace:
    """Where PyTorch and the headers are, and where the libraries go."""
    parser = argparse.ArgumentParser(description="Build the stand-ins for CUDA's libraries.")
    parser.add_argument("--torch", type=Path, required=True, help="the folder of the package torch")
    parser.add_argument("--headers", type=Path, required=True, help="has cuda.h")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    build(options.torch, options.headers, options.output)
    sys.exit(0)
