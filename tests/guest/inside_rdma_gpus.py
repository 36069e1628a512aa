"""Runs in a guest with two software RDMA devices, rxa and rxb, and an emulated GPU: what GPUs' memory and cards do together.

usage: inside_rdma_gpus.py NAME...; prints a JSON object of what each found, or how it failed. Both sides are in this process, as
in inside_rdma_pair.py, and use one GPU. Whether the cards take its memory is decided by who starts this (dmabuf_card.c).
"""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

import inside_rdma_pair as pair
import numpy as np
import trio
from inside_rdma_pair import Attacker, ended, fabric, tensors, until, work

from mesh.fabric.gpu import Pool, array_of, driver
from mesh.fabric.gpu.arrays import DeviceArray, to_device
from mesh.fabric.verbs.objects import Work
from protocol.errors import RemoteProtocolError
from protocol.fabric import Kind, Place
from protocol.fabric.messages import Offer
from protocol.inference import Tensor

SIZES = (64, 5000, 1 << 20, 3 << 20)


def on_device(what) -> tuple[Tensor, ...]:
    device = driver().devices[0]
    arrays = [to_device(tensor, device, Pool(device)) for tensor in what]
    return tuple(Tensor(t.name, t.dtype, t.shape, memoryview(b""), a) for t, a in zip(what, arrays, strict=True))


def content(tensor: Tensor) -> bytes:
    """The bytes, without counting that they were brought to the host."""
    array = array_of(tensor)
    if array is None:
        return bytes(tensor.data)
    data = bytearray(array.size_bytes)
    array.device.read(array.address, memoryview(data))
    return bytes(data)


def same(one, other) -> bool:
    return [(t.name, t.shape, content(t)) for t in one] == [(t.name, t.shape, content(t)) for t in other]


async def transfer(giver, taker, what, *, may: bool = True):
    """The tensors as they arrive, and the tag that was told."""
    given = giver.session.give(what, 30.0, 0.0)
    offer = Offer(0, Kind.RDMA, given.places, on_device=given.on_device and may)
    lease = await taker.session.grant(offer, 30.0, trio.current_time())
    tag = await giver.session.write(given, lease)
    return await taker.session.check(offer, lease, tag), tag


def lie_on_device(got) -> list[bool]:
    return [array_of(tensor) is not None for tensor in got]


def emulated(name: str) -> int:
    """What the emulated GPU counts; 0 on a real one."""
    counts = getattr(ctypes.CDLL("libcuda.so.1"), name, None)
    return 0 if counts is None else int(counts(*([0] if name == "emulated_blocks" else [])))


@work
async def a_real_dma_buf() -> dict:
    """What the driver gives to cards is a dma-buf of this kernel's."""
    device = driver().devices[0]
    address = device.allocate(2 << 20)
    descriptor = device.dma_buf(address, 2 << 20)
    try:
        return {"is": str(Path(f"/proc/self/fd/{descriptor}").readlink())}  # noqa: ASYNC240
    finally:
        os.close(descriptor)
        device.free(address)


@work
async def by_the_host() -> dict:
    """Cards that take no memory of a GPU: tensors go by the host, each copied once, and nothing is tried twice."""
    device = driver().devices[0]
    async with fabric() as (left, right):
        told = {"equal": [], "copies": [], "tags": [], "on_device": []}
        for n_bytes in SIZES:
            what, before = on_device(tensors(n_bytes)), device.host_copies
            got, tag = await transfer(left, right, what)
            told["copies"].append(device.host_copies - before)
            told["equal"].append(same(got, what))
            told["tags"].append(len(tag))
            told["on_device"] += lie_on_device(got)
        told["figures"] = left.session.direct.figures(), right.session.direct.figures()
        told["closed"] = [left.why, right.why]
        return told


@work
async def on_the_device() -> dict:
    """Cards that take it: no copy on the host, no tag, regions used again, memory given back."""
    device, blocks = driver().devices[0], emulated("emulated_blocks")
    async with fabric() as (left, right):
        told = {"equal": [], "copies": 0, "tags": [], "on_device": []}
        for n_bytes in SIZES:
            for giver, taker in ((left, right), (right, left)):
                what, before, n_before = on_device(tensors(n_bytes)), device.host_copies, giver.session.wire.n_written_bytes
                got, tag = await transfer(giver, taker, what)
                told["copies"] += device.host_copies - before
                told["written"] = giver.session.wire.n_written_bytes - n_before
                told["equal"].append(same(got, what))
                told["tags"].append(len(tag))
                told["on_device"] += lie_on_device(got)
                del got
        # One tensor on the host beside one on the device, and what arrived is given back as it lies.
        mixed = (*on_device(tensors(1 << 20)[:1]), tensors(1 << 20)[1])
        got, _ = await transfer(left, right, mixed)
        back, _ = await transfer(right, left, got)
        told["mixed"] = [same(got, mixed), same(back, mixed), *lie_on_device(back)]
        told["copies"] += device.host_copies - before
        kept, _ = await transfer(left, right, on_device(tensors(1 << 20)))
        other, _ = await transfer(left, right, on_device(tensors(1 << 19)))
        told["kept"] = same(kept, tensors(1 << 20))
        told["flushes"] = emulated("emulated_flushes")
        told["regions"] = right.session.figures()["regions_leased"]
        told["figures"] = right.session.direct.figures()
        told["session"] = right.session.figures()
        told["closed"] = [left.why, right.why]
        directs = left.session.direct, right.session.direct
    del got, back, mixed, other, what
    gc.collect()
    await until(lambda: right.session.wire.completions._cq is None)
    for direct in directs:
        direct.sweep()
    told["kept_after_the_end"] = same(kept, tensors(1 << 20))
    del kept
    gc.collect()
    for direct in directs:
        direct.sweep()
    told["held_bytes"] = [direct.figures()["held_bytes"] for direct in directs]
    told["blocks"] = emulated("emulated_blocks") - blocks
    return told


