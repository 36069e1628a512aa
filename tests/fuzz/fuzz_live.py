"""The harnesses that need more than a function: a core with a connected peer, and QUIC endpoints before and after the handshake.

What the attacker does (its handshake, the protection of its packets) is prepared and not measured. Frames are handed to the
product's endpoint inside packets of a finished handshake, as `tests/protocol/quic/hostile.py` makes them; the endpoint's outputs
are taken and nobody reads its streams. A datagram is the unit: it is what holds the loop.

While it fuzzes, one connection is used again until the endpoint closes it, for a handshake takes a hundred times as long as a
packet; a finding is judged on a connection of its own.
"""

import random
from collections.abc import Iterator

from aioquic import tls
from fuzz_oracle import Harness, either
from hostile import Hostile, ack_frame, crypto_frame, stream_frame, varint
from quic_pair import DIALLER

from mesh.outbox import MESSAGES_PER_TURN
from protocol.encoding import FrameDecoder, encode_frame
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import Misbehaved
from protocol.gossip.messages import MESSAGE_BYTES_MAX, Graft, Keep, Prune, Seek, encode_message
from protocol.identity import Identity, PeerId
from protocol.node import Node, NodeConfig
from protocol.probe import ECHO_THREE_BYTES, KIND_ECHO_THREE, PROBE_BYTES, SendDatagram
from protocol.quic.events import ConnectionClosed
from protocol.quic.retry import Initial, Retry, read_initial
from protocol.records import Hardware, Sequencer

PACKETS_MAX = 60
"""Datagrams of one input: 64 KiB of them."""

FRAMES_BYTES_MAX = 1200
"""Frames in one packet, in bytes."""

REUSED_MAX = 200
"""Inputs over one connection while fuzzing, a count: past it what went before may be the reason of what is found."""

NOW = 100.0
WALL_S = 1_800_000_000.0

_reuse = False
_core: Node | None = None
_n_peers = 0
_kept: dict[str, tuple[Hostile, int]] = {}


def reuse_connections() -> None:
    """Use a connection for more than one input from now on."""
    global _reuse
    _reuse = True


def chunks(data: bytes) -> list[bytes]:
    """An input as a row of pieces, each with two bytes of length before it."""
    pieces: list[bytes] = []
    while len(data) > 2 and len(pieces) < PACKETS_MAX:
        length = min(int.from_bytes(data[:2], "big") % (FRAMES_BYTES_MAX + 1), len(data) - 2)
        if length:
            pieces.append(data[2 : 2 + length])
        data = data[2 + length :]
    return pieces


def joined(pieces: list[bytes]) -> bytes:
    """What `chunks` reads."""
    return b"".join(len(piece).to_bytes(2, "big") + piece for piece in pieces)


# The core


def core(_data: bytes) -> tuple[Node, PeerId]:
    """A core with one connected peer; while it fuzzes, the same core with another peer for each input."""
    global _core, _n_peers
    if _core is None or not _reuse or _n_peers % REUSED_MAX == 0:
        _core = Node(NodeConfig(network_id="testnet"), Identity.from_seed(bytes([3]) * 32), random.Random(1), Sequencer(0))
        _core.start((), Hardware("virtual", 1, 8_000_000_000, 1), (), WALL_S, NOW)
    else:
        _core.handle_disconnected(_peer(_n_peers), ErrorCode.GOODBYE, NOW)
    _n_peers = _n_peers + 1 if _reuse else 1
    _core.handle_connected(_peer(_n_peers), NOW)
    while _core.next_output() is not None:
        pass
    return _core, _peer(_n_peers)


def _peer(number: int) -> PeerId:
    return Identity.from_seed(number.to_bytes(32, "big")).peer_id


