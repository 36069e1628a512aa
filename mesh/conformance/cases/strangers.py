"""Chapter 2: what may come from anybody, before and after the handshake.

Spec: docs/spec/02-transport.md, section "Strangers".
"""

import os

import trio

from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.quic import OpenConnection, varint
from mesh.conformance.registry import case, expect
from mesh.conformance.wire import Connection
from protocol.errors import ErrorCode

HANDSHAKES_MAX = 64
"""Unfinished handshakes of addresses that are not proven (docs/spec/02-transport.md, section "Limits")."""

LATE = 16
"""How many come behind a crowd: a few of them may find that the allowance for unproven addresses has grown by one again."""

RETRY_BYTES_MAX = 256
"""Larger than any Retry of a node, in bytes; the first flight of a handshake takes 1200 at least."""

FAULTS_MAX = 8
"""Faults after which a peer is banned for certain: the specification forgives three (section "Limits")."""

AMPLIFICATION_MAX = 3
"""Bytes sent for each byte received before an address is validated, unitless (RFC 9000 section 8.1)."""


@case("ISO-TRANSPORT-010")
async def junk_is_not_answered(peer: ScriptedPeer) -> None:
    """Datagrams that belong to no connection bring no answer, whatever they look like."""
    link = peer.link()
    initial = b"\xc0" + (1).to_bytes(4, "big") + b"\x08" + os.urandom(8) + b"\x00"
    for size in (0, 1, 20, 60, 600, 1199):
        link.send(os.urandom(size), peer.subject.sockaddr)
        link.send((initial + os.urandom(1200))[:size], peer.subject.sockaddr)
    link.send(b"\x40" + os.urandom(60), peer.subject.sockaddr)  # a packet of a connection that does not exist
    await trio.sleep(peer.subject.quiet_s)
    expect(not link.strays, "no answer to junk", f"{len(link.strays)} datagrams")
    await peer.others_are_served()


@case("ISO-TRANSPORT-010")
async def a_small_first_packet_is_not_answered(peer: ScriptedPeer) -> None:
    """A true first Initial packet in a datagram of less than 1200 bytes brings no answer."""
    quic = OpenConnection(peer.manner(), None)
    quic.connect(peer.subject.sockaddr, trio.current_time())
    link = peer.link()
    for data, address in quic.datagrams_to_send(trio.current_time()):
        link.send(data[:1199], address)
    await trio.sleep(peer.subject.quiet_s)
    expect(not link.strays, "no answer to a small first packet", f"{len(link.strays)} datagrams")


@case("ISO-TRANSPORT-011")
async def a_first_packet_that_does_not_decrypt_leaves_no_state(peer: ScriptedPeer) -> None:
    """After a spoilt copy of a first packet the true one makes a connection all the same."""
    quic = OpenConnection(peer.manner(), None)
    quic.connect(peer.subject.sockaddr, trio.current_time())
    link = peer.link()
    connection = Connection(quic, link, (), peer.subject.patience_s)
    link.routes[quic.host_cid] = connection
    sent = quic.datagrams_to_send(trio.current_time())
    for data, address in sent:
        link.send(data[:600] + bytes([data[600] ^ 1]) + data[601:], address)
    await trio.sleep(min(0.1, peer.subject.quiet_s))
    for data, address in sent:
        link.send(data, address)
    await connection.until(lambda: connection.n_datagrams_in, "an answer to the true packet")
    await connection.until(lambda: quic.confirmed, "a finished handshake")
    connection.close()


@case("ISO-TRANSPORT-012", alone=True)
async def unfinished_handshakes_are_bounded(peer: ScriptedPeer) -> None:
    """Of many first packets no more begin a handshake than the limit says; the rest get a Retry at most."""
    begun = [peer.begin() for _ in range(HANDSHAKES_MAX + 30)]
    for connection in begun:
        connection.deaf = connection.mute = True  # nobody goes on
    await trio.sleep(2 * peer.subject.quiet_s)
    answered = [connection for connection in begun if connection.n_bytes_in > RETRY_BYTES_MAX]
    expect(answered, "an answer to the first of them", "none")
    expect(len(answered) <= HANDSHAKES_MAX, f"at most {HANDSHAKES_MAX} answered", len(answered))
    for connection in begun:
        connection.deaf = connection.mute = False
        connection.close()
    await trio.sleep(peer.subject.quiet_s)
    await peer.others_are_served()


