"""Chapter 0: what every protocol keeps to, tried where it shows: frames, varints, codes.

Spec: docs/spec/00-conventions.md.
"""

from mesh.conformance.gossip import talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import Unmet, case, expect
from protocol.encoding import decode_uvarint, encode_frame, encode_uvarint
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.inference import Failed
from protocol.libp2p.multistream import MULTISTREAM_PROTOCOL
from protocol.libp2p.ping import PING_PROTOCOL
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import REPLY_BYTES_MAX, decode_reply

_CODES = {int(code) for code in ErrorCode}
"""The codes of the table."""

_HEADER = encode_frame(MULTISTREAM_PROTOCOL.encode() + b"\n")
"""The first message of a stream."""


@case("ISO-CONV-001")
async def unknown_protocols_and_messages_are_no_fault(peer: ScriptedPeer) -> None:
    """A stream of a later protocol is refused politely, a gossip message of a later type is ignored."""
    connection = await peer.dial()
    stream = connection.open()
    stream.send(_HEADER + encode_frame(b"/isochrone/tomorrow/9.0.0\n"))
    await stream.until(lambda: b"na\n" in stream.data, "`na` for a protocol that the node does not know")
    await peer.nothing_happens(connection)
    if connection.of(GOSSIP_PROTOCOL):
        gossip = await talk(peer, connection=connection)
        gossip.send_plain([200, "tomorrow"])
        await gossip.settled()


@case("ISO-CONV-002", "ISO-CONV-005")
async def a_length_over_the_limit_is_refused_before_the_bytes_come(peer: ScriptedPeer) -> None:
    """The length alone ends the stream or the connection, with TOO_LARGE."""
    peer.needs_gossip()
    gossip = await talk(peer)
    gossip.out.send(encode_uvarint(65_537))
    await gossip.blamed(ErrorCode.TOO_LARGE, "a frame of 65,537 bytes of which only the length came")
    other = await talk(peer, peer.stranger())
    other.out.send(encode_uvarint(1 << 62))
    await other.blamed(ErrorCode.TOO_LARGE, "a frame of 2^62 bytes of which only the length came")


@case("ISO-CONV-002", "ISO-CONV-005")
async def a_request_over_the_limit_is_refused_before_the_bytes_come(peer: ScriptedPeer) -> None:
    """A length of more than 8 MiB is answered with TOO_LARGE at once."""
    await _refused(peer, encode_uvarint(8 * 1024 * 1024 + 1), ErrorCode.TOO_LARGE, "a length of 8 MiB and one byte")


@case("ISO-CONV-003")
async def varints_of_the_node_are_in_their_shortest_form(peer: ScriptedPeer) -> None:
    """The lengths before the node's messages are as short as can be."""
    connection = await peer.dial()
    stream = connection.open()
    stream.send(_HEADER + encode_frame(PING_PROTOCOL.encode() + b"\n"))
    await stream.until(lambda: len(stream.data) >= len(_HEADER), "the header")
    data = bytes(stream.data)
    length, offset = decode_uvarint(data)
    expect(data[:offset] == encode_uvarint(length), "the shortest form of a length", data[:9].hex())
    said, identify = await peer.identify(connection)
    expect(said.public_key, "an identify message", said)
    opening = identify.opening
    n_header = len(encode_frame(MULTISTREAM_PROTOCOL.encode() + b"\n")) + len(encode_frame(b"/ipfs/id/1.0.0\n"))
    length, offset = decode_uvarint(opening, n_header)
    expect(opening[n_header:offset] == encode_uvarint(length), "the shortest form of a length", opening[n_header:offset].hex())


@case("ISO-CONV-004")
async def varints_that_are_too_long_or_padded_are_malformed(peer: ScriptedPeer) -> None:
    """Ten bytes, and a form that is not the shortest, end the connection of a gossiping peer with MALFORMED."""
    peer.needs_gossip()
    for what, junk in {"a varint of ten bytes": b"\xff" * 9 + b"\x01", "a padded varint": b"\x81\x80\x00"}.items():
        gossip = await talk(peer, peer.stranger())
        gossip.out.send(junk)
        await gossip.blamed(ErrorCode.MALFORMED, what)