def core_messages(state: tuple[Node, PeerId], data: bytes) -> Iterator[object]:
    """Messages of a peer as the shell hands them over: so many, then whoever else waits."""
    (node, peer_id), taken = state, 0
    decoder = FrameDecoder(MESSAGE_BYTES_MAX)
    decoder.receive(data)
    while (message := decoder.next_frame()) is not None:
        node.handle_message(peer_id, message, NOW + taken * 1e-4)
        taken += 1
        outputs = list(_outputs(node))
        if any(isinstance(output, Misbehaved) for output in outputs):
            break  # the shell hangs up
        if taken % MESSAGES_PER_TURN == 0:
            yield taken
    yield taken


def _outputs(node: Node) -> Iterator[object]:
    while (output := node.next_output()) is not None:
        yield output


def core_datagrams(state: tuple[Node, PeerId], data: bytes) -> Iterator[object]:
    """DATAGRAM frames of a peer; a nonce of a number below 256 stands for one that the node has sent, for none can be guessed."""
    node, peer_id = state
    sent: list[bytes] = []
    for number, piece in enumerate(chunks(data)):
        if sent and piece[1:8] == bytes(7) and len(piece) >= PROBE_BYTES:
            piece = piece[:1] + sent[piece[8] % len(sent)] + piece[PROBE_BYTES:]
        node.handle_datagram(peer_id, piece, NOW + number * 1e-4, NOW + number * 1e-4)
        said = [output.payload for output in _outputs(node) if isinstance(output, SendDatagram)]
        sent += [payload[PROBE_BYTES:ECHO_THREE_BYTES] for payload in said if payload[0] == KIND_ECHO_THREE]
        yield number


def of_core() -> list[bytes]:
    """Conversations."""
    said = [encode_message(message) for message in (Graft(), Keep(True), Seek("m", 3), Prune())]
    one = b"".join(map(encode_frame, said))
    return [one, one * 40]


# QUIC


def victim(engine: str) -> Hostile:
    """An attacker and the endpoint that is its victim, before anything was said."""
    return Hostile(engine)


def live(engine: str, data: bytes) -> tuple[Hostile, list[bytes]]:
    """A finished handshake, and the input as packets of it."""
    hostile, used = _kept.get(engine, (None, 0)) if _reuse else (None, 0)
    if hostile is None or used >= REUSED_MAX or hostile.of(ConnectionClosed):
        hostile, used = Hostile(engine), 0
        hostile.exchange()
        assert hostile.victim.n_connections == 1, hostile.outputs
    _kept[engine] = hostile, used + 1
    return hostile, [hostile.packet(piece) for piece in chunks(data)]


def hello(engine: str, data: bytes) -> tuple[Hostile, list[bytes]]:
    """A fresh endpoint, and the input as the first handshake bytes of a client."""
    hostile = Hostile(engine)
    pieces = [data[start : start + 1000] for start in range(0, min(len(data), 32_000), 1000)]
    packets = [hostile.packet(crypto_frame(1000 * at, piece), tls.Epoch.INITIAL) for at, piece in enumerate(pieces)]
    return hostile, packets


def stranger(engine: str, data: bytes) -> tuple[Hostile, list[bytes]]:
    """A fresh endpoint, and the input as datagrams."""
    return Hostile(engine), [piece.ljust(1200, b"\x00") if piece[0] & 0x80 else piece for piece in chunks(data)]


def deliver(state: tuple[Hostile, list[bytes]], _data: bytes) -> Iterator[object]:
    """Hand each datagram to the endpoint, and take what comes out."""
    hostile, packets = state
    for packet in packets:
        hostile.victim.handle_datagram(packet, DIALLER, hostile.now)
        hostile.now += 0.001
        yield len(hostile.drain())


