"""Membership in a large mesh: which connections a node keeps, makes and closes."""

import random

import pytest

from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.membership import Connect, Disconnect, KeepLink, Membership, MembershipConfig, Standing
from protocol.multiaddr import Multiaddr, parse_multiaddr

OWN, *PEERS = sorted(Identity.from_seed(n.to_bytes(2, "big") * 16).peer_id for n in range(41))
CONFIG = MembershipConfig(small_mesh=4, near_max=6, far_max=2, surplus_at_once=2)
LATER = CONFIG.surplus_after_s + 1.0


def address(number: int) -> Multiaddr:
    return parse_multiaddr(f"/ip4/192.0.2.1/udp/{number + 1}/quic-v1")


def drained(membership: Membership, kind: type) -> list[object]:
    outputs = []
    while (output := membership.next_output()) is not None:
        outputs.append(output)
    return [output for output in outputs if isinstance(output, kind)]


def crowded(connected: int, config: MembershipConfig = CONFIG, seed: int = 1) -> Membership:
    """A node that knows forty peers, of whom so many have dialled it, after the time of grace."""
    membership = Membership(config, OWN, random.Random(seed))
    for peer_id in PEERS[:connected]:
        membership.handle_connected(peer_id, 0.0)
    for number, peer_id in enumerate(PEERS):
        membership.handle_card(peer_id, (address(number),), 0.0)
    return membership


def links(membership: Membership) -> tuple[set[PeerId], set[PeerId]]:
    """Whom the node said it keeps, and whom it said it keeps no more, in what came out."""
    said = {output.peer_id: output.keeps for output in drained(membership, KeepLink)}
    return {peer_id for peer_id, keeps in said.items() if keeps}, {peer_id for peer_id, keeps in said.items() if not keeps}


def test_everybody_is_dialled_while_the_mesh_is_small_and_then_nobody() -> None:
    membership = Membership(CONFIG, OWN, random.Random(1))
    now = 0.0
    for number, peer_id in enumerate(PEERS):
        now += 1.0
        membership.handle_card(peer_id, (address(number),), now)
        membership.handle_timer(now + 0.5)
        for connect in drained(membership, Connect):
            membership.handle_connected(connect.target, now + 0.6, connect.target)
    assert membership.connected() == PEERS[: CONFIG.small_mesh]
    assert all(membership.standing(peer_id, now)[0] is Standing.ALIVE for peer_id in PEERS)


def test_first_peers_that_a_node_dials_are_far_links_and_the_bound_is_kept() -> None:
    membership = crowded(0)
    for peer_id in PEERS[:10]:
        membership.handle_connected(peer_id, 1.0, peer_id)
    assert links(membership)[0] == set(PEERS[:10])  # nobody is dialled who is not wanted
    nearest = PEERS[20:26]
    membership.handle_ranking(nearest, (), 2.0)
    assert links(membership) == (set(), set(PEERS[CONFIG.far_max : 10]))  # the far links stay, near is who is nearest
    assert all(membership.is_far(peer_id) for peer_id in PEERS[: CONFIG.far_max])
    assert not any(membership.is_far(peer_id) for peer_id in PEERS[CONFIG.far_max : 10])


def test_near_peer_that_has_dialled_since_the_last_ranking_is_kept_at_once() -> None:
    membership = crowded(10)
    membership.handle_ranking(PEERS[20:26], (), 1.0)
    drained(membership, object)
    newcomer = PEERS[12]
    membership.handle_connected(newcomer, 2.0)
    membership.handle_near(newcomer)
    membership.handle_near(newcomer)
    assert drained(membership, KeepLink) == [KeepLink(newcomer, keeps=True)]
    membership.handle_near(PEERS[9])  # the ranking has looked at it
    membership.handle_near(PEERS[13])  # it is not connected
    assert drained(membership, KeepLink) == []


def test_nearest_peers_are_kept_and_the_others_are_not() -> None:
    membership = crowded(20)
    nearest = PEERS[15:21]
    drained(membership, object)
    membership.handle_ranking(nearest, (), 1.0)
    kept, dropped = links(membership)
    assert kept | dropped <= set(PEERS[:20])
    membership.handle_ranking(PEERS[:6], (), 2.0)
    kept, dropped = links(membership)
    assert kept <= set(PEERS[:6])
    assert dropped == set(PEERS[15:20])


def test_near_peers_are_dialled_a_few_at_a_time_and_far_links_filled_up() -> None:
    membership = crowded(CONFIG.small_mesh)
    membership.handle_ranking(PEERS[30:40], (), LATER)
    membership.handle_timer(LATER + CONFIG.dial_polite_s)
    dialled = [connect.target for connect in drained(membership, Connect)]
    assert dialled[: CONFIG.surplus_at_once] == PEERS[30 : 30 + CONFIG.surplus_at_once]  # nearest first
    assert len(dialled) == CONFIG.surplus_at_once + 1
    assert dialled[-1] not in PEERS[30 : 30 + CONFIG.near_max]
    for target in dialled:
        membership.handle_connected(target, LATER + 1.0, target)
    assert sum(membership.is_far(peer_id) for peer_id in membership.connected()) == CONFIG.far_max


