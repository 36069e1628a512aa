"""Who is let in and who is not: each refusal with its own code, and nothing changed by it."""

import pytest
from admission_examples import (
    ALICE,
    BOB,
    CAROL,
    DAY_S,
    ISSUER,
    NETWORK,
    OTHER_ISSUER,
    OTHER_NETWORK,
    OTHER_ROOT,
    ROOT,
    WALL_S,
    admission,
    certificate,
    delegation,
    federation,
    issuer,
    other_shown,
    revocations,
    shown,
    signed_token,
    state,
    token,
)
from hypothesis import given
from hypothesis import strategies as st

from protocol.admission import (
    Admission,
    AdmissionConfig,
    Federated,
    Issuer,
    NoticeKind,
    encode_guest,
    encode_member,
    sign_notice,
)
from protocol.admission.issuer import renewal_due_s
from protocol.admission.machine import restore
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity


def take(machine, notice, wall_s=WALL_S):
    return machine.take(notice.data, notice.delegation, wall_s)


def refusal(machine, call) -> ErrorCode:
    """The code of a refusal that has changed nothing."""
    before = state(machine)
    with pytest.raises(RemoteProtocolError) as caught:
        call()
    assert state(machine) == before
    return caught.value.code


def test_a_member_is_known_by_its_certificate() -> None:
    member = admission().check(ALICE.peer_id, shown(), WALL_S)
    assert (member.network_id, member.peer_id, member.owner, member.roles) == (NETWORK, ALICE.peer_id, "ann", ("gpu",))
    assert (member.issuer, member.ends_s) == (ISSUER.peer_id, WALL_S + 20 * DAY_S)
    assert not member.is_issuer


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        (b"", ErrorCode.NOT_ADMITTED),
        (b"\xc1", ErrorCode.MALFORMED),
        (bytes(1601), ErrorCode.TOO_LARGE),
        (other_shown(ALICE), ErrorCode.WRONG_NETWORK),
        (shown(BOB), ErrorCode.WRONG_KEY),
        (shown(issuer=BOB), ErrorCode.BAD_SIGNATURE),
        (shown(under=delegation(rights=("revoke",))), ErrorCode.NOT_ADMITTED),
        (shown(under=delegation(owners=("ben",))), ErrorCode.NOT_ADMITTED),
        (shown(start_s=WALL_S + 61), ErrorCode.NOT_YET_VALID),
        (shown(end_s=WALL_S), ErrorCode.EXPIRED),
        (shown(under=delegation(end_s=WALL_S)), ErrorCode.EXPIRED),
        (shown(under=delegation(start_s=WALL_S + 61)), ErrorCode.NOT_YET_VALID),
        (encode_guest(signed_token()), ErrorCode.NOT_ADMITTED),
        (encode_member(certificate(), delegation(OTHER_ROOT, ISSUER)), ErrorCode.WRONG_NETWORK),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else "",
)
def test_others_are_refused_each_with_its_code(proof, code) -> None:
    machine = admission()
    machine.check(BOB.peer_id, shown(BOB), WALL_S)
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, proof, WALL_S)) is code
    assert machine.member(ALICE.peer_id, WALL_S) is None


def test_another_network_is_refused_before_any_signature_is_verified() -> None:
    machine = admission()
    unsigned = encode_member(bytes(64) + certificate()[64:], bytes(64) + delegation(OTHER_ROOT, ISSUER)[64:])
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, unsigned, WALL_S)) is ErrorCode.WRONG_NETWORK


def test_a_proof_that_was_checked_is_judged_by_the_clock_each_time() -> None:
    machine = admission()
    machine.check(ALICE.peer_id, shown(), WALL_S)
    assert machine.member(ALICE.peer_id, WALL_S) is not None
    late_s = WALL_S + 20 * DAY_S
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, shown(), late_s)) is ErrorCode.EXPIRED
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, shown(), WALL_S - 2 * DAY_S)) is ErrorCode.NOT_YET_VALID
    assert refusal(machine, lambda: machine.check(BOB.peer_id, shown(), WALL_S)) is ErrorCode.WRONG_KEY
    assert machine.member(ALICE.peer_id, late_s) is None


