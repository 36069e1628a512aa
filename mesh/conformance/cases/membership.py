"""Chapter 7: standing, verdicts, leaving.

Spec: docs/spec/07-membership.md.
"""

import time

import trio

from mesh.conformance.gossip import Gossip, Scribe, card_of, record_key, talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import Unmet, case, expect
from mesh.conformance.wire import PROBE
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip import GOSSIP_PROTOCOL
from protocol.gossip.messages import Prune, Want
from protocol.identity import Identity, PeerId
from protocol.records import Accusation, Card, RecordKind, Verdict, open_record, peek

REFUTED_S = 2.5
"""A node that is doubted publishes a greater incarnation within so many seconds (ISO-MEMBER-028, as built)."""

SPREAD_S = 2.0
"""How long an accusation may wait before it is told, in seconds (ISO-MEMBER-023, as built)."""


def verdicts_of(gossip: Gossip, signer: PeerId, wall_s: float) -> list[tuple[int, Verdict]]:
    """The verdicts of one signer that were heard so far, by their numbers."""
    found: dict[int, Verdict] = {}
    for envelope in gossip.envelopes():
        try:
            header = peek(envelope)
            if header.peer_id == signer and header.kind is RecordKind.VERDICT:
                payload = open_record(envelope, gossip.scribe.network, wall_s).payload
                if isinstance(payload, Verdict):
                    found[header.sequence] = payload
        except RemoteProtocolError:
            continue
    return sorted(found.items())


async def newest_verdict(gossip: Gossip) -> Verdict | None:
    """Ask the node for its own verdict."""
    node = gossip.peer.subject.peer_id
    gossip.send(Want((record_key("verdict", node),)))
    await gossip.settled()
    told = verdicts_of(gossip, node, time.time())
    return told[-1][1] if told else None


async def accused(gossip: Gossip, subject: Identity) -> bool:
    """Whether the node's newest verdict names somebody."""
    verdict = await newest_verdict(gossip)
    key = record_key("card", subject.peer_id)
    return verdict is not None and any(accusation.subject == key for accusation in verdict.accused)


async def becomes(gossip: Gossip, subject: Identity, *, named: bool, what: str, within_s: float) -> None:
    """Wait until the node's newest verdict names somebody, or does not any more."""
    ends_at = trio.current_time() + within_s
    while True:
        if await accused(gossip, subject) == named:
            return
        if trio.current_time() >= ends_at:
            raise Unmet(what, await newest_verdict(gossip))
        await trio.sleep(0.2)


async def member(peer: ScriptedPeer) -> Gossip:
    """Connect as a member whose card is known."""
    gossip = await talk(peer, peer.stranger())
    gossip.send_records(gossip.scribe.card())
    await gossip.settled()
    return gossip


def accusation(scribe: Scribe, subject: PeerId, incarnation: int) -> tuple[bytes, ...]:
    """A verdict that names one peer."""
    return scribe.testify(Verdict((Accusation(bytes(record_key("card", subject)), incarnation),)))


@case("ISO-MEMBER-005")
async def the_nodes_stream_and_this_sides_are_two(peer: ScriptedPeer) -> None:
    """Nothing comes back on the stream that this side writes."""
    gossip = await talk(peer)
    await gossip.settled()
    expect(not gossip.out.data, "nothing on the other direction of the stream", bytes(gossip.out.data[:40]))
    expect(len(gossip.connection.of(GOSSIP_PROTOCOL)) == 1, "one gossip stream of the node", "more")


@case("ISO-MEMBER-022", "ISO-MEMBER-024", "ISO-REC-027", alone=True)
async def who_fell_silent_is_named_until_it_is_heard(peer: ScriptedPeer) -> None:
    """Two that went away are named by one verdict; who comes back is not named any more, and the other still is."""
    witness = await talk(peer)
    first, second = await member(peer), await member(peer)
    for gossip in (first, second):
        gossip.connection.close(ErrorCode.INTERNAL)
    for gossip in (first, second):
        what = "a verdict that names who fell silent"
        await becomes(witness, gossip.identity, named=True, what=what, within_s=SPREAD_S + 2.0)
    expect(await accused(witness, first.identity), "both named by the newest verdict", "one of them")
    await talk(peer, first.identity)
    what = "a verdict that takes back what was said of who is heard again"
    await becomes(witness, first.identity, named=False, what=what, within_s=2.0)
    expect(await accused(witness, second.identity), "the other still named", "it is not")


