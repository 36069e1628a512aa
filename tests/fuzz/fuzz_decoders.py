"""The list of everything in the product that reads bytes which somebody else has written, and how each is tried.

`HARNESSES` are tried by `make fuzz`, and their corpus by the fast tests; `fuzz_seeds` has what they begin with. `fuzz_apart`
names the functions that `fuzz_scan` finds and that need no harness. `test_fuzz_decoders.py` holds both against the code: a new
decoder without a harness or a reason fails there, and so does a harness that does not reach what it claims.
"""

import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "protocol" / "quic", ROOT / "tests" / "fuzz"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import fuzz_admission  # noqa: E402
import fuzz_door  # noqa: E402
import fuzz_fabric  # noqa: E402
import fuzz_live  # noqa: E402
import fuzz_sealing  # noqa: E402
from fuzz_dear import DEAR  # noqa: E402
from fuzz_oracle import Harness, either  # noqa: E402
from fuzz_seeds import (  # noqa: E402
    AUTHOR,
    WALL_S,
    WIDE,
    of,
    of_answers,
    of_beats,
    of_bodies,
    of_certificates,
    of_gossip,
    of_identify,
    of_keys,
    of_multiaddrs,
    of_multistream,
    of_peer_records,
    of_places,
    of_records,
    of_traces,
    some,
    with_choice,
)

from mesh.engines.base import EngineError  # noqa: E402
from mesh.engines.body import read_embedding_body, read_json, read_text_body  # noqa: E402
from mesh.engines.openai_chunks import ChunkReader, read_object  # noqa: E402
from mesh.engines.sse import SseError, SseReader  # noqa: E402
from mesh.gateway.answers import read_choice  # noqa: E402
from mesh.gateway.config import GatewayConfig  # noqa: E402
from mesh.gateway.failures import ApiError  # noqa: E402
from mesh.gateway.sanitise import Call, parse_call  # noqa: E402
from mesh.trace.frames import describe  # noqa: E402
from protocol import encoding  # noqa: E402
from protocol.edges import EdgeStore  # noqa: E402
from protocol.errors import LocalProtocolError, RemoteProtocolError  # noqa: E402
from protocol.gossip import GOSSIP_PROTOCOL  # noqa: E402
from protocol.gossip.beats import decode_beat  # noqa: E402
from protocol.gossip.messages import MESSAGE_BYTES_MAX, decode_message, in_pieces  # noqa: E402
from protocol.identity import (  # noqa: E402
    decode_public_key,
    parse_peer_id,
    peer_id_from_bytes,
    verify_certificate,
    verify_signature,
)
from protocol.inference import Feature, JsonDelta  # noqa: E402
from protocol.libp2p.envelope import PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, open_peer_record, seal_envelope  # noqa: E402
from protocol.libp2p.identify import IDENTIFY_PROTOCOL, IdentifyReader, PeerDescription, quic_addresses  # noqa: E402
from protocol.libp2p.multistream import Initiator, Listener  # noqa: E402
from protocol.libp2p.ping import PING_PROTOCOL  # noqa: E402
from protocol.multiaddr import Multiaddr, parse_multiaddr  # noqa: E402
from protocol.places import PLACE_BYTES, decode_place  # noqa: E402
from protocol.pubsub.messages import decode_pubsub_message, decode_rpc  # noqa: E402
from protocol.pubsub.messages import in_pieces as rpc_in_pieces  # noqa: E402
from protocol.records import Edges, decode_measured, find_measured, measured_at, open_record, peek  # noqa: E402
from protocol.records.envelope import RECORD_DOMAIN  # noqa: E402
from protocol.wire import PackingLimits, pack, unpack  # noqa: E402
from protocol.wire.generated.layouts import REPLY, REQUEST  # noqa: E402
from protocol.wire.inference import PROTOCOL_ID, decode_reply, decode_request  # noqa: E402
from protocol.wire.layout import MessageLayout  # noqa: E402
from protocol.wire.template import SIGHTINGS, Reader  # noqa: E402
from protocol.wire.verifier import read_message  # noqa: E402