def test_what_is_remembered_is_bounded() -> None:
    machine = Admission(ROOT.public_key, AdmissionConfig(members_max=3, proofs_max=4))
    crowd = [Identity.from_seed(bytes([index]) * 32) for index in range(100, 110)]
    for peer in crowd:
        machine.check(peer.peer_id, shown(peer), WALL_S)
        assert len(machine._members) <= 3
        assert len(machine._proofs) <= 4
    assert machine.member(crowd[-1].peer_id, WALL_S) is not None
    assert machine.member(crowd[0].peer_id, WALL_S) is None


# Revocations


def test_a_revoked_peer_is_refused_from_then_on() -> None:
    machine = admission()
    member = machine.check(ALICE.peer_id, shown(), WALL_S)
    assert take(machine, revocations(ALICE)) is not None
    fault = machine.standing(member, WALL_S)
    assert fault is not None
    assert fault.code is ErrorCode.REVOKED
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, shown(), WALL_S)) is ErrorCode.REVOKED
    renewed = shown(start_s=WALL_S + 100, end_s=WALL_S + 25 * DAY_S)
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, renewed, WALL_S + 200)) is ErrorCode.REVOKED
    machine.check(BOB.peer_id, shown(BOB), WALL_S)


def test_a_peer_that_is_admitted_anew_is_a_member_again() -> None:
    machine = admission()
    take(machine, revocations(ALICE))
    again = shown(admitted_s=WALL_S + 1, start_s=WALL_S + 1)
    assert machine.check(ALICE.peer_id, again, WALL_S + 5).admitted_s == WALL_S + 1


def test_an_issuer_revokes_nodes_of_its_owners_alone() -> None:
    machine = admission()
    under = delegation(issuer=BOB, owners=("ben",))
    take(machine, revocations(ALICE, signer=BOB, under=under))
    machine.check(ALICE.peer_id, shown(), WALL_S)
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, shown(owner="ben"), WALL_S)) is ErrorCode.REVOKED


def test_only_the_networks_key_takes_back_a_delegation() -> None:
    machine = admission()
    take(machine, revocations(ISSUER, signer=BOB))
    machine.check(ALICE.peer_id, shown(), WALL_S)
    take(machine, revocations(ISSUER, signer=ROOT))
    assert refusal(machine, lambda: machine.check(ALICE.peer_id, shown(), WALL_S)) is ErrorCode.REVOKED
    fresh = shown(under=delegation(start_s=WALL_S + 1))
    machine.check(ALICE.peer_id, fresh, WALL_S + 5)


def test_a_revocation_is_dropped_when_no_certificate_under_it_can_be_valid() -> None:
    machine = admission()
    take(machine, revocations(ALICE))
    take(machine, revocations(BOB, signer=BOB, issued_s=WALL_S + 62 * DAY_S, under=delegation(issuer=BOB)), WALL_S + 62 * DAY_S)
    assert (NETWORK, ALICE.peer_id) not in machine._revoked
    assert (NETWORK, BOB.peer_id) in machine._revoked


def test_notices_only_ever_go_forward() -> None:
    machine = admission()
    second = revocations(ALICE, sequence=2)
    assert take(machine, second) is not None
    assert take(machine, second) is None
    for old in (revocations(sequence=1), revocations(BOB, sequence=2)):
        assert refusal(machine, lambda old=old: take(machine, old)) is ErrorCode.OLD_SEQUENCE
    assert take(machine, revocations(sequence=3)) is not None
    machine.check(ALICE.peer_id, shown(), WALL_S)


@pytest.mark.parametrize(
    ("notice", "code"),
    [
        (revocations(ALICE, issued_s=WALL_S + 61), ErrorCode.NOT_YET_VALID),
        (revocations(ALICE, signer=OTHER_ISSUER, root=OTHER_ROOT), ErrorCode.WRONG_NETWORK),
    ],
)
def test_notices_of_no_concern_are_refused(notice, code) -> None:
    machine = admission()
    assert refusal(machine, lambda: take(machine, notice)) is code


