"""Chapter 2: streams: credit, resets, stops, and how many.

Spec: docs/spec/02-transport.md, section "Streams".
"""

import trio

from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import NotApplicable, Unmet, case, expect
from mesh.conformance.wire import Stream
from protocol.encoding import encode_frame
from protocol.errors import ErrorCode
from protocol.libp2p.ping import PING_PROTOCOL

CHUNK_BYTES = 32 * 1024
"""How much a case sends at once, in bytes: a multiple of a ping."""

BURST = 1000
"""New streams of a peer at once (docs/spec/02-transport.md, section "Limits")."""

CREDIT_GIVEN_BYTES = 64 * 1024
"""What the case lets the node send back on a stream, in bytes."""

STALLED_S = 3.0
"""So long a peer may take nothing of much that waits for it, in seconds (docs/spec/02-transport.md, section "Limits")."""

UNREAD_BYTES_MAX = (2176 + 1024 + 1088) * 1024 + CREDIT_GIVEN_BYTES + 192 * 1024
"""What a node may take of a stream that it cannot answer, in bytes: two windows unread, a send buffer of 1 MiB, and a window more
that is granted behind what was handed out; what went back over our credit; and 192 KiB for the chunk that a handler holds in its
hand (64 KiB) and a batch of datagrams that is taken from the socket before anything is looked at (64 of 1,350 bytes)."""

RATE_PER_S = 500.0
"""New streams of a peer in a second on top of that (the same section)."""

FLOOD_S_MAX = 10.0
"""How long a case opens streams, in seconds; whoever is too slow to go over the limit by then has not tried it."""

HEADER = encode_frame(b"/multistream/1.0.0\n")
"""The first message of a stream."""


@case("ISO-TRANSPORT-041", "ISO-TRANSPORT-046")
async def what_is_not_read_is_bounded(peer: ScriptedPeer) -> None:
    """A peer that sends pings and takes no echoes comes to an end: the credit, or the stream with FLOODING.

    Where all that takes seconds, the node may close the connection of a peer that takes nothing for so long (ISO-TRANSPORT-028).
    """
    began = trio.current_time()
    connection = await peer.dial(peer.manner(credit_bytes=CREDIT_GIVEN_BYTES, frozen=True))
    stream = await connection.speak(PING_PROTOCOL)
    n_taken = await _pour(stream)
    stopped = stream.stop_code is not None
    expect(n_taken <= UNREAD_BYTES_MAX, f"at most {UNREAD_BYTES_MAX} bytes taken", n_taken)
    if stopped:
        expect(stream.stop_code == ErrorCode.FLOODING, "STOP_SENDING with FLOODING", stream)
    end = connection.end
    if end is not None and trio.current_time() - began >= STALLED_S:
        expect(end.by_application and end.code == ErrorCode.FLOODING, "a connection that goes on, or a close with FLOODING", end)
        return
    expect(end is None, "a connection that goes on", end)
    identify = connection.open()
    identify.send(HEADER + encode_frame(b"/ipfs/id/1.0.0\n"))
    await identify.until(lambda: identify.ended, "another stream of the connection is served meanwhile")


async def _pour(stream: Stream) -> int:
    """Send on a stream until the node takes no more; return how much it took."""
    quic = stream.connection.quic
    while stream.stop_code is None and stream.connection.end is None:
        before = quic.sent_bytes(stream.id)
        if before > UNREAD_BYTES_MAX:
            break
        stream.send(bytes(CHUNK_BYTES))

        def goes_on(before: int = before) -> bool:
            return quic.sent_bytes(stream.id) > before or stream.stop_code is not None

        with trio.move_on_after(0.5):
            await stream.connection.until(goes_on, "", 60.0)
        if not goes_on():
            break
    return quic.sent_bytes(stream.id)


@case("ISO-TRANSPORT-042")
async def stop_sending_is_answered_by_a_reset_with_its_code(peer: ScriptedPeer) -> None:
    """The code that the peer gave comes back."""
    connection = await peer.dial()
    stream = await connection.speak(PING_PROTOCOL)
    stream.send(bytes(32))
    await stream.receive(32, "the echo of a ping")
    stream.stop(0x100)
    await connection.until(lambda: stream.reset_code is not None, "RESET_STREAM after STOP_SENDING", seen=lambda: stream)
    expect(stream.reset_code == 0x100, "the code 0x100", stream)
    await peer.nothing_happens(connection)


@case("ISO-TRANSPORT-042")
async def a_reset_ends_its_stream_alone(peer: ScriptedPeer) -> None:
    """RESET_STREAM in the middle of a frame leaves the connection as it was."""
    connection = await peer.dial()
    stream = await connection.speak(PING_PROTOCOL)
    stream.send(bytes(20))
    stream.reset(0x100)
    await peer.nothing_happens(connection)


@case("ISO-TRANSPORT-043", alone=True)
async def opening_streams_without_end_is_flooding(peer: ScriptedPeer) -> None:
    """Opening and resetting streams as fast as they are allowed ends the connection with FLOODING."""
    connection = await peer.dial()
    n_opened = 0
    with trio.move_on_after(FLOOD_S_MAX):
        while connection.end is None and n_opened < 8 * BURST:
            if connection.quic.n_streams_opened >= connection.quic.streams_allowed:
                await connection.until(
                    lambda: connection.end or connection.quic.n_streams_opened < connection.quic.streams_allowed,
                    "room for more streams, or the end",
                )
                continue
            stream = connection.open()
            stream.send(b"\x13")
            stream.reset(0x100)
            stream.stop(0x100)
            n_opened += 1
            if n_opened % 16 == 0:
                await trio.lowlevel.checkpoint()
    try:
        end = await connection.ended(f"the end of a connection with {n_opened} streams at once")
    except Unmet as unmet:
        if n_opened < BURST + FLOOD_S_MAX * RATE_PER_S:
            raise NotApplicable(f"no flood: {n_opened} streams in {FLOOD_S_MAX:g} s are within the limit") from unmet
        raise
    expect(end.by_node and end.code == ErrorCode.FLOODING, "FLOODING", end)
    await peer.others_are_served()


@case("ISO-TRANSPORT-045")
async def as_many_streams_as_allowed_are_served(peer: ScriptedPeer) -> None:
    """A peer may hold a hundred streams open; what the node does not serve it resets with OVERLOADED, and nothing else breaks."""
    connection = await peer.dial()
    streams = [connection.open() for _ in range(100)]
    for stream in streams:
        stream.send(HEADER)
    await connection.until(lambda: all(stream.data or stream.is_over for stream in streams), "an answer on every stream")
    refused = [stream for stream in streams if stream.reset_code is not None]
    expect(all(stream.reset_code == ErrorCode.OVERLOADED for stream in refused), "OVERLOADED", [str(s) for s in refused[:3]])
    await peer.nothing_happens(connection)
