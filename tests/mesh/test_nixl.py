"""Transfers by NIXL between two processes, over the transports that UCX finds here; of GPU memory by `make test-gpu`.

NIXL is an extra of some 100 MB, so these run where it is installed: `pip install --no-deps nixl-cu12==1.5.1`.
"""

import ctypes
import hashlib
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

from mesh.fabric import nixl
from mesh.fabric.gpu import GpuAbsentError, driver
from mesh.fabric.nixl import NixlAbsentError, NixlAgent, NixlError, Segment, Span, load_nixl

ROOT = Path(__file__).parents[2]
SIZE = 8 << 20
installed = pytest.mark.skipif(
    not any(find_spec(package) for package in nixl.PACKAGES), reason="NIXL is not installed: pip install --no-deps nixl-cu12"
)
SEGMENTS = [Segment.DRAM, pytest.param(Segment.VRAM, marks=pytest.mark.gpu)]


class End:
    """This end, with the peer at the other."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        command = [sys.executable, str(Path(__file__).with_name("nixl_peer.py")), str(SIZE), segment.value]
        env = {"UCX_TLS": "tcp,sm,self" if segment is Segment.DRAM else "all", **os.environ, "PYTHONPATH": str(ROOT)}
        os.environ.setdefault("UCX_TLS", env["UCX_TLS"])
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.agent = NixlAgent("here")
        self.memory = mmap.mmap(-1, SIZE)
        self.own = Span(ctypes.addressof(ctypes.c_char.from_buffer(self.memory)), SIZE)
        self.agent.register(self.own)
        told = json.loads(self.process.stdout.readline())
        self.theirs = Span(told["address"], SIZE, segment)
        self.peer = self.agent.add_peer(bytes.fromhex(told["metadata"]))
        self.process.stdin.write(self.agent.metadata.hex() + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "ready\n"

    async def ask(self, notice: bytes) -> bytes:
        self.agent.notify(self.peer, notice)
        with trio.fail_after(30):
            peer, answer = await self.agent.notice()
        assert peer == self.peer == "peer"
        return answer

    def end(self) -> None:
        self.agent.close()
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(params=SEGMENTS)
def end(request: pytest.FixtureRequest) -> Iterator[End]:
    found = End(request.param)
    yield found
    found.end()


@installed
async def test_what_is_written_is_there_when_the_peer_is_told(end: End) -> None:
    end.memory[:] = os.urandom(1 << 20) * (SIZE >> 20)
    with trio.fail_after(60):
        await end.agent.write(end.own, end.peer, end.theirs, b"sum")
        peer, told = await end.agent.notice()
    assert peer == "peer"
    assert told == hashlib.sha256(end.memory[:]).digest()


@installed
async def test_what_the_peer_has_is_read(end: End) -> None:
    assert await end.ask(b"fill\x07") == b"filled"
    with trio.fail_after(60):
        await end.agent.read(end.own.part(64, 4096), end.peer, end.theirs.part(SIZE - 4096, 4096))
    assert end.memory[:64] == bytes(64)
    assert end.memory[64 : 64 + 4096] == b"\x07" * 4096
    assert end.memory[64 + 4096 : 64 + 8192] == bytes(4096)


@installed
async def test_memory_that_is_not_registered_is_refused(end: End) -> None:
    outside = Span(end.own.address + SIZE, 64)
    with pytest.raises(NixlError, match="not registered"):
        await end.agent.write(outside, end.peer, end.theirs.part(0, 64))
    beyond = Span(end.theirs.address + (64 << 20), 64, end.segment)
    with pytest.raises(NixlError, match="write with 'peer'"):
        await end.agent.write(end.own.part(0, 64), end.peer, beyond)
    with pytest.raises(NixlError):
        await end.agent.write(end.own.part(0, 64), "nobody", end.theirs.part(0, 64))
    with pytest.raises(NixlError, match="64 bytes to 63"):
        await end.agent.write(end.own.part(0, 64), end.peer, end.theirs.part(0, 63))
    assert await end.ask(b"sum") == hashlib.sha256(bytes(SIZE)).digest()


@installed
async def test_what_is_past_a_bound_is_refused(end: End, monkeypatch) -> None:
    with pytest.raises(NixlError, match="a notice of 1025 bytes"):
        end.agent.notify(end.peer, bytes(nixl.NOTICE_BYTES_MAX + 1))
    for metadata in (b"", bytes(nixl.METADATA_BYTES_MAX + 1)):
        with pytest.raises(NixlError, match="metadata of"):
            end.agent.add_peer(metadata)
    monkeypatch.setattr(nixl, "NOTICES_MAX", 2)
    for _ in range(4):
        end.agent.notify(end.peer, b"fill\x01")
    with trio.fail_after(30):
        while end.agent.n_dropped < 2:  # the library tells nobody
            end.agent._look()
            await trio.sleep(0.01)
    assert [await end.agent.notice() for _ in range(2)] == [("peer", b"filled")] * 2


@installed
async def test_a_transfer_that_is_given_up_keeps_its_memory_until_it_is_over(end: End) -> None:
    with trio.move_on_after(0):
        for _ in range(20):
            await end.agent.write(end.own, end.peer, end.theirs)
    refusals = []
    with trio.fail_after(30):
        while end.own in end.agent._spans:
            try:
                end.agent.deregister(end.own)
            except NixlError as error:
                refusals.append(str(error))
                await trio.sleep(0.01)
    assert all("still under way" in refusal for refusal in refusals)
    with pytest.raises(NixlError, match="not registered"):
        await end.agent.write(end.own, end.peer, end.theirs)


@installed
@pytest.mark.gpu
async def test_gpu_memory_goes_into_gpu_memory_of_another_process() -> None:
    try:
        device = driver().devices[0]
    except GpuAbsentError as error:
        pytest.skip(str(error))
    end, address = End(Segment.VRAM), device.allocate(SIZE)
    own = Span(address, SIZE, Segment.VRAM, device.ordinal)
    try:
        data = os.urandom(SIZE)
        device.write(address, memoryview(data))
        end.agent.register(own)
        with trio.fail_after(60):
            await end.agent.write(own, end.peer, end.theirs, b"sum")
            assert await end.agent.notice() == ("peer", hashlib.sha256(data).digest())
    finally:
        end.end()
        device.free(address)


def test_where_it_is_not_installed_it_says_how(monkeypatch) -> None:
    monkeypatch.setattr(nixl, "PACKAGES", ("nixl_of_no_version",))
    with pytest.raises(NixlAbsentError, match=r"pip install 'isochrone\[nixl\]'"):
        load_nixl()


@installed
def test_a_backend_that_is_not_there_is_named() -> None:
    with pytest.raises(NixlAbsentError, match=r"no backend NONE here; it has .*UCX"):
        NixlAgent("alone", "NONE")


def test_a_part_lies_in_its_whole() -> None:
    whole = Span(1000, 100)
    assert whole.part(10, 90) == Span(1010, 90)
    assert whole.part(10, 90).lies_in(whole)
    assert not Span(1010, 91).lies_in(whole)
    assert not Span(999, 10).lies_in(whole)
    assert not Span(1010, 10, Segment.VRAM).lies_in(whole)
    for offset, size in ((-1, 5), (0, 101), (100, 1), (0, -1)):
        with pytest.raises(ValueError, match="of 100"):
            whole.part(offset, size)