@case("ISO-MEMBER-022", alone=True)
async def nobody_is_accused_for_what_others_say(peer: ScriptedPeer) -> None:
    """Verdicts of others are no reason for one of the node's own."""
    witness = await talk(peer)
    stranger = peer.stranger()
    witness.send_records(Scribe(stranger, peer.subject).card())
    for accuser in (peer.stranger(), peer.stranger(), peer.stranger()):
        witness.send_records(*accusation(Scribe(accuser, peer.subject), stranger.peer_id, 0))
    await trio.sleep(SPREAD_S + peer.subject.quiet_s)
    expect(not await accused(witness, stranger), "no verdict for what others say", "the node accuses, too")


async def probed_more(gossip: Gossip, within_s: float) -> bool:
    """Whether a probe comes within a time."""
    n_frames = sum(frame[:1] == PROBE for frame in gossip.connection.frames)
    with trio.move_on_after(within_s):
        await gossip.connection.until(lambda: sum(f[:1] == PROBE for f in gossip.connection.frames) > n_frames, "", 60.0)
        return True
    return False


@case("ISO-MEMBER-025", "ISO-MEMBER-026", "ISO-PROBE-012", alone=True)
async def two_accusers_have_a_connected_peer_probed(peer: ScriptedPeer) -> None:
    """One accuser, or an earlier incarnation, changes nothing; two have the peer probed at once, and it stays connected."""
    herald = await talk(peer)
    suspect = await talk(peer, peer.stranger())
    incarnation = 5
    scribe = suspect.scribe
    suspect.send_records(scribe.seal(Card((), card_of().hardware, (), None, "conformance", incarnation)))
    await suspect.settled()
    suspect.send(Prune())  # who is not in the mesh is probed seldom
    await trio.sleep(4.5)  # the probes of a new connection are over
    accusers = [Scribe(peer.stranger(), peer.subject) for _ in range(3)]
    herald.send_records(*accusation(accusers[0], suspect.identity.peer_id, incarnation))
    herald.send_records(*accusation(accusers[1], suspect.identity.peer_id, incarnation - 1))
    await herald.settled()
    expect(not await probed_more(suspect, 0.6), "no haste for one accuser and for an earlier incarnation", "a probe")
    herald.send_records(*accusation(accusers[2], suspect.identity.peer_id, incarnation))
    expect(await probed_more(suspect, 0.6 + peer.subject.rtt_s), "a probe at once for a peer that two accuse", "none")
    await peer.nothing_happens(suspect.connection)


@case("ISO-MEMBER-028", "ISO-REC-024", alone=True)
async def a_node_that_is_doubted_refutes(peer: ScriptedPeer) -> None:
    """Accused by two, it publishes a card with a greater incarnation."""
    herald = await talk(peer)
    node = peer.subject.peer_id
    key = record_key("card", node)

    def incarnation() -> int:
        found = 0
        for envelope in herald.envelopes():
            header = peek(envelope) if bytes(node) in envelope else None
            if header is not None and header.peer_id == node and header.kind is RecordKind.CARD:
                payload = open_record(envelope, peer.subject.network, time.time()).payload
                found = max(found, payload.incarnation if isinstance(payload, Card) else 0)
        return found

    before = incarnation()
    for _ in range(2):
        herald.send_records(*accusation(Scribe(peer.stranger(), peer.subject), node, before))
    with trio.move_on_after(REFUTED_S + 2.0):
        while incarnation() <= before:
            await trio.sleep(0.25)
            herald.send(Want((key,)))
        return
    raise Unmet(f"a card with a greater incarnation than {before}", incarnation())


@case("ISO-MEMBER-010", slow=True)
async def who_is_given_up_is_closed(peer: ScriptedPeer) -> None:
    """A peer that answers no probes loses its connection, with IDLE, though QUIC holds it for living."""
    gossip = await talk(peer)
    gossip.connection.echoes = False
    end = await gossip.connection.ended("the end of a connection to a silent peer", 120.0)
    expect(end.by_node and end.code == ErrorCode.IDLE, "IDLE", end)


@case("ISO-MEMBER-012", alone=True)
async def who_says_goodbye_is_out(peer: ScriptedPeer) -> None:
    """It is named by a verdict soon, and may come back."""
    witness = await talk(peer)
    leaver = await member(peer)
    leaver.connection.close(ErrorCode.GOODBYE)
    await becomes(witness, leaver.identity, named=True, what="a verdict on who said goodbye", within_s=SPREAD_S + 2.0)
    await talk(peer, leaver.identity)
    await becomes(witness, leaver.identity, named=False, what="a verdict without who is back", within_s=2.0)
