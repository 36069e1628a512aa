"""Chapter 4: messages, digests and comparison, budgets, scopes.

Spec: docs/spec/04-gossip.md.
"""

import hashlib
import os

import trio

from mesh.conformance.gossip import MESSAGE_BYTES_MAX, WIDE, Gossip, Scribe, card_fields, joined, record_key, talk
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import NotApplicable, case, expect
from protocol.encoding import encode_uvarint
from protocol.errors import ErrorCode
from protocol.gossip.messages import Digest, Entries, Keep, Records, ScopeTold, Seek, Want
from protocol.records import Edges, peek
from protocol.scope import Scope
from protocol.table import RecordKey
from protocol.wire import pack

BUCKETS = 256
"""Buckets of a table (docs/spec/04-gossip.md, section "Limits")."""

EMPTY = bytes(8)
"""The hash of an empty bucket."""

ALL = tuple(range(BUCKETS))
"""Every bucket."""

FAR_S = 9.0
"""Component of a place where nobody is, in seconds: as far as a node may claim to be, less some room."""

CROWD = 24
"""Connections among which the one to compare with is to be found, a count: many more than a small mesh has others."""

DIGESTS_S_MAX = 24.0
"""How long digests are waited for, in seconds: twice the longest pause as built, and less than a case may take."""

EDGES_FLOOD = 1500
"""Records that were not asked for and need verifying, a count: more than any budget has (1,000 and 400 refused beyond)."""


def bucket_hash(entries: list[tuple[RecordKey, int]]) -> bytes:
    """The hash of a bucket, by the words of the specification."""
    if not entries:
        return EMPTY
    row = b"".join(key + sequence.to_bytes(8, "big") for key, sequence in sorted(entries))
    return hashlib.sha256(row).digest()[:8]


def root_hash(entries: dict[RecordKey, int]) -> bytes:
    """The root hash of a table, by the words of the specification."""
    hashes = [bucket_hash([(key, number) for key, number in entries.items() if key[0] == bucket]) for bucket in ALL]
    return hashlib.sha256(b"".join(hashes)).digest()[:8]


def far_scope() -> Scope:
    """A scope that covers nobody, whoever is known: far away, at a place of this case alone."""
    return Scope(tuple(FAR_S - byte / 256.0 for byte in os.urandom(8)), 0.001)


async def in_a_scope(gossip: Gossip, count: int) -> dict[RecordKey, int]:
    """Narrow what is compared to a few cards that are told here: the rest of a table changes while others live.

    Returns:
        What both ends hold in the scope.
    """
    scope = far_scope()
    gossip.send(ScopeTold(scope))
    cards = [placed_card(gossip.peer, scope.vector) for _ in range(count)]
    gossip.send_records(*cards)
    await gossip.settled()
    return {record_key("card", peek(card).peer_id): peek(card).sequence for card in cards}


@case("ISO-GOS-001", "ISO-GOS-014")
async def a_frame_of_64_kib_is_read_and_one_byte_more_is_not(peer: ScriptedPeer) -> None:
    """The limit is what is accepted."""
    gossip = await talk(peer)
    message = pack([200, bytes(MESSAGE_BYTES_MAX - 6)], WIDE)
    gossip.send_bytes(message)
    expect(len(message) == MESSAGE_BYTES_MAX, "a message at the limit", len(message))
    await gossip.settled()
    gossip.out.send(encode_uvarint(MESSAGE_BYTES_MAX + 1))
    await gossip.blamed(ErrorCode.TOO_LARGE, "a frame over the limit")


@case("ISO-GOS-003", "ISO-CONV-001")
async def later_messages_and_elements_are_ignored(peer: ScriptedPeer) -> None:
    """Types that nobody knows, and elements behind those that are known."""
    gossip = await talk(peer)
    own = bytes(record_key("card", peer.subject.peer_id))
    gossip.send_plain([0, None], [12, "later"], [255, {"a": 1}], [-1, None], [5, None, "later"], [6, {"why": 1}, 7])
    gossip.send_plain([9, True, "later"], [2, bytes(8), "later"], [7, b"", "later"], [10, None, 1], [4, own, "later"])
    await gossip.settled()
    await peer.nothing_happens(gossip.connection)


