"""Chapter 2: connections between the same two peers, their addresses, their end.

Spec: docs/spec/02-transport.md, sections "Connections" and "Timers".
"""

import trio

from mesh.conformance.gossip import lure, talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.quic import End, Manner
from mesh.conformance.registry import Unmet, case, expect
from mesh.conformance.wire import Connection
from protocol.errors import ErrorCode
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.identity import Identity

RETIRED_S_MIN = 1.0
"""A duplicate connection is kept so long, in seconds, for streams that are on their way (ISO-TRANSPORT-021)."""

RETIRED_S_MAX = 30.0
"""And so long at the most."""

FORGETFUL_S = 1.5
"""The idle timeout that a case announces, in seconds."""


async def _closed_as_duplicate(connection: Connection, what: str, within_s: float) -> End:
    end = await connection.ended(f"the end of {what}", within_s)
    if not (end.by_node and end.by_application and end.code == ErrorCode.DUPLICATE):
        raise Unmet(f"DUPLICATE for {what}", end)
    return end


@case("ISO-TRANSPORT-020", "ISO-TRANSPORT-021")
async def of_two_dials_of_one_peer_the_later_stays(peer: ScriptedPeer) -> None:
    """The earlier is closed as a duplicate, not before a second has passed; the later goes on."""
    manner = peer.manner()
    first = await peer.dial(manner)
    await peer.ping(first)
    second = await peer.dial(manner)
    began = trio.current_time()
    await _closed_as_duplicate(first, "the earlier of two connections", RETIRED_S_MAX + 2.0)
    kept_s = trio.current_time() - began
    expect(kept_s >= RETIRED_S_MIN - 0.1, f"the earlier one is kept for {RETIRED_S_MIN:g} s", f"{kept_s:.2f} s")
    await peer.nothing_happens(second)


@case("ISO-TRANSPORT-025")
async def a_peer_that_was_started_again_takes_its_place_at_once(peer: ScriptedPeer) -> None:
    """A connection with another certificate of the same peer replaces the older one without delay."""
    first = await peer.dial(Manner(peer.chain(peer.identity)))
    await peer.ping(first)
    second = await peer.dial(Manner(peer.chain(peer.identity)))
    await _closed_as_duplicate(first, "the connection of a peer's life before", peer.subject.quiet_s + 0.5)
    await peer.nothing_happens(second)


@case("ISO-TRANSPORT-025", "ISO-TRANSPORT-020", "ISO-ID-004")
async def of_crossing_dials_the_one_of_the_smaller_id_stays(peer: ScriptedPeer) -> None:
    """Where each has dialled the other, the smaller peer id decides, compared as bytes."""
    for smaller in (True, False):
        identity = _beside(peer, smaller=smaller)
        manner = Manner(peer.chain(identity))
        _, _, theirs = await lure(peer, identity, manner)
        await theirs.established()
        ours = await peer.dial(manner, identity=identity)
        loser, winner = (theirs, ours) if smaller else (ours, theirs)
        what = f"the connection that {'the node' if smaller else 'the scripted peer'} dialled, whose id is greater"
        await _closed_as_duplicate(loser, what, RETIRED_S_MAX + 2.0)
        expect(winner.end is None, "the other connection goes on", winner.end)


def _beside(peer: ScriptedPeer, *, smaller: bool) -> Identity:
    """Make an identity whose peer id is smaller or greater than the node's."""
    while True:
        identity = peer.stranger()
        if (bytes(identity.peer_id) < bytes(peer.subject.peer_id)) == smaller:
            return identity


@case("ISO-TRANSPORT-024")
async def a_client_that_moves_is_followed(peer: ScriptedPeer) -> None:
    """After the client's address has changed answers come to the new one."""
    connection = await peer.dial()
    await peer.ping(connection)
    link = peer.link()
    connection.move(link)
    before = connection.n_datagrams_in
    await peer.ping(connection)
    expect(connection.n_datagrams_in > before, "answers at the new address", "none")


@case("ISO-TRANSPORT-065")
async def a_peer_that_announced_a_short_patience_is_given_up(peer: ScriptedPeer) -> None:
    """A connection silent for longer than the peer announced is over: a packet that comes later is not acknowledged."""
    connection = await peer.dial(peer.manner(idle_s=FORGETFUL_S, outlives=True))
    await peer.ping(connection)
    connection.deaf = connection.mute = True
    await trio.sleep(FORGETFUL_S + 1.5)
    connection.deaf = connection.mute = False
    stream = connection.open()
    stream.send(b"\x13/multistream/1.0.0\n")
    await peer.never(connection, lambda: stream.data, "no answer on a connection that was given up")


@case("ISO-TRANSPORT-065", slow=True)
async def a_silent_peer_is_given_up_after_sixty_seconds(peer: ScriptedPeer) -> None:
    """A connection from which nothing was heard for 60 s is over."""
    connection = await peer.dial(peer.manner(idle_s=600.0, outlives=True), served=())
    await peer.ping(connection)
    connection.deaf = connection.mute = True
    await trio.sleep(63.0)
    connection.deaf = connection.mute = False
    stream = connection.open()
    stream.send(b"\x13/multistream/1.0.0\n")
    await peer.never(connection, lambda: stream.data, "no answer on a connection that was given up")


@case("ISO-TRANSPORT-031", "ISO-CONV-010")
async def a_close_with_an_unknown_code_is_a_close(peer: ScriptedPeer) -> None:
    """The node takes it as the end of that connection, and serves the same peer again."""
    connection = await peer.dial()
    await peer.ping(connection)
    connection.close(0x7777, "a code of a later version")
    again = await peer.dial()
    await peer.nothing_happens(again)


@case("ISO-TRANSPORT-016", "ISO-CONV-011")
async def a_blamed_peer_is_alone_with_it(peer: ScriptedPeer) -> None:
    """A gossiping peer that is closed for a fault leaves the conversation of another one as it was."""
    peer.needs_gossip()
    honest = await talk(peer, peer.stranger())
    offender = await talk(peer)
    offender.out.send(b"\xff" * 12)
    await offender.connection.ended("the end of the offender's connection")
    await honest.settled()
    expect(honest.connection.of(GOSSIP_PROTOCOL), "the conversation goes on", honest.connection.end)
