"""What each attack of `python -m benchmarks hostile` sends.

`RAW` attacks need no connection: their datagrams are made beforehand, so that the attacker is cheap. `HELD` attacks are made on
a connection of the conformance suite's scripted peer, which has aioquic's packet builder and none of our guards. What an attack
sends and how fast is in its class; whether it is worth the name is shown by what it does to a node without guards.

Source: RFC 9000 section 21; docs/security.md.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aioquic import tls
from aioquic.quic.connection import QuicConnectionId
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from mesh.conformance.certificates import make_chain
from mesh.conformance.inference import fields, plain_tensor
from mesh.conformance.quic import Manner, OpenConnection, varint
from mesh.conformance.wire import Connection, Stream
from protocol.encoding import encode_frame, encode_uvarint
from protocol.gossip.messages import GOSSIP_PROTOCOL, Records, encode_message
from protocol.identity import Identity, peer_id_of
from protocol.libp2p.multistream import Initiator
from protocol.wire import PackingLimits, pack
from protocol.wire.generated.layouts import REQUEST
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import REQUEST_BYTES_MAX
from protocol.wire.writer import write_message

QUIC_VERSION_1 = 1
PACKET_ROOM_BYTES = 1150
"""Frames put into one packet, in bytes: a full datagram with its header and tag."""

WIDE = PackingLimits(size_bytes_max=1 << 20, depth_max=8, values_max=100_000)
"""For what is packed by hand."""


@dataclass(frozen=True, slots=True)
class Raw:
    """Datagrams without a connection.

    Attributes:
        per_second: how many are sent.
        make: makes so many of them.
        spoofed: whether each comes from another address.
    """

    per_second: int
    make: Callable[[int], list[bytes]]
    spoofed: bool = False


def spoofed_initials(count: int) -> list[bytes]:
    """Make first packets of clients: one good ClientHello under connection ids, and so keys, of its own each."""
    quic = OffenderQuic(Manner(make_chain(Identity(os.urandom(32)))), None)
    quic.connect(("192.0.2.1", 4433), time.monotonic())
    hello = quic.first_flight()
    frame = b"\x00" + varint(len(hello)) + hello
    return [_initial(os.urandom(8), quic.host_cid, b"\x06" + frame) for _ in range(count)]


def _initial(cid: bytes, source: bytes, frames: bytes) -> bytes:
    pair = CryptoPair()
    pair.setup_initial(cid, is_client=True, version=QUIC_VERSION_1)
    builder = QuicPacketBuilder(
        host_cid=source, is_client=True, max_datagram_size=1350, packet_number=0, peer_cid=cid, peer_token=b"",
        quic_logger=None, spin_bit=False, version=QUIC_VERSION_1,
    )  # fmt: skip
    builder.start_packet(QuicPacketType.INITIAL, pair)
    builder.start_frame(frames[0], capacity=len(frames)).push_bytes(frames[1:])
    (data,), _ = builder.flush()
    return data.ljust(1200, b"\x00")


def junk(count: int) -> list[bytes]:
    """Make bytes without a meaning: half look like a short header, half like a long one of version 1."""
    luck = random.Random(1)
    made = []
    for number in range(count):
        data = luck.randbytes(luck.choice((40, 200, 1200)))
        head = b"\x40" if number % 2 else b"\xc0\x00\x00\x00\x01\x08"
        made.append(head + data[len(head) :])
    return made


RAW: dict[str, Raw] = {
    "spoofed-initials": Raw(5_000, spoofed_initials, spoofed=True),
    "junk": Raw(20_000, junk),
}


class OffenderQuic(OpenConnection):
    """A connection that goes on whatever the node says of connection ids it never had."""

    def _handle_retire_connection_id_frame(self, _context: Any, _frame_type: int, buf: Any) -> None:
        buf.pull_uint_var()

    def waiting_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that were never sent yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.next_offset

    def first_flight(self) -> bytes:
        """The ClientHello."""
        return bytes(self._crypto_streams[tls.Epoch.INITIAL].sender._buffer)

    def add_cid(self, cid: bytes) -> None:
        """Take packets that are sent to a further connection id."""
        self._host_cids.append(QuicConnectionId(cid=cid, sequence_number=-1, stateless_reset_token=bytes(16), was_sent=True))
        del self._host_cids[1:-64]

    @property
    def heard(self) -> int:
        """The largest number of a packet of the node."""
        return max(space.largest_received_packet for space in self._spaces.values())


class Held:
    """An attack on a connection of its own.

    Attributes:
        per_second: how many times `send` is called.
        initial: whether it is made before the handshake.
    """

    per_second = 200.0
    initial = False

    def manner(self, identity: Identity) -> Manner:
        """How the offender behaves on the level of QUIC."""
        return Manner(make_chain(identity))

    async def begin(self, connection: Connection) -> None:
        """Do what comes before the attack."""

    def frames(self, quic: OffenderQuic) -> bytes:
        """One packet's frames, sent as they are; empty where the attack sends through the connection."""
        return b""

    def send(self, connection: Connection) -> None:
        """Do one step through the connection, for an attack without frames of its own."""

    def streams(self) -> list[Stream]:
        """The streams whose ends count as having been cut."""
        return []


