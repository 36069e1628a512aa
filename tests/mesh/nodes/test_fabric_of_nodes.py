"""Tensors between nodes of one host: by shared memory where that is worth it, by the stream where it is not or breaks."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import trio
from mesh_nodes import MeshNode, Plan, PlannedEngine, Start, eventually, hang, introduced, request

from mesh import client
from mesh.engines.echo import EchoEngine
from mesh.fabric.session import ShmSession
from mesh.gateway.views import route_json
from mesh.inference import request_over
from mesh.transport import StreamReset
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.fabric import INFER_FABRIC_PROTOCOL, FabricConfig, FabricPeers, Kind, Lease, Place, Rights
from protocol.fabric.messages import Door, Offer, Revoked, Streamed, bulk_head, encode_message, encode_opening
from protocol.identity import parse_peer_id
from protocol.inference import Failed, Feature, Finished, InferenceRequest, Tensor, TensorsReady
from protocol.wire.inference import PROTOCOL_ID, encode_request

PATIENT = FabricConfig(take_s=20.0)
"""No test falls back because the machine is busy."""


def patient(service):
    service.fabrics.config = PATIENT


def tensors_of(n_bytes: int, dtype: str = "f4") -> tuple[Tensor, ...]:
    array = (np.arange(n_bytes // np.dtype(dtype).itemsize) % 251).astype(dtype)
    return (Tensor("input", dtype, array.shape, memoryview(array).cast("B")),)


def asking(n_bytes: int, dtype: str = "f4") -> InferenceRequest:
    return InferenceRequest(os.urandom(16), Feature.TENSORS, "echo", b"", tensors_of(n_bytes, dtype), deadline_s=20.0)


async def ask(node: MeshNode, request: InferenceRequest):
    """The outputs and the end of an answer, and what the node says of the way."""
    async with node.service.dispatcher.submit(request) as answer:
        replies = [reply async for reply in answer]
        return replies[:-1], replies[-1], answer.route


async def code_of_reset(stream) -> int:
    """Read until the peer resets the stream."""
    try:
        with trio.fail_after(10):
            while await stream.receive_some():
                pass
    except StreamReset as reset:
        return reset.code
    return 0


def way_of(route) -> str:
    return next(c.fabric for c in route.candidates if c.peer_id == route.chosen)


async def pair(start: Start, tune=patient) -> tuple[MeshNode, MeshNode]:
    b = await start(EchoEngine(), tune=tune)
    a = await start(join=(b,), tune=tune)
    await introduced(a, b)
    return a, b


def same(outputs, request: InferenceRequest) -> bool:
    (ready,) = outputs
    assert isinstance(ready, TensorsReady)
    return [(t.name, t.dtype, t.shape, bytes(t.data)) for t in ready.tensors] == [
        (t.name, t.dtype, t.shape, bytes(t.data)) for t in request.tensors
    ]


async def test_large_tensors_go_by_shared_memory_and_small_ones_by_the_stream(start: Start) -> None:
    a, b = await pair(start)
    small, large = asking(1024), asking(3 << 20)
    outputs, end, route = await ask(a, small)
    assert (same(outputs, small), isinstance(end, Finished), way_of(route)) == (True, True, "")
    assert a.service.fabrics.status()["open"] == {}
    outputs, end, route = await ask(a, large)
    assert (same(outputs, large), isinstance(end, Finished), way_of(route)) == (True, True, "shm")
    assert list(a.service.fabrics.status()["open"]) == [b.name]
    assert [c["fabric"] for c in route_json(route)["candidates"] if c["peer_id"] == b.name] == ["shm"]
    assert b.peer_id in a.service.node.ways
    assert a.service.dispatcher.status()["fabrics"]["kinds"] == ["shm"]


async def test_an_answer_in_pieces_has_a_task_of_its_own_and_takes_shared_memory_too(start: Start) -> None:
    a, _ = await pair(start)
    request = replace(asking(1 << 20), stream=True)
    outputs, end, route = await ask(a, request)
    assert same(outputs, request)
    assert isinstance(end, Finished)
    assert way_of(route) == "shm"


async def test_what_no_message_could_hold_is_answered_by_shared_memory(start: Start) -> None:
    a, _ = await pair(start)
    huge = asking(48 << 20)
    outputs, end, route = await ask(a, huge)
    assert (same(outputs, huge), isinstance(end, Finished), way_of(route)) == (True, True, "shm")


@pytest.mark.parametrize("dtype", ["f4", "i8", "b1", "f2"])
async def test_every_kind_of_tensor_arrives_as_it_was(start: Start, dtype: str) -> None:
    a, _ = await pair(start)
    for size in (40_000, 700_000):
        request = asking(size - size % 8, dtype)
        outputs, end, _ = await ask(a, request)
        assert same(outputs, request)
        assert isinstance(end, Finished)


async def test_regions_are_used_again_once_nobody_looks_at_them(start: Start) -> None:
    a, b = await pair(start)
    for _ in range(20):
        outputs, end, _ = await ask(a, asking(1 << 20))
        assert isinstance(end, Finished)
        del outputs
    gc.collect()
    await eventually(lambda: all(own.is_free for own in a.service.fabrics._sessions[b.peer_id]._own.values()))
    assert a.service.fabrics._sessions[b.peer_id].figures()["regions_given"] <= 4
    assert b.service.fabrics._sessions[a.peer_id].figures()["regions_given"] <= 4


async def test_tensors_that_are_kept_stay_as_they_are(start: Start) -> None:
    a, _ = await pair(start)
    requests = [asking((1 << 20) + 64 * n) for n in range(6)]
    kept = [(await ask(a, request))[0] for request in requests]
    assert all(same(outputs, request) for outputs, request in zip(kept, requests, strict=True))
    assert all(outputs[0].tensors[0].data.readonly for outputs in kept)


async def test_a_node_that_is_told_so_uses_no_fabric(start: Start) -> None:
    b = await start(EchoEngine(), fabric="none")
    a = await start(join=(b,))
    await introduced(a, b)
    request = asking(1 << 20)
    outputs, end, route = await ask(a, request)
    assert (same(outputs, request), isinstance(end, Finished), way_of(route)) == (True, True, "")
    none = {"count": 0, "longest_s": 0.0}
    assert b.service.fabrics.status() == {"kinds": [], "absent": {}, "from_bytes": None, "open": {}, "fallbacks": none}


async def test_a_peer_that_claims_our_host_gains_nothing(start: Start) -> None:
    """It shows the tag and is elsewhere: no local socket leads to it, so it is asked as any other, and nobody prefers it."""

    def elsewhere(service):
        async def admit(opening, hello):
            door = Door(Kind.SHM, b"isochrone-nowhere-" + os.urandom(8).hex().encode(), bytes(32), bytes(16))
            await opening.control.send(encode_opening(door), end=True)
            raise RemoteProtocolError(ErrorCode.FABRIC_FAILED, "nobody came")

        service.fabrics._openers[Kind.SHM].admit = admit

    b = await start(EchoEngine(), tune=elsewhere)
    a = await start(join=(b,), tune=patient)
    await introduced(a, b)
    request = asking(1 << 20)
    outputs, end, route = await ask(a, request)
    assert (same(outputs, request), isinstance(end, Finished), way_of(route)) == (True, True, "")
    assert a.service.node.ways == {}
    assert [line["peer"] for line in a.logged("fabric closed for a while")] == [b.name]
    assert not a.service.fabrics.wants(b.peer_id, request), "it is not tried again for a while"
    assert a.faults() == {}, "and it is not held against the peer"


def forget_regions(node: MeshNode, other: MeshNode) -> None:
    """The node loses what the other has shown it, as after a fault of its own."""
    session = node.service.fabrics._sessions[other.peer_id]
    for region in list(session._mapped):
        session._table.hide(region)


async def test_a_refused_transfer_takes_the_stream_within_the_same_request(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(2 << 20))
    await eventually(lambda: all(own.is_free for own in a.service.fabrics._sessions[b.peer_id]._own.values()))
    forget_regions(b, a)
    request = asking(2 << 20)
    outputs, end, route = await ask(a, request)
    assert same(outputs, request)
    assert isinstance(end, Finished)
    assert (route.chosen, len([c for c in route.candidates if c.outcome])) == (b.peer_id, 1), "nobody else was asked"
    assert re.fullmatch(r"shm, then the stream: refused: stale_lease: region \d+ was not shown", way_of(route))
    request = asking(2 << 20)
    outputs, _, route = await ask(a, request)
    assert (same(outputs, request), way_of(route)) == (True, ""), "the fabric is closed for a while"
    assert a.faults() == b.faults() == {}


async def test_a_refused_answer_takes_the_stream_within_the_same_request(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(2 << 20))
    await eventually(lambda: all(own.is_free for own in b.service.fabrics._sessions[a.peer_id]._own.values()))
    forget_regions(a, b)
    request = asking(2 << 20)
    outputs, end, route = await ask(a, request)
    assert same(outputs, request)
    assert isinstance(end, Finished)
    assert route.chosen == b.peer_id


async def test_a_peer_that_closes_its_end_gets_the_bytes_by_the_stream(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(2 << 20))
    b.service.fabrics._sessions[a.peer_id].close("")  # a has not heard of it when it asks
    request = asking(2 << 20)
    outputs, end, _ = await ask(a, request)
    assert same(outputs, request)
    assert isinstance(end, Finished)


async def test_an_attempt_fails_where_neither_way_carries_the_tensors(start: Start) -> None:
    def tight(service):
        service.fabrics.config = FabricConfig(take_s=20.0, bulk_bytes_max=1 << 20)

    a, b = await pair(start, tune=tight)
    await ask(a, asking(16 << 20))
    await eventually(lambda: all(own.is_free for own in a.service.fabrics._sessions[b.peer_id]._own.values()))
    forget_regions(b, a)
    _, end, _ = await ask(a, asking(16 << 20))
    assert isinstance(end, Failed)
    assert end.code is ErrorCode.ENGINE_FAILED
    assert end.retryable, "another candidate may be asked"


async def test_what_the_stream_brings_past_its_offer_ends_the_request_and_the_fabric(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(1 << 20))
    connection = a.service.transport.connections[b.peer_id]
    stream = await connection.open_stream(INFER_FABRIC_PROTOCOL)
    places = (Place("x", "u1", (4,), 0, 4),)
    offer = Offer(0, Kind.SHM, places, Lease(77, 1, 0, 4, Rights.READ, 10.0))
    frames = [encode_message(offer), encode_message(Streamed(0)), bulk_head() + b"12345"]
    await stream.send_all(b"".join(map(encode_frame, frames)))
    assert await code_of_reset(stream) == ErrorCode.TOO_LARGE
    await eventually(lambda: b.service.fabrics.status()["open"] == {})


async def test_a_lease_that_is_taken_back_in_use_does_not_count(start: Start) -> None:
    """The executor cannot begin again what its engine has begun, so the requester may ask another."""
    b = await start(PlannedEngine(Plan(hang)), tune=patient)
    a = await start(join=(b,), tune=patient)
    await introduced(a, b)
    session = await a.service.fabrics.session(b.peer_id)
    given = session.give(tensors_of(2 << 20), 30.0, a.service.transport.now())
    stream = await a.service.transport.connections[b.peer_id].open_stream(INFER_FABRIC_PROTOCOL)
    frames = [encode_message(Offer(0, Kind.SHM, given.places, given.lease)), encode_request(request())]
    await stream.send_all(b"".join(map(encode_frame, frames)))
    await eventually(lambda: b.engines[0].n_running == 1)
    await stream.send_all(encode_frame(encode_message(Revoked(0))))
    assert await code_of_reset(stream) == ErrorCode.FABRIC_FAILED
    await eventually(lambda: b.engines[0].n_running == 0)


async def test_a_peer_that_offers_without_end_is_cut_off(start: Start) -> None:
    def strict(service):
        service.fabrics._peers = FabricPeers(FabricConfig(offers_per_s=0.001, offers_burst=8.0, offers_debt_max=8.0))

    b = await start(EchoEngine(), tune=strict)
    async with start.stranger(9) as stranger:
        stream = await (await stranger.dial(b.address)).open_stream(INFER_FABRIC_PROTOCOL)
        offers = [Offer(n, Kind.SHM, (), Lease(1, n + 1, 0, 1, Rights.READ, 1.0)) for n in range(40)]
        await stream.send_all(b"".join(encode_frame(encode_message(offer)) for offer in offers))
        code = await code_of_reset(stream)
    assert code == ErrorCode.FLOODING


async def test_a_process_that_stands_still_gets_the_bytes_by_the_stream(start: Start, tmp_path) -> None:
    """A real process, stopped by a signal after its fabric is open: its requester does not wait for it."""
    a = await start(tune=lambda service: setattr(service.fabrics, "config", FabricConfig(take_s=0.1)))
    command = [
        sys.executable, "node.py", "up", "--json", "--open", "--network", "test", "--engine", "echo",
        "--state-dir", str(tmp_path / "process"), "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--gateway", "127.0.0.1:0",
        "--bootstrap", str(a.address),
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = await trio.to_thread.run_sync(lambda: subprocess.Popen(command, **pipes))
    try:
        told = json.loads(await trio.to_thread.run_sync(process.stdout.readline))
        peer = parse_peer_id(told["peer_id"])
        await eventually(lambda: a.knows(peer), 20)
        await eventually_by_fabric(a)
        process.send_signal(signal.SIGSTOP)
        request, came = asking(2 << 20), trio.Event()

        async def wait_for_answer():
            nonlocal outputs, end, route
            outputs, end, route = await ask(a, request)
            came.set()

        outputs = end = route = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_answer)
            await eventually(lambda: bool(a.logged("transfer late")), 20)  # while it stands still
            process.send_signal(signal.SIGCONT)
            await came.wait()
        assert same(outputs, request)
        assert isinstance(end, Finished)
        assert way_of(route) == "shm, then the stream: what was offered was not taken in time"
        assert peer in a.service.node.ways, "a busy moment does not close the fabric"
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


async def eventually_by_fabric(node: MeshNode) -> None:
    """Ask until a request has taken the fabric: a busy machine may need a second opening."""
    with trio.fail_after(20):
        while way_of((await ask(node, asking(1 << 20)))[2]) != "shm":
            node.service.fabrics._peers = FabricPeers(PATIENT)
            node.service.fabrics._kinds = FabricPeers(PATIENT)
    node.log.truncate(0)
    node.log.seek(0)


async def test_a_request_that_is_cancelled_leaves_nothing_leased(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(1 << 20))
    with trio.move_on_after(0.002):
        await ask(a, asking(32 << 20))
    session = a.service.fabrics._sessions[b.peer_id]
    await eventually(lambda: all(own.is_free for own in session._own.values()))
    _, end, _ = await ask(a, asking(1 << 20))
    assert isinstance(end, Finished)


async def test_a_peer_that_dies_takes_its_fabric_with_it(start: Start) -> None:
    a, b = await pair(start)
    await ask(a, asking(1 << 20))
    assert b.peer_id in a.service.node.ways
    await b.kill()
    await eventually(lambda: a.service.fabrics.status()["open"] == {})
    assert a.service.node.ways == {}


async def test_small_answers_to_other_protocols_are_as_before(start: Start) -> None:
    """A peer that knows nothing of fabrics asks the node of the fabric."""
    _, b = await pair(start)
    async with start.stranger(9) as stranger:
        stream = await (await stranger.dial(b.address)).open_stream(PROTOCOL_ID)
        request = asking(1 << 20)
        async with request_over(stream, request) as answer:
            replies = [reply async for reply in answer]
    assert isinstance(replies[-1], Finished)
    assert same(replies[1:-1], request)


async def test_a_region_that_one_peer_was_shown_is_shown_to_nobody_else(start: Start) -> None:
    """Two peers get the same tensors one after the other: neither maps memory that the other has."""
    b = await start(EchoEngine(), tune=patient)
    c = await start(EchoEngine(), join=(b,), tune=patient)
    a = await start(join=(b, c), tune=patient)
    await introduced(a, b, c)
    fabrics, request = a.service.fabrics, asking(1 << 20)
    files = []
    for peer in (b, c):
        session = await fabrics.session(peer.peer_id)
        given = session.give(request.tensors, 30.0, a.service.transport.now())
        session.reuse(given)
        await eventually(lambda peer=peer: bool(peer.service.fabrics._sessions[a.peer_id]._mapped))
        (mapped,) = peer.service.fabrics._sessions[a.peer_id]._mapped.values()
        files.append(given.own.region.address)
        assert mapped[:8] == bytes(request.tensors[0].data[:8])
    assert files[0] != files[1]


async def test_a_sealed_request_takes_no_fabric(start: Start) -> None:
    """A peer that is not connected is asked through others, and its tensors are sealed: there is no fabric to it."""
    b = await start(EchoEngine(), tune=patient)
    a = await start(join=(b,), tune=patient)
    await introduced(a, b)
    assert a.service.fabrics.wants(b.peer_id, asking(1 << 20))
    await b.stop()
    await eventually(lambda: b.peer_id not in a.service.transport.connections)
    assert not a.service.fabrics.wants(b.peer_id, asking(1 << 20))
    assert await a.service.fabrics.way_to(b.peer_id, asking(1 << 20)) is None


async def test_a_light_node_sends_and_receives_what_no_message_could_hold(start: Start) -> None:
    b = await start(EchoEngine(), tune=patient)
    array = np.arange(5 << 20, dtype="f4")
    async with client.connect([str(b.address)], network="test") as mesh:
        answer = await mesh.infer("echo", {"x": array})
        assert np.array_equal(answer["x"], array)


async def test_whoever_is_cancelled_with_its_last_reply_has_told_that_it_took_the_tensors(start: Start, monkeypatch) -> None:
    retired = []
    monkeypatch.setattr(ShmSession, "retire", lambda _session, given: retired.append(given))
    a, b = await pair(start)
    fabrics = a.service.fabrics
    for _ in range(6):
        request = asking(1 << 20)
        stream, session = await fabrics.way_to(b.peer_id, request)
        with trio.CancelScope() as scope:
            async with fabrics.request_over(stream, session, request, lambda _way: None) as answer:
                replies = []
                async for reply in answer:
                    replies.append(reply)
                    if isinstance(reply, Finished):
                        scope.cancel()
                        break
        assert isinstance(replies[-1], Finished)
        replies.clear()
    await eventually(lambda: all(own.is_free for own in b.service.fabrics._sessions[a.peer_id]._own.values()))
    assert not retired, "no region is given up"
