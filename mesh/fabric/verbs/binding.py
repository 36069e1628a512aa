"""The compiled binding: found where it was built before, built where it can be, and else a word that says what is missing.

cffi translates `shim.h` to an extension module (its "API mode"), which the machine's C compiler builds together with `shim.c`,
against libibverbs as it is installed. The file is kept in a directory that belongs to this user alone, under a name that holds a
hash of the sources, the interpreter and the library's header: another one of any of them is built anew. Nothing is built on a
machine that never asks for it.

Source: cffi's documentation, "Overview", section "API mode, calling the C standard library".
"""

import hashlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import subprocess
import sysconfig
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mesh.config import default_cache_dir

HEADER = "infiniband/verbs.h"
"""What a binding is built against."""

BUILD_S_MAX = 120.0
"""How long the compiler may take, in seconds: it takes two on a plain machine, and half a minute in an emulated one."""

NAME = "isochrone_verbs"
"""The extension module's name, by which its symbols are found."""

_HERE = Path(__file__).parent
_OPTIONS = ("-O2", "-shared", "-fPIC", "-std=gnu11", "-fvisibility=hidden")
# Asked of the compiler first, for devices that reach into GPU memory; older libraries do not have it (rdma-core before 34).
_DMABUF = "-DISO_DMABUF"


class BindingAbsentError(Exception):
    """There is no binding; the text says why, and what to do."""


def load(cache: Path | None = None) -> Any:
    """The binding, built if need be: a module with `ffi` and `lib`. May take seconds the first time.

    Args:
        cache: where compiled bindings are kept; None for the user's cache directory.

    Raises:
        BindingAbsentError: it is not there and cannot be built.
    """
    folder = (default_cache_dir(os.environ) if cache is None else cache) / "native"
    path = folder / f"{NAME}-{_fingerprint()}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not _is_ours(path):
        build(path)
        if not _is_ours(path):
            raise BindingAbsentError(f"others can write to {path.parent}: nothing is loaded from there")
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except ImportError as error:
        raise BindingAbsentError(f"the binding to libibverbs does not load: {error}") from None
    return module


def build(path: Path) -> None:
    """Compile the binding.

    Raises:
        BindingAbsentError: something that is needed is missing, or the compiler refuses.
    """
    try:
        import cffi
    except ImportError:
        raise BindingAbsentError("the Python package cffi is not installed (pip install cffi)") from None
    compiler = _compiler()
    builder = cffi.FFI()
    builder.cdef((_HERE / "shim.h").read_text())
    builder.set_source(NAME, '#include <infiniband/verbs.h>\n#include "shim.h"')
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made, source = Path(folder) / "made.so", Path(folder) / "made.c"
            with redirect_stdout(io.StringIO()):  # it says which file it writes
                builder.emit_c_code(str(source))
            refusal = ""
            for extra in ((_DMABUF,), ()):
                refusal = _compile(compiler, (str(source), str(_HERE / "shim.c")), made, extra)
                if not refusal:
                    made.chmod(0o500)
                    made.replace(path)
                    return
    except OSError as error:
        raise BindingAbsentError(f"the binding to libibverbs cannot be kept in {path.parent}: {error.strerror}") from None
    raise BindingAbsentError(f"the binding to libibverbs does not compile: {refusal}")


def _compiler() -> str:
    """The C compiler, once everything is there that it needs.

    Raises:
        BindingAbsentError: it is not.
    """
    if _header() is None:
        raise BindingAbsentError(f"libibverbs' headers are not there ({HEADER}; on Debian: apt-get install libibverbs-dev)")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise BindingAbsentError("there is no C compiler to build the binding to libibverbs (on Debian: apt-get install gcc)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise BindingAbsentError("Python's headers are not there (on Debian: apt-get install python3-dev)")
    return compiler


def _compile(compiler: str, sources: tuple[str, ...], made: Path, extra: tuple[str, ...]) -> str:
    """Run the compiler; returns its first words of refusal, nothing where it is content."""
    include = (f"-I{sysconfig.get_paths()['include']}", f"-I{_HERE}")
    command = [compiler, *_OPTIONS, *extra, *include, *sources, "-o", str(made), "-libverbs"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=BUILD_S_MAX)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"the compiler took more than {BUILD_S_MAX:g} s"
    words = next((line for line in done.stderr.splitlines() if "error" in line), f"{compiler} ended with {done.returncode}")
    return words if done.returncode else ""


def _header() -> Path | None:
    """Where the compiler would find the header; the usual places are enough to say that it is missing."""
    folders = [*filter(None, os.environ.get("CPATH", "").split(":")), "/usr/include", "/usr/local/include"]
    return next((path for folder in folders if (path := Path(folder) / HEADER).exists()), None)


def _fingerprint() -> str:
    digest = hashlib.sha256(str(sysconfig.get_config_var("SOABI")).encode())
    header = _header()
    for path in (_HERE / "shim.h", _HERE / "shim.c", header):
        digest.update(b"\0" if path is None else path.read_bytes())
    return digest.hexdigest()[:16]


def _is_ours(path: Path) -> bool:
    """Whether a binding is there that nobody but this user, or the superuser, can have put there."""
    try:
        status = [path.stat(), path.parent.stat()]
    except OSError:
        return False
    return all(found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022 for found in status)
