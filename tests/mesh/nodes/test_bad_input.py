"""Bad input over live wires: the offender's stream or connection ends with the declared code, and nobody else notices."""

import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from mesh_nodes import MODEL, TEXT, MeshNode, PlannedEngine, Start, eventually, introduced, request, text_of

from mesh.inference import ServeLimits
from mesh.transport import Connection, ConnectionLost, Stream, StreamReset
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.beats import encode_beat
from protocol.gossip.messages import BeatTold, Records, encode_message
from protocol.identity import Identity, peer_id_text
from protocol.inference import Failed, Feature, Finished, TextDelta
from protocol.load import Beat
from protocol.records import Card, Edges, Hardware, ModelOffer, Payload, seal
from protocol.records.envelope import RECORD_DOMAIN
from protocol.wire import PackingLimits, pack
from protocol.wire.inference import PROTOCOL_ID, decode_reply, encode_request

SEED = 9
"""The offender's key."""
OTHERS = Identity.from_seed(bytes([77]) * 32)
"""Somebody whose records the offender passes on."""
EDGES = Edges(())
WIDE = PackingLimits(size_bytes_max=10_000, depth_max=8, values_max=1000)


def sealed(
    signer: Identity = OTHERS, *, sequence: int = 1, issued_in_s: float = 0.0, lasts_s: float = 20.0, payload: Payload = EDGES
):
    """A record of this test's network."""
    issued_s = time.time() + issued_in_s
    return seal(signer, "test", payload, sequence, issued_s, issued_s + lasts_s).envelope


def records(*envelopes: bytes) -> bytes:
    return encode_frame(encode_message(Records(envelopes)))


def told(beat: Beat) -> bytes:
    return encode_frame(encode_message(BeatTold(encode_beat(beat))))


def signed_beat() -> bytes:
    """A record of a kind that is given up; valid otherwise."""
    issued_ms = int(time.time() * 1000)
    payload = pack({"draining": False, "loads": []}, WIDE)
    signed = pack(["test", "beat", bytes(OTHERS.peer_id), 1, issued_ms, issued_ms + 20_000, payload], WIDE)
    return OTHERS.sign(RECORD_DOMAIN + signed) + signed


def forged() -> bytes:
    envelope = bytearray(sealed())
    envelope[-1] ^= 1
    return bytes(envelope)


class Offender:
    """A libp2p peer that knows the mesh's protocols and breaks them, with an honest pair of nodes beside it."""

    def __init__(self, victim: MeshNode, honest: MeshNode, connection: Connection) -> None:
        self.victim = victim
        self.honest = honest
        self.connection = connection

    async def gossip(self) -> Stream:
        stream = await self.connection.open_stream(GOSSIP_PROTOCOL)
        await stream.confirmed()
        return stream

    async def infer(self) -> Stream:
        return await self.connection.open_stream(PROTOCOL_ID)

    async def lost(self, seconds: float = 5.0) -> int:
        """The code with which the connection ends."""
        await eventually(lambda: self.connection.lost is not None, seconds)
        assert self.connection.lost is not None
        return self.connection.lost.code

    async def others_notice_nothing(self) -> None:
        """An honest request succeeds both ways, and the honest pair never parted."""
        assert text_of(await self.honest.chat()) == TEXT
        assert text_of(await self.victim.chat()) == TEXT
        assert not self.honest.logged("peer disconnected")
        assert not self.honest.faults()
        assert not self.victim.logged("handler crashed")