@case("ISO-GOS-004", "ISO-GOS-014", "ISO-CONV-002")
async def messages_that_are_laid_out_otherwise_are_blamed(peer: ScriptedPeer) -> None:
    """Each type once in a wrong form."""
    peer.needs_gossip()
    wrong: dict[str, list[object]] = {
        "no type": ["x", None],
        "a single element": [5],
        "records that are no array": [1, b""],
        "a record that is no bytes": [1, [1]],
        "a digest of seven bytes": [2, bytes(7)],
        "a digest of two hashes": [2, bytes(16)],
        "entries without buckets": [3, bytes(31), b""],
        "entries of fifteen bytes": [3, bytes(32), bytes(15)],
        "an entry with number 0": [3, bytes(32), bytes(16)],
        "a want for nothing": [4, b""],
        "a want of seven bytes": [4, bytes(7)],
        "a keep that is no boolean": [9, 1],
        "a scope of seven numbers": [10, [0.0] * 7, 1.0],
        "a scope with a negative radius": [10, [0.0] * 8, -1.0],
        "a search for 0 cards": [11, "", 0],
        "a search without a count": [11, ""],
    }
    for what, message in wrong.items():
        gossip = await talk(peer, peer.stranger(), settle=False)
        gossip.send_plain(message)
        await gossip.blamed(ErrorCode.MALFORMED, f"a message with {what}")


@case("ISO-GOS-004", "ISO-GOS-014", "ISO-CONV-002")
async def messages_over_a_limit_are_too_large(peer: ScriptedPeer) -> None:
    """Counts that are one too many."""
    peer.needs_gossip()
    over: dict[str, list[object]] = {
        "513 envelopes": [1, [b""] * 513],
        "3,073 entries": [3, bytes(32), (bytes(8) + (1).to_bytes(8, "big")) * 3073],
        "1,025 keys in a want": [4, bytes(8 * 1025)],
        "a search for 17 cards": [11, "", 17],
        "a search for a model of 257 bytes": [11, "m" * 257, 1],
        "a beat of 1,025 bytes": [8, pack([False, [["m" * 200, 0, 0, 0, 0, 0, 0]] * 5], WIDE).ljust(1025, b"\x00")],
        "65 loads in a beat": [8, pack([False, [["m", 0, 0, 0, 0, 0, 0]] * 65], WIDE)],
    }
    for what, message in over.items():
        gossip = await talk(peer, peer.stranger(), settle=False)
        gossip.send_plain(message)
        await gossip.blamed(ErrorCode.TOO_LARGE, f"a message with {what}")


@case("ISO-GOS-007")
async def entries_bring_a_want_for_what_is_newer(peer: ScriptedPeer) -> None:
    """What the node lacks is asked for; what it has, or has newer, is not."""
    gossip = await talk(peer)
    scribe = Scribe(peer.stranger(), peer.subject)
    key = record_key("card", scribe.identity.peer_id)
    gossip.send_records(scribe.card(sequence=5))
    await gossip.settled()
    unknown = RecordKey(os.urandom(8))
    gossip.send(Entries(((key, 4), (unknown, 1))))
    await gossip.until(lambda: any(unknown in want.keys for want in gossip.of(Want)), "a want for a key that is not known")
    expect(not any(key in want.keys for want in gossip.of(Want)), "no want for what the node has newer", "a want")
    gossip.send(Entries(((key, 6),)))
    await gossip.until(lambda: any(key in want.keys for want in gossip.of(Want)), "a want for what is newer")


@case("ISO-GOS-007")
async def entries_bring_what_was_not_told(peer: ScriptedPeer) -> None:
    """For buckets that are told completely the node answers with what it holds there, in entries whose bit field is zero."""
    gossip = await talk(peer)
    before = len(gossip.of(Entries))
    own = record_key("card", peer.subject.peer_id)
    gossip.send(Entries((), (own[0],)))
    await gossip.until(lambda: any(own in dict(m.entries) for m in gossip.of(Entries)[before:]), "an entry for the node's card")
    answers = [message for message in gossip.of(Entries)[before:] if own in dict(message.entries)]
    expect(not answers[0].buckets, "a bit field of zero in an answer", answers[0].buckets)
    expect(all(key[0] == own[0] for key, _ in answers[0].entries), "entries of the told bucket alone", "others")


@case("ISO-GOS-008")
async def a_want_brings_the_records(peer: ScriptedPeer) -> None:
    """What is held is sent, what is not is passed over."""
    gossip = await talk(peer)
    before = len(gossip.envelopes())
    gossip.send(Want((RecordKey(os.urandom(8)), record_key("card", peer.subject.peer_id), RecordKey(os.urandom(8)))))
    await gossip.until(lambda: len(gossip.envelopes()) > before, "the node's card")
    await gossip.settled()


