"""The helper that writes cache lines back: compiled once, refused with words where that does not work out."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mesh.fabric.flush import INSTRUCTIONS, FlushError, load_helper, make_flusher
from mesh.fabric.pool import NewPool, PoolError, create_pool, open_pool

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the helper is compiled, and there is no compiler")


def without_compiler(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": "/nonexistent"}


def with_compiler(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}


@needs_compiler
def test_it_is_compiled_once_and_found_again(tmp_path):
    library = load_helper(with_compiler(tmp_path))
    assert library.isochrone_kind() in INSTRUCTIONS
    (made,) = (tmp_path / ".cache/isochrone").iterdir()
    before = made.stat().st_mtime_ns
    load_helper(without_compiler(tmp_path))
    assert made.stat().st_mtime_ns == before
    assert made.stat().st_mode & 0o222 == 0


def test_without_a_compiler_memory_that_is_not_coherent_is_refused(tmp_path):
    with pytest.raises(FlushError, match="install gcc or clang"):
        make_flusher(coherent=False, environment=without_compiler(tmp_path))
    flusher = make_flusher(coherent=True, environment=without_compiler(tmp_path))
    assert flusher.helper is None
    flusher.fence()
    flusher.write_back(0, 1 << 40)  # nothing is done, and nothing is touched
    flusher.invalidate(0, 1 << 40)


def test_a_pool_that_is_not_coherent_is_refused_where_there_is_no_helper(tmp_path, monkeypatch):
    create_pool(tmp_path / "pool", NewPool(16 << 20, coherent=False), bytes(16))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(PoolError, match=r"not coherent between hosts, and .*no-such-compiler is not there"):
        open_pool(tmp_path / "pool")
    with pytest.raises(PoolError, match="would not be coherent between hosts"):
        create_pool(tmp_path / "other", NewPool(16 << 20, coherent=False), bytes(16))
    assert not (tmp_path / "other").exists()
    create_pool(tmp_path / "third", NewPool(16 << 20), bytes(16))
    open_pool(tmp_path / "third")


def test_a_compiler_that_fails_says_why(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no room >&2\nexit 1\n")
    compiler.chmod(0o700)
    with pytest.raises(FlushError, match="no room"):
        load_helper({"HOME": str(tmp_path), "PATH": os.environ["PATH"], "CC": str(compiler)})


@needs_compiler
def test_a_helper_that_others_could_have_written_is_not_loaded(tmp_path):
    load_helper(with_compiler(tmp_path))
    folder = tmp_path / ".cache/isochrone"
    for path in (folder, next(folder.iterdir())):
        mode = path.stat().st_mode
        path.chmod(mode | 0o020)
        with pytest.raises(FlushError, match="written by others"):
            load_helper(with_compiler(tmp_path))
        path.chmod(mode)


@needs_compiler
def test_what_was_written_is_there_after_lines_were_written_back_and_forgotten(tmp_path):
    flusher = make_flusher(coherent=False, environment=with_compiler(tmp_path))
    memory = np.zeros(1 << 20, np.uint8)
    for begin, size in ((0, 1 << 20), (1, 1), (63, 2), (4095, 4097), (100, 0)):
        memory[begin : begin + size] = begin % 251 + 1
        address = memory.ctypes.data + begin
        flusher.write_back(address, size)
        flusher.invalidate(address, size)
        assert (memory[begin : begin + size] == begin % 251 + 1).all()
    flusher.fence()
    assert flusher.words.startswith("not coherent between hosts: flushed by ")


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="reads x86-64 with objdump")
def test_the_helper_has_the_instruction_of_every_processor_that_it_may_meet(tmp_path):
    """What is compiled flushes: a compiler that had left the instructions out would have made a helper that does nothing."""
    load_helper(with_compiler(tmp_path))
    (made,) = (tmp_path / ".cache/isochrone").iterdir()
    command = ["objdump", "-d", "--no-show-raw-insn", str(made)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"clwb", "clflushopt", "clflush", "sfence", "mfence"} <= set(text.split())
