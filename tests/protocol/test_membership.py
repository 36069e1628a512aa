"""Membership: who is alive, and whom to dial."""

import random

import pytest

from protocol.errors import ErrorCode
from protocol.identity import Identity, PeerId
from protocol.membership import Connect, Disconnect, Membership, MembershipConfig, PeerJoined, PeerLeft, Standing
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
    assert drain(small) == [Connect(OTHER, (address(2),))]
    assert drain(large) == []
    large.handle_timer(CONFIG.dial_polite_s)
    assert drain(large) == [Connect(OWN, (address(1),))]


def test_connected_peer_is_alive_until_its_probes_fail() -> None:
    membership = machine()
    membership.handle_connected(OTHER, 0.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    membership.handle_suspected(OTHER, 1.0)
    (left,) = drain(membership)
    assert isinstance(left, PeerLeft)
    assert membership.standing(OTHER, 1.5)[0] is Standing.SUSPECTED
    membership.handle_recovered(OTHER, 2.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    membership.handle_lost(OTHER, 3.0)
    assert Disconnect(OTHER, ErrorCode.IDLE) in drain(membership)
    assert membership.standing(OTHER, 3.0)[0] is Standing.GONE


@pytest.mark.parametrize("code", [ErrorCode.GOODBYE, ErrorCode.IDLE, ErrorCode.INTERNAL])
def test_late_beats_do_not_bring_back_who_has_left(code: ErrorCode) -> None:
    membership = machine()
    membership.handle_connected(OTHER, 0.0)
    membership.handle_disconnected(OTHER, code, 1.0)
    membership.handle_beat(OTHER, 1.1)
    assert membership.standing(OTHER, 1.2)[0] is Standing.GONE
    membership.handle_connected(OTHER, 2.0)
    assert membership.standing(OTHER, 2.0)[0] is Standing.ALIVE


def test_unconnected_peer_lives_by_its_beats() -> None:
    membership = machine()
    membership.handle_beat(OTHER, 0.0)
    assert drain(membership) == [PeerJoined(OTHER)]
    due = membership.next_timer()
    assert due == CONFIG.beat_fresh_s
    membership.handle_timer(due)
    (left,) = drain(membership)
    assert isinstance(left, PeerLeft)
    assert membership.next_timer() is None


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


def test_forgotten_peer_is_unknown() -> None:
    membership = machine()
    membership.handle_beat(OTHER, 0.0)
    membership.forget(OTHER)
    assert drain(membership)[-1] == PeerLeft(OTHER, "its card expired")
    assert membership.standing(OTHER, 0.0)[0] is Standing.UNKNOWN