def of_frames() -> list[bytes]:
    """Packets of every kind of frame, good ones and those that are meant to hurt."""
    row = [
        b"\x01" * 1000,  # PING
        b"".join(b"\x1a" + bytes([number]) * 8 for number in range(130)),
        b"".join(stream_frame(0, 2 * number + 1, b"x") for number in range(140)),
        b"".join(crypto_frame(2 * number + 1, b"x") for number in range(140)),
        b"".join(b"\x18" + varint(number + 8) + varint(number + 8) + b"\x08" + bytes([number]) * 24 for number in range(30)),
        b"".join(b"\x04" + varint(4 * number) + b"\x00\x00" for number in range(200)),
        b"".join(stream_frame(4 * number, 0, b"\x13/multistream/1.0.0\n") for number in range(40)),
        b"".join(b"\x05" + varint(4 * number) + b"\x00" for number in range(200)),
        b"".join(b"\x11" + varint(4 * number) + varint(1 << 20) for number in range(120)),
        ack_frame(1) * 100,
        b"\x02" + varint(60) + b"\x00" + varint(30) + b"\x00" + b"\x00\x00" * 30,
        b"\x31" + varint(9) + b"\x01" + bytes(8),
        b"\x10" + varint(1 << 40) + b"\x12" + varint(1 << 20) + b"\x14" + varint(1) + b"\x19\x00" + b"\x1e",
        b"\x1d\x00\x00",
    ]
    whole = [joined([piece[:FRAMES_BYTES_MAX]]) for piece in row]
    return [*whole, joined([piece[:FRAMES_BYTES_MAX] for piece in row[:9]] * 4), *of_floods()]


def of_floods() -> list[bytes]:
    """Sixty packets of one kind, each of which would make the next one dearer: gaps of a stream, and connection ids."""
    gaps = [
        b"".join(stream_frame(0, 2 * (120 * packet + number) + 1, b"x") for number in range(120)) for packet in range(PACKETS_MAX)
    ]
    ids = [
        b"".join(
            b"\x18" + varint(number) + varint(number) + b"\x08" + number.to_bytes(8, "big") + bytes(16)
            for number in range(8 + 35 * packet, 43 + 35 * packet)
        )
        for packet in range(PACKETS_MAX)
    ]
    challenges = [b"".join(b"\x1a" + bytes([number]) * 8 for number in range(110))] * PACKETS_MAX
    return [joined([piece[:FRAMES_BYTES_MAX] for piece in row]) for row in (gaps, ids, challenges)]


def retry_tokens(_state: None, data: bytes) -> object:
    """A first packet's clear part, and its token as one of ours."""
    initial = read_initial(data.ljust(1200, b"\x00"))
    retry = Retry(b"secret")
    return initial, retry.original_cid(Initial(bytes(8), b"", data[:60]), DIALLER, NOW)


def of_tokens() -> list[bytes]:
    """A first packet, with a token and without, and a token alone."""
    head = b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x08" + bytes(8)
    return [head + b"\x00", head + b"\x28" + bytes(40), bytes(8) + b"12345678" + bytes(16)]


RETRY = Harness(
    "retry", retry_tokens, (), of_tokens, ("protocol.quic.retry:read_initial", "protocol.quic.retry:Retry.original_cid")
)


def of_hello() -> list[bytes]:
    """A client's first handshake message, whole and cut."""
    buffer = Hostile("a").client
    told = bytes(buffer._crypto_streams[tls.Epoch.INITIAL].sender._buffer)
    return [told, told[:60], told + told]


def of_strangers() -> list[bytes]:
    """First packets, and things that look like them."""
    first = Hostile("a").client.datagrams_to_send(0.0)[0][0]
    junk = b"\xc0\x00\x00\x00\x01\x08" + bytes(range(40))
    return [joined([first[:1200]]), joined([junk] * 40), joined([b"\x40" + bytes(30)] * 40), joined([b"\x80" + bytes(20)])]


_INTERESTING = (0, 1, 2, 4, 63, 64, 255, 1023, 1200, 16383, 16384, 65535, 1 << 20, (1 << 30) - 1, 1 << 30, (1 << 62) - 1)
_FIELDS = {
    0x01: "", 0x02: "vvvvvv", 0x03: "vvvvvvvvv", 0x04: "svv", 0x05: "sv", 0x06: "vd", 0x07: "d", 0x08: "s", 0x0A: "sd",
    0x0C: "sv", 0x0E: "svd", 0x0F: "svd", 0x10: "v", 0x11: "sv", 0x12: "v", 0x13: "v", 0x14: "v", 0x15: "sv", 0x16: "v",
    0x17: "v", 0x18: "vvc", 0x19: "v", 0x1A: "8", 0x1B: "8", 0x1C: "vvd", 0x1D: "vd", 0x1E: "", 0x30: "r", 0x31: "d",
}  # fmt: skip
"""Every frame of RFC 9000 and RFC 9221 with its fields: a number, a stream, data and its length, a connection id, eight bytes."""