@asynccontextmanager
async def offence(start: Start, **named) -> AsyncIterator[Offender]:
    victim = await start(PlannedEngine(), **named)
    honest = await start(join=(victim,))
    await introduced(victim, honest)

    async def swallow(stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async with start.stranger(SEED, **{GOSSIP_PROTOCOL: swallow}) as stranger:
        yield Offender(victim, honest, await stranger.dial(victim.address))


async def test_junk_datagrams_to_the_port_cost_nothing(start: Start) -> None:
    luck = random.Random(1)
    async with offence(start) as offender:
        address = ("127.0.0.1", offender.victim.address.port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
            for count in range(3000):
                # Half of them look like the first packet of a connection.
                head = bytes([0xC0 | luck.getrandbits(6)]) + b"\0\0\0\1\x08" if count % 2 else b""
                junk.sendto(head + luck.randbytes(luck.choice([0, 1, 20, 600, 1200, 1452])), address)
                if not count % 50:
                    await trio.lowlevel.checkpoint()
        await offender.others_notice_nothing()
        endpoint = offender.victim.service.transport.endpoint
        assert endpoint.n_connections <= 2 + offender.victim.service.transport.config.endpoint.handshakes_per_prefix_max
        assert len(offender.victim.service.transport.connections) == 2
        assert offender.victim.faults() == {}


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: encode_frame(b"\xc1junk"), ErrorCode.MALFORMED),
        (lambda: encode_frame(b"\x93\x01\x02"), ErrorCode.MALFORMED),
        (lambda: b"\xff" * 20, ErrorCode.MALFORMED),
        (lambda: b"\x80\x80\x80\x01", ErrorCode.TOO_LARGE),
        (lambda: records(forged()), ErrorCode.BAD_SIGNATURE),
        (lambda: records(b"\x00" * 200), ErrorCode.MALFORMED),
        (lambda: records(seal(OTHERS, "other", EDGES, 1, time.time(), time.time() + 20).envelope), ErrorCode.WRONG_NETWORK),
    ],
    ids=["no msgpack", "short array", "endless length", "oversized frame", "forged", "no envelope", "other network"],
)
async def test_gossip_that_no_honest_peer_sends_ends_the_connection(
    start: Start, build: Callable[[], bytes], code: ErrorCode
) -> None:
    async with offence(start) as offender:
        stream = await offender.gossip()
        await stream.send_all(build())
        assert await offender.lost() == code
        assert offender.victim.faults() == {code.name.lower(): 1.0}
        assert OTHERS.peer_id not in {view.peer_id for view in offender.victim.service.node.peers(0.0)}
        await offender.others_notice_nothing()


async def test_old_future_and_unknown_records_are_refused_without_blame(start: Start) -> None:
    """A clock that is wrong, or another version, is not the fault of whoever passes a record on."""
    async with offence(start) as offender:
        stream = await offender.gossip()
        old, future = sealed(issued_in_s=-1000.0), sealed(issued_in_s=1000.0)
        await stream.send_all(records(old, future, signed_beat()))
        registry = offender.victim.telemetry.registry

        def refused(code: str) -> float:
            return registry.get_sample_value("isochrone_records_refused_total", {"code": code}) or 0.0

        await eventually(lambda: refused("expired") == refused("not_yet_valid") == refused("unsupported") == 1.0)
        assert offender.connection.lost is None
        assert offender.victim.faults() == {}
        await offender.others_notice_nothing()


async def test_a_replayed_record_changes_nothing(start: Start) -> None:
    async with offence(start) as offender:
        stream = await offender.gossip()
        card = Card((), Hardware("cpu", 1, 1, 1), (ModelOffer("theirs", frozenset({Feature.CHAT})),), None, "test")
        newer = sealed(sequence=5, payload=card, lasts_s=60.0)
        await stream.send_all(records(newer))
        table = offender.victim.service.node.table

        def held() -> list[int]:
            return [record.sequence for record in table.cards() if record.peer_id == OTHERS.peer_id]

        await eventually(lambda: held() == [5])
        older = sealed(sequence=4, payload=card, lasts_s=60.0)
        stranger = peer_id_text(Identity.from_seed(bytes([SEED]) * 32).peer_id)
        with offender.victim.service.dispatcher.trace(stranger, content=False) as trace:
            await stream.send_all(records(older) + records(newer) * 200 + records(sealed(sequence=6, payload=card, lasts_s=60.0)))
            await eventually(lambda: held() == [6])
            events = await trace.take(1.0)
        came = [event["frame"] for event in events if event["what"] == "frame" and not event["sent"]]
        told = [frame["records"][0].get("stale") for frame in came if "records" in frame]
        assert told == ["OLD_SEQUENCE", *["REPLAYED"] * 200, None]
        registry = offender.victim.telemetry.registry

        def counted(code: str) -> float:
            return registry.get_sample_value("isochrone_records_stale_total", {"code": code}) or 0.0

        await eventually(lambda: counted("old_sequence") == 1.0 and counted("replayed") >= 200.0)
        assert offender.connection.lost is None
        await offender.others_notice_nothing()


