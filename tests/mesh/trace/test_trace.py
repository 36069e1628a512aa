"""Traces of real connections: of transports, of nodes over HTTP, and as a qlog file."""

import json
from io import StringIO

import pytest
import trio

from mesh.trace import Trace, TraceRefusedError, trace_peer
from mesh.trace.qlog import QlogWriter
from mesh.trace.tracer import HELD_MAX, TRACES_MAX, find_peer
from mesh.transport import Doing, Seen, StreamReset, Transport
from protocol.errors import ErrorCode
from protocol.identity import Identity, peer_id_text
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.multiaddr import parse_multiaddr

LOOPBACK = parse_multiaddr("/ip4/127.0.0.1/udp/0/quic-v1")


@pytest.fixture
async def pair(nursery: trio.Nursery) -> tuple[Transport, Transport]:
    transports = [Transport(Identity.from_seed(bytes([n]) * 32)) for n in (1, 2)]
    for transport in transports:
        await nursery.start(transport.run, [LOOPBACK])
    return transports[0], transports[1]


async def events_until(trace: Trace, what: str) -> list[dict]:
    events: list[dict] = []
    with trio.fail_after(5):
        while not any(event["what"] == what for event in events):
            events += await trace.take(1.0)
    return events


async def test_both_ends_see_the_same_ping(pair: tuple[Transport, Transport]) -> None:
    ours, theirs = pair
    connection = await ours.dial(theirs.addresses[0])
    with (
        trace_peer(ours, peer_id_text(theirs.identity.peer_id), ours.connections, [], content=False) as here,
        trace_peer(theirs, peer_id_text(ours.identity.peer_id)[-6:], theirs.connections, [], content=False) as there,
    ):
        await connection.ping()
        mine, yours = await events_until(here, "ended"), await events_until(there, "ended")
    assert (mine[0]["what"], mine[0]["sent"], yours[0]["sent"]) == ("connected", True, False)
    frames = [[e["frame"]["type"] for e in events if e["what"] == "frame"] for events in (mine, yours)]
    assert frames == [["ping", "echo"], ["ping", "echo"]]
    sent = [[e["sent"] for e in events if e["what"] == "frame"] for events in (mine, yours)]
    assert sent == [[True, False], [False, True]]
    assert {e["protocol"] for e in mine if "stream" in e} == {PING_PROTOCOL}


async def test_a_trace_outlives_the_connection_and_sees_the_next(pair: tuple[Transport, Transport]) -> None:
    ours, theirs = pair
    known = [theirs.identity.peer_id]
    with trace_peer(ours, peer_id_text(known[0]), known, [], content=False) as trace:
        connection = await ours.dial(theirs.addresses[0])
        assert (await events_until(trace, "connected"))[0]["remote"] == str(theirs.addresses[0])
        await connection.close(ErrorCode.GOODBYE, "enough")
        (closed,) = [e for e in await events_until(trace, "closed") if e["what"] == "closed"]
        assert closed["code"] == "GOODBYE"
        await ours.dial(theirs.addresses[0])
        assert await events_until(trace, "connected")
    assert ours.connections[known[0]].watchers == ()
    assert ours._watchers == {}


async def test_resets_and_stops_are_seen(nursery: trio.Nursery, pair: tuple[Transport, Transport]) -> None:
    ours, theirs = pair

    async def refuse(stream) -> None:
        stream.reset(ErrorCode.OVERLOADED)

    theirs.add_handler("/x", refuse)
    connection = await ours.dial(theirs.addresses[0])
    with trace_peer(ours, peer_id_text(theirs.identity.peer_id), ours.connections, [], content=False) as trace:
        stream = await connection.open_stream("/x")
        with pytest.raises(StreamReset):
            await stream.receive_some()
        events = await events_until(trace, "reset")
        if not any(e["what"] == "stopped" for e in events):
            events += await events_until(trace, "stopped")
    assert {(e["what"], e["code"]) for e in events if "code" in e} >= {("reset", "OVERLOADED"), ("stopped", "OVERLOADED")}


async def test_a_slow_reader_loses_the_oldest_and_is_told() -> None:
    trace = Trace(Identity.from_seed(bytes(32)).peer_id, 0.0, content=False)
    for number in range(HELD_MAX + 5):
        trace.saw(Seen(float(number), Doing.DATAGRAM, sent=True, data=b""))
    events = await trace.take(0.0)
    assert events[0] == {"what": "lost", "count": 5}
    assert [e["t_s"] for e in events[1:3]] == [5.0, 6.0]
    assert len(events) == HELD_MAX + 1


async def test_names_must_be_known_and_say_whom_they_mean(pair: tuple[Transport, Transport]) -> None:
    ours, _ = pair
    known = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(3)]
    assert find_peer("…" + peer_id_text(known[1])[-8:], known) == known[1]
    for name, said in (("abc", "too short"), ("0000", "no peer")):
        with pytest.raises(TraceRefusedError, match=said):
            find_peer(name, known)
    running = [Trace(known[0], 0.0, content=False)] * TRACES_MAX
    with pytest.raises(TraceRefusedError, match="traces run already"), trace_peer(ours, "x", known, running, content=False):
        pass


async def test_a_qlog_file_has_qlog_s_words(pair: tuple[Transport, Transport]) -> None:
    ours, theirs = pair
    connection = await ours.dial(theirs.addresses[0])
    file = StringIO()
    writer = QlogWriter(file, "x", 1_000.0)
    with trace_peer(ours, peer_id_text(theirs.identity.peer_id), ours.connections, [], content=False) as trace:
        await connection.ping()
        connection.send_datagram(b"\x01" + bytes(8))
        for event in await events_until(trace, "ended"):
            writer.add(event)
    records = file.getvalue().split("\x1e")
    assert records[0] == ""
    assert all(record.endswith("\n") for record in records[1:])
    header, *events = [json.loads(record) for record in records[1:]]
    assert header["file_schema"] == "urn:ietf:params:qlog:file:sequential"
    assert header["trace"]["vantage_point"]["type"] == "client"
    names = [event["name"] for event in events]
    assert names[0] == "quic:connection_started"
    assert events[0]["data"]["remote"] == {"ip_v4": "127.0.0.1", "port_v4": theirs.addresses[0].port}
    assert {"quic:stream_data_moved", "isochrone:frame"} <= set(names)
    moved = [event["data"] for event in events if event["name"] == "quic:stream_data_moved" and "raw" in event["data"]]
    assert moved[0] == {"stream_id": moved[0]["stream_id"], "from": "application", "to": "transport", "raw": {"length": 32}}
    assert all(event["time"] >= 1_000_000.0 for event in events)


async def test_a_trace_ends_when_the_transport_has_gone(pair: tuple[Transport, Transport]) -> None:
    ours, theirs = pair
    await ours.dial(theirs.addresses[0])
    with trace_peer(ours, peer_id_text(theirs.identity.peer_id), ours.connections, [], content=False) as trace:
        await theirs.aclose()
        assert any(e["what"] == "closed" for e in await events_until(trace, "closed"))