def test_peers_that_only_seem_near_are_dialled_after_the_nearest_and_displace_nobody() -> None:
    membership = crowded(10)
    membership.handle_ranking(PEERS[:6], (), 1.0)
    drained(membership, object)
    seeming = [PEERS[5], *PEERS[20:30]]
    membership.handle_ranking([*PEERS[:5], PEERS[12]], (), LATER, seeming=seeming)  # one of the nearest is not connected
    membership.handle_timer(LATER + CONFIG.dial_polite_s)
    outputs = drained(membership, object)
    assert KeepLink(PEERS[5], keeps=False) not in outputs  # what it is will be known when it is measured
    dialled = [output.target for output in outputs if isinstance(output, Connect)]
    assert dialled[:2] == [PEERS[12], PEERS[20]]
    assert len(dialled) == 3  # the last for a far link
    assert dialled[2] not in (*PEERS[:6], PEERS[12], PEERS[20])
    membership.handle_connected(PEERS[20], LATER + 1.0, PEERS[20])
    membership.handle_ranking(PEERS[:6], (), LATER + 2.0)  # it was measured, and is not as near
    assert links(membership)[1] == {PEERS[20]} - {peer for peer in PEERS if membership.is_far(peer)}


def test_connections_that_neither_end_keeps_are_closed_a_few_at_a_time_down_to_the_bound() -> None:
    membership = crowded(30)
    closed: set[PeerId] = set()
    now = LATER
    for _ in range(40):
        membership.handle_ranking(PEERS[:6], PEERS[6:7], now)
        batch = drained(membership, Disconnect)
        assert len(batch) <= CONFIG.surplus_at_once
        for disconnect in batch:
            assert disconnect.code is ErrorCode.SURPLUS
            membership.handle_disconnected(disconnect.peer_id, disconnect.code, now)
            closed.add(disconnect.peer_id)
        now += 1.0
    assert len(membership.connected()) == CONFIG.near_max + CONFIG.far_max
    assert not closed & set(PEERS[:7])  # the near ones, and those of gossip's mesh


def test_connection_that_the_other_end_keeps_is_not_closed() -> None:
    membership = crowded(30)
    for peer_id in PEERS[:25]:
        membership.handle_kept(peer_id, keeps=True)
    for turn in range(20):
        membership.handle_ranking(PEERS[30:36], (), LATER + turn)
        for disconnect in drained(membership, Disconnect):
            assert disconnect.peer_id not in PEERS[:25]
            membership.handle_disconnected(disconnect.peer_id, disconnect.code, LATER + turn)
    assert membership.listeners() == PEERS[:25]
    membership.handle_kept(PEERS[0], keeps=False)
    assert membership.listeners() == PEERS[1:25]
    membership.handle_ranking(PEERS[30:36], (), LATER + 30.0)
    assert PEERS[0] in {disconnect.peer_id for disconnect in drained(membership, Disconnect)}


def test_young_and_silent_connections_are_not_surplus() -> None:
    membership = crowded(30)
    membership.handle_ranking(PEERS[:6], (), CONFIG.surplus_after_s - 0.1)
    assert drained(membership, Disconnect) == []
    for peer_id in PEERS[6:30]:
        membership.handle_suspected(peer_id, CONFIG.surplus_after_s)
    membership.handle_ranking(PEERS[:6], (), LATER)
    assert drained(membership, Disconnect) == []


@pytest.mark.parametrize("own_doing", [True, False])
def test_peer_whose_connection_was_surplus_lives_and_is_left_alone_for_a_while(own_doing: bool) -> None:
    membership = crowded(30)
    drained(membership, object)
    if own_doing:
        membership.handle_ranking(PEERS[:6], (), LATER)
        (parted, *_) = [disconnect.peer_id for disconnect in drained(membership, Disconnect)]
    else:
        parted = PEERS[29]
    membership.handle_disconnected(parted, ErrorCode.SURPLUS, LATER)
    assert membership.standing(parted, LATER) == (Standing.ALIVE, "known by its card")
    membership.handle_ranking([parted], (), LATER + CONFIG.shunned_s - 1.0)
    membership.handle_timer(LATER + CONFIG.shunned_s - 0.5)
    assert parted not in {connect.target for connect in drained(membership, Connect)}
    membership.handle_ranking([parted], (), LATER + CONFIG.shunned_s)
    membership.handle_timer(LATER + CONFIG.shunned_s + 0.5)
    assert parted in {connect.target for connect in drained(membership, Connect)}


def test_suspected_peer_cannot_call_its_connection_surplus_to_stay_alive() -> None:
    membership = crowded(10)
    membership.handle_suspected(PEERS[0], 1.0)
    membership.handle_disconnected(PEERS[0], ErrorCode.SURPLUS, 2.0)
    assert membership.standing(PEERS[0], 2.0)[0] is Standing.GONE


def test_lost_link_is_dialled_again_and_a_lost_connection_that_nobody_kept_too() -> None:
    """Who is gone is dialled until it is forgotten: nothing else would find it when it comes back."""
    membership = crowded(10)
    membership.handle_ranking(PEERS[:6], (), 1.0)
    for peer_id in (PEERS[0], PEERS[9]):
        membership.handle_disconnected(peer_id, ErrorCode.IDLE, 10.0)
    membership.handle_timer(11.0)
    assert {connect.target for connect in drained(membership, Connect)} >= {PEERS[0], PEERS[9]}


def test_far_links_are_chosen_by_chance() -> None:
    chosen = set()
    for seed in range(40):
        membership = crowded(CONFIG.small_mesh, seed=seed)
        membership.handle_ranking(PEERS[:6], (), LATER)
        membership.handle_timer(LATER + 1.0)
        chosen |= {connect.target for connect in drained(membership, Connect) if connect.target not in PEERS[:6]}
    assert len(chosen) > 15


def test_keeping_is_told_again_on_a_new_stream() -> None:
    membership = crowded(1)
    membership.handle_connected(PEERS[0], 1.0)
    assert drained(membership, KeepLink)[-1] == KeepLink(PEERS[0], keeps=True)
