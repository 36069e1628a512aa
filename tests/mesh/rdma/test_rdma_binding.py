"""The binding to libibverbs: built once and kept, refused where others could have put it, and a clear word where it cannot be."""

import os
from pathlib import Path

import pytest

from mesh.fabric.rdma.ports import has_devices
from mesh.fabric.verbs import binding
from mesh.fabric.verbs.binding import BindingAbsentError, load
from mesh.fabric.verbs.objects import Device, VerbsError, device_names, status_words

needs_headers = pytest.mark.skipif(binding._header() is None, reason="libibverbs' headers are not installed")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@needs_headers
def test_a_binding_is_built_once_and_kept(cache):
    load(cache)
    (path,) = (cache / "native").iterdir()
    assert path.stat().st_mode & 0o777 == 0o500
    before = path.stat().st_mtime_ns
    binding = load(cache)
    assert path.stat().st_mtime_ns == before
    assert status_words(binding, 10) == "remote access error"


@needs_headers
def test_a_binding_that_others_could_have_written_is_built_anew_or_refused(cache):
    load(cache)
    (path,) = (cache / "native").iterdir()
    path.unlink()  # it is mapped: what is loaded stays as it is
    path.write_bytes(b"no library at all")
    path.chmod(0o722)
    load(cache)
    path.parent.chmod(0o777)
    with pytest.raises(BindingAbsentError, match="others can write"):
        load(cache)
    path.parent.chmod(0o700)


@needs_headers
def test_what_a_verb_refuses_is_one_error_with_the_systems_words(cache):
    binding = load(cache)
    with pytest.raises(VerbsError, match="no_such_device cannot be opened") as caught:
        Device(binding, "no_such_device")
    assert os.strerror(caught.value.errno) in str(caught.value)
    if not has_devices():
        with pytest.raises(VerbsError, match="RDMA devices cannot be listed"):
            device_names(binding)


@needs_headers
def test_without_a_compiler_the_word_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BindingAbsentError, match=r"no C compiler.*apt-get install gcc"):
        load(tmp_path)


@needs_headers
def test_what_the_compiler_says_is_told(tmp_path, monkeypatch):
    compiler = tmp_path / "broken-cc"
    compiler.write_text("#!/bin/sh\necho 'shim.c:7: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(BindingAbsentError, match=r"does not compile: shim.c:7: error: no such thing"):
        load(tmp_path)


def test_without_headers_the_word_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(binding, "HEADER", "infiniband/there_is_no_such_header.h")
    with pytest.raises(BindingAbsentError, match=r"libibverbs' headers are not there.*libibverbs-dev"):
        load(tmp_path)


@needs_headers
def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "native").write_text("a file")
    with pytest.raises(BindingAbsentError, match="cannot be kept in"):
        load(tmp_path)
