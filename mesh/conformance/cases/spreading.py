"""Chapter 4: the mesh of links, and what is pushed over it.

Spec: docs/spec/04-gossip.md, sections "The mesh", "News" and "Neighbours".
"""

import trio

from mesh.conformance.gossip import WIDE, Gossip, Scribe, card_fields, joined, record_key, talk, told_through
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.quic import Manner
from mesh.conformance.registry import NotApplicable, Unmet, case, expect
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.gossip.beats import decode_beat, encode_beat
from protocol.gossip.messages import BeatTold, DontWant, Graft, Keep, Prune
from protocol.load import Beat
from protocol.records import Verdict
from protocol.wire import pack

HEARTBEAT_S = 1.0
"""Seconds between two heartbeats (ISO-GOS-019)."""

LINKS_TRIED = 14
"""Links that a case asks for at once, a count: far more than any node wants."""


async def news_to(gossip: Gossip, envelope: bytes, control: bytes, *, wanted: bool, what: str) -> None:
    """See whether a record was pushed by the time that a later one was."""
    await gossip.hears(control, "the control card over the same link")
    expect((envelope in gossip.envelopes()) == wanted, what, "it was pushed" if not wanted else "it was not")


@case("ISO-GOS-020", "ISO-GOS-025", alone=True)
async def news_is_pushed_over_links_that_were_asked_for(peer: ScriptedPeer) -> None:
    """A card goes to the other links, and not back to whom it came from."""
    herald, listener = await joined(peer), await joined(peer, peer.stranger())
    envelope = Scribe(peer.stranger(), peer.subject).card()
    herald.send_records(envelope)
    await listener.hears(envelope, "news passed on over a link of the mesh")
    await told_through(listener, herald)
    expect(envelope not in herald.envelopes(), "news not sent back to whom it came from", "it came back")


@case("ISO-GOS-025", alone=True)
async def news_is_not_pushed_to_its_signer(peer: ScriptedPeer) -> None:
    """A card that somebody else tells goes to the other links, and not to whose it is."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    signer = await joined(peer, peer.stranger())
    envelope = signer.scribe.card()
    herald.send_records(envelope)
    await listener.hears(envelope, "news passed on over a link of the mesh")
    control = await told_through(herald, signer)
    await news_to(signer, envelope, control, wanted=False, what="news not sent to its signer")


@case("ISO-GOS-025", alone=True)
async def verdicts_are_pushed_like_cards(peer: ScriptedPeer) -> None:
    """A verdict that says the same as the one before is news all the same."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    for _ in range(2):
        verdict = herald.scribe.seal(Verdict(()))
        herald.send_records(verdict)
        await listener.hears(verdict, "a verdict passed on over a link of the mesh")


@case("ISO-GOS-026", alone=True)
async def a_card_that_can_wait_is_announced_and_not_pushed(peer: ScriptedPeer) -> None:
    """The same payload with a new number, and one with another coordinate, travel as entries at the next heartbeat."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    scribe = Scribe(peer.stranger(), peer.subject)
    first, again = scribe.card(), scribe.card()
    moved = scribe.by_hand(pack(card_fields() | {"coordinate": [[0.0] * 8, 0.0, 0.5]}, WIDE))
    key = record_key("card", scribe.identity.peer_id)
    herald.send_records(first)
    await listener.hears(first, "news passed on over a link of the mesh")
    for number, envelope in ((2, again), (3, moved)):
        herald.send_records(envelope)
        await listener.until(
            lambda number=number: listener.entries().get(key, 0) == number,  # type: ignore[misc]
            f"card {number}, which can wait, announced by its number",
            2 * HEARTBEAT_S + 1.0,
        )
        expect(envelope not in listener.envelopes(), "a card that can wait is not pushed", "it was pushed")


@case("ISO-GOS-028", "ISO-GOS-025", alone=True)
async def who_has_a_record_is_not_sent_it(peer: ScriptedPeer) -> None:
    """After "do not want" the record is neither pushed nor announced to who said it."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    scribe = Scribe(peer.stranger(), peer.subject)
    envelope = scribe.card()
    listener.send(DontWant(((record_key("card", scribe.identity.peer_id), 1),)))
    await listener.settled()
    herald.send_records(envelope)
    control = await told_through(herald, listener)
    await news_to(listener, envelope, control, wanted=False, what="a record not sent to who has it")