def filled(frames: Iterator[bytes]) -> bytes:
    """As many frames as fit a packet."""
    packet = bytearray()
    for frame in frames:
        if len(packet) + len(frame) > PACKET_ROOM_BYTES:
            break
        packet += frame
    return bytes(packet)


@dataclass
class CryptoGaps(Held):
    """Single bytes of a handshake, each behind a gap; anybody can send them."""

    per_second = 200.0
    initial = True
    _at: dict[int, int] = field(default_factory=dict)

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""

        def single() -> Iterator[bytes]:
            while True:
                at = self._at[id(quic)] = (self._at.get(id(quic), 0) + 2) % 16_000
                yield b"\x06" + varint(at + 2) + b"\x01x"

        return filled(single())


@dataclass
class StreamGaps(Held):
    """Single bytes of a stream, each behind a gap."""

    per_second = 200.0
    _at: dict[int, int] = field(default_factory=dict)

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""

        def single() -> Iterator[bytes]:
            while True:
                at = self._at[id(quic)] = (self._at.get(id(quic), 0) + 2) % 1_000_000
                yield b"\x0e\x00" + varint(at + 2) + b"\x01x"

        return filled(single())


class FakeAcks(Held):
    """Acknowledgements of packets that were never sent."""

    per_second = 100.0

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""
        return b"\x02" + varint(quic.heard + 1_000_000) + b"\x00\x00" + varint(1000)


class EarlyAcks(Held):
    """Acknowledgements of packets that have not arrived, so that the node sends ever faster."""

    per_second = 400.0

    async def begin(self, connection: Connection) -> None:
        """Ask for a long answer."""
        stream = connection.open()
        stream.send(asked(512 * 1024))

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""
        largest = quic.heard + 8
        return b"\x02" + varint(largest) + b"\x00\x00" + varint(min(largest, 64))


class PathChallenges(Held):
    """Challenges of the path, each of which the node is to answer."""

    per_second = 300.0

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""
        return filled(b"\x1a" + os.urandom(8) for _ in range(1000))


@dataclass
class ConnectionIds(Held):
    """New connection ids, each of which retires all before it."""

    per_second = 300.0
    _number: dict[int, int] = field(default_factory=dict)

    def frames(self, quic: OffenderQuic) -> bytes:
        """See Held."""

        def one() -> Iterator[bytes]:
            while True:
                number = self._number[id(quic)] = self._number.get(id(quic), 7) + 1
                cid = os.urandom(8)
                quic.add_cid(cid)
                yield b"\x18" + varint(number) + varint(number) + b"\x08" + cid + os.urandom(16)

        return filled(one())


