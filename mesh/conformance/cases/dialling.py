"""Chapters 1 and 2: what the node does as a dialer. It is told a card with an address of the scripted peer, and dials.

Spec: docs/spec/01-identity.md; docs/spec/02-transport.md.
"""

import time

import trio

from mesh.conformance.certificates import REFUSED, Chain, two_certificates
from mesh.conformance.gossip import lure
from mesh.conformance.peer import ScriptedPeer, proven
from mesh.conformance.quic import Manner
from mesh.conformance.registry import Unmet, case, expect
from protocol.gossip import GOSSIP_PROTOCOL

BAD_CERTIFICATE = 0x12A
"""TLS alert bad_certificate as QUIC tells it."""


async def _refuses(peer: ScriptedPeer, chain: Chain, what: str) -> None:
    _, _, connection = await lure(peer, manner=Manner(chain))
    end = await connection.ended(f"the end of a handshake with {what}")
    if not end.by_node or end.by_application or end.code != BAD_CERTIFICATE:
        raise Unmet(f"the alert bad_certificate for {what}", end)


@case("ISO-ID-013", "ISO-TRANSPORT-005", "ISO-TRANSPORT-030", "ISO-MEMBER-002", "ISO-REC-015")
async def another_peer_at_the_address_is_refused(peer: ScriptedPeer) -> None:
    """Who answers at the address of a card and is not its signer is refused inside the handshake, with bad_certificate."""
    await _refuses(peer, peer.chain(peer.stranger()), "another peer than the one that was dialled")


@case("ISO-ID-016", "ISO-ID-017", "ISO-TRANSPORT-004")
async def a_listener_must_show_one_good_certificate(peer: ScriptedPeer) -> None:
    """The rules for certificates hold for who is dialled, too."""
    identity = peer.stranger()
    what = "a host signature that does not match"
    for name, chain in (
        ("two certificates", two_certificates(peer.chain(identity), peer.chain(identity))),
        (what, peer.chain(identity, REFUSED[what])),
    ):
        _, _, connection = await lure(peer, identity, Manner(chain))
        end = await connection.ended(f"the end of a handshake with {name}")
        expect(end.by_node and end.code == BAD_CERTIFICATE, f"bad_certificate for {name}", end)
        identity = peer.stranger()


@case("ISO-TRANSPORT-001", "ISO-TRANSPORT-002", "ISO-TRANSPORT-003", "ISO-TRANSPORT-004", "ISO-TRANSPORT-007", "ISO-ID-020")
async def the_dialers_first_words_are_right(peer: ScriptedPeer) -> None:
    """QUIC version 1, the ALPN protocol libp2p alone, no server name, no resumption, one certificate."""
    _, _, connection = await lure(peer)
    await connection.established()
    hello = connection.quic.shown.hello
    expect(hello is not None, "a ClientHello", "none")
    expect(hello.alpn_protocols == ["libp2p"], "ALPN libp2p", hello.alpn_protocols)
    expect(hello.server_name is None, "no server name", hello.server_name)
    expect(hello.pre_shared_key is None and not hello.early_data, "no resumption", "a pre-shared key or early data")
    expect(proven(connection, time.time()) == peer.subject.peer_id, "the node's own certificate", "another")


@case("ISO-TRANSPORT-006")
async def nothing_is_opened_before_the_handshake_is_confirmed(peer: ScriptedPeer) -> None:
    """A listener that does not say HANDSHAKE_DONE gets no stream."""
    identity = peer.stranger()
    _, _, connection = await lure(peer, identity, Manner(peer.chain(identity), confirms=False))
    await connection.until(lambda: connection.quic.shown.certificates, "the node's certificate")
    await trio.sleep(2 * peer.subject.quiet_s)
    expect(not connection.opened, "no stream before HANDSHAKE_DONE", f"{len(connection.opened)} streams")


@case("ISO-TRANSPORT-006", "ISO-MEMBER-005")
async def the_dialer_opens_its_gossip_stream(peer: ScriptedPeer) -> None:
    """Once the handshake is confirmed a member that dials opens its stream of gossip."""
    _, _, connection = await lure(peer)
    await connection.established()
    await connection.until(lambda: connection.of(GOSSIP_PROTOCOL), "a gossip stream of the node")