@case("ISO-GOS-011", alone=True)
async def records_without_end_are_flooding(peer: ScriptedPeer) -> None:
    """Who sends more records to verify than any budget has is closed with FLOODING."""
    gossip = await talk(peer)
    for start in range(0, EDGES_FLOOD, 100):
        if gossip.connection.end is None:
            gossip.send_records(*[gossip.scribe.seal(Edges(())) for _ in range(start, start + 100)])
        await trio.lowlevel.checkpoint()
    await gossip.blamed(ErrorCode.FLOODING, f"{EDGES_FLOOD} records that nobody asked for")


@case("ISO-GOS-011", alone=True)
async def exchanges_without_end_are_flooding(peer: ScriptedPeer) -> None:
    """Digests are work, too."""
    gossip = await talk(peer)
    for _ in range(20):
        if gossip.connection.end is None:
            gossip.send(*[Digest((os.urandom(8),))] * 20)
        await trio.lowlevel.checkpoint()
    await gossip.blamed(ErrorCode.FLOODING, "400 digests at once")


@case("ISO-GOS-016", alone=True)
async def digests_come_at_the_beginning_and_at_intervals(peer: ScriptedPeer) -> None:
    """One root hash when the connection begins, and more from time to time."""
    gossips = [await talk(peer)]
    if peer.subject.n_others:  # each time a peer is chosen at random: let it be one of many here rather than of others
        gossips += [await talk(peer, peer.stranger()) for _ in range(CROWD)]

    def digests() -> list[Digest]:
        return [digest for gossip in gossips for digest in gossip.of(Digest)]

    enough = len(digests()) + 1 if peer.subject.n_others else 2  # with many at once not every beginning has one
    with trio.move_on_after(DIGESTS_S_MAX):
        while len(digests()) < enough:  # noqa: ASYNC110  (several connections tell)
            await trio.sleep(0.1)
    if len(digests()) < enough and peer.subject.n_others:
        raise NotApplicable("all digests of the time went to other members")
    expect(len(digests()) >= enough, f"{enough} digests within {DIGESTS_S_MAX:g} s", len(digests()))
    expect(all(len(digest.hashes) == 1 for digest in digests()), "root hashes", "others")


@case("ISO-GOS-017", alone=True)
async def a_different_root_is_answered_and_the_same_is_not(peer: ScriptedPeer) -> None:
    """The answer tells all buckets or their hashes; to the root of what both hold there is none."""
    gossip = await talk(peer)
    held = await in_a_scope(gossip, 3)
    before = len(gossip.listen())
    gossip.send(Digest((os.urandom(8),)))
    await gossip.settled()
    answers = [m for m in gossip.listen()[before:] if isinstance(m, Entries | Digest)]
    whole = [m for m in answers if isinstance(m, Digest) and len(m.hashes) == BUCKETS]
    told = sum(len(m.buckets) for m in answers if isinstance(m, Entries))
    expect(whole or told == BUCKETS, "entries that tell all buckets, or the hashes of all", [type(m).__name__ for m in answers])
    root = root_hash(held)
    before = len(gossip.listen())
    gossip.send(Digest((root,)))
    await gossip.settled()
    answers = [m for m in gossip.listen()[before:] if isinstance(m, Entries) or (isinstance(m, Digest) and len(m.hashes) > 1)]
    expect(not answers, f"no answer to the root {root.hex()} that is the node's own", [type(m).__name__ for m in answers])


@case("ISO-GOS-018", alone=True)
async def bucket_hashes_are_answered_where_they_differ(peer: ScriptedPeer) -> None:
    """The buckets that differ are told, and no others."""
    gossip = await talk(peer)
    held = await in_a_scope(gossip, 3)
    hashes = [bucket_hash([(key, number) for key, number in held.items() if key[0] == bucket]) for bucket in ALL]
    other = next(iter(held))[0]
    hashes[other] = os.urandom(8)
    before = len(gossip.of(Entries))

    def told() -> set[int]:
        return {bucket for message in gossip.of(Entries)[before:] for bucket in message.buckets}

    gossip.send(Digest(tuple(hashes)))
    await gossip.until(told, "entries for the bucket that differs")
    expect(told() == {other}, f"the bucket {other} told and no other", sorted(told()))


