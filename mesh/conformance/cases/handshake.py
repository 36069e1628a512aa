"""Chapter 2: the handshake, as a listener does it.

Spec: docs/spec/02-transport.md, section "Handshake".
"""

import trio

from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import Unmet, case, expect

NO_COMMON_PROTOCOL = (0x178, 0x128)
"""TLS alerts no_application_protocol and handshake_failure as QUIC tells them (RFC 9001 section 4.8)."""

QUIC_VERSION_2 = 0x6B3343CF
"""Version 2 of QUIC (RFC 9369)."""

HANDSHAKE_S = 5.0
"""A handshake that is not over after so many seconds is given up (ISO-TRANSPORT-008)."""


@case("ISO-TRANSPORT-001")
async def version_1_alone_is_spoken(peer: ScriptedPeer) -> None:
    """A first packet of version 2 makes no connection; if it is answered at all, then by naming version 1 alone."""
    link = peer.link()
    manner = peer.manner(versions=(QUIC_VERSION_2,))
    connection = peer.begin(manner, link=link)
    connection.deaf = True
    await trio.sleep(peer.subject.quiet_s)
    expect(connection.n_datagrams_in == 0 or _names_version_1(connection.n_bytes_in), "no answer", connection.n_bytes_in)
    await peer.others_are_served()


def _names_version_1(n_bytes: int) -> bool:
    """Whether an answer may be a Version Negotiation packet with one version: 7 bytes, two connection ids, 4 bytes."""
    return n_bytes <= 7 + 2 * 20 + 4


@case("ISO-TRANSPORT-002")
async def alpn_is_libp2p(peer: ScriptedPeer) -> None:
    """`libp2p` is agreed where it is offered among others; without it there is no handshake."""
    connection = await peer.dial(peer.manner(alpn=("something", "libp2p")))
    expect(connection.quic.alpn == "libp2p", "the ALPN protocol libp2p", connection.quic.alpn)
    wrong = peer.begin(peer.manner(alpn=("something",)))
    end = await wrong.ended("the end of a handshake without libp2p")
    expect(end.by_node and end.code in NO_COMMON_PROTOCOL, "the alert no_application_protocol or handshake_failure", end)


@case("ISO-TRANSPORT-003", "ISO-ID-020")
async def a_server_name_is_ignored(peer: ScriptedPeer) -> None:
    """A client that sends one is served like any other."""
    connection = await peer.dial(peer.manner(server_name="somebody.example"))
    await peer.ping(connection)


@case("ISO-TRANSPORT-007")
async def no_session_tickets_are_offered(peer: ScriptedPeer) -> None:
    """No NewSessionTicket comes in the first moments of a connection."""
    connection = await peer.dial(peer.manner(tickets=True))
    await peer.nothing_happens(connection)
    expect(connection.quic.shown.tickets == 0, "no session ticket", connection.quic.shown.tickets)


@case("ISO-TRANSPORT-008")
async def a_late_handshake_is_given_up(peer: ScriptedPeer) -> None:
    """Who finishes the handshake six seconds after it began finds nobody."""
    connection = peer.begin()
    connection.mute = True
    await connection.until(lambda: connection.quic.shown.certificates or connection.quic.was_retried, "the node's answer")
    if connection.quic.was_retried:
        connection.release()
        connection.mute = True
    await connection.until(lambda: connection.quic.shown.certificates, "the node's certificate")
    await trio.sleep(HANDSHAKE_S + 1.0 + peer.subject.rtt_s)
    connection.release()
    with trio.move_on_after(peer.subject.quiet_s + 0.5):
        await connection.until(lambda: connection.quic.confirmed, "", 60.0)
        raise Unmet(f"a handshake that is given up after {HANDSHAKE_S:g} s", "it was finished late")


@case("ISO-TRANSPORT-009")
async def datagram_frames_are_offered(peer: ScriptedPeer) -> None:
    """The node's transport parameters allow DATAGRAM frames of 65,535 bytes."""
    connection = await peer.dial()
    expect(connection.quic.frame_bytes_allowed >= 1310, "DATAGRAM frames allowed", connection.quic.frame_bytes_allowed)


@case("ISO-TRANSPORT-040")
async def unidirectional_streams_are_not_used(peer: ScriptedPeer) -> None:
    """None is allowed, and opening one ends the connection."""
    connection = await peer.dial()
    expect(connection.quic.uni_streams_allowed == 0, "no unidirectional streams allowed", connection.quic.uni_streams_allowed)
    stream_id = connection.quic.open_uni_stream()
    connection.quic.send_stream_data(stream_id, b"hello")
    connection.flush()
    end = await connection.ended("the end of a connection with a unidirectional stream")
    expect(end.by_node, "a close by the node", end)
    await peer.others_are_served()
