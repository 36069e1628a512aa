"""Fabrics of several kinds between the same nodes: which is taken, what is tried next, and transfers that the giver writes."""

import os
from dataclasses import replace

import numpy as np
import pytest
import trio
from memory_kind import Card, MemoryOpener
from mesh_nodes import MeshNode, Start, eventually, introduced

from mesh.engines.echo import EchoEngine
from mesh.fabric import Kinds, fabrics
from mesh.fabric.lane import Lane
from mesh.fabric.shm import ShmOpener, host_secret
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import FabricConfig, Kind, Rights
from protocol.fabric.messages import Door, Leased, encode_opening
from protocol.inference import Feature, Finished, InferenceRequest, Tensor

PATIENT = FabricConfig(take_s=20.0)


def asking(n_bytes: int) -> InferenceRequest:
    array = (np.arange(n_bytes // 4) % 251).astype("f4")
    tensors = (
        Tensor("input", "f4", array.shape, memoryview(array).cast("B")),
        Tensor("ids", "i8", (3,), memoryview(np.arange(3)).cast("B")),
    )
    return InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", tensors, deadline_s=20.0)


async def ask(node: MeshNode, request: InferenceRequest) -> tuple[bool, str]:
    """Whether the answer is the request's tensors, and by which way these went."""
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
        route = answer.route
    assert isinstance(replies[-1], Finished), replies[-1]
    same = [(t.name, t.dtype, t.shape, bytes(t.data)) for t in replies[0].tensors] == [
        (t.name, t.dtype, t.shape, bytes(t.data)) for t in request.tensors
    ]
    return same, next(c.fabric for c in route.candidates if c.peer_id == route.chosen)


class Pair:
    """Two nodes with cards of their own, in which the giver writes; with shared memory beside them where that is wanted."""

    def __init__(self, config: FabricConfig = PATIENT, *, shm: bool = False, spoil_shm: bool = False, **cards) -> None:
        self.card, self.config, self.shm, self.spoil_shm, self.cards = Card(), config, shm, spoil_shm, cards
        self._n_made = 0

    def tune(self, service) -> None:
        self._n_made += 1
        fabrics = service.fabrics
        fabrics.config = self.config
        opener = ShmOpener("test", host_secret())
        if self.spoil_shm:
            opener.admit = nobody_comes
        kinds = Kinds((*([opener] if self.shm else []), MemoryOpener(self._n_made, self.card, **self.cards)))
        fabrics._openers = {opener.kind: opener for opener in kinds.openers}
        fabrics._absent = kinds.absent
        fabrics._tell()

    async def start(self, start: Start) -> tuple[MeshNode, MeshNode]:
        b = await start(EchoEngine(), tune=self.tune)
        a = await start(join=(b,), tune=self.tune)
        await introduced(a, b)
        return a, b


async def nobody_comes(opening, hello):
    """A door that leads nowhere: the peer is in another network namespace."""
    door = Door(Kind.SHM, b"isochrone-nowhere-" + os.urandom(8).hex().encode(), bytes(32), bytes(16))
    await opening.control.send(encode_opening(door), end=True)
    raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "nobody came")


async def test_tensors_are_written_into_what_the_receiver_leases_and_come_back_the_same_way(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    for n in range(3):
        assert await ask(a, asking((2 << 20) + 8 * n)) == (True, "rdma")
    assert pair.card.n_written == 6
    assert pair.card.memory == {}, "no lease is left"
    sessions = [a.service.fabrics._sessions[b.peer_id], b.service.fabrics._sessions[a.peer_id]]
    await eventually(lambda: all(len(session.reused) == len(session.given) == 3 for session in sessions))
    assert all(given.held == 0 for session in sessions for given in session.given)
    assert a.service.fabrics.status()["open"] == {b.name: {"kind": "rdma", "granted": 0}}


async def test_a_write_that_the_card_refuses_takes_the_stream_within_the_same_request(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    assert await ask(a, asking(2 << 20)) == (True, "rdma")
    pair.card.fails = True
    same, way = await ask(a, asking(2 << 20))
    assert (same, way) == (True, "rdma, then the stream: it could not be written: [Errno 5] the card refuses")
    await eventually(lambda: a.service.fabrics.status()["open"] == b.service.fabrics.status()["open"] == {})
    assert pair.card.memory == {}, "what was leased for it is taken back"
    assert a.faults() == b.faults() == {}


async def test_other_bytes_than_were_given_are_refused_and_come_by_the_stream(start: Start) -> None:
    pair = Pair()
    a, _ = await pair.start(start)
    assert await ask(a, asking(2 << 20)) == (True, "rdma")
    pair.card.spoils = True
    same, way = await ask(a, asking(2 << 20))
    assert (same, way) == (True, "rdma, then the stream: refused: corrupted: other bytes than were given")


@pytest.mark.parametrize("quic_engines", [("qh3",)], indirect=True, ids="-".join)
async def test_a_write_that_takes_long_is_waited_for_as_long_as_the_card_works(start: Start) -> None:
    pair = Pair(FabricConfig(take_s=1.0))
    a, _ = await pair.start(start)
    pair.card.slow_s = 2.5
    with trio.fail_after(15):
        assert await ask(a, asking(2 << 20)) == (True, "rdma")
    assert a.logged("transfer late") == []


async def test_a_request_that_is_cancelled_leaves_nothing_leased_to_write_to(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    await ask(a, asking(2 << 20))
    pair.card.slow_s = 0.5
    with trio.move_on_after(0.1):
        await ask(a, asking(32 << 20))
    await eventually(lambda: pair.card.memory == {})
    session = a.service.fabrics._sessions[b.peer_id]
    await eventually(lambda: all(given.held == 0 for given in session.given))


async def test_the_preferred_kind_is_opened_and_the_next_where_it_cannot_be(start: Start) -> None:
    a, b = await Pair(shm=True).start(start)
    assert await ask(a, asking(2 << 20)) == (True, "shm")
    assert b.service.fabrics.status()["kinds"] == ["shm", "rdma"]


async def test_where_one_kind_cannot_be_opened_the_next_is_within_the_same_request(start: Start) -> None:
    pair = Pair(shm=True, spoil_shm=True)
    a, b = await pair.start(start)
    assert await ask(a, asking(2 << 20)) == (True, "rdma")
    assert [line["kind"] for line in a.logged("fabric closed for a while")] == ["shm"]
    assert [line["kind"] for line in a.logged("fabric opened")] == ["rdma"]
    assert b.peer_id in a.service.node.ways


async def test_the_end_of_the_control_stream_is_the_end_of_the_fabric(start: Start) -> None:
    a, b = await Pair().start(start)
    await ask(a, asking(2 << 20))
    b.service.fabrics._sessions[a.peer_id].close("")
    await eventually(lambda: a.service.fabrics.status()["open"] == {})
    assert a.service.node.ways == {}
    assert await ask(a, asking(2 << 20)) == (True, "rdma"), "an end is no fault: it is opened again"


async def test_a_kind_that_goes_is_told_no_more_and_named_with_its_reason(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    assert b.service.fabrics.status()["absent"] == {}
    opener = b.service.fabrics._openers[Kind.RDMA]
    opener.absent = "the cable is out"
    b.service.fabrics._tell()
    assert b.service.fabrics.status()["absent"] == {"rdma": "absent: the cable is out"}
    assert await ask(a, asking(2 << 20)) == (True, ""), "the peer does not open it, and the stream carries the tensors"


async def test_a_peer_that_has_not_heard_of_this_nodes_ports_is_asked_again_soon(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that there is none, which is no error: cards are on their way for a while."""
    monkeypatch.setattr(fabrics, "MATCHED_S", 0.2)
    a, b = await Pair().start(start)
    find_shared, b.service.fabrics._find_shared = b.service.fabrics._find_shared, lambda _peer: ()
    assert await ask(a, asking(2 << 20)) == (True, "")
    b.service.fabrics._find_shared = find_shared
    await trio.sleep(0.3)
    assert await ask(a, asking(2 << 20)) == (True, "rdma")
    assert a.logged("fabric closed for a while") == []


async def test_a_write_lease_that_nobody_asked_for_ends_the_stream(start: Start) -> None:
    """By shared memory nothing is written: a peer that grants there breaks the protocol."""
    a, _ = await Pair(shm=True).start(start)
    assert await ask(a, asking(2 << 20)) == (True, "shm")
    take_offer = Lane._take_offer

    def grant_instead(lane, offer):
        if lane._serves:
            lane._say(Leased(offer.transfer, replace(offer.lease, rights=Rights.WRITE)))
        take_offer(lane, offer)

    Lane._take_offer = grant_instead
    try:
        async with a.service.dispatcher.submit(asking(2 << 20)) as answer:
            replies = [reply async for reply in answer]
    finally:
        Lane._take_offer = take_offer
    assert not isinstance(replies[-1], Finished)
    await eventually(lambda: a.service.fabrics.status()["open"] == {})


async def test_a_peer_of_another_owner_gets_no_rdma_and_is_answered_by_the_stream(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    b.service.fabrics.is_trusted = lambda _peer: False
    assert await ask(a, asking(1 << 21)) == (True, "")  # the other side refuses
    a.service.fabrics.is_trusted = lambda _peer: False
    a.service.fabrics._matched.clear()
    assert not a.service.fabrics.wants(b.service.node.peer_id, asking(1 << 21))
    assert pair.card.memory == {}


async def test_a_transfer_that_finds_no_room_closes_no_fabric(start: Start) -> None:
    pair = Pair()
    a, b = await pair.start(start)
    assert await ask(a, asking(1 << 21)) == (True, "rdma")
    session = b.service.fabrics._sessions[a.service.node.peer_id]
    grant = session.grant

    async def full(_offer, _lifetime_s, _now):
        raise RemoteProtocolError(ErrorCode.OVERLOADED, "no room")

    session.grant = full
    answered, way = await ask(a, asking(1 << 21))
    assert answered
    assert way.startswith("rdma, then the stream: refused: overloaded")
    session.grant = grant
    assert await ask(a, asking(1 << 21)) == (True, "rdma")
    assert not session.closed


async def opened(a: MeshNode, b: MeshNode) -> None:
    """Opens a fabric, however long that takes on a busy machine."""
    fabrics_of = a.service.fabrics
    with trio.fail_after(20):
        while await fabrics_of.session(b.peer_id) is None:
            fabrics_of._matched.clear()
            await trio.sleep(0.02)


async def test_where_one_pair_of_ports_does_not_come_up_the_next_is_tried_within_the_request(start: Start) -> None:
    pair = Pair(ports=2, broken=frozenset({(0, 0)}))
    a, b = await pair.start(start)
    await opened(a, b)
    assert pair.card.knocked == [(0, 0), (1, 1)], "the fastest first"
    assert pair.card.admitted == [(0, 0), (1, 1)], "the peer takes the pair that was named"
    assert await ask(a, asking(2 << 20)) == (True, "rdma")
    a.service.fabrics._sessions[b.peer_id].close("")
    await eventually(lambda: b.service.fabrics.status()["open"] == {})
    await opened(a, b)
    assert pair.card.knocked[2:] == [(1, 1)], "what does not come up is left out for a while"


async def test_pairs_are_tried_in_the_order_that_suits_the_tensors(start: Start) -> None:
    pair = Pair(ports=3, turns=True)
    a, b = await pair.start(start)
    await opened(a, b)
    assert pair.card.knocked == pair.card.admitted == [(2, 2)]


async def test_where_no_pair_comes_up_the_stream_is_taken(start: Start) -> None:
    pair = Pair(ports=2, broken=frozenset({(0, 0), (1, 1)}))
    a, b = await pair.start(start)
    assert await ask(a, asking(2 << 20)) == (True, "")
    assert pair.card.knocked == [(0, 0), (1, 1)]
    assert not a.service.fabrics.wants(b.peer_id, asking(2 << 20)), "for a while"
