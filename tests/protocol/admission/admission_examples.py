"""A small network: its key, an issuer, members; and what each of them signs."""

from hypothesis import strategies as st

from protocol.admission import (
    Admission,
    Certificate,
    Delegation,
    Federated,
    Issuer,
    Notice,
    Revocation,
    Right,
    Token,
    encode_member,
    network_id_of,
    sign_certificate,
    sign_delegation,
    sign_notice,
    sign_token,
)
from protocol.admission.notices import NoticeKind
from protocol.identity import Identity
from protocol.multiaddr import parse_multiaddr

WALL_S = 1_780_000_000
DAY_S = 86_400
ROOT, ISSUER, ALICE, BOB, OTHER_ROOT, OTHER_ISSUER, CAROL = (Identity.from_seed(bytes([index]) * 32) for index in range(50, 57))
NETWORK = network_id_of(ROOT.public_key)
OTHER_NETWORK = network_id_of(OTHER_ROOT.public_key)
ALL_RIGHTS = tuple(right.value for right in Right)
ADDRESS = parse_multiaddr("/ip4/192.0.2.7/udp/4001/quic-v1")


def delegation(root=ROOT, issuer=ISSUER, rights=ALL_RIGHTS, owners=(), start_s=WALL_S - DAY_S, end_s=WALL_S + 365 * DAY_S):
    return sign_delegation(root, Delegation(root.public_key, issuer.peer_id, rights, owners, start_s, end_s, 1))


def certificate(
    peer=ALICE,
    issuer=ISSUER,
    network=NETWORK,
    owner="ann",
    roles=("gpu",),
    admitted_s=WALL_S - DAY_S,
    start_s=WALL_S - DAY_S,
    end_s=WALL_S + 20 * DAY_S,
):
    return sign_certificate(issuer, Certificate(network, peer.peer_id, owner, roles, admitted_s, start_s, end_s, 7))


def shown(peer=ALICE, under=None, **changes):
    return encode_member(certificate(peer, **changes), delegation() if under is None else under)


def other_shown(peer=CAROL):
    """What a member of the other network shows."""
    under = delegation(OTHER_ROOT, OTHER_ISSUER)
    return encode_member(certificate(peer, OTHER_ISSUER, OTHER_NETWORK), under)


def token(
    issuer=ISSUER, root=ROOT, uses=2, issued_s=WALL_S, expires_s=WALL_S + 7 * DAY_S, number=1, owner="ann", addresses=(ADDRESS,)
):
    return Token(root.public_key, bytes([number]) * 16, uses, issued_s, expires_s, owner, ("gpu",), issuer.peer_id, addresses)


def signed_token(issuer=ISSUER, **changes):
    return sign_token(issuer, token(issuer, **changes))


def revocations(*peers, signer=ISSUER, sequence=1, issued_s=WALL_S, revoked_s=None, under=None, root=ROOT) -> Notice:
    at_s = issued_s if revoked_s is None else revoked_s
    entries = tuple(Revocation(peer.peer_id, at_s, at_s + 62 * DAY_S, "lost") for peer in peers)
    proof = b"" if signer is root else (delegation(root, signer) if under is None else under)
    return sign_notice(signer, root.public_key, proof, sequence, issued_s, entries, NoticeKind.REVOCATIONS)


def federation(*roots, signer=ROOT, sequence=1, nodes=2, requests=3, until_s=WALL_S + 100 * DAY_S) -> Notice:
    entries = tuple(Federated(root.public_key, "them", nodes, requests, until_s) for root in roots)
    proof = b"" if signer is ROOT else delegation(ROOT, signer)
    return sign_notice(signer, ROOT.public_key, proof, sequence, WALL_S, entries, NoticeKind.FEDERATION)


def admission() -> Admission:
    return Admission(ROOT.public_key)


def issuer() -> Issuer:
    return Issuer(ISSUER, delegation())


def state(machine: Admission) -> object:
    """Everything that a machine remembers."""
    return [
        dict(machine._members),
        dict(machine._proofs),
        dict(machine._notices),
        dict(machine._revoked),
        dict(machine._federated),
    ]


names = st.text("abcdefgh -", max_size=20)
times = st.integers(0, 2**40)
peers = st.sampled_from([ROOT, ISSUER, ALICE, BOB, CAROL])