REMOTE = (RemoteProtocolError,)
BOTH = (RemoteProtocolError, LocalProtocolError)
GATEWAY = GatewayConfig()
FEATURES = tuple(Feature)


def chosen(data: bytes, count: int) -> tuple[int, bytes]:
    """A choice of so many by the first byte, and the rest."""
    return (data[0] % count, data[1:]) if data else (0, b"")


# Small encodings


def varints(_state: None, data: bytes) -> object:
    """Read varints one after another, then cut frames."""
    offset, values = 0, []
    while offset < min(len(data), 256):
        try:
            value, offset = encoding.decode_uvarint(data, offset)
        except RemoteProtocolError:
            break
        values.append(value)
    decoder, frames = encoding.FrameDecoder(4096), 0
    for start in range(0, len(data), 1350):
        decoder.receive(data[start : start + 1350])
        while frames < 512 and decoder.next_frame() is not None:
            frames += 1  # whoever reads a stream pauses after so many (mesh/outbox.py)
    decoder.finish()
    return values, decoder.take_rest()


def texts(_state: None, data: bytes) -> object:
    """Addresses and peer ids as text, which also stand in what a peer says of itself."""
    text = data.decode("utf-8", "replace")
    found: list[object] = []
    for read in (parse_peer_id, parse_multiaddr, encoding.decode_base32, encoding.decode_base58btc):
        try:
            found.append(read(text))
        except BOTH as error:
            found.append(error)
    return found


def addresses(_state: None, data: bytes) -> object:
    """A binary multiaddr, alone and in a list."""
    quic_addresses([data[start : start + 40] for start in range(0, min(len(data), 4000), 40)])
    return Multiaddr.from_bytes(data)


def keys(_state: None, data: bytes) -> object:
    """A public key, a peer id and a signature."""
    verify_signature(data[:32], data[32:96], data[96:])
    found: list[object] = []
    for read in (decode_public_key, peer_id_from_bytes):
        try:
            found.append(read(data))
        except RemoteProtocolError as error:
            found.append(error)
    return found


def places(_state: None, data: bytes) -> object:
    """A coordinate as echoes carry it."""
    return decode_place(data[:PLACE_BYTES].ljust(PLACE_BYTES, b"\x00"))


# libp2p


def multistream(_state: None, data: bytes) -> object:
    """Both ends of a negotiation, in pieces."""
    which, rest = chosen(data, 3)
    end = Initiator(("/a/1.0.0", "/b/1.0.0")) if which else Listener(lambda name: name == "/a/1.0.0")
    step = (1, 7, 1350)[which]
    for start in range(0, len(rest), step):
        if end.receive_data(rest[start : start + step]) is not None:
            return end.data_to_send(), end.take_rest()
    end.receive_eof()
    return None


def identify(_state: None, data: bytes) -> object:
    """A whole identify stream, and what is kept of it."""
    reader = IdentifyReader()
    for start in range(0, len(data), 1350):
        reader.receive_data(data[start : start + 1350])
    said = reader.receive_eof()
    description = PeerDescription(AUTHOR.peer_id)
    description.answered(said)
    description.pushed(said)
    return description, quic_addresses(said.listen_addresses)


def peer_record(_state: None, data: bytes) -> object:
    """An envelope as it came, or one that is well signed with a payload that is not."""
    which, rest = chosen(data, 2)
    if which:
        return open_peer_record(rest)
    return open_peer_record(seal_envelope(AUTHOR, PEER_RECORD_DOMAIN, PEER_RECORD_TYPE, rest[:7900]))


def certificate(_state: None, data: bytes) -> object:
    """A certificate."""
    return verify_certificate(data, WALL_S)


# Records, gossip, requests


def plain(_state: None, data: bytes) -> object:
    """msgpack under the limits of gossip, of a payload and of an envelope."""
    which, rest = chosen(data, 3)
    limits = (
        PackingLimits(size_bytes_max=MESSAGE_BYTES_MAX, depth_max=6, values_max=576),
        PackingLimits(size_bytes_max=8192, depth_max=8, values_max=1024),
        PackingLimits(size_bytes_max=8192, depth_max=8, values_max=64),
    )
    return unpack(rest, limits[which])