def frame(luck: random.Random) -> bytes:
    """One well-formed frame with fields that may be absurd."""
    kind = luck.choice(tuple(_FIELDS))
    made = bytes([kind])
    for field in _FIELDS[kind]:
        if field == "v":
            made += varint(luck.choice(_INTERESTING) if luck.random() < 0.5 else luck.randrange(300))
        elif field == "s":
            made += varint(luck.choice((0, 4, 8, 1, 2, 3, 4 * luck.randrange(300))))
        elif field == "d":
            size = luck.choice((0, 1, 1, 8, 40))
            made += varint(size) + luck.randbytes(size)
        elif field == "c":
            made += b"\x08" + luck.randbytes(24)
        elif field == "8":
            made += luck.randbytes(8)
        else:
            made += luck.randbytes(luck.randrange(30))
    return made


def mutate_frames(data: bytes, bytes_max: int, seed: int) -> bytes:
    """Put frames in, take some out, repeat one many times with a field that grows."""
    luck = random.Random(seed)
    pieces = chunks(data) or [b"\x01"]
    at = luck.randrange(len(pieces))
    match luck.randrange(4):
        case 0:
            pieces.insert(at, b"".join(frame(luck) for _ in range(1 + luck.randrange(6)))[:FRAMES_BYTES_MAX])
        case 1:
            pieces[at] = (pieces[at] + frame(luck))[:FRAMES_BYTES_MAX]
        case 2:
            one = frame(luck)
            pieces[at] = (one * (FRAMES_BYTES_MAX // len(one)))[:FRAMES_BYTES_MAX]
        case _:
            pieces = (pieces * luck.choice((1, 2, 8)))[:PACKETS_MAX]
    return joined(pieces)[:bytes_max]


def _harnesses() -> Iterator[Harness]:
    for name, letter in (("aioquic", "a"), ("qh3", "q")):
        guards = f"protocol.quic.{name}_engine"
        yield Harness(
            f"{name}-frames", deliver, (), of_frames,
            (f"{guards}:{name.capitalize()}Connection.receive", f"{guards}:*", "protocol.quic.connection:Connection.receive",
             "protocol.quic.connection:Connection._take_data", "protocol.quic.endpoint:Endpoint.handle_datagram"),
            prepare=lambda data, letter=letter: live(letter, data), mutate=mutate_frames,
        )  # fmt: skip
        yield either(
            f"{name}-doors",
            Harness("hello", deliver, (), of_hello, (), prepare=lambda data, letter=letter: hello(letter, data)),
            Harness(
                "strangers", deliver, (), of_strangers, ("protocol.quic.retry:read_initial",),
                prepare=lambda data, letter=letter: stranger(letter, data), mutate=mutate_frames,
            ),
        )  # fmt: skip


HARNESSES: tuple[Harness, ...] = (
    either(
        "core",
        Harness("messages", core_messages, (RemoteProtocolError,), of_core, (), prepare=core),
        Harness(
            "datagrams",
            core_datagrams,
            (),
            lambda: [
                joined([b"\x01" + bytes(8)] * 20),
                joined([b"\x02" + bytes(36)]),
                joined(
                    [
                        b"\x03" + bytes(8),
                        b"\x04" + bytes(16),
                        b"\x04" + bytes(44),
                        b"\x05" + bytes(8),
                        b"\x05" + bytes(36),
                        b"\x06",
                    ]
                ),
            ],
            (
                "protocol.probe.machine:Probe.handle_datagram",
                "protocol.node.machine:Node.handle_datagram",
                "protocol.probe.machine:*",
                "protocol.probe.wire:decode_datagram",
            ),
            prepare=core,
        ),
    ),
    *_harnesses(),
)
