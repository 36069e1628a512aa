"""Membership: who is alive, and whom to dial."""

import random

import pytest

from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.membership import (
    Connect,
    Disconnect,
    Membership,
    MembershipConfig,
    PeerForgotten,
    PeerGone,
    PeerJoined,
    PeerLeft,
    Standing,
)
from protocol.multiaddr import Multiaddr, parse_multiaddr

IDS = sorted(Identity.from_seed(bytes([n]) * 32).peer_id for n in range(1, 6))
OWN, OTHER = IDS[0], IDS[1]
CONFIG = MembershipConfig()


def address(port: int, peer_id: PeerId | None = None) -> Multiaddr:
    return parse_multiaddr(f"/ip4/192.0.2.1/udp/{port}/quic-v1").with_peer(peer_id)


def machine(own: PeerId = OWN, config: MembershipConfig = CONFIG) -> Membership:
    return Membership(config, own, random.Random(1))


def drain(membership: Membership) -> list[object]:
    outputs = []
    while (output := membership.next_output()) is not None:
        outputs.append(output)
    return outputs


def drained(membership: Membership, kind: type) -> list[object]:
    return [output for output in drain(membership) if isinstance(output, kind)]


def wait(membership: Membership, until: float) -> list[tuple[float, object]]:
    """Lets time pass; what came out, and when."""
    came = []
    while (due := membership.next_timer()) is not None and due <= until:
        membership.handle_timer(due)
        came += [(due, output) for output in drain(membership)]
    return came


def test_bootstrap_address_is_dialled_at_once_and_again_after_the_backoff() -> None:
    membership = machine()
    membership.add_bootstrap([address(1)], 0.0)
    (connect,) = drain(membership)
    assert isinstance(connect, Connect)
    assert connect.addresses == (address(1),)
    membership.handle_dial_failed(connect.target, 1.0)
    assert drain(membership) == []
    due = membership.next_timer()
    assert due is not None
    assert 1.0 < due <= 1.0 + 2 * CONFIG.backoff_min_s
    membership.handle_timer(due)
    assert drain(membership) == [connect]


def test_backoff_grows_to_its_bound_and_never_past_it() -> None:
    membership = machine()
    membership.add_bootstrap([address(1)], 0.0)
    now, waits = 0.0, []
    for _ in range(40):
        (connect,) = drain(membership)
        assert isinstance(connect, Connect)
        membership.handle_dial_failed(connect.target, now)
        due = membership.next_timer()
        assert due is not None
        waits.append(due - now)
        now = due
        membership.handle_timer(now)
    assert max(waits) <= CONFIG.backoff_max_s
    assert min(waits[-10:]) >= CONFIG.backoff_max_s / 2


def test_own_address_among_the_bootstrap_addresses_is_given_up() -> None:
    membership = machine()
    membership.add_bootstrap([address(1)], 0.0)
    (connect,) = drain(membership)
    assert isinstance(connect, Connect)
    membership.handle_connected(OWN, 0.1, connect.target)
    membership.handle_timer(100.0)
    assert drain(membership) == []
    assert membership.connected() == []


def test_smaller_id_dials_first() -> None:
    small, large = machine(OWN), machine(OTHER)
    small.handle_card(OTHER, (address(2),), 0.0)
    large.handle_card(OWN, (address(1),), 0.0)
    assert drained(small, Connect) == [Connect(OTHER, (address(2),))]
    assert drained(large, Connect) == []
    large.handle_timer(CONFIG.dial_polite_s)
    assert drain(large) == [Connect(OWN, (address(1),))]


def test_connected_peer_is_alive_until_its_probes_fail() -> None:
    membership = machine()
    membership.handle_connected(OTHER, 0.0)
    assert drained(membership, PeerJoined) == [PeerJoined(OTHER)]
    membership.handle_suspected(OTHER, 1.0)
    (left,) = drain(membership)
    assert isinstance(left, PeerLeft)
    assert membership.standing(OTHER, 1.5)[0] is Standing.SUSPECTED
    membership.handle_recovered(OTHER, 2.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 500.0) == []


