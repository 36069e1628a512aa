"""The other end of transfers by NIXL, in a process of its own: registers memory, and says what it holds when it is told.

It says its metadata and where its memory lies, is told the other's metadata, and then for each notice: `sum` has it send back the
SHA-256 of its memory, `fill` has it fill the memory with what follows, `end` ends it.
"""

import ctypes
import hashlib
import json
import mmap
import sys

import trio

from mesh.fabric.nixl import NixlAgent, Segment, Span


async def run(size: int, segment: str) -> None:
    if segment == "VRAM":
        from mesh.fabric.gpu.driver import driver

        device = driver().devices[0]
        address = device.allocate(size)
    else:
        memory = mmap.mmap(-1, size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def read() -> bytes:
        if segment == "DRAM":
            return memory[:]
        data = bytearray(size)
        device.read(address, memoryview(data))
        return bytes(data)

    def write(data: bytes) -> None:
        if segment == "DRAM":
            memory[:] = data
        else:
            device.write(address, memoryview(data))

    agent = NixlAgent("peer")
    agent.register(Span(address, size, Segment(segment)))
    print(json.dumps({"metadata": agent.metadata.hex(), "address": address}), flush=True)
    other = agent.add_peer(bytes.fromhex(sys.stdin.readline().strip()))
    print("ready", flush=True)
    while True:
        _, notice = await agent.notice()
        if notice == b"sum":
            agent.notify(other, hashlib.sha256(read()).digest())
        elif notice.startswith(b"fill"):
            write(notice[4:5] * size)
            agent.notify(other, b"filled")
        elif notice == b"end":
            return


if __name__ == "__main__":
    trio.run(run, int(sys.argv[1]), sys.argv[2])
