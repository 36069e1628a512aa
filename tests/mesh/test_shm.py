"""Shared memory as one process passes it to another: what is sealed, what is checked, and what a hostile other end gains by
it."""

import array
import fcntl
import gc
import mmap
import os
import socket
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import trio

from mesh.fabric import host_secret
from mesh.fabric.door import DOOR, OPENER, OPENING_S, Terms, bind_door, check_user, enter, let_in, receive_packet, send_packet
from mesh.fabric.memory import F_SEAL_FUTURE_WRITE, SEALS, make_region, map_for_reading, sealed_size, size_class
from mesh.fabric.ring import ENTRIES_MAX, RING_BYTES, Entry, Inbox, Outbox, Word, check_bell, make_bell
from mesh.fabric.session import ShmSession
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import FabricConfig, Lease, Place, Rights
from protocol.identity import PeerId
from protocol.inference import Tensor

ONE, OTHER = PeerId(b"one"), PeerId(b"other")
PACKET = struct.Struct("<cIQ")
TERMS = Terms(bytes(32), ONE, OTHER, bytes(16), bytes(range(16)))


def tensor(n_bytes: int, name: str = "x", dtype: str = "f4") -> Tensor:
    data = np.arange(n_bytes, dtype=np.uint8)
    return Tensor(name, dtype, (n_bytes // int(dtype[1:]),), memoryview(data))


def refused(call) -> ErrorCode:
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    return caught.value.code


class Pair:
    """Two sessions in this process, over real memfds, eventfds and a socket pair."""

    def __init__(self, config: FabricConfig | None = None, **named) -> None:
        config = config or FabricConfig()
        self.closed = []
        sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        bells = [make_bell(), make_bell()]
        boxes = [Outbox(os.dup(bells[1])), Outbox(os.dup(bells[0]))]
        inboxes = [Inbox(boxes[1].region.descriptor), Inbox(boxes[0].region.descriptor)]
        self.a, self.b = (
            ShmSession(peer, config, sockets[n], boxes[n], inboxes[n], bells[n], self.note, **named)
            for n, peer in enumerate((OTHER, ONE))
        )

    def note(self, session, why):
        self.closed.append((session, why))

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.a.close("")
        self.b.close("")

    def send(self, *tensors: Tensor, lifetime_s: float = 60.0):
        """Give at one end and take at the other."""
        given = self.a.give(tensors, lifetime_s, 0.0)
        assert given is not None
        return given, self.b.take(given.lease, given.places)


# Regions


async def test_an_offer_of_an_earlier_fabric_with_a_peer_is_none_of_the_next():
    """It may be on its way while the fabric is closed and opened anew, as where both sides have opened one at a time."""
    with Pair() as before, Pair() as after:
        early, later = (pair.a.give([tensor(4096)], 60.0, 0.0) for pair in (before, after))
        with pytest.raises(RemoteProtocolError) as caught:
            after.b.take(early.lease, early.places)
        assert caught.value.code is ErrorCode.STALE_LEASE
        assert after.b.take(later.lease, later.places)


def test_a_region_can_neither_be_resized_nor_written_nor_unsealed_by_whoever_is_passed_it():
    region = make_region(1 << 16)
    passed = os.dup(region.descriptor)
    assert fcntl.fcntl(passed, fcntl.F_GET_SEALS) == SEALS
    for call in (
        lambda: os.ftruncate(passed, 1 << 12),
        lambda: os.ftruncate(passed, 1 << 20),
        lambda: os.write(passed, b"x"),
        lambda: mmap.mmap(passed, 1 << 16, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: fcntl.fcntl(passed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(OSError):
            call()
    region.map[:4] = b"tens"
    seen = map_for_reading(passed, sealed_size(passed))
    assert seen[:4] == b"tens"
    with pytest.raises(TypeError):
        seen[:4] = b"evil"
    os.close(passed)
    region.close()


@pytest.mark.parametrize(
    "seals",
    [
        0,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | F_SEAL_FUTURE_WRITE,
        fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE,
    ],
)
def test_memory_that_lacks_a_seal_is_not_mapped(seals):
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    assert refused(lambda: sealed_size(descriptor)) is ErrorCode.MALFORMED
    os.close(descriptor)


def test_what_is_no_memory_is_not_mapped(tmp_path):
    reads, writes = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for descriptor in (reads, file):
        assert refused(lambda descriptor=descriptor: sealed_size(descriptor)) is ErrorCode.MALFORMED
    for descriptor in (reads, writes, file):
        os.close(descriptor)


def test_a_few_sizes_serve_all_tensors():
    assert [size_class(n) for n in (1, 65536, 65537, 1 << 30)] == [65536, 65536, 262144, 1 << 30]


# Tensors


async def test_tensors_arrive_as_they_were_and_cannot_be_written_to():
    with Pair() as pair:
        given, (big, text, empty) = pair.send(tensor(100_000), tensor(8, "ids", "i8"), tensor(0, "none"))
        assert bytes(big.data) == bytes(tensor(100_000).data)
        assert (big.name, big.dtype, big.shape, big.data.readonly) == ("x", "f4", (25_000,), True)
        assert (text.name, bytes(text.data)) == ("ids", bytes(range(8)))
        assert (empty.shape, len(empty.data)) == ((0,), 0)
        assert given.copied_bytes == 100_008


async def test_a_tensor_that_lies_in_a_region_is_not_copied_however_large():
    with Pair() as pair:
        for size in (1024, 64 << 20):
            memory = pair.a.allocate(size)
            memory[:4] = (1, 2, 3, 4)
            given, (taken,) = pair.send(Tensor("x", "f4", (size // 4,), memory.data))
            assert given.copied_bytes == 0
            memory[0] = 9  # the same bytes, seen from both ends
            assert (bytes(taken.data[:4]), taken.data.readonly) == (b"\x09\x02\x03\x04", True)


async def test_whole_numbers_are_private_to_whoever_checks_them():
    with Pair() as pair:
        memory = pair.a.allocate(1024)
        memory[:] = 1
        _, (ids,) = pair.send(Tensor("ids", "i4", (256,), memory.data))
        memory[:] = 255  # the giver writes after it has given
        assert bytes(ids.data) == b"\x01" * 1024


async def test_a_region_comes_back_when_nobody_views_its_tensors_from_whichever_thread():
    with Pair() as pair:
        _, taken = pair.send(tensor(100_000))
        half = taken[0].data[:10]
        (own,) = pair.a._own.values()
        del taken
        gc.collect()
        pair.a.hear_ring()
        assert not own.is_free, "a part is still viewed"
        thread = threading.Thread(target=half.release)
        thread.start()
        await trio.to_thread.run_sync(thread.join)
        del half
        with trio.fail_after(5):
            while not own.is_free:
                await trio.lowlevel.wait_readable(pair.a.bell)
                pair.a.hear_ring()
        given, _ = pair.send(tensor(100_000))
        assert pair.a._own[given.lease.region] is own, "and is used again"


async def test_a_region_whose_lease_runs_out_is_never_used_again():
    with Pair() as pair:
        given, taken = pair.send(tensor(100_000), lifetime_s=1.0)
        pair.a.handle_timer(1.0 + FabricConfig().lease_grace_s - 0.01)
        assert given.lease.region in pair.a._own
        pair.a.handle_timer(1.0 + FabricConfig().lease_grace_s)
        assert pair.a._own == {}
        another = pair.a.give([tensor(100_000, dtype="u1")], 60.0, 10.0)
        assert another.lease.region != given.lease.region
        assert bytes(taken[0].data) == bytes(tensor(100_000).data), "what is viewed stays as it is"
        pair.b.hear()
        assert given.lease.region not in pair.b._mapped


async def test_a_region_that_its_reader_may_still_look_at_is_not_used_again():
    with Pair() as pair:
        given, taken = pair.send(tensor(100_000))
        pair.a.retire(given)
        pair.a.reuse(given)  # a word that came too late
        again = pair.a.give([tensor(100_000, dtype="u1")], 60.0, 0.0)
        assert again.lease.region != given.lease.region
        assert bytes(taken[0].data) == bytes(tensor(100_000).data)


async def test_a_peer_is_shown_so_much_and_idle_memory_is_given_back():
    config = FabricConfig(regions_max=3, mapped_bytes_max=5 << 20)
    with Pair(config, idle_bytes_max=1 << 20) as pair:
        held = [pair.send(tensor(1 << 20)) for _ in range(3)]
        assert pair.a.give([tensor(1 << 20)], 60.0, 0.0) is None
        assert pair.b.figures()["mapped_bytes"] == 3 << 20
        held.clear()
        gc.collect()
        pair.a.hear_ring()
        pair.b.hear()
        assert pair.a.figures()["given_bytes"] == pair.b.figures()["mapped_bytes"] == 1 << 20
        assert pair.a.give([tensor(4 << 20)], 60.0, 0.0) is not None


# A hostile other end


async def test_an_old_offer_a_stretched_one_and_one_of_nothing_are_refused():
    with Pair() as pair:
        given, _ = pair.send(tensor(1000))
        old = given.lease
        assert refused(lambda: pair.b.take(old, given.places)) is ErrorCode.STALE_LEASE
        stretched = Lease(old.region, old.epoch + 1, 0, 1 << 30, Rights.READ, 60.0)
        assert refused(lambda: pair.b.take(stretched, ())) is ErrorCode.OUT_OF_BOUNDS
        writing = Lease(old.region, old.epoch + 1, 0, 10, Rights.WRITE, 60.0)
        assert refused(lambda: pair.b.take(writing, ())) is ErrorCode.OUT_OF_BOUNDS
        outside = Lease(old.region, old.epoch + 1, 0, 10, Rights.READ, 60.0)
        places = (Place("x", "u1", (4,), 8, 4),)
        assert refused(lambda: pair.b.take(outside, places)) is ErrorCode.OUT_OF_BOUNDS
        unknown = Lease(999, 1, 0, 10, Rights.READ, 60.0)
        assert refused(lambda: pair.b.take(unknown, ())) is ErrorCode.STALE_LEASE


@pytest.mark.parametrize(
    "packet",
    [b"", b"x", PACKET.pack(b"?", 1, 1), PACKET.pack(b"S", 1, 4096), b"S" * 257],
    ids=["end", "short", "odd", "bare", "long"],
)
async def test_a_packet_that_no_peer_sends_ends_the_session(packet):
    with Pair() as pair:
        if packet:
            pair.a.connection.send(packet)
        else:
            pair.a.connection.shutdown(socket.SHUT_RDWR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.b.run)
            with trio.fail_after(5):
                while not pair.b.closed:  # noqa: ASYNC110
                    await trio.sleep(0.001)
        assert pair.closed[0][0] is pair.b
        assert bool(pair.closed[0][1]) is bool(packet), "an end is no fault"


async def test_regions_without_end_past_the_limit_or_lying_about_their_size_are_refused():
    with Pair(FabricConfig(regions_max=2, mapped_bytes_max=1 << 20)) as pair:
        for number in range(2):
            region = make_region(65536)
            send_packet(pair.a.connection, PACKET.pack(b"S", number, 1 << 40), [region.descriptor])
            region.close()
        pair.b.hear()
        assert pair.b.figures() == {"regions_given": 0, "given_bytes": 0, "regions_mapped": 2, "mapped_bytes": 131072}
        region = make_region(65536)
        send_packet(pair.a.connection, PACKET.pack(b"S", 2, 65536), [region.descriptor])
        assert refused(pair.b.hear) is ErrorCode.TOO_LARGE
        region.close()


def test_more_descriptors_than_are_ever_passed_are_not_kept():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()  # what earlier tests have left
    before = len(list(Path("/proc/self/fd").iterdir()))
    descriptors = array.array("i", [one.fileno()] * 9)
    one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    assert refused(lambda: receive_packet(other)) is ErrorCode.TOO_LARGE
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    one.close()
    other.close()


async def test_a_ring_with_counters_that_cannot_be_ends_the_session():
    for at, value in ((0, 1 << 40), (0, ENTRIES_MAX + 1), (8, 5)):
        with Pair() as pair:
            struct.pack_into("<Q", pair.a.outbox.region.map, at, value)
            if at == 0:
                assert refused(pair.b.hear_ring) is ErrorCode.MALFORMED
            else:
                assert refused(lambda: pair.b.say(Entry(Word.RELEASED, 0, 0))) is ErrorCode.MALFORMED


async def test_a_release_of_what_was_not_leased_frees_nothing():
    with Pair() as pair:
        given, _ = pair.send(tensor(1000))
        for region, epoch in ((given.lease.region, given.lease.epoch + 1), (given.lease.region + 1, given.lease.epoch)):
            pair.b.say(Entry(Word.RELEASED, region, epoch))
        pair.b.say(Entry(99, 0, 0))
        pair.a.hear_ring()
        assert not next(iter(pair.a._own.values())).is_free


async def test_a_reader_that_does_not_read_its_ring_is_found_out():
    with Pair() as pair:
        for _ in range(ENTRIES_MAX + 4 * FabricConfig().regions_max):
            pair.b.say(Entry(Word.RELEASED, 0, 0))
        assert refused(lambda: pair.b.say(Entry(Word.RELEASED, 0, 0))) is ErrorCode.FABRIC_FAILED
        pair.a.hear_ring()  # it does after all
        pair.b.hear_ring()
        pair.b.say(Entry(Word.RELEASED, 0, 0))


def test_entries_come_in_order_round_and_round_the_ring():
    bell = make_bell()
    outbox = Outbox(bell)
    inbox = Inbox(outbox.region.descriptor)
    told, heard = 0, []
    for count in (1, 1000, 1023, 17):
        for _ in range(count):
            assert outbox.put(Entry(2, 1, told, 3, 4, 5), inbox.read)
            told += 1
        heard += list(inbox.entries())
    assert [entry.epoch for entry in heard] == list(range(told))
    assert heard[0] == Entry(2, 1, 0, 3, 4, 5)
    assert os.eventfd_read(bell) == told
    os.close(bell)
    outbox.region.close()


def test_what_is_no_ring_and_no_bell_is_refused(tmp_path):
    region = make_region(65536 * 4)
    assert refused(lambda: Inbox(region.descriptor)) is ErrorCode.MALFORMED
    assert region.size_bytes != RING_BYTES
    reads, writes = os.pipe()
    assert refused(lambda: check_bell(writes)) is ErrorCode.MALFORMED
    bell = make_bell()
    check_bell(bell)
    for descriptor in (reads, writes, bell):
        os.close(descriptor)
    region.close()


# The door


async def test_both_sides_prove_that_they_know_the_secret_of_the_quic_session():
    name = b"isochrone-test-" + os.urandom(8).hex().encode()
    listener, found = bind_door(name), {}

    async def host():
        connection, passed = await let_in(listener, TERMS)
        found["door"] = connection, passed
        send_packet(connection, TERMS.proof(DOOR), [0, 1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host)
        connection, passed = await enter(name, TERMS, [0, 1])
    assert len(passed) == len(found["door"][1]) == 2
    for descriptor in (*passed, *found["door"][1]):
        os.close(descriptor)
    connection.close()
    found["door"][0].close()


async def test_whoever_does_not_know_the_secret_is_turned_away_and_the_peer_is_let_in_after_it():
    name = b"isochrone-test-" + os.urandom(8).hex().encode()
    listener, found = bind_door(name), []

    async def host():
        connection, passed = await let_in(listener, TERMS)
        found.append(connection)
        send_packet(connection, TERMS.proof(DOOR), [0, 1])
        for descriptor in passed:
            os.close(descriptor)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host)
        for wrong in (
            Terms(bytes([1]) * 32, ONE, OTHER, bytes(16), bytes(range(16))),
            Terms(bytes(32), OTHER, ONE, bytes(16), bytes(range(16))),
            Terms(bytes(32), ONE, OTHER, bytes(16), bytes(16)),
        ):
            with pytest.raises(RemoteProtocolError):
                await enter(name, wrong, [0, 1])
        connection, passed = await enter(name, TERMS, [0, 1])
    for descriptor in passed:
        os.close(descriptor)
    connection.close()
    found[0].close()


async def test_a_door_is_open_for_so_long_and_for_so_many(autojump_clock):
    listener = bind_door(b"isochrone-test-" + os.urandom(8).hex().encode())
    began = trio.current_time()
    with pytest.raises(RemoteProtocolError):
        await let_in(listener, TERMS)
    assert trio.current_time() - began <= OPENING_S
    assert listener.fileno() == -1


def test_a_proof_is_good_for_its_role_alone():
    TERMS.check(OPENER, TERMS.proof(OPENER))
    for wrong in (TERMS.proof(DOOR), b"", TERMS.proof(OPENER)[:-1], TERMS.proof(OPENER) + b"x"):
        assert refused(lambda wrong=wrong: TERMS.check(OPENER, wrong)) is ErrorCode.BAD_SIGNATURE


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_a_process_of_another_user_is_turned_away():
    name = b"\0isochrone-test-" + os.urandom(8).hex().encode()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(name)
    listener.listen()
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        there = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        there.connect(name)
        there.recv(1)
        os._exit(0)
    connection, _ = listener.accept()
    try:
        assert refused(lambda: check_user(connection)) is ErrorCode.NOT_ADMITTED
    finally:
        connection.close()
        listener.close()
        os.waitpid(child, 0)


def test_the_hosts_secret_is_that_of_this_start_and_this_network_namespace(tmp_path):
    def host(boot_id: bytes, namespace: str):
        root = tmp_path / f"{boot_id.hex()}-{namespace[-3:-1]}"
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/sys/kernel/random/boot_id").write_bytes(boot_id)
        (root / "proc/self/ns/net").symlink_to(namespace)
        return host_secret(root)

    secrets = {host(b"boot-1", "net:[11]"), host(b"boot-2", "net:[11]"), host(b"boot-1", "net:[22]")}
    assert len(secrets) == 3
    assert host_secret(tmp_path / "nowhere") == b""
    assert len(host_secret()) == 32
    assert host_secret() == host_secret()