@case("ISO-GOS-010", "ISO-GOS-014", alone=True)
async def what_does_not_verify_goes_no_further(peer: ScriptedPeer) -> None:
    """A forged card is not passed on, and neither is what stands behind it in the same message."""
    forger, listener = await talk(peer), await joined(peer, peer.stranger())
    herald = await talk(peer, peer.stranger())
    good = Scribe(peer.stranger(), peer.subject).card()
    behind = Scribe(peer.stranger(), peer.subject).card()
    forged = good[:-1] + bytes([good[-1] ^ 1])
    forger.send_records(forged, behind)
    await forger.blamed(ErrorCode.BAD_SIGNATURE, "a forged card")
    control = await told_through(herald, listener)
    await news_to(listener, forged, control, wanted=False, what="a forged card goes no further")
    await news_to(listener, behind, control, wanted=False, what="nothing more is taken from a peer that is blamed")


@case("ISO-GOS-010", "ISO-GOS-013", alone=True)
async def what_is_refused_goes_no_further(peer: ScriptedPeer) -> None:
    """An expired card, and one with a payload of a later version, are not passed on."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    expired = Scribe(peer.stranger(), peer.subject).card(issued_in_s=-200.0, lasts_s=10.0)
    odd = Scribe(peer.stranger(), peer.subject).by_hand(b"\x80")
    herald.send_records(expired, odd)
    control = await told_through(herald, listener)
    for envelope in (expired, odd):
        await news_to(listener, envelope, control, wanted=False, what="what is refused goes no further")


@case("ISO-GOS-021", alone=True)
async def a_link_given_back_carries_no_news(peer: ScriptedPeer) -> None:
    """After a prune the node pushes no more over the link."""
    leaver = await joined(peer, peer.stranger())
    leaver.send(Prune())
    await leaver.settled()
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    envelope = await told_through(herald, listener)
    await leaver.settled()
    expect(envelope not in leaver.envelopes(), "no news over a link that was given back", "it was pushed")


@case("ISO-GOS-022", "ISO-GOS-020", alone=True)
async def who_gave_a_link_back_may_ask_for_it_again(peer: ScriptedPeer) -> None:
    """A graft after a prune of the same end is no reason to refuse."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    listener.send(Prune(), Graft())
    await listener.settled()
    expect(not listener.of(Prune), "a link that is held again", "a prune")
    await told_through(herald, listener)


@case("ISO-GOS-020", alone=True)
async def a_second_graft_changes_nothing(peer: ScriptedPeer) -> None:
    """Asking twice for a link is answered by no prune, and news comes once."""
    herald, listener = await talk(peer), await joined(peer, peer.stranger())
    listener.send(Graft(), Graft())
    envelope = await told_through(herald, listener)
    await told_through(herald, listener)
    expect(not listener.of(Prune), "no prune", "a prune")
    expect(listener.envelopes().count(envelope) == 1, "news once", listener.envelopes().count(envelope))


@case("ISO-GOS-020", "ISO-GOS-021", alone=True)
async def links_are_bounded(peer: ScriptedPeer) -> None:
    """Of many links that are asked for at once some are refused or given back within two heartbeats."""
    asked = [await talk(peer, peer.stranger()) for _ in range(LINKS_TRIED)]
    for gossip in asked:
        gossip.send(Graft())
    await trio.sleep(2 * HEARTBEAT_S + peer.subject.quiet_s)
    held = 0
    for gossip in asked:
        links = [message for message in gossip.listen() if isinstance(message, Graft | Prune)]
        held += not (links and isinstance(links[-1], Prune))
    expect(held < LINKS_TRIED, f"fewer than {LINKS_TRIED} links held", held)


@case("ISO-GOS-023", "ISO-PROBE-010", "ISO-PROBE-012", alone=True)
async def a_dead_peer_loses_its_link(peer: ScriptedPeer) -> None:
    """Who answers no probe is out of the mesh within two seconds and a moment."""
    gossip = await joined(peer)
    gossip.connection.echoes = False
    await gossip.until(lambda: gossip.of(Prune), "a prune for who answers no probes", 3.0 + peer.subject.quiet_s)