def test_silent_peer_is_suspected_then_gone_then_disconnected_then_forgotten() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0, OTHER)
    membership.handle_suspected(OTHER, 10.0)
    drain(membership)
    stages = wait(membership, 10.0 + CONFIG.gone_after_s)
    assert [output for _, output in stages] == [PeerGone(OTHER, "stopped answering")]
    assert membership.standing(OTHER, 15.0) == (Standing.GONE, "stopped answering")
    assert membership.is_connected(OTHER)
    closed_at = 10.0 + CONFIG.gone_after_s + CONFIG.linger_s
    stages = wait(membership, closed_at)
    assert [(at, output) for at, output in stages if isinstance(output, Disconnect)] == [
        (closed_at, Disconnect(OTHER, ErrorCode.IDLE))
    ]
    assert {output for _, output in stages if isinstance(output, Connect)} == {Connect(OTHER, (address(2),), afresh=True)}
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, closed_at)
    stages = wait(membership, 1000.0)
    assert [(at, output) for at, output in stages if isinstance(output, PeerForgotten)] == [
        (closed_at + CONFIG.forget_after_s, PeerForgotten(OTHER))
    ]
    assert membership.standing(OTHER, 1000.0)[0] is Standing.UNKNOWN
    assert membership.next_timer() is None  # and it is dialled no more


def test_peer_that_was_started_again_is_found_by_a_fresh_dial_while_the_old_connection_lingers() -> None:
    """The old life's connection says nothing, and the new life does not know of it."""
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0, OTHER)
    membership.handle_suspected(OTHER, 10.0)
    drain(membership)
    redialled_at = 10.0 + CONFIG.gone_after_s + CONFIG.backoff_min_s
    dials = [output for _, output in wait(membership, redialled_at) if isinstance(output, Connect)]
    assert dials == [Connect(OTHER, (address(2),), afresh=True)]
    membership.handle_connected(OTHER, redialled_at, OTHER)
    assert membership.standing(OTHER, redialled_at) == (Standing.ALIVE, "connected")
    assert PeerJoined(OTHER) in drain(membership)
    assert wait(membership, 500.0) == []


def test_peer_that_answers_again_while_its_connection_lingers_is_back_at_once() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0, OTHER)
    membership.handle_suspected(OTHER, 10.0)
    wait(membership, 50.0)
    membership.handle_recovered(OTHER, 50.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 500.0) == []


@pytest.mark.parametrize("code", [ErrorCode.GOODBYE, ErrorCode.IDLE, ErrorCode.INTERNAL])
def test_late_cards_do_not_bring_back_who_has_left(code: ErrorCode) -> None:
    """Cards may still be under way; only a greater incarnation, or a connection, brings a peer back."""
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0)
    membership.handle_disconnected(OTHER, code, 1.0)
    membership.handle_card(OTHER, (address(3),), 1.1)
    assert membership.standing(OTHER, 1.2)[0] is Standing.GONE
    drain(membership)
    membership.handle_card(OTHER, (address(3),), 1.3, renewed=True)
    assert membership.standing(OTHER, 1.4) == (Standing.ALIVE, "known by its card")
    assert PeerJoined(OTHER) in drain(membership)
    membership.handle_connected(OTHER, 2.0)
    membership.handle_disconnected(OTHER, code, 3.0)
    membership.handle_connected(OTHER, 4.0)
    assert membership.standing(OTHER, 4.0) == (Standing.ALIVE, "connected")


def test_connection_that_is_noted_without_a_card_does_not_outlive_itself() -> None:
    membership = machine()
    membership.handle_connected(OTHER, 0.0)
    membership.handle_disconnected(OTHER, ErrorCode.INTERNAL, 10.0)
    assert membership.standing(OTHER, 10.0)[0] is Standing.GONE
    drain(membership)
    assert [output for _, output in wait(membership, 500.0)] == [PeerForgotten(OTHER)]


def test_unconnected_peer_is_alive_by_its_card_until_others_doubt_it() -> None:
    membership = machine(config=MembershipConfig(small_mesh=0))
    membership.handle_card(OTHER, (address(2),), 0.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 5000.0) == []
    membership.handle_doubted(OTHER, 5000.0)
    (left,) = drain(membership)
    assert isinstance(left, PeerLeft)
    assert membership.standing(OTHER, 5001.0)[0] is Standing.SUSPECTED
    membership.handle_cleared(OTHER, 5002.0, heard=True)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 9000.0) == []


