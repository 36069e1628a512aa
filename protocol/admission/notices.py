"""Notices: what a network's key or an issuer tells every member, signed and numbered: revocations and federated networks.

A notice is the whole of what its signer says on its subject; one with a greater sequence number takes its place, and no other
does. It travels with the delegation of its signer, so that whoever gets it can check it alone.

Spec: docs/spec/09-admission.md, sections "Notices", "Revocations" and "Federation".
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.admission import reading
from protocol.admission.config import (
    ENTRIES_MAX,
    NOTICE_LIMITS,
    NUMBER_MAX,
    QUOTA_MAX,
    REVOCATION_KEPT_S,
    ROOT_KEY_BYTES,
)
from protocol.admission.statements import open_delegation
from protocol.admission.values import Right
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import Identity, PeerId, public_key_of
from protocol.wire import Plain

NOTICE_DOMAIN = b"isochrone-notice-v1:"
"""Stands before the signed bytes of a notice."""

_FIELDS = 6  # elements of the statement that this version knows, a count


class NoticeKind(StrEnum):
    """What a notice is about."""

    REVOCATIONS = "revocations"
    FEDERATION = "federation"


@dataclass(frozen=True, slots=True)
class Revocation:
    """A peer's certificates are taken back: those that go back to an admission at or before `revoked_s`.

    Signed by the network's key it also takes back what was delegated to the peer until then. It is dropped at `until_s`, when no
    certificate that it covers can be valid any more.
    """

    peer_id: PeerId
    revoked_s: int
    until_s: int
    reason: str


@dataclass(frozen=True, slots=True)
class Federated:
    """Members of another network are let in.

    Attributes:
        root: the other network's public key.
        name: what it is called here.
        nodes_max: how many of its peers are let in at a time.
        requests_max: how many requests of all its peers together are worked on at a time.
        until_s: when it ends.
    """

    root: bytes
    name: str
    nodes_max: int
    requests_max: int
    until_s: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A verified notice, with the bytes in which it is passed on.

    `owners` are those whose nodes are the signer's affair, empty for all; `delegated_s` is from when its delegation is valid.
    """

    root: bytes
    kind: NoticeKind
    signer: PeerId
    sequence: int
    issued_s: int
    revoked: tuple[Revocation, ...]
    federated: tuple[Federated, ...]
    owners: tuple[str, ...]
    delegated_s: int
    data: bytes
    delegation: bytes

    @property
    def by_root(self) -> bool:
        """Whether the network's own key signed it."""
        return public_key_of(self.signer) == self.root


def sign_notice(
    signer: Identity,
    root: bytes,
    delegation: bytes,
    sequence: int,
    issued_s: int,
    entries: tuple[Revocation, ...] | tuple[Federated, ...],
    kind: NoticeKind,
) -> Notice:
    """Sign all that this signer has to say on a subject.

    Args:
        signer: the network's key, or an issuer's.
        root: the network's public key.
        delegation: the issuer's delegation; empty where the network's key signs.
        sequence: greater than that of every earlier notice of this signer and kind.
        issued_s: now, in wall-clock seconds since 1970.
        entries: the whole list.
        kind: what it is about.

    Raises:
        LocalProtocolError: MALFORMED, TOO_LARGE, or NOT_ADMITTED when receivers would refuse it.
    """
    packed: list[object] = []
    for entry in entries:
        match entry:
            case Revocation():
                packed.append([bytes(entry.peer_id), entry.revoked_s, entry.until_s, entry.reason])
            case Federated():
                packed.append([entry.root, entry.name, entry.nodes_max, entry.requests_max, entry.until_s])
    fields: list[object] = [root, kind.value, bytes(signer.peer_id), sequence, issued_s, packed]
    data = reading.sign(signer, NOTICE_DOMAIN, fields, NOTICE_LIMITS)
    try:
        return open_notice(data, delegation)
    except RemoteProtocolError as fault:
        raise LocalProtocolError(fault.code, fault.detail) from None


def open_notice(data: bytes, delegation: bytes) -> Notice:
    """Read a notice and verify it; whether it is news and of which network is for the caller.

    A delegation is judged by the time at which the notice was signed: what an issuer took back stays so when its delegation ends.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED, UNSUPPORTED; BAD_SIGNATURE; WRONG_NETWORK or WRONG_KEY when the delegation is
            of another network or issuer; NOT_ADMITTED when it gives no such right at that time.
    """
    fields = reading.read(data, NOTICE_LIMITS, _FIELDS, "a notice")
    root = reading.binary(fields[0], "the network's key", ROOT_KEY_BYTES)
    kind = _kind(fields[1])
    signer = reading.peer(fields[2], "the signer")
    sequence = reading.integer(fields[3], "a sequence number", 1, NUMBER_MAX)
    issued_s = reading.time_s(fields[4], "the issue time")
    reading.check_signature(data, NOTICE_DOMAIN, public_key_of(signer), "a notice")
    owners, delegated_s = ((), 0) if public_key_of(signer) == root else _scope(delegation, root, signer, kind, issued_s)
    entries = reading.array(fields[5], "entries", ENTRIES_MAX)
    revoked = tuple(_revocation(item) for item in entries) if kind is NoticeKind.REVOCATIONS else ()
    federated = tuple(_federated(item) for item in entries) if kind is NoticeKind.FEDERATION else ()
    return Notice(root, kind, signer, sequence, issued_s, revoked, federated, owners, delegated_s, bytes(data), bytes(delegation))


def _scope(statement: bytes, root: bytes, signer: PeerId, kind: NoticeKind, issued_s: int) -> tuple[tuple[str, ...], int]:
    """The owners whose nodes are the signer's affair, by its delegation, and from when that is valid."""
    delegation = open_delegation(statement)
    if delegation.root != root:
        raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, "a notice with a delegation of another network")
    if delegation.issuer != signer:
        raise RemoteProtocolError(ErrorCode.WRONG_KEY, "a notice with the delegation of another issuer")
    right = Right.REVOKE if kind is NoticeKind.REVOCATIONS else Right.FEDERATE
    if right not in delegation.rights or not delegation.not_before_s <= issued_s < delegation.not_after_s:
        raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"the signer of {kind} had no right to it when it signed")
    return delegation.owners, delegation.not_before_s


def _kind(value: Plain) -> NoticeKind:
    for kind in NoticeKind:
        if value == kind.value:
            return kind
    raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "a kind of notice that this version does not know")


def _revocation(value: Plain) -> Revocation:
    match value:
        case [peer_id, revoked_s, until_s, reason, *_]:
            revocation = Revocation(
                reading.peer(peer_id, "a revoked peer"),
                reading.time_s(revoked_s, "a revocation"),
                reading.time_s(until_s, "the end of a revocation"),
                reading.text(reason, "a reason"),
            )
        case _:
            raise reading.malformed("a revocation is no array of 4")
    reading.check_times(revocation.revoked_s, revocation.until_s, REVOCATION_KEPT_S, "a revocation")
    return revocation


def _federated(value: Plain) -> Federated:
    match value:
        case [root, name, nodes_max, requests_max, until_s, *_]:
            return Federated(
                reading.binary(root, "the other network's key", ROOT_KEY_BYTES),
                reading.text(name, "a name"),
                reading.integer(nodes_max, "a quota of nodes", 0, QUOTA_MAX),
                reading.integer(requests_max, "a quota of requests", 0, QUOTA_MAX),
                reading.time_s(until_s, "the end of a federation"),
            )
        case _:
            raise reading.malformed("a federation is no array of 5")