def test_a_notice_needs_the_right_delegation() -> None:
    machine = admission()
    notice = revocations(ALICE)
    for proof, code in (
        (b"", ErrorCode.MALFORMED),
        (delegation(issuer=BOB), ErrorCode.WRONG_KEY),
        (delegation(OTHER_ROOT, ISSUER), ErrorCode.WRONG_NETWORK),
        (delegation(rights=("admit",)), ErrorCode.NOT_ADMITTED),
        (delegation(start_s=WALL_S + 1), ErrorCode.NOT_ADMITTED),
        (delegation(end_s=WALL_S), ErrorCode.NOT_ADMITTED),
    ):
        assert refusal(machine, lambda proof=proof: machine.take(notice.data, proof, WALL_S)) is code
    tampered = bytearray(notice.data)
    tampered[-1] ^= 1
    assert refusal(machine, lambda: machine.take(bytes(tampered), notice.delegation, WALL_S)) in (
        ErrorCode.BAD_SIGNATURE,
        ErrorCode.MALFORMED,
    )


def test_a_revoked_issuer_signs_no_more_notices() -> None:
    machine = admission()
    take(machine, revocations(ISSUER, signer=ROOT))
    late = revocations(ALICE, issued_s=WALL_S + 10)
    assert refusal(machine, lambda: take(machine, late, WALL_S + 10)) is ErrorCode.REVOKED
    assert take(machine, revocations(ALICE, issued_s=WALL_S - 10)) is not None


def test_signers_are_bounded_and_the_networks_key_is_always_heard() -> None:
    machine = admission()
    crowd = [Identity.from_seed(bytes([index]) * 32) for index in range(100, 109)]
    for signer in crowd[:8]:
        take(machine, revocations(ALICE, signer=signer))
    assert refusal(machine, lambda: take(machine, revocations(ALICE, signer=crowd[8]))) is ErrorCode.FLOODING
    assert take(machine, revocations(BOB, signer=ROOT)) is not None


def test_notices_stand_after_a_restart_though_a_delegation_has_ended() -> None:
    first = admission()
    under = delegation(end_s=WALL_S + 5)
    take(first, federation(OTHER_ROOT))
    take(first, revocations(ALICE, under=under))
    take(first, revocations(CAROL, signer=OTHER_ISSUER, root=OTHER_ROOT))
    second = admission()
    kept = [(notice.data, notice.delegation) for notice in first.notices()]
    assert restore(second, kept, WALL_S + DAY_S) == []
    assert state(second)[2:] == state(first)[2:]
    assert refusal(second, lambda: second.check(ALICE.peer_id, shown(), WALL_S + DAY_S)) is ErrorCode.REVOKED
    assert refusal(second, lambda: second.check(CAROL.peer_id, other_shown(), WALL_S + DAY_S)) is ErrorCode.REVOKED
    assert refusal(second, lambda: take(second, revocations(sequence=1, under=under), WALL_S + DAY_S)) is ErrorCode.OLD_SEQUENCE


@given(st.permutations(range(4)))
def test_the_order_in_which_notices_come_does_not_matter(order) -> None:
    notices = [
        revocations(ALICE, issued_s=WALL_S - 10),
        revocations(BOB, signer=BOB),
        revocations(ISSUER, signer=ROOT),
        federation(OTHER_ROOT),
    ]
    machine, other = admission(), admission()
    for notice in notices:
        take(machine, notice)
    for index in order:
        take(other, notices[index])
    assert machine.notices() == other.notices()
    assert machine._revoked == other._revoked


# Federation


def test_members_of_a_federated_network_are_let_in_up_to_its_quota() -> None:
    machine = admission()
    assert refusal(machine, lambda: machine.check(CAROL.peer_id, other_shown(), WALL_S)) is ErrorCode.WRONG_NETWORK
    take(machine, federation(OTHER_ROOT, nodes=2))
    member = machine.check(CAROL.peer_id, other_shown(), WALL_S)
    assert member.network_id == OTHER_NETWORK
    assert machine.requests_max(member, WALL_S) == 3
    assert machine.requests_max(machine.check(ALICE.peer_id, shown(), WALL_S), WALL_S) is None
    machine.check(BOB.peer_id, other_shown(BOB), WALL_S)
    third = Identity.from_seed(bytes([77]) * 32)
    assert refusal(machine, lambda: machine.check(third.peer_id, other_shown(third), WALL_S)) is ErrorCode.NOT_ADMITTED
    machine.check(CAROL.peer_id, other_shown(), WALL_S)
    machine.forget(CAROL.peer_id)
    machine.check(third.peer_id, other_shown(third), WALL_S)