async def test_a_flood_of_records_ends_the_connection(start: Start) -> None:
    async with offence(start) as offender:
        stream = await offender.gossip()
        gossip = offender.victim.service.node.config.gossip
        number = gossip.records_burst + gossip.records_debt_max + 200
        flood = [sealed(Identity.from_seed(index.to_bytes(32, "big"))) for index in range(1, number)]
        try:
            for begin in range(0, len(flood), 100):
                await stream.send_all(records(*flood[begin : begin + 100]))
        except (StreamReset, ConnectionLost):
            pass
        assert await offender.lost() == ErrorCode.FLOODING
        assert offender.victim.faults() == {"flooding": 1.0}
        await offender.others_notice_nothing()


async def answer_of(stream: Stream) -> list[object]:
    """Everything that comes back until the end of the stream, or until its reset, whose code is last."""
    decoder, replies = FrameDecoder(1 << 24), []
    try:
        while data := await stream.receive_some():
            decoder.receive(data)
            while (frame := decoder.next_frame()) is not None:
                replies.append(decode_reply(frame))
    except StreamReset as reset:
        replies.append(reset.code)
    return replies


def good(**named) -> bytes:
    return encode_request(request(**named))


def pointing_anywhere() -> bytes:
    message = bytearray(good())
    message[:4] = b"\xf0\xff\xff\x7f"
    return bytes(message)


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: encode_frame(b"\xff" * 100), ErrorCode.MALFORMED),
        (lambda: encode_frame(pointing_anywhere()), ErrorCode.MALFORMED),
        (lambda: encode_frame(b""), ErrorCode.MALFORMED),
        (lambda: b"\xff\xff\xff\xff\x7f", ErrorCode.TOO_LARGE),
        (lambda: encode_frame(good()) * 2, ErrorCode.MALFORMED),
        (lambda: b"", ErrorCode.IDLE),
        (lambda: encode_frame(good())[:20], ErrorCode.IDLE),
    ],
    ids=["junk", "offsets", "empty", "oversized", "two requests", "nothing", "half a request"],
)
async def test_a_bad_request_gets_one_error(start: Start, build: Callable[[], bytes], code: ErrorCode) -> None:
    async with offence(start, limits=ServeLimits(request_read_s=0.3)) as offender:
        stream = await offender.infer()
        await stream.send_all(build())
        with trio.fail_after(5):
            replies = await answer_of(stream)
        assert len(replies) == 1
        assert isinstance(replies[0], Failed)
        assert replies[0].code == code
        assert offender.victim.faults() == {code.name.lower(): 1.0}
        assert offender.victim.engines[0].requests == []
        assert offender.connection.lost is None
        await offender.others_notice_nothing()


async def test_bits_flipped_anywhere_in_a_request_get_one_end_each(start: Start) -> None:
    luck = random.Random(2)
    async with offence(start) as offender:
        for _ in range(60):
            message = bytearray(good(deadline_s=2.0))
            for _ in range(luck.choice([1, 1, 4, 30])):
                message[luck.randrange(len(message))] ^= 1 << luck.randrange(8)
            stream = await offender.infer()
            await stream.send_all(encode_frame(message))
            with trio.fail_after(10):
                replies = await answer_of(stream)
            assert isinstance(replies[-1], Finished | Failed)
            assert sum(isinstance(reply, Finished | Failed) for reply in replies) == 1
        await eventually(lambda: offender.victim.service.node.forwarding.under_way == 0)
        await offender.others_notice_nothing()


async def test_a_request_may_not_come_twice_nor_name_many_hops(start: Start) -> None:
    async with offence(start) as offender:
        asked = good()
        ends = []
        for _ in range(2):
            stream = await offender.infer()
            await stream.send_all(encode_frame(asked))
            ends.append((await answer_of(stream))[-1])
        assert isinstance(ends[0], Finished)
        assert isinstance(ends[1], Failed)
        assert ends[1].code == ErrorCode.HOPS_EXCEEDED
        await offender.others_notice_nothing()