def test_unconnected_peer_that_stays_doubted_is_gone_and_then_forgotten() -> None:
    membership = machine(config=MembershipConfig(small_mesh=0))
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_doubted(OTHER, 10.0)
    drain(membership)
    gone_at = 10.0 + CONFIG.gone_after_s
    assert wait(membership, 5000.0) == [
        (gone_at, PeerGone(OTHER, "others have lost it")),
        (gone_at + CONFIG.forget_after_s, PeerForgotten(OTHER)),
    ]


def test_what_others_say_of_a_connected_peer_decides_nothing_once_it_has_answered() -> None:
    """Two liars, or a cut between others: the peer is given no work until it answers this node's own probes."""
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0)
    drain(membership)
    membership.handle_doubted(OTHER, 1.0)
    (left,) = drain(membership)
    assert isinstance(left, PeerLeft)
    assert membership.standing(OTHER, 1.0)[0] is Standing.SUSPECTED
    membership.handle_heard(OTHER, 1.1)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 500.0) == []
    membership.handle_doubted(OTHER, 500.0)  # the same again
    assert drain(membership) == []
    assert membership.standing(OTHER, 500.0) == (Standing.ALIVE, "connected")


def test_what_others_say_of_a_peer_that_has_just_answered_changes_nothing() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0)
    drain(membership)
    membership.handle_doubted(OTHER, 1.0, heard=True)
    assert drain(membership) == []
    assert membership.standing(OTHER, 1.0) == (Standing.ALIVE, "connected")


def test_node_that_was_held_up_declares_nobody_dead_for_it() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0, OTHER)
    membership.handle_suspected(OTHER, 10.0)
    drain(membership)
    membership.handle_stall(4.0, 15.0)
    assert wait(membership, 19.9) == []
    ((gone_at, _), *_) = wait(membership, 21.0)
    assert gone_at == 10.0 + CONFIG.gone_after_s + 4.0
    membership.handle_stall(4.0, 30.0)  # who is gone already stays so
    assert membership.standing(OTHER, 30.0)[0] is Standing.GONE


def test_node_that_was_held_up_until_the_last_moment_still_listens() -> None:
    membership = machine()
    membership.handle_connected(OTHER, 0.0)
    membership.handle_suspected(OTHER, 10.0)
    drain(membership)
    membership.handle_stall(0.3, 10.0 + CONFIG.gone_after_s)
    ((gone_at, gone),) = wait(membership, 20.0)
    assert gone == PeerGone(OTHER, "stopped answering")
    assert gone_at == 10.0 + CONFIG.gone_after_s + CONFIG.hearing_s


def test_dials_that_failed_before_a_peer_was_started_again_are_not_held_against_it() -> None:
    membership = machine(config=MembershipConfig(connections_max=1, small_mesh=0))
    membership.add_bootstrap([address(2, OTHER)], 0.0)
    membership.handle_dial_failed(OTHER, 5.0)
    membership.handle_connected(IDS[2], 6.0)  # no connection is free any more, so no dial will tell
    membership.handle_card(OTHER, (address(2),), 7.0)
    assert membership.standing(OTHER, 7.0)[0] is Standing.SUSPECTED
    membership.handle_card(OTHER, (address(2),), 8.0, renewed=True)
    assert membership.standing(OTHER, 8.0)[0] is Standing.ALIVE


def test_doubt_that_is_cleared_brings_back_who_was_gone() -> None:
    membership = machine(config=MembershipConfig(small_mesh=0))
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_doubted(OTHER, 10.0)
    wait(membership, 30.0)
    membership.handle_cleared(OTHER, 30.0, heard=True)
    assert drain(membership) == [PeerJoined(OTHER)]
    assert wait(membership, 5000.0) == []