def test_a_federation_ends_by_its_time_and_by_the_next_notice() -> None:
    machine = admission()
    take(machine, federation(OTHER_ROOT, until_s=WALL_S + 10))
    member = machine.check(CAROL.peer_id, other_shown(), WALL_S)
    assert machine.requests_max(member, WALL_S + 10) == 0
    assert refusal(machine, lambda: machine.check(CAROL.peer_id, other_shown(), WALL_S + 10)) is ErrorCode.WRONG_NETWORK
    take(machine, federation(sequence=2))
    assert refusal(machine, lambda: machine.check(CAROL.peer_id, other_shown(), WALL_S)) is ErrorCode.WRONG_NETWORK


def test_what_a_federated_network_revokes_is_refused_here() -> None:
    machine = admission()
    take(machine, federation(OTHER_ROOT))
    take(machine, revocations(CAROL, signer=OTHER_ROOT, root=OTHER_ROOT))
    assert refusal(machine, lambda: machine.check(CAROL.peer_id, other_shown(), WALL_S)) is ErrorCode.REVOKED


def test_a_federated_network_revokes_and_federates_nobody_of_this_one() -> None:
    machine = admission()
    take(machine, federation(OTHER_ROOT))
    take(machine, revocations(ALICE, signer=OTHER_ROOT, root=OTHER_ROOT))
    machine.check(ALICE.peer_id, shown(), WALL_S)


def test_whom_a_federated_network_lets_in_is_not_let_in_here() -> None:
    machine = admission()
    take(machine, federation(OTHER_ROOT))
    entries = (Federated(BOB.public_key, "theirs", 5, 5, WALL_S + DAY_S),)
    theirs = sign_notice(OTHER_ROOT, OTHER_ROOT.public_key, b"", 1, WALL_S, entries, NoticeKind.FEDERATION)
    assert refusal(machine, lambda: take(machine, theirs)) is ErrorCode.WRONG_NETWORK


def test_of_two_that_list_a_network_the_smaller_quota_counts() -> None:
    machine = admission()
    take(machine, federation(OTHER_ROOT, nodes=5, requests=2))
    take(machine, federation(OTHER_ROOT, signer=ISSUER, nodes=3, requests=9))
    listed = machine.networks(WALL_S)[OTHER_NETWORK]
    assert (listed.nodes_max, listed.requests_max) == (3, 2)


# Invitations and issuing


def test_a_guest_is_known_by_its_invitation() -> None:
    machine = admission()
    assert machine.check_guest(ISSUER.peer_id, ALICE.peer_id, encode_guest(signed_token()), WALL_S) == token()


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        (b"", ErrorCode.NOT_ADMITTED),
        (shown(), ErrorCode.NOT_ADMITTED),
        (encode_guest(b"x" * 70), ErrorCode.MALFORMED),
        (encode_guest(bytes(64) + signed_token()[64:]), ErrorCode.BAD_SIGNATURE),
        (encode_guest(signed_token(root=OTHER_ROOT)), ErrorCode.WRONG_NETWORK),
        (encode_guest(signed_token(BOB)), ErrorCode.TOKEN_REFUSED),
        (encode_guest(signed_token(issued_s=WALL_S + 61)), ErrorCode.NOT_YET_VALID),
        (encode_guest(signed_token(issued_s=WALL_S - 10, expires_s=WALL_S)), ErrorCode.EXPIRED),
    ],
    ids=lambda value: value.name if isinstance(value, ErrorCode) else "",
)
def test_other_guests_are_refused(proof, code) -> None:
    machine = admission()
    assert refusal(machine, lambda: machine.check_guest(ISSUER.peer_id, ALICE.peer_id, proof, WALL_S)) is code


