"""Chapter 2: multistream-select, and libp2p's ping.

Spec: docs/spec/02-transport.md, sections "Protocol negotiation" and "Ping".
"""

import os

import trio

from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import case, expect
from protocol.encoding import encode_frame, encode_uvarint
from protocol.errors import ErrorCode
from protocol.libp2p.ping import PING_BYTES, PING_PROTOCOL

HEADER = encode_frame(b"/multistream/1.0.0\n")
"""The first message of either side."""

NOT_AVAILABLE = encode_frame(b"na\n")
"""The answer to a protocol that is not spoken."""

PING_LINE = encode_frame(PING_PROTOCOL.encode() + b"\n")
"""The proposal of ping."""

REFUSED_MAX = 16
"""Refused proposals of a negotiation (docs/spec/02-transport.md, section "Limits")."""

MESSAGE_BYTES_MAX = 1024
"""Longest negotiation message in bytes, as above."""


@case("ISO-TRANSPORT-050")
async def negotiation_echoes_or_refuses(peer: ScriptedPeer) -> None:
    """The header comes back first, an unknown protocol is `na`, a known one is echoed."""
    connection = await peer.dial()
    stream = connection.open()
    stream.send(HEADER + encode_frame(b"/nobody/1.0.0\n"))
    expected = HEADER + NOT_AVAILABLE
    seen = await stream.receive(len(expected), "the header and `na`")
    expect(seen == expected, "the header, then `na`", seen)
    stream.send(PING_LINE)
    seen = await stream.receive(len(PING_LINE), "the proposal echoed")
    expect(seen == PING_LINE, "the proposal echoed", seen)


@case("ISO-TRANSPORT-050")
async def streams_of_the_node_begin_with_the_header(peer: ScriptedPeer) -> None:
    """The first bytes of a stream that the node opens are the header; it goes no further before something is agreed."""
    peer.needs_gossip()
    connection = await peer.dial(served=())
    await connection.until(lambda: connection.opened, "a stream opened by the node")
    stream = connection.opened[0]
    await connection.until(lambda: len(stream.opening) >= len(HEADER), "the header on a stream of the node")
    expect(stream.opening.startswith(HEADER), "the header first", stream.opening)
    rest = stream.opening[len(HEADER) :]
    expect(not rest or rest[1:2] == b"/", "a proposal behind the header", rest)


@case("ISO-TRANSPORT-051")
async def what_comes_behind_the_proposal_is_kept(peer: ScriptedPeer) -> None:
    """Header, proposal and a ping in one packet are answered by all three; byte by byte as well."""
    connection = await peer.dial()
    sent = os.urandom(PING_BYTES)
    lazy = connection.open()
    lazy.send(HEADER + PING_LINE + sent)
    expected = HEADER + PING_LINE + sent
    seen = await lazy.receive(len(expected), "header, proposal and echo")
    expect(seen == expected, "header, proposal and echo", seen.hex())
    lazy.send(b"", end=True)
    slow = connection.open()
    for byte in HEADER + PING_LINE:
        slow.send(bytes([byte]))
        await trio.lowlevel.checkpoint()
    slow.send(sent)
    seen = await slow.receive(len(expected), "the same, sent byte by byte")
    expect(seen == expected, "the same, sent byte by byte", seen.hex())


@case("ISO-TRANSPORT-052")
async def wrong_negotiations_end_their_stream(peer: ScriptedPeer) -> None:
    """Another first message, one that is too long, too many refused proposals, and an early end."""
    connection = await peer.dial()
    wrong = {
        "another first message": (PING_LINE, False),
        "a message over its limit": (HEADER + encode_uvarint(MESSAGE_BYTES_MAX + 1) + bytes(MESSAGE_BYTES_MAX + 1), False),
        "too many refused proposals": (HEADER + encode_frame(b"/nobody/1.0.0\n") * (REFUSED_MAX + 1), False),
        "an end before agreement": (HEADER, True),
    }
    for what, (data, end) in wrong.items():
        stream = connection.open()
        stream.send(data, end=end)
        await stream.over(f"the end of a stream with {what}")
    await peer.nothing_happens(connection)


@case("ISO-TRANSPORT-052")
async def sixteen_refused_proposals_are_allowed(peer: ScriptedPeer) -> None:
    """What is at the limit is accepted: after sixteen refusals a known protocol is agreed."""
    connection = await peer.dial()
    stream = connection.open()
    stream.send(HEADER + encode_frame(b"/nobody/1.0.0\n") * REFUSED_MAX + PING_LINE)
    expected = HEADER + NOT_AVAILABLE * REFUSED_MAX + PING_LINE
    seen = await stream.receive(len(expected), "sixteen refusals and an agreement")
    expect(seen == expected, "sixteen refusals and an agreement", seen[-40:])


@case("ISO-TRANSPORT-080")
async def ping_is_echoed_until_the_end(peer: ScriptedPeer) -> None:
    """Whole frames of 32 bytes come back as they are, and the stream ends when the peer ends it."""
    connection = await peer.dial()
    stream = await connection.speak(PING_PROTOCOL)
    for _ in range(3):
        sent = os.urandom(PING_BYTES)
        stream.send(sent)
        seen = await stream.receive(PING_BYTES, "the echo of a ping")
        expect(seen == sent, f"the bytes {sent.hex()}", seen.hex())
    sent = os.urandom(4 * PING_BYTES)
    stream.send(sent)
    seen = await stream.receive(len(sent), "the echoes of four pings at once")
    expect(seen == sent, "the bytes in their order", seen.hex())
    stream.send(b"", end=True)
    await stream.until(lambda: stream.ended, "the end of the ping stream")


@case("ISO-TRANSPORT-080")
async def half_a_ping_waits_for_its_rest(peer: ScriptedPeer) -> None:
    """Nothing comes back before 32 bytes are there."""
    connection = await peer.dial()
    stream = await connection.speak(PING_PROTOCOL)
    sent = os.urandom(PING_BYTES)
    stream.send(sent[:20])
    await peer.never(connection, lambda: stream.data, "nothing before 32 bytes are there")
    stream.send(sent[20:])
    seen = await stream.receive(PING_BYTES, "the echo")
    expect(seen == sent, "the echo", seen.hex())


@case("ISO-TRANSPORT-080", slow=True)
async def a_silent_ping_stream_is_ended(peer: ScriptedPeer) -> None:
    """After 60 s without a ping the stream is over; the connection goes on."""
    connection = await peer.dial()
    stream = await connection.speak(PING_PROTOCOL)
    stream.send(bytes(PING_BYTES))
    await stream.over("the end of a silent ping stream", 70.0)
    await peer.ping(connection)


@case("ISO-TRANSPORT-081")
async def two_ping_streams_are_served_and_a_third_is_not(peer: ScriptedPeer) -> None:
    """The third is reset with FLOODING, the two go on."""
    connection = await peer.dial()
    streams = [await connection.speak(PING_PROTOCOL) for _ in range(2)]
    third = connection.open()
    third.send(HEADER + PING_LINE + bytes(PING_BYTES))
    await third.over("the end of the third ping stream")
    expect(third.reset_code == ErrorCode.FLOODING, "a reset with FLOODING", third)
    for stream in streams:
        stream.send(bytes(PING_BYTES))
        await stream.receive(PING_BYTES, "the echo on the first two")
    pings = connection.of(PING_PROTOCOL)
    expect(len(pings) <= 1, "at most one ping stream of the node", len(pings))