def record(_state: None, data: bytes) -> object:
    """An envelope as it came, or a payload that its author signed."""
    which, rest = chosen(data, 4)
    if which == 0:
        peek(rest)
        return open_record(rest, "testnet", WALL_S)
    kind, lasts_s = (("card", 3600), ("edges", 600), ("verdict", 300))[which - 1]
    issued = int(WALL_S * 1000)
    header = ["testnet", kind, bytes(AUTHOR.peer_id), 7, issued, issued + lasts_s * 1000, rest[:8192]]
    packed = pack(header, WIDE)
    opened = open_record(AUTHOR.sign(RECORD_DOMAIN + packed) + packed, "testnet", WALL_S)
    if isinstance(opened.payload, Edges):
        measured = opened.payload.measured
        told = decode_measured(measured)
        assert [find_measured(measured, edge.tag) for edge in told] == list(told)
        assert measured_at(measured, 0) == told[0] if told else measured == b""
        EdgeStore().handle_told(AUTHOR.peer_id, measured, 0.0)
    return opened


def gossip(_state: None, data: bytes) -> object:
    """One message of gossip."""
    return decode_message(data)


def beat(_state: None, data: bytes) -> object:
    """One beat."""
    return decode_beat(data)


def request(_state: None, data: bytes) -> object:
    """One request."""
    return decode_request(data)


def reply(_state: None, data: bytes) -> object:
    """One event of an answer."""
    return decode_reply(data)


def shape(_state: None, data: bytes) -> object:
    """One message read by the template of another, which is a message of the vectors: as by a walk."""
    messages = _shapes()
    number, changes = chosen(data, len(messages))
    layout, message = messages[number]
    other = bytearray(message)
    for at in range(0, min(len(changes), 24) - 2, 3):
        other[int.from_bytes(changes[at : at + 2]) % len(other)] = changes[at + 2]
    reader = Reader(layout)
    for _ in range(SIGHTINGS):
        reader.read(message)
    try:
        walked: object = read_message(other, layout)
    except RemoteProtocolError as error:
        walked = error.code, error.detail
    try:
        read: object = reader.read(other)
    except RemoteProtocolError as error:
        read = error.code, error.detail
    assert read == walked, "a template reads what a walk reads otherwise"
    return read


@cache
def _shapes() -> list[tuple[MessageLayout, bytes]]:
    """The valid messages of the vectors."""
    found: list[tuple[MessageLayout, bytes]] = []
    for layout, name in ((REQUEST, "requests"), (REPLY, "replies")):
        for message in of("inference", name, field="message")():
            with suppress(RemoteProtocolError):
                read_message(message, layout)
                found.append((layout, message))
    return found


def pubsub(_state: None, data: bytes) -> object:
    """One RPC of gossipsub, and one message of it."""
    with suppress(RemoteProtocolError):
        decode_pubsub_message(data)
    return decode_rpc(data)


def gossip_pieces(_state: None, data: bytes) -> object:
    """A message of gossip that may hold many records."""
    return in_pieces(data)


def pubsub_pieces(_state: None, data: bytes) -> object:
    """An RPC of gossipsub that may hold many messages."""
    return rpc_in_pieces(data)


TRACED = (GOSSIP_PROTOCOL, "/meshsub/1.2.0", PROTOCOL_ID, PING_PROTOCOL, IDENTIFY_PROTOCOL)


