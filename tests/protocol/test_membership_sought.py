"""Peers that are sought: dialled at once, because a request wants to know how far they are."""

from test_membership import IDS, OTHER, OWN, address, drain, drained, machine, wait

from protocol.identity import PeerId
from protocol.membership import Connect, Membership, MembershipConfig, Standing


def large_mesh(**named: int) -> Membership:
    """A node that knows others by their cards and dials none of them of itself."""
    membership = machine(config=MembershipConfig(small_mesh=0, **named))
    for number, peer_id in enumerate(IDS[1:], 1):
        membership.handle_card(peer_id, (address(number),), 0.0)
    drain(membership)
    return membership


def test_a_peer_that_is_sought_is_dialled_at_once_and_once() -> None:
    membership = large_mesh()
    assert wait(membership, 100.0) == []
    assert membership.handle_sought(OTHER, 100.0)
    assert [connect.target for connect in drained(membership, Connect)] == [OTHER]
    assert membership.handle_sought(OTHER, 100.1)
    assert drained(membership, Connect) == []
    membership.handle_connected(OTHER, 100.2, OTHER)
    assert not membership.handle_sought(OTHER, 100.3)
    assert not membership.handle_sought(PeerId(b"nobody"), 100.3)
    assert not membership.handle_sought(OWN, 100.3)


def test_a_peer_that_is_sought_again_after_it_was_not_reached_is_left_to_the_backoff() -> None:
    membership = large_mesh()
    membership.handle_sought(OTHER, 0.0)
    for now in (1.0, 40.0):
        for _ in wait(membership, now):
            pass
        membership.handle_dial_failed(OTHER, now)
    drain(membership)
    assert membership.standing(OTHER, 40.0)[0] is not Standing.ALIVE
    assert not membership.handle_sought(OTHER, 40.0)
    assert drained(membership, Connect) == []


def test_who_is_sought_is_dialled_within_the_bounds_of_dials() -> None:
    membership = large_mesh(dials_max=2)
    assert [membership.handle_sought(peer_id, 0.0) for peer_id in IDS[1:]] == [True, True, False, False]
    assert len(drained(membership, Connect)) == 2
