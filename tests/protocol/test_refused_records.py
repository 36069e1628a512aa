"""Records that are refused: each with its own code, and none changes what is known, now or after a restart."""

import random
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import pytest
from gossip_nodes import NO_MESH, Node, drained, sealed
from hypothesis import given
from hypothesis import strategies as st
from record_strategies import CARD, EDGES, EXAMPLES, IDENTITIES, LIFETIME_S, VERDICT, WALL_S

from protocol.budget import Budget
from protocol.errors import ErrorCode
from protocol.gossip import GossipConfig, Misbehaved, RecordAccepted, RecordRefused
from protocol.gossip.events import STALE_CODES
from protocol.gossip.messages import records_messages
from protocol.records import RecordKind, kind_of, seal
from protocol.table import Accepted, Floor, PeerTable, Stale, TableConfig, record_key

PEER, OTHER = IDENTITIES[1], IDENTITIES[2]
ACCOUNTS = {"stale", "_refused", "misbehaved", "outputs", "_outputs"}
"""What a refusal may move: counters, the hashes of envelopes known to be bad, and whether their sender is heard any more."""
LINKS = {"overlay", "_overlay", "scores", "_scores"}
"""What it also moves where the sender is to blame: the link to it, and what is thought of it."""


def state_of(value: object, but: set[str], seen: tuple[int, ...] = ()) -> object:
    """Everything that an object holds, all the way down, but for what is named."""
    if id(value) in seen or isinstance(value, Budget):
        return type(value).__name__
    inner = (*seen, id(value))
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, Mapping):
        return [(state_of(key, but, inner), state_of(item, but, inner)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque | array):
        return [state_of(item, but, inner) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    names = [*getattr(value, "__dict__", {}), *(name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()))]
    if not names or isinstance(value, str | bytes | int):
        return repr(value)
    return [(name, state_of(getattr(value, name, None), but, inner)) for name in names if name not in but]


def hear(node: Node, *envelopes: bytes, now: float) -> list[object]:
    for message in records_messages(envelopes):
        node.gossip.handle_message(PEER.peer_id, message, now, WALL_S + now)
    return drained(node.gossip)


def at_rest(payload: object, sequence: int = 5) -> Node:
    """A node that has held a record for long, so that nothing about it is under way."""
    node = Node(0, config=GossipConfig(**NO_MESH))
    node.connect(PEER)
    assert [type(output) for output in hear(node, sealed(OTHER, payload, sequence).envelope, now=1.0)] == [RecordAccepted]
    node.beat_heart(30.0)
    return node


def forged(payload: object) -> bytes:
    """Said to be the other's, signed with a third's key."""
    return sealed(IDENTITIES[3], payload, 9).envelope[:64] + sealed(OTHER, payload, 9).envelope[64:]


def mended(payload: object) -> bytes:
    """The other's own record with one bit turned."""
    envelope = bytearray(sealed(OTHER, payload, 9).envelope)
    envelope[-1] ^= 1
    return bytes(envelope)


NOW = 31.0
REFUSALS = {
    "replay": (ErrorCode.REPLAYED, lambda payload: sealed(OTHER, payload, 5).envelope),
    "old sequence": (ErrorCode.OLD_SEQUENCE, lambda payload: sealed(OTHER, payload, 4).envelope),
    "much older": (ErrorCode.OLD_SEQUENCE, lambda payload: sealed(OTHER, payload, 1, issued_s=WALL_S - 30.0).envelope),
    "future": (ErrorCode.NOT_YET_VALID, lambda payload: sealed(OTHER, payload, 9, issued_s=WALL_S + NOW + 61.0).envelope),
    "expired": (
        ErrorCode.EXPIRED,
        lambda payload: sealed(OTHER, payload, 9, issued_s=WALL_S - LIFETIME_S[kind_of(payload)] - 61.0).envelope,
    ),
    "foreign network": (ErrorCode.WRONG_NETWORK, lambda payload: sealed(OTHER, payload, 9, network="elsewhere").envelope),
    "wrong key": (ErrorCode.BAD_SIGNATURE, forged),
    "changed": (ErrorCode.BAD_SIGNATURE, mended),
}
BLAMED = {"foreign network", "wrong key", "changed"}


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: str(kind_of(payload)))
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_record_has_its_code_and_changes_nothing(name: str, payload: object) -> None:
    code, make = REFUSALS[name]
    node = at_rest(payload)
    but = ACCOUNTS | LINKS if name in BLAMED else ACCOUNTS
    before, counted = state_of((node.gossip, node.table), but), dict(node.gossip.stale)
    outputs = hear(node, make(payload), now=NOW)
    assert state_of((node.gossip, node.table), but) == before
    if code in (ErrorCode.REPLAYED, ErrorCode.OLD_SEQUENCE):
        assert outputs == []  # honest networks repeat: nobody is told, nobody is blamed
        assert node.gossip.stale == counted | {code: 1}
    else:
        assert outputs == [(Misbehaved if name in BLAMED else RecordRefused)(PEER.peer_id, code)]
        assert node.gossip.stale == counted