def test_doubt_that_merely_runs_out_brings_nobody_back() -> None:
    """The accusers have forgotten the dead peer, some sooner and some later."""
    membership = machine(config=MembershipConfig(small_mesh=0))
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_doubted(OTHER, 10.0)
    wait(membership, 30.0)
    membership.handle_cleared(OTHER, 30.0, heard=False)
    assert drain(membership) == []
    assert membership.standing(OTHER, 31.0)[0] is Standing.GONE
    assert [output for _, output in wait(membership, 5000.0)] == [PeerForgotten(OTHER)]


def test_peer_that_cannot_be_reached_is_given_no_work() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    assert PeerJoined(OTHER) in drain(membership)
    membership.handle_dial_failed(OTHER, 5.0)
    assert drain(membership) == [PeerLeft(OTHER, "could not be reached")]
    assert membership.standing(OTHER, 5.0) == (Standing.SUSPECTED, "could not be reached")


def dialled(membership: Membership, now: float) -> float:
    """When the next dial begins."""
    while True:
        if drained(membership, Connect):
            return now
        due = membership.next_timer()
        assert due is not None
        now = max(now, due)
        membership.handle_timer(now)


def test_one_dial_that_is_lost_is_not_held_against_a_peer_that_was_connected() -> None:
    """Where 30 % of all packets are lost one dial in 29 is, and no more is known of the peer than before."""
    membership = machine(config=MembershipConfig(small_mesh=0))
    membership.handle_card(OTHER, (address(2),), 0.0)
    for began in (1.0, 1001.0):  # a connection between two pairs of dials starts the count anew
        membership.handle_connected(OTHER, began)
        membership.handle_disconnected(OTHER, ErrorCode.SURPLUS, began + 100.0)
        drain(membership)
        membership.handle_ranking([OTHER], (), began + 300.0)
        now = dialled(membership, began + 300.0)
        membership.handle_dial_failed(OTHER, now + 5.0)
        assert membership.standing(OTHER, now + 5.0)[0] is Standing.ALIVE
        again = dialled(membership, now + 5.0)
        assert now + 5.0 < again <= now + 5.0 + CONFIG.backoff_min_s
        membership.handle_dial_failed(OTHER, again + 5.0)
        assert membership.standing(OTHER, again + 5.0) == (Standing.SUSPECTED, "could not be reached")


LOST_AT = 20.0 + CONFIG.gone_after_s


def lost_for_its_silence(membership: Membership) -> float:
    """A peer that is gone, whose connection was given up and that nobody else accuses; when a dial of it has just failed."""
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 1.0)
    membership.handle_suspected(OTHER, 20.0)
    wait(membership, 30.0)
    membership.handle_disconnected(OTHER, ErrorCode.SURPLUS, 40.0)  # what it closes for does not count, ISO-MEMBER-017
    drain(membership)
    now = 40.0
    for _ in range(3):  # so that the next dial is seconds away
        now = dialled(membership, now) + 5.0
        membership.handle_dial_failed(OTHER, now)
    assert membership.standing(OTHER, now) == (Standing.GONE, "stopped answering")
    return now


def test_peer_that_fell_silent_is_back_when_it_has_signed_something_since_and_is_dialled_at_once() -> None:
    membership = machine()
    now = lost_for_its_silence(membership)
    membership.handle_signed(OTHER, LOST_AT - 0.01, now)  # what was on its way for long says nothing
    assert drain(membership) == []
    membership.handle_signed(OTHER, LOST_AT + 0.01, now)
    assert sorted(drain(membership), key=str) == [Connect(OTHER, (address(2),)), PeerJoined(OTHER)]
    membership.handle_signed(OTHER, LOST_AT + 0.02, now)
    assert drain(membership) == []


def test_what_a_peer_signs_outweighs_neither_the_doubts_of_others_nor_its_goodbye() -> None:
    membership = machine()
    now = lost_for_its_silence(membership)
    membership.handle_doubted(OTHER, now)
    membership.handle_signed(OTHER, now + 0.1, now + 0.1)
    assert membership.standing(OTHER, now + 0.1)[0] is Standing.GONE
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 1.0)
    membership.handle_disconnected(OTHER, ErrorCode.GOODBYE, 2.0)
    membership.handle_signed(OTHER, 3.0, 3.0)
    assert membership.standing(OTHER, 3.0) == (Standing.GONE, "said goodbye")