def test_an_invitation_from_before_a_revocation_serves_the_revoked_no_more() -> None:
    machine = admission()
    take(machine, revocations(ALICE))
    knock = encode_guest(signed_token())
    assert refusal(machine, lambda: machine.check_guest(ISSUER.peer_id, ALICE.peer_id, knock, WALL_S)) is ErrorCode.REVOKED
    machine.check_guest(ISSUER.peer_id, BOB.peer_id, knock, WALL_S)
    later = encode_guest(signed_token(issued_s=WALL_S + 1))
    machine.check_guest(ISSUER.peer_id, ALICE.peer_id, later, WALL_S + 2)


def test_an_issuer_certifies_itself_a_guest_and_a_member_that_renews() -> None:
    machine, signs = admission(), issuer()
    own = machine.check(ISSUER.peer_id, signs.own("ann", (), None, 1, WALL_S), WALL_S)
    assert own.is_issuer
    joined = machine.check(ALICE.peer_id, signs.join(token(), ALICE.peer_id, WALL_S - 50, 2, WALL_S), WALL_S)
    assert (joined.owner, joined.roles, joined.admitted_s) == ("ann", ("gpu",), WALL_S - 50)
    due_s = renewal_due_s(joined, machine.config.renew_share)
    assert joined.ends_s - due_s == pytest.approx(10 * DAY_S, rel=0.01)
    renewed = machine.check(ALICE.peer_id, signs.renew(joined, machine, 3, due_s), due_s)
    assert (renewed.owner, renewed.roles, renewed.admitted_s) == (joined.owner, joined.roles, joined.admitted_s)
    assert renewed.ends_s > joined.ends_s + 19 * DAY_S


def test_an_issuer_signs_within_its_delegation_alone() -> None:
    machine = admission()
    ends_soon = Issuer(ISSUER, delegation(end_s=WALL_S + DAY_S))
    assert (
        machine.check(ALICE.peer_id, ends_soon.certify(ALICE.peer_id, "", (), WALL_S, 1, WALL_S), WALL_S).ends_s == WALL_S + DAY_S
    )
    for narrow, wall_s in (
        (Issuer(ISSUER, delegation(owners=("ben",))), WALL_S),
        (Issuer(ISSUER, delegation(rights=("revoke",))), WALL_S),
        (Issuer(ISSUER, delegation(end_s=WALL_S)), WALL_S),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            narrow.certify(ALICE.peer_id, "ann", (), wall_s, 1, wall_s)
        assert caught.value.code is ErrorCode.NOT_ADMITTED
    with pytest.raises(RemoteProtocolError) as caught:
        Issuer(BOB, delegation())
    assert caught.value.code is ErrorCode.WRONG_KEY


def test_a_revoked_or_foreign_member_is_not_renewed() -> None:
    machine, signs = admission(), issuer()
    member = machine.check(ALICE.peer_id, shown(), WALL_S)
    take(machine, federation(OTHER_ROOT))
    foreign = machine.check(CAROL.peer_id, other_shown(), WALL_S)
    take(machine, revocations(ALICE))
    for who, code in ((member, ErrorCode.REVOKED), (foreign, ErrorCode.WRONG_NETWORK)):
        with pytest.raises(RemoteProtocolError) as caught:
            signs.renew(who, machine, 1, WALL_S)
        assert caught.value.code is code


@given(st.binary(max_size=1700))
def test_arbitrary_bytes_admit_nobody(data) -> None:
    machine = admission()
    before = state(machine)
    for call in (
        lambda: machine.check(ALICE.peer_id, data, WALL_S),
        lambda: machine.check_guest(ISSUER.peer_id, ALICE.peer_id, data, WALL_S),
        lambda: machine.take(data, data, WALL_S),
    ):
        with pytest.raises(RemoteProtocolError):
            call()
    assert state(machine) == before


@given(st.integers(0, 2**16), st.integers(1, 255))
def test_no_changed_proof_admits_anybody(position, change) -> None:
    proof = bytearray(shown())
    proof[position % len(proof)] ^= change
    machine = admission()
    with pytest.raises(RemoteProtocolError):
        machine.check(ALICE.peer_id, bytes(proof), WALL_S)
    assert state(machine) == state(admission())
