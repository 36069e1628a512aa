"""The emulated GPU of `emulated_cuda.c`: built when a test first wants it, and loaded in the place of NVIDIA's driver.

It stands where the hardware stands, and nothing of the product is replaced: the binding is given its path, or finds it by
LD_LIBRARY_PATH under the driver's own name.
"""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from mesh.fabric.gpu.driver import LIBRARY, Cuda, GpuAbsentError, driver

SOURCE = Path(__file__).with_name("emulated_cuda.c")
HEADERS = Path("/usr/local/cuda/include")


@cache
def build() -> Path | None:
    """The library; None where there is no C compiler. It is compiled against the real cuda.h where a toolkit is installed."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = Path(mkdtemp(prefix="emulated-gpu-")) / LIBRARY
    with_header = [f"-I{HEADERS}", "-DWITH_CUDA_H"] if (HEADERS / "cuda.h").exists() else []
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, *with_header, str(SOURCE), "-o", str(library)], check=True)
    return library


def library() -> Path:
    """The library, or the test is skipped."""
    built = build()
    if built is None:
        pytest.skip("the emulated GPU is built with a C compiler, and there is none")
    return built


def emulated() -> Cuda:
    """The emulated GPU in this process."""
    return driver(str(library()))


def hardware() -> Cuda:
    """The GPU of this machine, or the test is skipped."""
    try:
        return driver()
    except GpuAbsentError as error:
        pytest.skip(str(error))


def environment(kind: str) -> dict[str, str]:
    """What another process needs to find the same GPU."""
    paths = {} if kind == "hardware" else {"LD_LIBRARY_PATH": str(library().parent)}
    return {**os.environ, **paths}


def blocks(*, opened: bool) -> int:
    """How much of the emulated device's memory this process has: its own allocations, or those it has opened."""
    return ctypes.CDLL(str(library())).emulated_blocks(int(opened))


def fail(function: str, result: int, times: int = 1) -> None:
    """Have a function of the emulated driver fail."""
    fail_in(str(library()), function, result, times)


def fail_in(path: str, function: str, result: int, times: int = 1) -> None:
    """The same of the emulated driver at a path."""
    ctypes.CDLL(path).emulated_fail(function.encode(), result, times)


def hold(*, on: bool) -> None:
    """Have nothing that is marked from now on be reached, until told otherwise."""
    ctypes.CDLL(str(library())).emulated_hold(int(on))


GPUS = ["emulated", pytest.param("hardware", marks=pytest.mark.gpu)]
"""On what tests run: the emulated GPU in the ordinary suite, the real one by `make test-gpu`."""


def gpu(kind: str) -> Cuda:
    """The GPU of one of `GPUS`."""
    return emulated() if kind == "emulated" else hardware()