@case("ISO-TRANSPORT-017", alone=True)
async def who_comes_behind_a_crowd_gets_in_by_a_retry(peer: ScriptedPeer) -> None:
    """While many do not go on with their handshakes others are answered by a Retry, and get in with its token."""
    begun = [peer.begin() for _ in range(HANDSHAKES_MAX + 30)]
    for connection in begun:
        connection.deaf = connection.mute = True
    late = [peer.begin(identity=peer.stranger()) for _ in range(LATE)]
    for connection in late:
        await connection.established()
        await peer.ping(connection)
    expect(any(connection.quic.was_retried for connection in late), "a Retry for who comes behind a crowd", "none")
    for connection in begun:
        connection.deaf = connection.mute = False
        connection.close()
    await trio.sleep(peer.subject.quiet_s)


@case("ISO-TRANSPORT-026", "ISO-TRANSPORT-027", alone=True)
async def who_breaks_the_rules_too_often_is_banned(peer: ScriptedPeer) -> None:
    """After so many faults a peer is told BANNED before it counts as connected; others are served meanwhile."""
    identity = peer.stranger()
    for _ in range(FAULTS_MAX):
        connection = peer.begin(identity=identity)
        await connection.until(lambda c=connection: c.end or c.quic.confirmed, "a finished handshake, or its end")  # type: ignore[misc]
        if connection.end is not None:
            break
        connection.send_packet(b"\x02" + varint(1 << 20) + varint(0) + varint(0) + varint(0))  # acknowledges what was never sent
        await connection.ended("the end of a connection that acknowledges packets never sent")
    last = peer.begin(identity=identity)
    end = await last.ended("the end of a handshake of a banned peer")
    expect(end.by_application and end.code == ErrorCode.BANNED, "a close with BANNED", end)
    expect(not last.quic.confirmed, "no confirmed handshake", "one")
    await peer.others_are_served()


@case("ISO-TRANSPORT-013")
async def an_address_that_is_not_validated_gets_three_times_its_bytes(peer: ScriptedPeer) -> None:
    """A client that goes silent after its first datagram is sent at most three times as much."""
    connection = peer.begin()
    connection.deaf = connection.mute = True
    await trio.sleep(1.5)
    allowed = AMPLIFICATION_MAX * connection.n_bytes_out
    expect(0 < connection.n_bytes_in <= allowed, f"at most {allowed} bytes", connection.n_bytes_in)


@case("ISO-TRANSPORT-014")
async def handshake_bytes_far_ahead_are_not_kept(peer: ScriptedPeer) -> None:
    """A CRYPTO frame far beyond a gap makes no connection."""
    connection = peer.begin()
    connection.deaf = True
    for _ in range(2):
        frame = b"\x06" + varint(524_280) + varint(1) + b"x"
        address = peer.subject.sockaddr
        connection._link.send(connection.quic.packet(frame, initial=True), address)  # noqa: SLF001  (a part of the same peer)
    await trio.sleep(peer.subject.quiet_s)
    await peer.others_are_served()


@case("ISO-TRANSPORT-014", "ISO-TRANSPORT-016")
async def gaps_in_a_stream_cost_their_sender_alone(peer: ScriptedPeer) -> None:
    """A stream of thousands of gaps ends the connection or is not read, and others are served meanwhile."""
    connection = await peer.dial()
    for start in range(20):
        frames = [
            b"\x0e" + varint(0) + varint(2 * (start * 100 + index) + 1) + varint(1) + b"x"
            for index in range(100)
        ]  # fmt: skip
        if connection.end is None:
            connection.send_packet(b"".join(frames))
        await trio.lowlevel.checkpoint()
    await peer.others_are_served()


@case("ISO-TRANSPORT-015")
async def acknowledging_what_was_never_sent_ends_the_connection(peer: ScriptedPeer) -> None:
    """An ACK of packet number two million is a lie."""
    connection = await peer.dial()
    connection.send_packet(b"\x02" + varint(2_000_000) + varint(0) + varint(0) + varint(0))
    end = await connection.ended("the end of a connection whose peer acknowledges what was never sent")
    expect(end.by_node, "a close by the node", end)


@case("ISO-TRANSPORT-016")
async def whatever_is_sent_costs_its_own_connection(peer: ScriptedPeer) -> None:
    """Frames of all types with random contents, in packets that decrypt, end at most their own connection."""
    for _ in range(6):
        connection = await peer.dial(identity=peer.stranger())
        for kind in os.urandom(6):
            if connection.end is None:
                connection.send_packet((bytes([kind & 0x3F]) + os.urandom(60)).ljust(24, b"\x00"))
            await trio.lowlevel.checkpoint()
    await peer.others_are_served()