def trace(_state: None, data: bytes) -> object:
    """A frame as `isochrone trace` shows it."""
    which, rest = chosen(data, 2 * len(TRACED))
    return describe(TRACED[which // 2], rest, by_opener=which % 2 == 0, content=True)


# Bodies


def gateway_body(_state: None, data: bytes) -> object:
    """The body of a client's request."""
    which, rest = chosen(data, len(FEATURES))
    feature = FEATURES[which]
    return parse_call(Feature.CHAT if feature is Feature.TENSORS else feature, rest, GATEWAY)


def engine_body(_state: None, data: bytes) -> object:
    """The body of a request as an engine of ours reads it."""
    which, rest = chosen(data, 4)
    if which == 0:
        return read_json(rest)
    if which == 1:
        return read_embedding_body(rest, 2048)
    return read_text_body(Feature.CHAT if which == 2 else Feature.COMPLETIONS, rest)


CALL = Call(Feature.CHAT, "m", b"{}", True, False, 2, False, 0, ())


def engine_answer(_state: None, data: bytes) -> object:
    """What an engine, or another node's engine, answers."""
    which, rest = chosen(data, 3)
    if which == 0:
        return read_object(rest)
    if which == 1:
        return read_choice(JsonDelta(rest), CALL)
    reader, events = ChunkReader(Feature.CHAT), []
    sse = SseReader()
    for start in range(0, len(rest), 4096):
        for event in sse.feed(rest[start : start + 4096]):
            events += reader.read(event)
    return events


_WIRE = ("protocol.wire.verifier:_Walk.root", "protocol.wire.verifier:read_message", "protocol.wire.verifier:read_and_count")

_SHAPE = tuple(
    f"protocol.wire.template:{name}"
    for name in ("_Reading.read", "_Survey.__init__", "_Survey._element", "_Survey._field", "_Survey._table")
)

_HARNESSES: tuple[Harness, ...] = (
    either(
        "encodings",
        Harness(
            "varint",
            varints,
            REMOTE,
            lambda: [b"\x00\x01\x80\x01", b"\x05hello", b"\xff" * 9],
            (
                "protocol.encoding:decode_uvarint",
                "protocol.encoding:peek_uvarint",
                "protocol.encoding:FrameDecoder.receive",
                "protocol.encoding:FrameDecoder.next_frame",
            ),
        ),
        Harness(
            "text",
            texts,
            BOTH,
            some("12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN", "/ip4/192.0.2.7/udp/4001/quic-v1", "mzxw6"),
            ("protocol.encoding:decode_base32",),
        ),
        fuzz_live.RETRY,
        Harness(
            "multiaddr",
            addresses,
            REMOTE,
            of_multiaddrs,
            ("protocol.multiaddr:Multiaddr.from_bytes", "protocol.multiaddr:*", "protocol.libp2p.identify:quic_addresses"),
        ),
        Harness(
            "keys", keys, REMOTE, of_keys, ("protocol.identity.keys:decode_public_key", "protocol.identity.keys:verify_signature")
        ),
        Harness("place", places, REMOTE, of_places, ("protocol.places:decode_place",)),
    ),
    either(
        "libp2p",
        Harness(
            "identify",
            identify,
            REMOTE,
            of_identify,
            (
                "protocol.libp2p.identify:IdentifyReader.__init__",
                "protocol.libp2p.identify:IdentifyReader.receive_data",
                "protocol.libp2p.identify:decode_identify",
                "protocol.libp2p.protobuf:read_fields",
                "protocol.libp2p.protobuf:*",
            ),
        ),
        Harness(
            "peer-record",
            peer_record,
            REMOTE,
            of_peer_records,
            (
                "protocol.libp2p.envelope:open_envelope",
                "protocol.libp2p.envelope:open_peer_record",
                "protocol.libp2p.envelope:*",
            ),
        ),
        Harness(
            "multistream",
            multistream,
            REMOTE,
            of_multistream,
            (
                "protocol.libp2p.multistream:Initiator.receive_data",
                "protocol.libp2p.multistream:Listener.receive_data",
                "protocol.libp2p.multistream:*",
                "protocol.libp2p.multistream:Initiator.__init__",
                "protocol.libp2p.multistream:Listener.__init__",
            ),
        ),
    ),
    either(
        "gossip",
        Harness("gossip", gossip, REMOTE, of_gossip, ("protocol.gossip.messages:decode_message", "protocol.gossip.messages:*")),
        Harness("beat", beat, REMOTE, of_beats, ("protocol.gossip.beats:decode_beat",)),
    ),
    either(
        "engine",
        Harness(
            "engine-body",
            engine_body,
            (EngineError,),
            of_bodies,
            (
                "mesh.engines.body:read_json",
                "mesh.engines.body:read_text_body",
                "mesh.engines.body:read_embedding_body",
            ),
        ),
        Harness(
            "engine-answer",
            engine_answer,
            (EngineError, SseError, ApiError),
            of_answers,
            (
                "mesh.engines.openai_chunks:ChunkReader.read",
                "mesh.engines.openai_chunks:read_object",
                "mesh.engines.sse:SseReader.feed",
                "mesh.engines.sse:*",
                "mesh.gateway.answers:*",
            ),
        ),
    ),
    Harness(
        "certificate",
        certificate,
        REMOTE,
        of_certificates,
        (
            "protocol.identity.certificate:verify_certificate",
            "protocol.identity.certificate:read_certificate",
            "protocol.identity.certificate:_read_body",
            "protocol.identity.certificate:_read_binding",
            "protocol.identity.der:read_elements",
            "protocol.identity.der:read_sequence",
            "protocol.identity.der:*",
        ),
    ),
    Harness(
        "msgpack", plain, REMOTE, with_choice(of_gossip, 0, 1, 2), ("protocol.wire.packing:unpack", "protocol.wire.packing:*")
    ),
    Harness(
        "record",
        record,
        REMOTE,
        of_records,
        (
            "protocol.records.envelope:open_record",
            "protocol.records.envelope:peek",
            "protocol.records.envelope:*",
            "protocol.records.mapping:decode_payload",
            "protocol.records.mapping:*",
            "protocol.records.measured:decode_measured",
            "protocol.records.measured:measured_at",
            "protocol.records.measured:*",
            "protocol.edges:_tags_of",
        ),
    ),
    either(
        "inference",
        Harness(
            "request",
            request,
            REMOTE,
            of("inference", "requests", field="message"),
            ("protocol.wire.inference:decode_request", *_WIRE, "protocol.wire.inference:*"),
        ),
        Harness(
            "reply",
            reply,
            REMOTE,
            of("inference", "replies", field="message"),
            ("protocol.wire.inference:decode_reply", "protocol.wire.verifier:*", *_WIRE),
        ),
        Harness(
            "shape",
            shape,
            REMOTE,
            lambda: [bytes([number, 0, at, value]) for number in range(12) for at, value in ((20, 1), (60, 0), (90, 255))],
            ("protocol.wire.template:Reader.read", *_SHAPE),
        ),
    ),
    Harness(
        "pubsub",
        pubsub,
        REMOTE,
        of("pubsub", "rpcs", "invalid", field="rpc"),
        (
            "protocol.pubsub.messages:decode_rpc",
            "protocol.pubsub.messages:decode_pubsub_message",
            "protocol.pubsub.messages:*",
            "protocol.pubsub.messages:_Collector.take_ids",
            "protocol.pubsub.messages:_Collector.take_control",
        ),
    ),
    fuzz_door.HARNESS,
    Harness("gossip-pieces", gossip_pieces, (), of_gossip, ()),
    Harness(
        "pubsub-pieces",
        pubsub_pieces,
        (),
        of("pubsub", "rpcs", "invalid", field="rpc"),
        ("protocol.pubsub.messages:in_pieces",),
    ),
    Harness("trace", trace, (), of_traces, ()),
    Harness(
        "gateway-body", gateway_body, (ApiError,), of_bodies, ("mesh.gateway.sanitise:parse_call", "mesh.gateway.sanitise:*")
    ),
    fuzz_admission.HARNESS,
    fuzz_sealing.HARNESS,
    fuzz_fabric.HARNESS,
    *fuzz_live.HARNESSES,
)

HARNESSES: tuple[Harness, ...] = tuple(
    replace(harness, seeds=lambda harness=harness: harness.seeds() + DEAR.get(harness.name, [])) for harness in _HARNESSES
)