def test_tables_and_dials_stay_within_their_bounds() -> None:
    config = MembershipConfig(peers_max=3, dials_max=2, bootstrap_max=2)
    membership = machine(config=config)
    for index, peer_id in enumerate(IDS[1:]):
        membership.handle_card(peer_id, (address(index + 1),), 0.0)
    connects = [output for output in drain(membership) if isinstance(output, Connect)]
    assert len(connects) == 2
    assert membership.standing(IDS[4], 0.0)[0] is Standing.UNKNOWN


def test_lost_bootstrap_peer_is_dialled_again() -> None:
    membership = machine()
    membership.add_bootstrap([address(1, OTHER)], 0.0)
    assert drain(membership) == [Connect(OTHER, (address(1, OTHER),))]
    membership.handle_connected(OTHER, 0.1, OTHER)
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, 5.0)
    drain(membership)
    due = membership.next_timer()
    assert due is not None
    membership.handle_timer(due)
    assert drain(membership) == [Connect(OTHER, (address(1, OTHER),))]


def test_full_table_makes_room_by_dropping_who_is_away() -> None:
    config = MembershipConfig(peers_max=2)
    membership = machine(config=config)
    membership.handle_connected(IDS[1], 0.0)
    membership.handle_connected(IDS[2], 0.0)
    membership.handle_connected(IDS[3], 0.0)
    assert membership.connected() == IDS[1:3]  # nobody is away
    membership.handle_disconnected(IDS[1], ErrorCode.GOODBYE, 1.0)
    membership.handle_connected(IDS[3], 2.0)
    assert membership.connected() == IDS[2:4]
    assert membership.standing(IDS[1], 2.0)[0] is Standing.UNKNOWN


def test_crowd_of_short_lived_identities_locks_nobody_out() -> None:
    config = MembershipConfig(peers_max=8)
    membership = machine(config=config)
    for number in range(100):
        invented = PeerId(number.to_bytes(4, "big"))
        membership.handle_connected(invented, float(number))
        membership.handle_disconnected(invented, ErrorCode.IDLE, number + 0.5)
    membership.handle_connected(OTHER, 200.0)
    assert membership.standing(OTHER, 200.0)[0] is Standing.ALIVE
    assert len(membership._peers) <= 8


def test_dials_wait_without_being_looked_at_while_no_connection_is_free() -> None:
    config = MembershipConfig(connections_max=1)
    membership = machine(config=config)
    membership.handle_connected(IDS[1], 0.0)
    for index in (2, 3):
        membership.handle_card(IDS[index], (address(index),), 0.0)
    assert drained(membership, Connect) == []
    assert membership.next_timer() is None
    membership.handle_disconnected(IDS[1], ErrorCode.IDLE, 10.0)
    (connect,) = [output for output in drain(membership) if isinstance(output, Connect)]
    assert connect.target in IDS[2:4]


def test_dial_that_is_never_answered_for_frees_its_place() -> None:
    membership = machine(config=MembershipConfig(dials_max=1))
    membership.add_bootstrap([address(1), address(2)], 0.0)
    (first,) = drain(membership)
    due = membership.next_timer()
    assert due == CONFIG.dial_address_s
    membership.handle_timer(due)
    (second,) = drain(membership)
    assert {first.addresses, second.addresses} == {(address(1),), (address(2),)}
    membership.handle_dial_failed(first.target, due)  # a late word changes nothing
    assert drain(membership) == []


def test_connections_that_do_not_last_are_dialled_ever_more_seldom() -> None:
    membership = machine()
    membership.add_bootstrap([address(1, OTHER)], 0.0)
    now, waits = 0.0, []
    for _ in range(12):
        (connect,) = [output for output in drain(membership) if isinstance(output, Connect)]
        membership.handle_connected(OTHER, now, connect.target)
        membership.handle_connected(OTHER, now)  # as the shell does with a second stream
        membership.handle_disconnected(OTHER, ErrorCode.OVERLOADED, now + 0.1)
        due = membership.next_timer()
        assert due is not None
        waits.append(due - now - 0.1)
        now = due
        membership.handle_timer(now)
    assert min(waits[-3:]) >= CONFIG.backoff_max_s / 2
    (connect,) = [output for output in drain(membership) if isinstance(output, Connect)]
    membership.handle_connected(OTHER, now, connect.target)
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, now + CONFIG.settled_s)
    due = membership.next_timer()
    assert due is not None
    assert due - now - CONFIG.settled_s <= CONFIG.backoff_min_s