class RapidReset(Held):
    """Requests that are taken back as soon as they are asked."""

    per_second = 500.0

    def send(self, connection: Connection) -> None:
        """Open a stream, ask, and reset it."""
        if connection.quic.streams_allowed <= connection.quic.n_streams_opened:
            return
        stream = connection.open()
        stream.send(asked(64))
        stream.reset(0)
        connection.streams.pop(stream.id, None)


class SlowReaders(Held):
    """Long answers that are asked for and never read."""

    per_second = 1.0

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def manner(self, identity: Identity) -> Manner:
        """Credit for next to nothing, never renewed."""
        return Manner(make_chain(identity), credit_bytes=2048, frozen=True)

    async def begin(self, connection: Connection) -> None:
        """Ask on many streams."""
        self._streams = [connection.open() for _ in range(16)]
        for stream in self._streams:
            stream.send(asked(128 * 1024))

    def streams(self) -> list[Stream]:
        """See Held."""
        return self._streams


class SlowWriters(Held):
    """Requests that announce eight megabytes and bring a byte a second."""

    per_second = 1.0

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    async def begin(self, connection: Connection) -> None:
        """Begin a request on every stream there may be."""
        head = Initiator((INFER_PROTOCOL,)).data_to_send() + encode_uvarint(REQUEST_BYTES_MAX)
        self._streams = [connection.open() for _ in range(min(250, connection.quic.streams_allowed))]
        for stream in self._streams:
            stream.send(head + b"x")

    def send(self, connection: Connection) -> None:
        """Bring a byte on each."""
        for stream in self._streams:
            if not stream.is_over:
                stream.send(b"x")

    def streams(self) -> list[Stream]:
        """See Held."""
        return self._streams


class ForgedRecords(Held):
    """Records of peers that never signed them, a hundred in a message."""

    per_second = 100.0

    def __init__(self, network: str = "isochrone") -> None:
        self._messages = forged(network, 100, 200)
        self._stream: Stream | None = None
        self._next = 0

    async def begin(self, connection: Connection) -> None:
        """Agree on gossip."""
        self._stream = await connection.speak(GOSSIP_PROTOCOL)

    def send(self, connection: Connection) -> None:
        """Send the next hundred, unless what was sent before still waits for credit."""
        assert self._stream is not None
        assert isinstance(connection.quic, OffenderQuic)
        if connection.quic.waiting_bytes(self._stream.id) < 1 << 20:
            self._stream.send(self._messages[self._next % len(self._messages)])
            self._next += 1


def forged(network: str, per_message: int, messages: int) -> list[bytes]:
    """Messages of records that differ in everything and are signed by nobody."""
    issued = int(time.time() * 1000)
    payload = pack({"accused": []}, WIDE)
    made = []
    for _ in range(messages):
        envelopes = []
        for _ in range(per_message):
            author = bytes(peer_id_of(os.urandom(32)))
            header = [network, "verdict", author, random.getrandbits(40) + 1, issued, issued + 500_000, payload]
            envelopes.append(os.urandom(64) + pack(header, WIDE))
        made.append(encode_frame(encode_message(Records(tuple(envelopes)))))
    return made


def asked(size_bytes: int) -> bytes:
    """A whole stream that asks the echo engine to send so many bytes back."""
    tensor = plain_tensor(bytes(size_bytes), dtype=6, shape=(size_bytes,))
    request = write_message(REQUEST, fields("echo", feature=4, body=b"", tensors=[tensor], deadline_us=60_000_000, hops_left=0))
    return Initiator((INFER_PROTOCOL,)).data_to_send() + encode_frame(request)


HELD: dict[str, Callable[[], Held]] = {
    "crypto-gaps": CryptoGaps,
    "stream-gaps": StreamGaps,
    "fake-acks": FakeAcks,
    "early-acks": EarlyAcks,
    "path-challenges": PathChallenges,
    "connection-ids": ConnectionIds,
    "rapid-reset": RapidReset,
    "slow-readers": SlowReaders,
    "slow-writers": SlowWriters,
    "forged-records": ForgedRecords,
}
ATTACKS = (*RAW, *HELD)
