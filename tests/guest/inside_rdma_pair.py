"""Runs in a guest with two software RDMA devices, rxa and rxb: two sides of a fabric in one process, and who attacks one of them.

usage: inside_rdma_pair.py NAME...; prints a JSON object of what each found, or how it failed.

The streams of the openings are pipes of trio; everything else is what nodes run. RDMA_DEVICES names other devices. Attacks are
those of ReDMArk that a peer, or somebody on its host, can make with verbs: each is seen to fail at the device, and what was
attacked is looked at afterwards.

Source: Rothenberger et al., "ReDMArk" (USENIX Security 2021), sections 4 and 5.
"""

import gc
import json
import os
import sys
import traceback
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter

import numpy as np
import trio
import trio.testing

from mesh.fabric.base import Opening
from mesh.fabric.control import Control
from mesh.fabric.rdma import session, wire
from mesh.fabric.rdma.opener import RdmaOpener
from mesh.fabric.rdma.session import RdmaSession
from mesh.fabric.verbs.objects import Access, QueuePair, Region, Work
from mesh.transport import StreamReset
from protocol.errors import RemoteProtocolError
from protocol.fabric import FabricConfig, Lease, Place, matches
from protocol.fabric.messages import Hello, Kind, Offer, decode_opening
from protocol.identity import PeerId
from protocol.inference import Tensor

WORKS = {}
"""What can be run, by name."""
CLOSE_S = 20.0
"""Seconds for what is sure to come, on a processor that is emulated."""
START_S = 100.0
"""Seconds for the openers to find their ports: the first has to import what asks the kernel for addresses."""
ENDED_S = 3.0
"""Seconds for a side to notice that it was attacked."""
A, B = PeerId(b"left"), PeerId(b"right")
DEVICES = os.environ.get("RDMA_DEVICES", "rxa,rxb").split(",")
"""The device of each side: others than the guest's where this is run by hand on a machine that has two."""
# As inside_patient_node.py; what is sent again because an emulated processor was slow makes it slower.
wire.PACKET_TIMEOUT += 2
wire.STALL_S *= 10
session.WRITTEN_S *= 10


async def until(is_so, within_s: float = CLOSE_S) -> bool:
    """Wait until something is so; False where it does not become so."""
    with trio.move_on_after(within_s):
        while True:
            if is_so():
                return True
            await trio.sleep(0.01)
    return False


class Pipe:
    """One end of a stream of an opening."""

    def __init__(self, ends) -> None:
        self.ends = ends
        self.code = None
        self.other = None
        self.is_deaf = False

    async def send_all(self, data, *, end=False, linger=False) -> None:
        del end, linger
        try:
            await self.ends.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise StreamReset(self.other.code or 0, "gone") from None

    async def receive_some(self, max_bytes=65536) -> bytes:
        try:
            data = await self.ends.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data and self.is_deaf:
            await trio.sleep_forever()
        if not data:
            raise StreamReset(self.other.code or 0, "gone")
        return data

    @contextmanager
    def waiting(self):
        yield

    def reset(self, code) -> None:
        if self.code is None:
            self.code = code
            self.ends.send_stream.close()
            self.ends.receive_stream.close()


def pipes() -> tuple[Pipe, Pipe]:
    one, other = (Pipe(end) for end in trio.testing.memory_stream_pair())
    one.other, other.other = other, one
    return one, other


class Side:
    """A session, and why it ended."""

    def __init__(self, session: RdmaSession) -> None:
        self.session = session
        self.why = None


@asynccontextmanager
async def openers():
    """The openers of two nodes, with their devices open."""
    left, right = (RdmaOpener(os.urandom(32), [name]) for name in DEVICES)
    async with trio.open_nursery() as nursery:
        for opener in (left, right):
            nursery.start_soon(opener.run, lambda: None)
        assert await until(lambda: not (left.absent or right.absent), START_S), (left.absent, right.absent)
        yield left, right, nursery
        nursery.cancel_scope.cancel()