async def test_junk_in_datagram_frames_is_told_once_and_ends_the_connection(start: Start) -> None:
    luck = random.Random(3)
    async with offence(start) as offender:
        for count in range(400):
            offender.connection.send_datagram(luck.randbytes(luck.choice([1, 8, 9, 10, 900])))
            if not count % 20:
                await trio.lowlevel.checkpoint()
        assert await offender.lost() in {ErrorCode.MALFORMED, ErrorCode.FLOODING}
        assert sum(offender.victim.faults().values()) == 1.0
        await offender.others_notice_nothing()


async def test_three_hundred_streams_are_held_to_the_limit(start: Start) -> None:
    async with offence(start) as offender:
        opened: list[Stream] = []

        async def open_all() -> None:
            for _ in range(300):
                stream = await offender.infer()
                await stream.send_all(b"\x01")
                opened.append(stream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_all)
            victim, peer_id = offender.victim.service.transport, offender.connection._transport.identity.peer_id
            await eventually(lambda: victim.n_serving(peer_id) > 100)
            assert victim.n_serving(peer_id) <= victim.config.serving_max
            assert len(opened) < 300
            await offender.others_notice_nothing()
            nursery.cancel_scope.cancel()
        for stream in opened:
            stream.reset(ErrorCode.CANCELLED)
        await eventually(lambda: victim.n_serving(peer_id) <= 1)


async def test_a_peer_that_never_reads_its_answers_holds_its_share_of_requests_and_no_more(start: Start) -> None:
    async with offence(start) as offender:
        engine = offender.victim.engines[0]

        async def pour(_request):
            while True:
                yield TextDelta("x" * 60_000)

        limit = offender.victim.service.node.config.forwarding.requests_per_peer_max
        engine.plan.next.extend([pour] * limit)
        streams = []
        for _ in range(limit + 1):
            stream = await offender.infer()
            await stream.send_all(encode_frame(good(deadline_s=30.0, stream=True)))
            streams.append(stream)
        await eventually(lambda: engine.n_running == limit)
        # Nobody reads, so that only the bounds of the streams stop what is poured; others are still served.
        await offender.others_notice_nothing()
        assert engine.n_running <= limit
        assert len(engine.requests) <= limit + 2
        for stream in streams:
            stream.reset(ErrorCode.CANCELLED)
        await eventually(lambda: engine.n_running == 0)
        await eventually(lambda: offender.victim.service.node.forwarding.under_way == 0)


async def test_a_peer_that_claims_a_model_and_answers_nobody_costs_no_answer(start: Start) -> None:
    """It is connected and alive, says that it serves the model, and speaks no inference at all."""
    async with offence(start) as offender:
        stranger, honest = offender.connection._transport, offender.honest
        liar = stranger.identity
        connection = await stranger.dial(honest.address)
        # It answers probes, so that it is as near as the one that serves the model.
        stranger.on_datagram = lambda peer_id, data, _: stranger.connections[peer_id].send_datagram(b"\x02" + data[1:])
        stream = await connection.open_stream(GOSSIP_PROTOCOL)
        card = Card((), Hardware("cpu", 1, 1, 1), (ModelOffer(MODEL, frozenset({Feature.CHAT})),), None, "test")
        await stream.send_all(records(sealed(liar, payload=card, lasts_s=60.0)) + told(Beat(draining=False, loads=())))
        await eventually(lambda: honest.knows(liar.peer_id) and honest.service.node.peer(liar.peer_id, 0.0).quality is not None)
        outcomes: dict[bytes, str] = {}
        while liar.peer_id not in outcomes:
            response = await honest.chat(deadline_s=5)
            assert text_of(response) == TEXT
            assert response.headers["x-mesh-node"] == offender.victim.name
            outcomes |= {c.peer_id: c.outcome for c in honest.route(response).candidates if c.outcome}
        assert outcomes[offender.victim.peer_id] == "answered"
        assert outcomes[liar.peer_id].startswith("engine_failed: the answer broke off")
