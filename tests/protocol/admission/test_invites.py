"""Uses of invitations: counted once for each peer, kept, bounded, and never revived."""

import pytest
from admission_examples import ALICE, BOB, CAROL, DAY_S, WALL_S, token

from protocol.admission import Invites, Used
from protocol.errors import ErrorCode, RemoteProtocolError


def refusal(invites, *arguments) -> ErrorCode:
    before = (invites.used, invites.forgotten_s)
    with pytest.raises(RemoteProtocolError) as caught:
        invites.redeem(*arguments)
    assert (invites.used, invites.forgotten_s) == before
    return caught.value.code


def test_a_use_is_bound_to_its_peer() -> None:
    invites = Invites(4)
    assert invites.redeem(token(uses=2), ALICE.peer_id, WALL_S).is_new
    again = invites.redeem(token(uses=2), ALICE.peer_id, WALL_S + 50)
    assert (again.is_new, again.admitted_s) == (False, WALL_S)
    assert invites.redeem(token(uses=2), BOB.peer_id, WALL_S).is_new
    assert refusal(invites, token(uses=2), CAROL.peer_id, WALL_S) is ErrorCode.TOKEN_REFUSED
    assert not invites.redeem(token(uses=2), BOB.peer_id, WALL_S).is_new


def test_uses_outlive_a_restart() -> None:
    first = Invites(4)
    first.redeem(token(uses=1), ALICE.peer_id, WALL_S)
    second = Invites(4, first.used, first.forgotten_s)
    assert refusal(second, token(uses=1), BOB.peer_id, WALL_S) is ErrorCode.TOKEN_REFUSED
    assert not second.redeem(token(uses=1), ALICE.peer_id, WALL_S).is_new


def test_a_use_that_could_not_be_kept_is_free_again() -> None:
    invites = Invites(4)
    invites.redeem(token(uses=2), ALICE.peer_id, WALL_S)
    invites.redeem(token(uses=2), BOB.peer_id, WALL_S)
    invites.undo(token(uses=2), BOB.peer_id)
    assert invites.redeem(token(uses=2), CAROL.peer_id, WALL_S).is_new
    invites.undo(token(number=9), BOB.peer_id)
    invites.undo(token(uses=2), CAROL.peer_id)
    invites.undo(token(uses=2), ALICE.peer_id)
    assert invites.used == ()


def test_what_is_over_is_forgotten_and_not_revived_by_a_clock_that_is_set_back() -> None:
    invites = Invites(1)
    invites.redeem(token(uses=1), ALICE.peer_id, WALL_S)
    late_s = WALL_S + 8 * DAY_S
    assert invites.redeem(token(number=2, issued_s=late_s, expires_s=late_s + 10), BOB.peer_id, late_s).is_new
    assert len(invites.used) == 1
    assert refusal(invites, token(uses=1), BOB.peer_id, WALL_S) is ErrorCode.EXPIRED


def test_invitations_that_are_counted_are_bounded() -> None:
    invites = Invites(2)
    invites.redeem(token(number=1), ALICE.peer_id, WALL_S)
    invites.redeem(token(number=2), ALICE.peer_id, WALL_S)
    assert refusal(invites, token(number=3), ALICE.peer_id, WALL_S) is ErrorCode.TOKEN_REFUSED
    assert invites.redeem(token(number=2), BOB.peer_id, WALL_S).is_new


def test_uses_of_all_invitations_together_are_bounded() -> None:
    crowd = tuple((ALICE.peer_id, WALL_S) for _ in range(19_999))
    full = Invites(4, (Used(bytes(16), WALL_S + DAY_S, crowd),))
    assert full.redeem(token(), BOB.peer_id, WALL_S).is_new
    assert refusal(full, token(), CAROL.peer_id, WALL_S) is ErrorCode.TOKEN_REFUSED
    assert not full.redeem(token(), BOB.peer_id, WALL_S).is_new