async def connected(left, right, nursery, config=None):
    """A fabric between two openers: both sides."""
    match = matches(left.advert(), right.advert())[0]
    turned = matches(right.advert(), left.advert())[0]
    sides, streams = {}, pipes()

    def closed(session, why) -> None:
        if session in sides:
            sides[session].why = why

    def opening(own, peer, found, stream) -> Opening:
        return Opening(own, peer, found, config or FabricConfig(), Control(stream), os.urandom, closed)

    nonce = os.urandom(16)
    made = {}

    async def admit() -> None:
        made["right"] = await right.admit(opening(B, A, turned, streams[1]), Hello((int(Kind.RDMA),), nonce))
        nursery.start_soon(made["right"].run)

    with trio.fail_after(CLOSE_S):
        async with trio.open_nursery() as both:
            both.start_soon(admit)
            knocking = opening(A, B, match, streams[0])
            door = decode_opening(await knocking.control.expect())
            made["left"] = await left.knock(knocking, door, nonce)
    nursery.start_soon(made["left"].run)
    found = []
    for name in ("left", "right"):
        sides[made[name]] = Side(made[name])
        found.append(sides[made[name]])
    return found


@asynccontextmanager
async def fabric(config=None):
    async with openers() as (left, right, nursery):
        giver, taker = await connected(left, right, nursery, config)
        try:
            yield giver, taker
        finally:
            giver.session.close("")
            taker.session.close("")