def test_the_look_at_all_state_sees_a_record_that_is_taken() -> None:
    node = at_rest(CARD)
    before = state_of((node.gossip, node.table), ACCOUNTS | LINKS)
    hear(node, sealed(OTHER, CARD, 6).envelope, now=NOW)
    assert state_of((node.gossip, node.table), ACCOUNTS | LINKS) != before


@pytest.mark.parametrize("payload", EXAMPLES, ids=lambda payload: str(kind_of(payload)))
def test_a_table_names_why_a_record_is_stale(payload: object) -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    record = sealed(OTHER, payload, 5)
    held.offer(record, 0.0, WALL_S)
    stale = held.offer(record, 0.0, WALL_S)
    assert isinstance(stale, Stale)
    assert stale.code is ErrorCode.REPLAYED
    assert held.offer(sealed(OTHER, payload, 4), 0.0, WALL_S).code is ErrorCode.OLD_SEQUENCE
    late_s = WALL_S + LIFETIME_S[kind_of(payload)] + 60.0
    assert held.offer(sealed(OTHER, payload, 6), 0.0, late_s).code is ErrorCode.EXPIRED
    held.remove(OTHER.peer_id)
    assert held.offer(record, 0.0, WALL_S).code is ErrorCode.REPLAYED
    assert {ErrorCode.REPLAYED, ErrorCode.OLD_SEQUENCE, ErrorCode.EXPIRED} == set(STALE_CODES)


def test_another_record_under_a_known_number_is_not_stale() -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    held.offer(sealed(OTHER, CARD, 5), 0.0, WALL_S)
    key = record_key(OTHER.peer_id, RecordKind.CARD)
    assert held.staleness(key, 5, sealed(OTHER, replace(CARD, agent="other"), 5).envelope) is None
    assert held.staleness(key, 6, b"anything" * 10) is None


# Over a restart


def restarted(held: PeerTable, wall_s: float = WALL_S, **bounds: int) -> PeerTable:
    again = PeerTable(held.own, TableConfig(**bounds))
    again.restore(held.floors(), wall_s)
    return again


def test_older_records_are_refused_after_a_restart_and_the_newest_is_welcome() -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    for payload in EXAMPLES:
        held.offer(sealed(OTHER, payload, 5), 0.0, WALL_S)
    again = restarted(held)
    assert len(again) == 0
    for payload in EXAMPLES:
        for older in (3, 4):
            stale = again.offer(sealed(OTHER, payload, older), 0.0, WALL_S)
            assert stale == Stale(4)
            assert stale.code is ErrorCode.OLD_SEQUENCE
        assert isinstance(again.offer(sealed(OTHER, payload, 5), 0.0, WALL_S), Accepted)
        assert again.offer(sealed(OTHER, payload, 4), 0.0, WALL_S).code is ErrorCode.OLD_SEQUENCE