def test_new_address_is_tried_without_waiting_for_the_backoff() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    now = 0.0
    for _ in range(8):
        membership.handle_dial_failed(OTHER, now)
        due = membership.next_timer()
        assert due is not None
        now = due
        membership.handle_timer(now)
    membership.handle_dial_failed(OTHER, now)
    drain(membership)
    membership.handle_card(OTHER, (address(2),), now)
    assert drain(membership) == []
    membership.handle_card(OTHER, (address(3),), now)
    assert drain(membership) == [Connect(OTHER, (address(3),))]


def test_bootstrap_address_whose_peer_was_replaced_is_found_again() -> None:
    """The address was given without a peer id; after some failures whoever answers there is welcome."""
    membership = machine()
    membership.add_bootstrap([address(1)], 0.0)
    (connect,) = drain(membership)
    membership.handle_connected(OTHER, 0.1, connect.target)
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, 10.0)
    now, connects = 10.0, []
    while not connects:
        due = membership.next_timer()
        assert due is not None
        now = due
        membership.handle_timer(now)
        for output in drain(membership):
            if isinstance(output, Connect) and output.target == OTHER:
                membership.handle_dial_failed(OTHER, now)
            elif isinstance(output, Connect):
                connects.append(output)
    assert now < 30.0
    assert connects == [Connect(str(address(1)), (address(1),))]
    membership.handle_connected(IDS[2], now, connects[0].target)
    assert membership.is_connected(IDS[2])


def test_card_that_expires_leaves_the_bootstrap_dial_and_its_backoff_alone() -> None:
    membership = machine()
    membership.add_bootstrap([address(1, OTHER)], 0.0)
    membership.handle_card(OTHER, (address(1, OTHER),), 0.0)
    for _ in range(10):
        membership.handle_dial_failed(OTHER, 0.0)
        membership.handle_timer(membership.next_timer() or 0.0)
    before = membership.next_timer()
    drain(membership)
    membership.forget(OTHER)
    assert membership.next_timer() == before
    assert drain(membership) == []


def test_peer_whose_card_expired_while_connected_is_not_dialled_when_it_leaves() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.1, OTHER)
    membership.forget(OTHER)
    assert membership.standing(OTHER, 1.0)[0] is Standing.ALIVE
    drain(membership)
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, 10.0)
    drain(membership)
    assert [output for _, output in wait(membership, 500.0)] == [PeerForgotten(OTHER)]


def test_forgotten_peer_is_unknown() -> None:
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.forget(OTHER)
    assert drain(membership)[-1] == PeerLeft(OTHER, "its card expired")
    assert membership.standing(OTHER, 0.0)[0] is Standing.UNKNOWN


def test_peers_that_nobody_has_met_leave_half_of_the_dials_to_those_that_were_connected() -> None:
    """Anybody can sign cards of peers that are nowhere; each of them holds up a dial for as long as it may take."""
    membership = machine()
    membership.handle_card(OTHER, (address(2),), 0.0)
    membership.handle_connected(OTHER, 0.0, OTHER)
    membership.handle_disconnected(OTHER, ErrorCode.IDLE, 60.0)
    drain(membership)
    for number in range(64):
        invented = Identity.from_seed(bytes([100, number]) * 16).peer_id
        membership.handle_card(invented, (address(100 + number),), 60.0)
    dialled = [(60.0, output) for output in drain(membership)] + wait(membership, 65.0)
    targets = [(at, output.target) for at, output in dialled if isinstance(output, Connect)]
    before = [target for _, target in targets].index(OTHER)
    assert before == CONFIG.dials_max // 2
    assert targets[before][0] <= 60.0 + 2 * CONFIG.backoff_min_s  # it was not late
    assert len(targets) == CONFIG.dials_max  # nobody who was met waits any more