def tensors(n_bytes: int) -> tuple[Tensor, ...]:
    half = np.random.default_rng(1).integers(0, 256, n_bytes // 2, np.uint8)
    return (
        Tensor("a", "u1", half.shape, memoryview(half)),
        Tensor("b", "f4", (n_bytes // 8,), memoryview((np.arange(n_bytes // 8) % 251).astype("f4")).cast("B")),
    )


async def transfer(giver: RdmaSession, taker: RdmaSession, what) -> tuple[Tensor, ...]:
    given = giver.give(what, 30.0, 0.0)
    offer = Offer(0, Kind.RDMA, given.places)
    lease = await taker.writes.grant(offer, 30.0, trio.current_time())
    tag = await giver.writes.write(given, lease)
    return await taker.writes.check(offer, lease, tag)


def same(one, other) -> bool:
    return [(t.name, t.shape, bytes(t.data)) for t in one] == [(t.name, t.shape, bytes(t.data)) for t in other]


def work(function):
    WORKS[function.__name__] = function
    return function


@work
async def transfers():
    """Several transfers both ways: equal bytes, regions used again, read-only views, memory that is let go, no copy."""
    async with fabric() as (left, right):
        told = {"equal": [], "seconds": []}
        for n_bytes in (0, 64, 5000, 1 << 20, 3 << 20):
            for giver, taker in ((left, right), (right, left)):
                what = tensors(n_bytes)
                before = perf_counter()
                got = await transfer(giver.session, taker.session, what)
                told["seconds"].append(round(perf_counter() - before, 3))
                told["equal"].append(same(got, what))
                told["readonly"] = all(t.data.readonly for t in got)
                del got
        gc.collect()
        told["regions"] = right.session.figures()["regions_leased"]
        own = left.session.allocate(1 << 20)
        own[:] = 7
        copies = left.session.figures()["given_bytes"]
        got = await transfer(left.session, right.session, (Tensor("x", "u1", own.shape, memoryview(own)),))
        told["lying"] = bytes(got[0].data) == b"\x07" * (1 << 20)
        told["lying_copied_bytes"] = left.session.figures()["given_bytes"] - copies
        told["closed"] = [left.why, right.why]
        told["figures"] = right.session.figures()
        return told


# Attacks. The left side is the attacker: it holds everything that a peer holds, and uses its queue pair as it likes.


class Attacker:
    """A peer that posts what it wants on its own queue pair."""

    def __init__(self, side: Side) -> None:
        self.side, self.wire = side, side.session.wire
        side.session.control.stream.is_deaf = True  # what the device says is wanted, not that the other side has gone then
        self.bytes = np.full(1 << 16, 0x66, np.uint8)
        self.region = Region(self.wire.domain, self.bytes.ctypes.data, self.bytes.nbytes, Access.LOCAL_WRITE)

    async def post(self, address: int, key: int, size: int = 4096, work: Work = Work.WRITE, immediate: int = 0) -> str:
        """What the device says to one request, in the library's words; "Success" where it lets it through."""
        heard: list[str] = []
        self.wire.on_failed = heard.append
        piece = (self.region.address, size, self.region.local_key)
        number, operation = self.wire._operation()
        self.wire.pair.post(number, work, piece, (address, key), immediate=immediate)
        self.wire._pending[number] = operation
        try:
            await until(lambda: operation.end is not None or heard)
        finally:
            self.wire.on_failed = self.side.session.close
        if heard:
            self.side.session.close(heard[0])
        return heard[0] if heard else "Success" if operation.end else "nothing"


def target_of(session: RdmaSession, lease: Lease) -> tuple[int, int, np.ndarray]:
    """Where a lease's window is, its key, and the whole region behind it, filled with a pattern."""
    own = session._targets.regions[lease.region]
    whole = own.array(own.size_bytes)
    whole[:] = 0x11
    return own.address, own.key, whole


async def granted(session: RdmaSession, size: int = 4096) -> Lease:
    places = places_of(size)
    return await session.writes.grant(Offer(0, Kind.RDMA, places), 30.0, trio.current_time())


def places_of(size: int):
    return (Place("x", "u1", (size,), 0, size),)


async def ended(side: Side) -> str:
    """Why the attacked side has closed the fabric; "open" where it has not."""
    return str(side.why) if await until(lambda: side.session.closed, ENDED_S) else "open"


async def attack(prepare, **how) -> dict:
    """One attack on a fabric of its own: what the device said, whether any byte of the victim changed, and why it closed."""
    async with fabric() as (left, right):
        attacker = Attacker(left)
        address, key, whole = await prepare(left, right)
        says = await attacker.post(address, key, **how)
        closed = await ended(right)
        return {"says": says, "changed": int((whole != 0x11).sum()), "closed": closed}


@work
async def sound_write():
    """The attacker's means are sound: what it may write it can write."""

    async def prepare(left, right):
        return target_of(right.session, await granted(right.session))

    return await attack(prepare)


@work
async def stale_key():
    """A key that was used, after the lease was taken back and the tensors are in use."""

    async def prepare(left, right):
        what = (Tensor("x", "u1", (4096,), memoryview(bytes(4096))),)
        given = left.session.give(what, 30.0, 0.0)
        offer = Offer(0, Kind.RDMA, given.places)
        lease = await right.session.grant(offer, 30.0, trio.current_time())
        own = right.session._targets.regions[lease.region]
        key = own.key
        tag = await left.session.write(given, lease)
        prepare.got = await right.session.check(offer, lease, tag)
        whole = own.array(own.size_bytes)
        whole[:] = 0x11
        return own.address, key, whole

    return await attack(prepare)


@work
async def out_of_bounds():
    """Past the end of what was leased, beyond the region."""

    async def prepare(left, right):
        lease = await granted(right.session)
        address, key, whole = target_of(right.session, lease)
        return address + right.session._targets.regions[lease.region].size_bytes, key, whole

    return await attack(prepare)


@work
async def across_the_end():
    """From inside the region to past its end."""

    async def prepare(left, right):
        lease = await granted(right.session, 1 << 16)
        address, key, whole = target_of(right.session, lease)
        return address + right.session._targets.regions[lease.region].size_bytes - 64, key, whole

    return await attack(prepare)


@work
async def past_the_window():
    """Past the end of the window, inside its region: another transfer is never there, whatever the device says to it."""
    async with fabric() as (left, right):
        leases = [await granted(right.session) for _ in range(2)]
        (address, key, first), (_, _, second) = (target_of(right.session, lease) for lease in leases)
        says = await Attacker(left).post(address + 4096, key)
        return {
            "says": says,
            "changed_in_lease": int((first[:4096] != 0x11).sum()),
            "changed_in_other": int((second != 0x11).sum()),
        }


@work
async def revoked():
    """A lease that was taken back before anything was written."""

    async def prepare(left, right):
        lease = await granted(right.session)
        found = target_of(right.session, lease)
        right.session.withdraw(lease)
        await trio.sleep(0.5)
        return found

    return await attack(prepare)


@work
async def wrong_epoch():
    """The key of the epoch before, while the same region is leased again; and the old lease told again to the giver's side."""
    told = {}

    async def prepare(left, right):
        first = await granted(right.session)
        _, old_key, _ = target_of(right.session, first)
        right.session.withdraw(first)
        await trio.sleep(0.5)
        second = await granted(right.session)
        assert second.region == first.region
        assert second.epoch > first.epoch
        address, new_key, whole = target_of(right.session, second)
        assert new_key != old_key
        left.session._held.take(second, 4096)
        try:
            left.session._held.take(first, 4096)
        except RemoteProtocolError as error:
            told["giver"] = error.code.name
        return address, old_key, whole

    return {**await attack(prepare), **told}


@work
async def region_key():
    """The key of the region itself, to which nothing was ever granted."""

    async def prepare(left, right):
        lease = await granted(right.session)
        address, _, whole = target_of(right.session, lease)
        return address, right.session._targets.regions[lease.region].region.remote_key, whole

    return await attack(prepare)


@contextmanager
def readers_credit():
    """The attacker's queue pair may ask for reads, which none of a node's may."""
    sound = QueuePair.connect

    def connect(pair, path, own_psn, access, *, timeout, retries):
        lib = pair._lib
        real = lib.iso_qp_to_send

        class Lib:
            def __getattr__(self, name):
                return getattr(lib, name)

            def iso_qp_to_send(self, qp, psn, reads, *rest):
                return real(qp, psn, 1, *rest)

        pair._lib = Lib()
        return sound(pair, path, own_psn, access, timeout=timeout, retries=retries)

    QueuePair.connect = connect
    try:
        yield
    finally:
        QueuePair.connect = sound


@work
async def read_out():
    """A read by a key that is good for writing."""

    async def prepare(left, right):
        return target_of(right.session, await granted(right.session))

    with readers_credit():
        async with fabric() as (left, right):
            attacker = Attacker(left)
            address, key, whole = await prepare(left, right)
            says = await attacker.post(address, key, work=Work.READ)
            return {"says": says, "changed": int((whole != 0x11).sum()), "leaked": int((attacker.bytes == 0x11).sum())}


@work
async def foreign_key():
    """The key that another peer was granted, on a queue pair of one's own."""
    async with openers() as (left, right, nursery):
        honest, victim = await connected(left, right, nursery)
        thief, other = await connected(left, right, nursery)
        lease = await granted(victim.session)
        address, key, whole = target_of(victim.session, lease)
        says = await Attacker(thief).post(address, key)
        changed = int((whole != 0x11).sum())
        await ended(other)
        victim.session.withdraw(lease)
        await trio.sleep(0.3)
        what = tensors(100_000)
        got = await transfer(honest.session, victim.session, what)
        told = {"says": says, "changed": changed, "closed": str(other.why), "honest_goes_on": same(got, what)}
        for side in (honest, victim, thief, other):
            side.session.close("")
        return told


@work
async def exhaustion():
    """More leases, and more bytes, than a peer may have; afterwards everything is as before."""
    told = {}
    async with fabric(FabricConfig(regions_max=4, mapped_bytes_max=1 << 20)) as (left, right):
        leases = [await granted(right.session) for _ in range(4)]
        for name, size in (("regions", 4096), ("bytes", 1 << 19)):
            try:
                await granted(right.session, size)
            except RemoteProtocolError as error:
                told[name] = error.code.name
            for lease in leases[1:]:
                right.session.withdraw(lease)
            await trio.sleep(0.5)
            leases = leases[:1] + [await granted(right.session, 1 << 18) for _ in range(3)]
        told["leased_bytes"] = right.session.figures()["leased_bytes"]
        for lease in leases:
            right.session.withdraw(lease)
        await trio.sleep(0.5)
        what = tensors(1 << 17)
        told["goes_on"] = same(await transfer(left.session, right.session, what), what)
        told["given"] = left.session.give(tensors(1 << 21), 30.0, 0.0) is None
    return told


@work
async def flood_of_words():
    """A thousand writes of nothing that say that something was written to regions which nobody leased."""
    async with fabric() as (left, right):
        attacker = Attacker(left)
        says = {await attacker.post(0, 0, 0, Work.WRITE_IMMEDIATE, number) for number in range(1000)}
        what = tensors(100_000)
        goes_on = not right.session.closed and same(await transfer(left.session, right.session, what), what)
        return {"says": sorted(says), "goes_on": goes_on}


@work
async def other_bytes():
    """A giver whose tag is not that of what it has written."""
    async with fabric() as (left, right):
        given = left.session.give(tensors(1 << 17), 30.0, 0.0)
        offer = Offer(0, Kind.RDMA, given.places)
        lease = await right.session.grant(offer, 30.0, trio.current_time())
        tag = await left.session.write(given, lease)
        try:
            await right.session.check(offer, lease, bytes([tag[0] ^ 1]) + tag[1:])
        except RemoteProtocolError as error:
            return {"code": error.code.name}
        return {"code": "taken"}


@work
async def never_written():
    """A giver that says that it has written and has not."""
    async with fabric() as (_left, right):
        offer = Offer(0, Kind.RDMA, places_of(4096))
        lease = await right.session.grant(offer, 30.0, trio.current_time())
        try:
            await right.session.check(offer, lease, bytes(32))
        except RemoteProtocolError as error:
            return {"code": error.code.name}
        return {"code": "taken"}


@work
async def without_windows():
    """A device without windows of type 2: a region for each transfer; its key is worth nothing afterwards."""
    async with fabric() as (left, right):
        right.session.has_windows = False
        told = {"equal": []}
        for n_bytes in (5000, 1 << 20):
            what = tensors(n_bytes)
            told["equal"].append(same(await transfer(left.session, right.session, what), what))
        lease = await granted(right.session)
        address, key, whole = target_of(right.session, lease)
        right.session.withdraw(lease)
        gc.collect()
        told["says"] = await Attacker(left).post(address, key)
        told["changed"] = int((whole != 0x11).sum())
        return told


@work
async def link_down():
    """The cable is pulled while tensors are being written: the giver notices, and both sides close."""
    async with fabric() as (left, right):
        what = tensors(16 << 20)
        given = left.session.give(what, 30.0, 0.0)
        offer = Offer(0, Kind.RDMA, given.places)
        lease = await right.session.grant(offer, 30.0, trio.current_time())
        told = {}

        async def write() -> None:
            try:
                await left.session.write(given, lease)
            except (RemoteProtocolError, OSError) as error:
                told["failed"] = str(error)
            told["noticed_s"] = perf_counter() - pulled

        try:
            async with trio.open_nursery() as nursery:
                pulled = perf_counter()
                nursery.start_soon(write)
                assert await until(lambda: left.session.wire.n_written_bytes)
                pulled = perf_counter()
                await trio.run_process(["ip", "link", "set", "vb", "down"])
            told["closed"] = [await ended(left), await ended(right)]
        finally:
            await trio.run_process(["ip", "link", "set", "vb", "up"])
        return told


async def main() -> None:
    told = {}
    for name in sys.argv[1:]:
        try:
            told[name] = await WORKS[name]()
        except BaseException as error:  # noqa: BLE001
            traceback.print_exc()
            told[name] = {"error": repr(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    trio.run(main)
