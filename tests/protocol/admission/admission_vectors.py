"""Makes docs/spec/vectors/admission.json: run it as a program after a change of the format that is meant.

The bytes depend on fixed seeds and times alone, so the file can be compared with what this makes.
"""

import json
from pathlib import Path

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
    certificate,
    delegation,
    federation,
    other_shown,
    revocations,
    shown,
    signed_token,
)

from protocol.admission import (
    Granted,
    JoinRequest,
    Refused,
    encode_guest,
    encode_join_answer,
    encode_join_request,
    encode_member,
    encode_notice_frame,
    token_text,
)
from protocol.errors import ErrorCode
from protocol.identity import make_certificate, peer_id_text

FOLDER = Path(__file__).parents[3] / "docs" / "spec" / "vectors"


def members():
    """What peers show, to a node that has taken no notices."""
    tampered = bytearray(shown())
    tampered[-1] ^= 1
    cases = [
        ("a member", ALICE, shown(), WALL_S, None),
        ("a member, a minute before its certificate is valid", ALICE, shown(), WALL_S - DAY_S - 60, None),
        ("a member in its last second", ALICE, shown(), WALL_S + 20 * DAY_S - 1, None),
        ("nothing", ALICE, b"", WALL_S, "NOT_ADMITTED"),
        ("no msgpack", ALICE, b"\xc1", WALL_S, "MALFORMED"),
        ("1,601 bytes", ALICE, bytes(1601), WALL_S, "TOO_LARGE"),
        ("one bit flipped", ALICE, bytes(tampered), WALL_S, "BAD_SIGNATURE"),
        ("a certificate that another peer than the issuer signed", ALICE, shown(issuer=BOB), WALL_S, "BAD_SIGNATURE"),
        ("another network", CAROL, other_shown(), WALL_S, "WRONG_NETWORK"),
        ("a certificate under another network's delegation", ALICE, foreign(), WALL_S, "WRONG_NETWORK"),
        ("another peer's certificate", BOB, shown(), WALL_S, "WRONG_KEY"),
        ("more than a minute early", ALICE, shown(), WALL_S - DAY_S - 61, "NOT_YET_VALID"),
        ("expired", ALICE, shown(), WALL_S + 20 * DAY_S, "EXPIRED"),
        ("an expired delegation", ALICE, shown(under=delegation(end_s=WALL_S)), WALL_S, "EXPIRED"),
        ("an issuer without the right", ALICE, shown(under=delegation(rights=("revoke",))), WALL_S, "NOT_ADMITTED"),
        ("an issuer of another owner's", ALICE, shown(under=delegation(owners=("ben",))), WALL_S, "NOT_ADMITTED"),
        ("an invitation", ALICE, encode_guest(signed_token()), WALL_S, "NOT_ADMITTED"),
    ]
    for name, peer, proof, wall_s, code in cases:
        yield {"name": name, "peer_id": peer_id_text(peer.peer_id), "shown": proof.hex(), "wall_s": wall_s, "code": code}


def foreign():
    return encode_member(certificate(), delegation(OTHER_ROOT, ISSUER))


def guests():
    """What guests show to the issuer."""
    cases = [
        ("an invitation", signed_token(), WALL_S, None),
        ("another issuer's", signed_token(BOB), WALL_S, "TOKEN_REFUSED"),
        ("another network's", signed_token(root=OTHER_ROOT), WALL_S, "WRONG_NETWORK"),
        ("not signed", bytes(64) + signed_token()[64:], WALL_S, "BAD_SIGNATURE"),
        ("from the future", signed_token(), WALL_S - 61, "NOT_YET_VALID"),
        ("over", signed_token(), WALL_S + 7 * DAY_S, "EXPIRED"),
    ]
    for name, data, wall_s, code in cases:
        yield {"name": name, "shown": encode_guest(data).hex(), "text": token_text(data), "wall_s": wall_s, "code": code}


def notices():
    """Notices in the order in which one node hears them, and who is refused because of them at the end."""
    steps = [
        ("revocations by an issuer", revocations(ALICE, sequence=2), None),
        ("the same again", revocations(ALICE, sequence=2), None),
        ("an older one", revocations(sequence=1), "OLD_SEQUENCE"),
        ("another one with its number", revocations(BOB, sequence=2), "OLD_SEQUENCE"),
        ("from the future", revocations(BOB, sequence=3, issued_s=WALL_S + 61), "NOT_YET_VALID"),
        ("of another network", revocations(CAROL, signer=OTHER_ISSUER, root=OTHER_ROOT), "WRONG_NETWORK"),
        ("a federation by the network's key", federation(OTHER_ROOT), None),
        ("of a network that is let in now", revocations(CAROL, signer=OTHER_ISSUER, root=OTHER_ROOT), None),
        ("a delegation taken back", revocations(BOB, signer=ROOT), None),
        ("by an issuer that was revoked", revocations(ISSUER, signer=BOB), "REVOKED"),
        ("by an issuer without the right", revocations(BOB, under=delegation(rights=("admit", "revoke"))), "OLD_SEQUENCE"),
    ]
    for name, notice, code in steps:
        yield {"name": name, "frame": encode_notice_frame(notice.data, notice.delegation).hex(), "wall_s": WALL_S, "code": code}


def vectors():
    with_proof = make_certificate(ALICE, bytes(range(32)), float(WALL_S), shown())
    after = [("the revoked peer", ALICE, shown(), "REVOKED"), ("its federated one", CAROL, other_shown(), "REVOKED")]
    after += [
        ("a member", ROOT, shown(ROOT), None),
        ("a federated one", OTHER_ISSUER, other_shown(OTHER_ISSUER), None),
        ("under the delegation taken back", ALICE, shown(issuer=BOB, under=delegation(issuer=BOB)), "REVOKED"),
    ]
    frames = [
        ("join", encode_join_request(JoinRequest(signed_token()))),
        ("renew", encode_join_request(JoinRequest())),
        ("granted", encode_join_answer(Granted(shown()))),
        ("refused", encode_join_answer(Refused(ErrorCode.TOKEN_REFUSED, "used up"))),
    ]
    seeds = {
        "root": ROOT,
        "issuer": ISSUER,
        "alice": ALICE,
        "bob": BOB,
        "carol": CAROL,
        "other root": OTHER_ROOT,
        "other issuer": OTHER_ISSUER,
    }
    return {
        "comment": "Bytes are hexadecimal; code is null where nothing is refused. See ../09-admission.md.",
        "seeds": {name: identity.seed.hex() for name, identity in seeds.items()},
        "networks": [
            {"key": root.public_key.hex(), "network_id": network}
            for root, network in ((ROOT, NETWORK), (OTHER_ROOT, OTHER_NETWORK))
        ],
        "network_key": ROOT.public_key.hex(),
        "issuer": peer_id_text(ISSUER.peer_id),
        "tls_certificate": {"der": with_proof.der.hex(), "shown": shown().hex(), "wall_s": WALL_S},
        "members": list(members()),
        "guests": list(guests()),
        "notices": list(notices()),
        "after_notices": [
            {"name": name, "peer_id": peer_id_text(peer.peer_id), "shown": proof.hex(), "wall_s": WALL_S, "code": code}
            for name, peer, proof, code in after
        ],
        "frames": [{"name": name, "frame": frame.hex()} for name, frame in frames],
    }


def encoded():
    return json.dumps(vectors(), indent=1) + "\n"


if __name__ == "__main__":
    (FOLDER / "admission.json").write_text(encoded())