@case("ISO-CONV-004")
async def a_negotiation_with_a_padded_varint_is_refused(peer: ScriptedPeer) -> None:
    """The stream ends, the connection goes on."""
    connection = await peer.dial()
    stream = connection.open()
    stream.send(b"\x93\x80\x00" + _HEADER[1:])
    await stream.over("the end of a stream that begins with a padded varint")
    await peer.nothing_happens(connection)


@case("ISO-CONV-006")
async def a_request_that_ends_inside_its_frame_is_malformed(peer: ScriptedPeer) -> None:
    """The stream's end in the middle of a frame is answered with MALFORMED."""
    await _refused(peer, encode_uvarint(100) + bytes(50), ErrorCode.MALFORMED, "a stream that ends inside its frame", end=True)


@case("ISO-CONV-006")
async def gossip_that_ends_inside_a_frame_is_malformed(peer: ScriptedPeer) -> None:
    """A gossip stream that ends in the middle of a frame costs the connection."""
    peer.needs_gossip()
    gossip = await talk(peer)
    gossip.out.send(encode_uvarint(100) + bytes(50), end=True)
    await gossip.blamed(ErrorCode.MALFORMED, "a gossip stream that ends inside a frame")


@case("ISO-CONV-011")
async def one_fault_costs_one_stream(peer: ScriptedPeer) -> None:
    """A wrong first message resets its stream; a ping that runs beside it goes on."""
    connection = await peer.dial()
    ping = await connection.speak(PING_PROTOCOL)
    wrong = connection.open()
    wrong.send(b"\x05junk\n")
    await wrong.over("the end of a stream with a wrong first message")
    ping.send(bytes(32))
    await ping.receive(32, "the echo of a ping beside the stream that failed")
    await peer.nothing_happens(connection)


@case("ISO-CONV-012")
async def no_reserved_code_is_sent(peer: ScriptedPeer) -> None:
    """The codes with which streams and connections end after faults of all kinds stand in the table."""
    seen: dict[str, int] = {}
    connection = await peer.dial()
    ping_line = encode_frame(PING_PROTOCOL.encode() + b"\n")
    for what, junk in {
        "a wrong first message": b"\x05junk\n",
        "a message over its limit": encode_uvarint(1 << 20),
        "a padded varint": _HEADER + b"\xff" * 10,
    }.items():
        stream = connection.open()
        stream.send(junk)
        await stream.over(f"the end of a stream with {what}")
        seen[what] = stream.reset_code or 0
    pings = [connection.open() for _ in range(3)]
    for stream in pings:
        stream.send(_HEADER + ping_line)
    await connection.until(lambda: any(stream.is_over for stream in pings), "the end of a third ping stream")
    seen["a third ping stream"] = max(stream.reset_code or 0 for stream in pings)
    for what, junk in {"a padded length": b"\x81\x80\x00", "a long length": encode_uvarint(1 << 40)}.items():
        if GOSSIP_PROTOCOL in peer.subject.said.protocols:
            gossip = await talk(peer, peer.stranger())
            gossip.out.send(junk)
            end = await gossip.connection.ended(f"the end of a connection with {what}")
            seen[what] = end.code if end.by_application else 0
    expect(all(code in _CODES for code in seen.values()), "codes of the table of chapter 0", seen)


async def _refused(peer: ScriptedPeer, junk: bytes, code: ErrorCode, what: str, *, end: bool = False) -> None:
    """Send bytes where a request is expected and wait for one `Failed`."""
    peer.needs_inference()
    connection = await peer.dial()
    stream = await connection.speak(INFER_PROTOCOL)
    stream.send(junk, end=end)
    reply = decode_reply(await stream.frame(REPLY_BYTES_MAX, f"an answer to {what}"))
    if not isinstance(reply, Failed) or reply.code is not code:
        raise Unmet(f"Failed with {code.name} for {what}", reply)
    await stream.until(lambda: stream.ended, "the end of the answer")
    await peer.nothing_happens(connection)