@case("ISO-GOS-034", alone=True)
async def news_is_not_pushed_beyond_a_scope(peer: ScriptedPeer) -> None:
    """Who has told a scope gets the cards in it and no others; whoever moves out of it is told of."""
    herald, scope = await talk(peer), far_scope()
    listener, witness = await joined(peer, peer.stranger()), await joined(peer, peer.stranger())
    listener.send(ScopeTold(scope))
    await listener.settled()
    outside = placed_card(peer, (0.0,) * 8)
    inside = placed_card(peer, scope.vector)
    herald.send_records(outside, inside)
    await witness.hears(outside, "news passed on to who holds everything")
    await listener.hears(inside, "news passed on to who holds the place")
    await trio.sleep(peer.subject.quiet_s)
    expect(outside not in listener.envelopes(), "no news from beyond the scope", "it was pushed")


@case("ISO-GOS-035", "ISO-GOS-036")
async def comparison_is_over_what_both_hold(peer: ScriptedPeer) -> None:
    """For a scope that covers nobody the node's table is empty; what it holds under a told key is told all the same."""
    gossip = await talk(peer)
    gossip.send(ScopeTold(far_scope()))
    await gossip.settled()
    before = len(gossip.listen())
    empty = hashlib.sha256(EMPTY * BUCKETS).digest()[:8]
    gossip.send(Digest((empty,)))
    await gossip.settled()
    answers = [m for m in gossip.listen()[before:] if isinstance(m, Entries) or (isinstance(m, Digest) and len(m.hashes) > 1)]
    expect(not answers, "no answer to the root of an empty table", [type(m).__name__ for m in answers])
    own = record_key("card", peer.subject.peer_id)
    before = len(gossip.of(Entries))
    gossip.send(Entries(((own, 1),), ALL))
    await gossip.until(lambda: any(own in dict(m.entries) for m in gossip.of(Entries)[before:]), "the newer number of a told key")
    told = {key for message in gossip.of(Entries)[before:] for key, _ in message.entries}
    expect(told == {own}, "nothing else from beyond the scope", f"{len(told)} keys")


@case("ISO-GOS-038")
async def a_search_brings_no_more_than_was_asked_for(peer: ScriptedPeer) -> None:
    """From beyond the asker's scope comes one card where one was asked for, and one that offers the model that was named."""
    gossip = await talk(peer)
    gossip.send_records(*[Scribe(peer.stranger(), peer.subject).card() for _ in range(3)])
    gossip.send(ScopeTold(far_scope()))
    await gossip.settled()
    before = len(gossip.of(Records))
    gossip.send(Seek("", 1))
    await gossip.until(lambda: len(gossip.of(Records)) > before, "a card from beyond the scope")
    await trio.sleep(peer.subject.quiet_s)
    found = [envelope for message in gossip.of(Records)[before:] for envelope in message.envelopes]
    expect(len(found) == 1, "one card", len(found))


@case("ISO-GOS-033")
async def who_holds_a_part_tells_its_scope_first(peer: ScriptedPeer) -> None:
    """A scope, where there is one, stands before the first digest of a stream."""
    gossip = await talk(peer)
    await gossip.until(lambda: gossip.of(Digest) or gossip.of(Keep), "the first messages of a stream")
    kinds = [type(message) for message in gossip.listen()]
    scopes = [index for index, kind in enumerate(kinds) if kind is ScopeTold]
    digests = [index for index, kind in enumerate(kinds) if kind is Digest]
    in_order = not scopes or not digests or scopes[0] < digests[0]
    expect(in_order, "the scope before the first digest", [kind.__name__ for kind in kinds])


def placed_card(peer: ScriptedPeer, vector: tuple[float, ...]) -> bytes:
    """Make the card of somebody at a place."""
    fields = card_fields() | {"coordinate": [list(vector), 0.0, 0.1]}
    return Scribe(peer.stranger(), peer.subject).by_hand(pack(fields, WIDE))


@case("ISO-GOS-041")
async def stamps_decide_nothing(peer: ScriptedPeer) -> None:
    """A card with a wrong stamp is taken, and with another stamp or none it is the same card, and nobody's fault."""
    gossip = await talk(peer)
    scribe = Scribe(peer.stranger(), peer.subject)
    key = record_key("card", scribe.identity.peer_id)
    envelope = scribe.card()
    gossip.send_plain([1, [envelope], [os.urandom(64)]])
    expect(await gossip.holds(envelope, key), "a card with a wrong stamp is taken", "it is not held")
    gossip.send_plain([1, [envelope], [os.urandom(64)]], [1, [envelope], [None]], [1, [envelope]])
    await gossip.settled()
    await peer.nothing_happens(gossip.connection)
