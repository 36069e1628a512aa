"""Cache lines written back and forgotten, by a small helper in C that is compiled where it is first needed.

Memory that several hosts map may be kept coherent by the hardware (CXL 3 can, with back-invalidation) or by nothing: then a
writer writes its lines back before it tells of them, and a reader forgets its own before it looks. A pool says of itself which it
is. Processes of one host are always coherent; they need the fence alone.

Source: see `flush.c` beside this module.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.config import default_cache_dir

SOURCE = Path(__file__).with_name("flush.c")

COMPILE_S_MAX = 60.0
"""How long the compiler may take, in seconds: a page of C takes a tenth of one, on a machine that is busy some."""

INSTRUCTIONS = {1: "clflush", 2: "clflushopt", 3: "clwb", 4: "dc cvac"}
"""What the helper uses, by the number that it tells."""

# The system call membarrier(2) and its command MEMBARRIER_CMD_GLOBAL; linux/membarrier.h, and the table of the architecture.
_MEMBARRIER, _COMMAND_GLOBAL = {"aarch64": 283, "x86_64": 324}, 1


class FlushError(Exception):
    """There is no helper, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Flusher:
    """Orders memory between hosts, or between processes of this one.

    Attributes:
        helper: compiled C; None without a compiler.
        coherent: whether the memory needs no flushes.
    """

    helper: ctypes.CDLL | None
    coherent: bool

    @property
    def words(self) -> str:
        """What it does, for people."""
        if self.coherent:
            return "coherent: nothing is flushed"
        assert self.helper is not None
        return f"not coherent between hosts: flushed by {INSTRUCTIONS[self.helper.isochrone_kind()]}"

    def write_back(self, address: int, size_bytes: int) -> None:
        """What this process has written there is in memory afterwards."""
        if not self.coherent and self.helper is not None:
            self.helper.isochrone_write_back(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))

    def invalidate(self, address: int, size_bytes: int) -> None:
        """What this process reads there afterwards comes from memory."""
        if not self.coherent and self.helper is not None:
            self.helper.isochrone_invalidate(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes))

    def fence(self) -> None:
        """All that was written before is seen by others before anything is read that is read after."""
        if self.helper is not None:
            self.helper.isochrone_fence()
        elif platform.machine() == "x86_64":
            with _LOCK:  # an atomic exchange, which is a full fence there (Intel SDM volume 3, section 9.2.3.9)
                pass
        else:
            ctypes.CDLL(None).syscall(_MEMBARRIER[platform.machine()], _COMMAND_GLOBAL, 0, 0)


_LOCK = threading.Lock()


def make_flusher(*, coherent: bool, environment: Mapping[str, str] | None = None) -> Flusher:
    """The helper for memory that is coherent or not; compiled if it was not yet, which may take a moment.

    Raises:
        FlushError: the memory is not coherent, and there is no helper.
    """
    try:
        return Flusher(load_helper(os.environ if environment is None else environment), coherent)
    except FlushError:
        if not coherent:
            raise
        return Flusher(None, coherent)


def load_helper(environment: Mapping[str, str]) -> ctypes.CDLL:
    """The helper, from the user's cache or new.

    Args:
        environment: says where that is (XDG_CACHE_HOME, HOME), and which compiler (CC).

    Raises:
        FlushError: no compiler, no directory, or a processor for which there is none.
    """
    source = SOURCE.read_bytes()
    name = f"flush-{platform.machine()}-{hashlib.sha256(source).hexdigest()[:16]}.so"
    target = default_cache_dir(environment) / name
    try:
        if not target.exists():
            _compile(target, environment)
        _check_ours(target)
        library = ctypes.CDLL(str(target))
    except OSError as error:
        raise FlushError(f"the helper that flushes cache lines cannot be used ({error})") from error
    if library.isochrone_kind() not in INSTRUCTIONS:
        raise FlushError("this processor has no instruction that flushes cache lines")
    return library


def _compile(target: Path, environment: Mapping[str, str]) -> None:
    """Compile into a file beside the target, which then takes its place: two at once do no harm.

    Raises:
        FlushError: there is no compiler, or it fails.
        OSError: there is no place for it.
    """
    wanted = environment.get("CC", "cc")
    compiler = shutil.which(wanted, path=environment.get("PATH"))
    if compiler is None:
        raise FlushError(
            f"flushing cache lines takes a C compiler once, and {wanted} is not there: install gcc or clang, or set CC"
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "flush.so"
        command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
        try:
            # A compiler that the owner's own environment names, on our own source.
            done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_S_MAX, check=False)  # noqa: S603
        except subprocess.TimeoutExpired:
            raise FlushError(f"{compiler} did not compile {SOURCE.name} within {COMPILE_S_MAX:g} s") from None
        if done.returncode != 0:
            raise FlushError(f"{compiler} cannot compile {SOURCE.name}: {done.stderr.strip()[-300:]}")
        made.chmod(0o500)
        made.replace(target)


def _check_ours(path: Path) -> None:
    """See that nobody else can have written what is about to be run.

    Raises:
        FlushError: somebody can.
    """
    for looked_at in (path, path.parent):
        status = looked_at.stat()
        if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise FlushError(f"{looked_at} can be written by others; remove it, and it is made anew")