def test_what_said_goodbye_does_not_come_back_after_a_restart() -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    record = sealed(OTHER, CARD, 5)
    held.offer(record, 0.0, WALL_S)
    held.remove(OTHER.peer_id)
    again = restarted(held)
    assert again.offer(record, 0.0, WALL_S).code is ErrorCode.OLD_SEQUENCE
    assert isinstance(again.offer(sealed(OTHER, CARD, 6), 0.0, WALL_S), Accepted)


def test_floors_last_as_long_as_an_older_record_could_and_no_longer() -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    held.offer(sealed(OTHER, CARD, 5), 0.0, WALL_S)
    lasts_s = LIFETIME_S[RecordKind.CARD] + 60.0
    assert restarted(held, WALL_S + lasts_s).floors() == []
    again = restarted(held, WALL_S + lasts_s - 1.0)
    assert [floor.least for floor in again.floors()] == [5]
    again.expire(WALL_S + lasts_s)
    assert again.floors() == []


def test_floor_of_a_clock_that_was_wrong_keeps_nobody_out_for_ever() -> None:
    table = PeerTable(IDENTITIES[0].peer_id)
    key = record_key(OTHER.peer_id, RecordKind.CARD)
    table.restore([Floor(key, 99, WALL_S + 1e9)], WALL_S)
    assert table.offer(sealed(OTHER, CARD, 5), 0.0, WALL_S) == Stale(98)
    table.expire(WALL_S + LIFETIME_S[RecordKind.CARD] + 120.0)
    assert isinstance(table.offer(sealed(OTHER, CARD, 5), 0.0, WALL_S), Accepted)


def test_own_records_have_no_floor() -> None:
    held = PeerTable(IDENTITIES[0].peer_id)
    held.offer(sealed(IDENTITIES[0], CARD, 5), 0.0, WALL_S)
    assert held.floors() == []


def test_floors_are_bounded_and_those_that_last_longest_stay() -> None:
    held = PeerTable(IDENTITIES[0].peer_id, TableConfig(tombstones_max=5))
    for index, identity in enumerate(IDENTITIES[1:21]):
        held.offer(sealed(identity, CARD, 3, issued_s=WALL_S - index), 0.0, WALL_S)
    kept = {floor.key for floor in held.floors()}
    assert kept == {record_key(identity.peer_id, RecordKind.CARD) for identity in IDENTITIES[1:6]}
    again = PeerTable(IDENTITIES[0].peer_id, TableConfig(tombstones_max=2))
    again.restore(held.floors(), WALL_S)
    assert {floor.key for floor in again.floors()} == {record_key(item.peer_id, RecordKind.CARD) for item in IDENTITIES[1:3]}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["offer", "remove", "expire", "evict", "restart"]),
            st.integers(1, 3),
            st.integers(1, 6),
            st.sampled_from([CARD, EDGES, VERDICT]),
        ),
        max_size=40,
    )
)
def test_no_record_ever_moves_backwards_also_over_restarts(steps: list[tuple[str, int, int, object]]) -> None:
    table = PeerTable(IDENTITIES[0].peer_id)
    newest: dict[tuple[int, RecordKind], int] = {}
    wall_s = WALL_S
    for what, who, sequence, payload in steps:
        identity, kind = IDENTITIES[who], kind_of(payload)
        match what:
            case "offer":
                record = seal(identity, "n", payload, sequence, WALL_S, WALL_S + LIFETIME_S[kind])
                if isinstance(table.offer(record, 0.0, wall_s), Accepted):
                    assert sequence >= newest.get((who, kind), 0)
                    newest[who, kind] = sequence
            case "remove":
                table.remove(identity.peer_id)
            case "expire":
                wall_s += 100.0
                table.expire(wall_s)
            case "evict":  # beyond what the node holds: what comes back then is nobody's loss (ISO-REC-019)
                if table.evict(identity.peer_id):
                    newest = {known: number for known, number in newest.items() if known[0] != who}
            case "restart":
                table = restarted(table, wall_s)