@work
async def one_side_only() -> dict:
    """A receiver or a giver whose card does not: one copy, where it is needed."""
    device = driver().devices[0]
    told = {}
    async with fabric() as (left, right):
        for name, side in (("giver", left), ("receiver", right)):
            side.session.direct._tried[side.session.wire.device.name, device.bus_id] = "as a test wants it"
            what, before = on_device(tensors(1 << 20)), device.host_copies
            got, tag = await transfer(left, right, what)
            copies = device.host_copies - before
            told[name] = {"equal": same(got, what), "copies": copies, "on_device": lie_on_device(got), "tag": len(tag)}
            side.session.direct._tried.clear()
        what, before = on_device(tensors(1 << 20)), device.host_copies
        got, tag = await transfer(left, right, what, may=False)
        copies = device.host_copies - before
        told["unwanted"] = {"equal": same(got, what), "copies": copies, "on_device": lie_on_device(got), "tag": len(tag)}
        told["closed"] = [left.why, right.why]
        return told


async def leased(side, size: int = 1 << 20):
    """A lease of memory on the device, and the memory."""
    offer = Offer(0, Kind.RDMA, (Place("x", "u1", (size,), 0, size),), on_device=True)
    lease = await side.session.grant(offer, 30.0, trio.current_time())
    own = side.session._targets.regions[lease.region]
    assert own.gpu is not None
    return offer, lease, own


def seen(memory, size: int = 1 << 20) -> bytes:
    return content(Tensor("x", "u1", (size,), memoryview(b""), DeviceArray(memory.device, memory.address, "u1", (size,), memory)))


@work
async def nothing_written() -> dict:
    """A peer that says it has written, and has not: nothing of anybody's is handed out, nor of an earlier engine."""
    device = driver().devices[0]
    address = device.allocate(2 << 20)
    device.write(address, memoryview(b"\x77" * (2 << 20)))
    device.free(address)
    async with fabric() as (left, right):
        offer, lease, _ = await leased(right)
        attacker = Attacker(left)
        key = right.session._targets.regions[lease.region].key
        says = await attacker.post(lease_address(lease), key, size=0, work=Work.WRITE_IMMEDIATE, immediate=lease.region)
        (got,) = await right.session.check(offer, lease, b"")
        return {"says": says, "zeros": content(got) == bytes(1 << 20)}


def lease_address(lease) -> int:
    return int.from_bytes(lease.key[:8], "big")


@work
async def stale_key_on_device() -> dict:
    """The key of a lease that was taken back, and tried before the region is leased again."""
    async with fabric() as (left, right):
        what = on_device(tensors(1 << 20))
        given = left.session.give(what, 30.0, 0.0)
        offer = Offer(0, Kind.RDMA, given.places, on_device=True)
        lease = await right.session.grant(offer, 30.0, trio.current_time())
        key = right.session._targets.regions[lease.region].key
        await left.session.write(given, lease)
        got = await right.session.check(offer, lease, b"")
        before = [content(tensor) for tensor in got]
        says = await Attacker(left).post(lease_address(lease), key)
        return {"says": says, "changed": [content(tensor) for tensor in got] != before, "closed": await ended(right)}


@work
async def out_of_bounds_on_device() -> dict:
    """Past the end of a region of a GPU, and reading out of it."""
    told = {}
    with pair.readers_credit():
        for name, offset, how in (("past", 2 << 20, Work.WRITE), ("read", 0, Work.READ)):
            async with fabric() as (left, right):
                _, lease, own = await leased(right)
                memory = own.gpu  # which the target lets go of when the attack has closed its fabric
                says = await Attacker(left).post(own.address + offset, own.key, work=how)
                told[name] = {"says": says, "changed": int(np.frombuffer(seen(memory), np.uint8).any())}
                with suppress(RemoteProtocolError, OSError):
                    right.session.withdraw(lease)
    return told


@work
async def a_lease_that_was_not_asked_for() -> dict:
    """A peer that leases memory of a device for tensors of the host: they would go without a tag."""
    async with fabric() as (left, right):
        given = left.session.give(tensors(1 << 20), 30.0, 0.0)
        lease = await right.session.grant(Offer(0, Kind.RDMA, given.places, on_device=True), 30.0, trio.current_time())
        try:
            await left.session.write(given, lease)
        except RemoteProtocolError as error:
            return {"code": error.code.name, "written": left.session.wire.n_written_bytes}
        return {"code": "written"}


if __name__ == "__main__":
    trio.run(pair.main)