@case("ISO-GOS-023", "ISO-PROBE-015", alone=True)
async def who_is_silent_is_not_asked_for_a_link(peer: ScriptedPeer) -> None:
    """A suspected peer gets no graft, however few links the node has, and is spoken to again once it has answered a probe."""
    gossip = await joined(peer)
    gossip.connection.echoes = False
    await gossip.until(lambda: gossip.of(Prune), "a prune for who answers no probes", 4.0)
    before = len(gossip.listen())
    await trio.sleep(2 * HEARTBEAT_S + peer.subject.quiet_s)
    expect(not any(isinstance(m, Graft) for m in gossip.listen()[before:]), "no graft for who is silent", "a graft")
    before = len(gossip.listen())
    gossip.connection.echoes = True
    if peer.subject.n_others:  # the node may have links enough, and ask nobody: then it gives one to who asks
        await trio.sleep(HEARTBEAT_S)
        gossip.send(Graft())
        await gossip.settled()
        expect(not any(isinstance(m, Prune) for m in gossip.listen()[before:]), "a link for who is heard again", "a prune")
        return
    await gossip.until(
        lambda: any(isinstance(m, Graft) for m in gossip.listen()[before:]), "a graft for who is heard again", 3 * HEARTBEAT_S
    )


@case("ISO-GOS-024", alone=True)
async def a_new_stream_repeats_the_graft(peer: ScriptedPeer) -> None:
    """The link is asked for again when the peer's connection is another one."""
    manner = Manner(peer.chain(peer.identity))
    gossip = await joined(peer, connection=await peer.dial(manner))
    again = await talk(peer, connection=await peer.dial(manner))
    try:
        await again.until(lambda: again.of(Graft), "a graft on the new stream", 2.0)
    except Unmet as unmet:
        if peer.subject.n_others:  # the link ended with the connection, and the node has others enough
            raise NotApplicable("the node has links enough to other members") from unmet
        raise
    expect(not gossip.of(Prune), "no prune on the old one", "a prune")


@case("ISO-GOS-030")
async def each_end_says_whether_it_keeps_the_connection(peer: ScriptedPeer) -> None:
    """A keep comes on each new stream."""
    gossip = await talk(peer)
    await gossip.until(lambda: gossip.of(Keep), "a keep on a new stream")


@case("ISO-GOS-031")
async def beats_are_told_to_who_keeps_the_connection(peer: ScriptedPeer) -> None:
    """None comes before a keep, one at once after it, and it decodes."""
    gossip = await talk(peer)
    await trio.sleep(peer.subject.quiet_s)
    expect(not gossip.of(BeatTold), "no beat before a keep", "a beat")
    gossip.send(Keep(True))
    await gossip.until(lambda: gossip.of(BeatTold), "a beat at once after a keep", 1.0 + peer.subject.quiet_s)
    try:
        decode_beat(gossip.of(BeatTold)[0].payload)
    except RemoteProtocolError as fault:
        raise Unmet("a beat as chapter 4 lays it out", fault) from fault


@case("ISO-GOS-032", "ISO-GOS-014")
async def beats_that_do_not_decode_are_blamed(peer: ScriptedPeer) -> None:
    """Who says a beat has made it."""
    peer.needs_gossip()
    for what, payload in {
        "no array": b"\x01",
        "a count that is negative": b"\x92\xc2\x91\x97\xa1m\xff\x00\x00\x00\x00\x00",
        "a load without a model": b"\x92\xc2\x91\x97\xa0\x00\x00\x00\x00\x00\x00",
    }.items():
        gossip = await talk(peer, peer.stranger())
        gossip.send(BeatTold(payload))
        await gossip.blamed(ErrorCode.MALFORMED, f"a beat with {what}")


@case("ISO-GOS-032")
async def too_many_beats_are_no_fault(peer: ScriptedPeer) -> None:
    """What is over the budget is refused, and nobody is blamed for it."""
    gossip = await talk(peer)
    beat = BeatTold(encode_beat(Beat(draining=False, loads=())))
    gossip.send(*[beat] * 100)
    await gossip.settled()
    await peer.nothing_happens(gossip.connection)


@case("ISO-GOS-015")
async def its_own_record_is_no_news_to_the_node(peer: ScriptedPeer) -> None:
    """The node's card comes back to it without effect."""
    gossip = await talk(peer)
    gossip.send_records(peer.subject.envelope)
    await gossip.settled()
    await peer.nothing_happens(gossip.connection)
