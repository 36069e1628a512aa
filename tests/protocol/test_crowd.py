"""A node through which many join: whom it closes its connection to, whom never, and when it lets nobody in."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from protocol.errors import ErrorCode, LocalProtocolError
from protocol.gossip import GossipConfig
from protocol.identity import Identity, PeerId
from protocol.membership import Connect, Disconnect, KeepLink, Membership, MembershipConfig, Standing
from protocol.multiaddr import Multiaddr, parse_multiaddr
from protocol.node import NodeConfig

OWN, *PEERS = sorted(Identity.from_seed(n.to_bytes(2, "big") * 16).peer_id for n in range(200))
CONFIG = MembershipConfig(small_mesh=4, near_max=6, far_max=2, connections_max=12, crowded_max=16, open_max=24)
RESERVED = 2
"""Places that are for those whom a node dials itself, a count: a quarter of those between crowded and full."""
FULL = PEERS[: CONFIG.open_max - RESERVED]


def address(number: int) -> Multiaddr:
    return parse_multiaddr(f"/ip4/192.0.2.1/udp/{number + 1}/quic-v1").with_peer(PEERS[number])


def drained(membership: Membership, kind: type) -> list[object]:
    outputs = []
    while (output := membership.next_output()) is not None:
        outputs.append(output)
    return [output for output in outputs if isinstance(output, kind)]


def told_to_go(membership: Membership) -> list[PeerId]:
    """Whose connections are closed, each as surplus."""
    disconnects = [output for output in drained(membership, Disconnect) if isinstance(output, Disconnect)]
    assert all(disconnect.code is ErrorCode.SURPLUS for disconnect in disconnects)
    return [disconnect.peer_id for disconnect in disconnects]


def comes(
    membership: Membership, peer_id: PeerId, now: float, in_use: Sequence[PeerId] = (), fed: Sequence[PeerId] = ()
) -> list[PeerId]:
    """Whose connections are closed because another peer connects."""
    assert membership.is_crowded
    membership.make_room(now, in_use, fed)
    membership.handle_connected(peer_id, now)
    return told_to_go(membership)


def full() -> Membership:
    """A node at its bound: peers that connected one after another, all of whom want to keep it, the first of whom it keeps."""
    membership = Membership(CONFIG, OWN, random.Random(1))
    for number, peer_id in enumerate(FULL):
        membership.handle_connected(peer_id, 0.01 * number)
        membership.handle_kept(peer_id, keeps=True)
    assert told_to_go(membership) == []  # nobody had the time to learn anything
    assert membership.connected() == FULL
    return membership


def test_full_node_refuses_whoever_comes_and_keeps_nothing_of_them() -> None:
    membership = full()
    for stranger in PEERS[100:150]:
        assert comes(membership, stranger, 1.0) == [stranger]
        assert membership.standing(stranger, 1.0)[0] is Standing.UNKNOWN
    assert membership.connected() == FULL


def test_crowd_moves_on_for_who_comes_next_the_newest_first() -> None:
    membership = full()
    now = 0.01 * len(FULL) + CONFIG.visit_s
    *leaving, refused = comes(membership, PEERS[100], now)  # it is still at the bound, until they are gone
    assert (leaving, refused) == (FULL[: -CONFIG.surplus_at_once - 1 : -1], PEERS[100])
    for peer_id in leaving:
        membership.handle_disconnected(peer_id, ErrorCode.SURPLUS, now)
    assert PEERS[101] not in comes(membership, PEERS[101], now)
    assert membership.is_connected(PEERS[101])


def test_who_has_fetched_the_table_goes_before_the_time_of_a_visit_is_over() -> None:
    membership = full()
    fed = FULL[12:14]
    assert comes(membership, PEERS[100], 1.0, fed=fed) == [*reversed(fed), PEERS[100]]


def test_nobody_is_told_to_go_twice_and_no_more_than_are_too_many() -> None:
    membership = full()
    now = 60.0
    told: list[PeerId] = []
    for stranger in PEERS[100:120]:
        told += [peer_id for peer_id in comes(membership, stranger, now) if peer_id != stranger]
    assert len(set(told)) == len(told) == CONFIG.open_max - RESERVED + 1 - CONFIG.crowded_max
    for peer_id in told:
        membership.handle_disconnected(peer_id, ErrorCode.SURPLUS, now)
    assert not membership.is_crowded


def test_who_comes_back_again_and_again_is_not_let_in_where_many_are() -> None:
    membership = full()
    for peer_id in FULL[CONFIG.crowded_max :]:
        membership.handle_disconnected(peer_id, ErrorCode.GOODBYE, 1.0)
    assert membership.is_crowded
    now, back = 10.0, PEERS[100]
    for _ in range(CONFIG.visits_max):
        membership.handle_connected(back, now)
        assert told_to_go(membership) == []
        membership.handle_disconnected(back, ErrorCode.SURPLUS, now + CONFIG.visit_s)
        now += CONFIG.visit_s + 1.0
    membership.handle_connected(back, now)
    assert told_to_go(membership) == [back]
    membership.handle_connected(PEERS[101], now)
    assert told_to_go(membership) == []
    while membership.is_shunned(back, now):
        now += 10.0
    membership.handle_connected(back, now)
    assert membership.is_connected(back)
    membership.handle_disconnected(back, ErrorCode.SURPLUS, now + CONFIG.visit_s)
    for peer_id in FULL[:4]:
        membership.handle_disconnected(peer_id, ErrorCode.GOODBYE, now)
    membership.handle_connected(back, now + 4.0)
    assert membership.is_connected(back)  # there is room


def test_who_wants_to_go_anyway_goes_before_the_newest() -> None:
    membership = full()
    membership.handle_kept(FULL[10], keeps=False)
    assert comes(membership, PEERS[100], 60.0)[0] == FULL[10]


def grown_old(count: int = CONFIG.crowded_max) -> tuple[Membership, float]:
    """A node with visitors that have been here for long, want to stay and have cards; it keeps the first few of them."""
    membership = Membership(CONFIG, OWN, random.Random(1))
    for number in range(count):
        membership.handle_connected(PEERS[number], 0.0)
        membership.handle_kept(PEERS[number], keeps=True)
        membership.handle_card(PEERS[number], (address(number),), 0.0)
    drained(membership, object)
    assert membership.connected() == PEERS[:count]
    return membership, CONFIG.resident_s


def test_rush_of_those_who_may_not_be_told_to_go_yet_drives_out_no_old_visitor() -> None:
    membership, now = grown_old()
    told: list[PeerId] = []
    for stranger in PEERS[100:150]:
        now += 0.05  # all within the time of a visit
        told += comes(membership, stranger, now)
        membership.handle_kept(stranger, keeps=True)
    assert not {*told} & {*PEERS[: CONFIG.crowded_max]}
    assert len(membership.connected()) == len(FULL)
    now += CONFIG.visit_s
    told = comes(membership, PEERS[150], now)
    assert len(told) > 1  # there is somebody else now
    assert not {*told} & {*PEERS[: CONFIG.crowded_max]}


def test_old_visitors_leave_where_they_alone_are_too_many() -> None:
    membership, now = grown_old(CONFIG.crowded_max + 2)
    assert comes(membership, PEERS[100], now) == PEERS[CONFIG.small_mesh : CONFIG.small_mesh + 2]
    assert comes(membership, PEERS[101], now) == []


def test_who_has_no_card_goes_before_the_newest() -> None:
    membership, now = grown_old()
    for number in (100, 101, 102):
        membership.handle_connected(PEERS[number], now)
        membership.handle_kept(PEERS[number], keeps=True)
        now += 1.0
    for number in (101, 102):
        membership.handle_card(PEERS[number], (address(number),), now)
    now += CONFIG.visit_s
    membership.forget(PEERS[5])  # its card has expired
    assert comes(membership, PEERS[103], now) == [PEERS[100], PEERS[5], PEERS[102], PEERS[101]]


def test_who_fills_a_node_drives_out_nobody_that_it_needs() -> None:
    """Those it has dialled, the nearest, those whose connections are in use and those it is not sure of stay."""
    config = replace(CONFIG, visit_s=0.0)
    membership = Membership(config, OWN, random.Random(1))
    for peer_id in PEERS[:4]:
        membership.handle_connected(peer_id, 0.0, peer_id)
    for peer_id in PEERS[4:12]:
        membership.handle_connected(peer_id, 1.0)
    in_use = PEERS[10:12]
    membership.handle_ranking(PEERS[2:9], in_use, 2.0)
    membership.handle_suspected(PEERS[9], 2.0)
    drained(membership, object)
    kept = {*PEERS[:8], PEERS[9], *in_use}
    now = 3.0
    for _ in range(20):
        for hostile in PEERS[100:200]:
            now += 0.001
            membership.make_room(now, in_use, PEERS)
            membership.handle_connected(hostile, now)
            membership.handle_kept(hostile, keeps=True)
            for peer_id in told_to_go(membership):
                assert peer_id not in kept
                membership.handle_disconnected(peer_id, ErrorCode.SURPLUS, now)
            assert len(membership.connected()) <= config.open_max
    assert kept <= set(membership.connected())


def test_nobody_comes_to_be_kept_in_a_crowd_by_dialling_here() -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    for number in range(CONFIG.crowded_max - 1):
        membership.handle_connected(PEERS[number], 1.0)
    assert membership.may_be_near(PEERS[10])
    membership.handle_near(PEERS[10])  # as near as others, and it is no crowd yet
    membership.handle_connected(PEERS[50], 1.0)
    assert membership.is_crowded
    membership.handle_near(PEERS[50])
    membership.handle_connected(PEERS[51], 1.0, PEERS[51])
    kept = [output.peer_id for output in drained(membership, KeepLink) if isinstance(output, KeepLink) and output.keeps]
    assert kept == [*PEERS[: CONFIG.small_mesh], PEERS[10], PEERS[51]]
    assert [membership.may_be_near(peer_id) for peer_id in (*PEERS[10:12], *PEERS[50:52])] == [True, False, False, True]


def test_not_everybody_is_kept_as_near_before_enough_are_known() -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    for peer_id in FULL:
        membership.handle_connected(peer_id, 1.0)
        membership.handle_near(peer_id)
    drained(membership, object)
    assert len(comes(membership, PEERS[100], 60.0)) == CONFIG.surplus_at_once + 1


@pytest.mark.parametrize("others", [3, 4])
def test_full_door_is_tried_again_while_few_others_are_known(others: int) -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    door = PEERS[50]
    membership.add_bootstrap([address(50)], 0.0)
    membership.handle_connected(door, 0.1, door)
    for number, peer_id in enumerate(PEERS[:others]):
        membership.handle_connected(peer_id, 0.2)
        membership.handle_card(peer_id, (address(number),), 0.2)
    drained(membership, object)
    waits, now = [], 0.3
    for _ in range(12):
        membership.handle_disconnected(door, ErrorCode.SURPLUS, now)
        due = membership.next_timer()
        if others >= CONFIG.small_mesh:
            assert due is None
            return
        assert due is not None
        waits.append(due - now)
        now = due
        membership.handle_timer(now)
        assert [connect.target for connect in drained(membership, Connect) if isinstance(connect, Connect)] == [door]
        membership.handle_connected(door, now, door)
        drained(membership, object)
    assert waits[0] <= 2.0 * CONFIG.backoff_min_s
    assert CONFIG.backoff_max_s / 2.0 <= waits[-1] <= CONFIG.backoff_max_s


def test_door_that_was_full_lives() -> None:
    """That it had no room says nothing of its health: it may be given work while it waits to be dialled again."""
    membership = Membership(CONFIG, OWN, random.Random(1))
    membership.add_bootstrap([address(50)], 0.0)
    membership.handle_connected(PEERS[50], 0.1, PEERS[50])
    membership.handle_card(PEERS[50], (address(50),), 0.2)
    for now in (0.3, 1.3, 2.3):
        membership.handle_disconnected(PEERS[50], ErrorCode.SURPLUS, now)
        assert membership.standing(PEERS[50], now) == (Standing.ALIVE, "known by its card")
        membership.handle_connected(PEERS[50], now + 0.9, PEERS[50])


def test_who_is_full_for_good_is_tried_ever_more_seldom() -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    now, waits = 0.0, []
    for _ in range(12):
        membership.handle_connected(PEERS[0], now, PEERS[0])
        membership.handle_disconnected(PEERS[0], ErrorCode.SURPLUS, now + CONFIG.visit_s)
        began = now
        while membership.is_shunned(PEERS[0], now):
            now += 10.0
        waits.append(now - began)
    assert waits[0] == pytest.approx(CONFIG.shunned_s, abs=15.0)
    assert waits[-1] == pytest.approx(CONFIG.shunned_s * 2.0**CONFIG.shunned_doublings_max, abs=15.0)
    membership.handle_connected(PEERS[0], now, PEERS[0])
    membership.handle_disconnected(PEERS[0], ErrorCode.SURPLUS, now + CONFIG.settled_s)
    assert not membership.is_shunned(PEERS[0], now + CONFIG.settled_s + CONFIG.shunned_s)


def test_dial_that_ends_at_a_node_that_has_become_full_is_over() -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    membership.add_bootstrap([address(50)], 0.0)
    for peer_id in FULL:
        membership.handle_connected(peer_id, 1.0)
    for peer_id in PEERS[60 : 60 + RESERVED]:  # the last places are for those whom the node dials
        membership.handle_connected(peer_id, 1.0, peer_id)
    assert told_to_go(membership) == []
    membership.handle_connected(PEERS[50], 1.1, PEERS[50])
    assert told_to_go(membership) == [PEERS[50]]
    assert membership.next_timer() is None


def test_more_connections_than_gossip_talks_with_cannot_be_configured() -> None:
    with pytest.raises(LocalProtocolError, match="open_max is 256"):
        NodeConfig(gossip=GossipConfig(peers_max=255))


@pytest.mark.parametrize("carded", [True, False])
def test_a_door_that_turns_away_is_tried_again_by_who_knows_nobody(carded: bool) -> None:
    """However many have come that tell no card: they tell of nobody."""
    membership = Membership(CONFIG, OWN, random.Random(1))
    door, others = PEERS[0], PEERS[1 : 2 * CONFIG.small_mesh]
    membership.add_bootstrap([address(0)], 0.0)
    (connect,) = drained(membership, Connect)
    membership.handle_connected(door, 0.1, connect.target)
    for number, peer_id in enumerate(others, 1):
        membership.handle_connected(peer_id, 0.2)
        if carded:
            membership.handle_card(peer_id, (address(number),), 0.2)
    drained(membership, Connect)
    membership.handle_disconnected(door, ErrorCode.SURPLUS, 3.0)
    membership.handle_timer(3.0 + CONFIG.backoff_max_s)
    dialled = [output.target for output in drained(membership, Connect)]
    assert (door in dialled) is not carded
