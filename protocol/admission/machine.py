"""Who is a member: the check of what peers show, what was revoked, and which other networks are let in.

`check` is asked in the handshake, before anything is kept of a peer, and for every record; a proof that was verified once costs a
hash and three comparisons from then on. Notices come in any order and from anybody; only a greater sequence number of the same
signer changes anything. The machine keeps no clock: `wall_s` is an argument everywhere.

Spec: docs/spec/09-admission.md, sections "Checking" to "Federation".
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.admission import reading
from protocol.admission.config import AdmissionConfig
from protocol.admission.notices import Federated, Notice, NoticeKind, open_notice
from protocol.admission.statements import delegation_bytes, network_id_of, open_certificate, open_delegation, open_shown
from protocol.admission.tokens import open_token
from protocol.admission.values import Member, Token
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import PeerId


@dataclass(frozen=True, slots=True)
class NoticeTaken:
    """A notice was news: it is to be kept, passed on, and acted on."""

    notice: Notice


@dataclass(frozen=True, slots=True)
class _Revoked:
    """From when on a peer needs a new admission, by the notices there are; 0 where nothing was taken back."""

    by_root_s: int
    by_owners: tuple[tuple[int, tuple[str, ...]], ...]


class Admission:
    """The machine of one node; see the module's docstring."""

    def __init__(self, root: bytes, config: AdmissionConfig | None = None) -> None:
        """Knows a network by its public key and nobody in it yet.

        Args:
            root: the network's public key.
            config: the bounds.
        """
        self.root = root
        self.network_id = network_id_of(root)
        self.config = config or AdmissionConfig()
        self._members: dict[PeerId, Member] = {}  # by their newest proof, the longest unseen first
        self._proofs: dict[bytes, Member] = {}  # by the hash of what was shown, the longest unseen first
        self._notices: dict[tuple[bytes, NoticeKind, PeerId], Notice] = {}
        self._revoked: dict[tuple[str, PeerId], _Revoked] = {}
        self._federated: dict[str, Federated] = {}

    # Members

    def check(self, peer_id: PeerId, shown: bytes, wall_s: float) -> Member:
        """Say what a peer is by the proof that it, or its card, shows.

        Args:
            peer_id: who it is, proven by TLS or by the signature of a record.
            shown: the proof of membership, as it came.
            wall_s: now, in wall-clock seconds since 1970.

        Raises:
            RemoteProtocolError: NOT_ADMITTED where there is no proof, TOO_LARGE or MALFORMED; WRONG_NETWORK; BAD_SIGNATURE;
                WRONG_KEY for the proof of another peer; NOT_YET_VALID, EXPIRED; REVOKED; NOT_ADMITTED where the issuer had no
                right to it or the quota of its network is used up. Nothing changes then.
        """
        digest = hashlib.sha256(shown).digest()
        member = self._proofs.get(digest)
        if member is None:
            member = self._verify(shown)
        if member.peer_id != peer_id:
            raise RemoteProtocolError(ErrorCode.WRONG_KEY, "the certificate is that of another peer")
        self._check_standing(member, wall_s)
        self._keep(digest, member, wall_s)
        return member

    def check_guest(self, issuer: PeerId, peer_id: PeerId, shown: bytes, wall_s: float) -> Token:
        """Say by which invitation of this node a peer knocks.

        Args:
            issuer: this node.
            peer_id: who knocks.
            shown: what it shows.
            wall_s: now, in wall-clock seconds since 1970.

        Raises:
            RemoteProtocolError: NOT_ADMITTED where it shows no invitation, TOO_LARGE, MALFORMED; WRONG_NETWORK; BAD_SIGNATURE;
                TOKEN_REFUSED for another node's invitation; NOT_YET_VALID, EXPIRED; REVOKED for a peer revoked since.
        """
        token = open_token(self._token_in(shown))
        self.check_token(token, issuer, peer_id, wall_s)
        return token

    def check_token(self, token: Token, issuer: PeerId, peer_id: PeerId, wall_s: float) -> None:
        """Refuse an invitation of another network, issuer or time, and a peer that was revoked since it was made.

        Raises:
            RemoteProtocolError: WRONG_NETWORK, TOKEN_REFUSED, NOT_YET_VALID, EXPIRED, REVOKED.
        """
        if token.root != self.root:
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"an invitation to network {network_id_of(token.root)}")
        if token.issuer != issuer:
            raise RemoteProtocolError(ErrorCode.TOKEN_REFUSED, "the invitation was given by another node, which honours it")
        reading.check_now(token.issued_s, token.expires_s, wall_s, self.config.skew_s, "the invitation")
        revoked = self._revoked.get((self.network_id, peer_id))
        if revoked is not None and self._covers(revoked, token.owner, token.issued_s):
            raise RemoteProtocolError(ErrorCode.REVOKED, "the peer was revoked after the invitation was made")

    def member(self, peer_id: PeerId, wall_s: float) -> Member | None:
        """What is known of a peer by a proof seen earlier, None where it is no member now."""
        member = self._members.get(peer_id)
        if member is None:
            return None
        try:
            self._check_standing(member, wall_s)
        except RemoteProtocolError:
            return None
        return member

    def standing(self, member: Member, wall_s: float) -> RemoteProtocolError | None:
        """Why a peer that was a member is none now; None while it is one."""
        try:
            self._check_standing(member, wall_s)
        except RemoteProtocolError as fault:
            return fault
        return None

    def forget(self, peer_id: PeerId) -> None:
        """Drop what is remembered of a peer, whose place in the quota of its network is free then."""
        self._members.pop(peer_id, None)

    def foreign(self) -> list[PeerId]:
        """The remembered members of other networks, who count against the quotas of theirs."""
        return [member.peer_id for member in self._members.values() if member.network_id != self.network_id]

    # Notices

    def take(self, data: bytes, delegation: bytes, wall_s: float) -> NoticeTaken | None:
        """Take a notice if it is news.

        Returns:
            What is to be kept and passed on; None for a notice that is known.

        Raises:
            RemoteProtocolError: as `open_notice`; WRONG_NETWORK for a network of no concern; NOT_YET_VALID from the future;
                OLD_SEQUENCE for an older one than is known, or another one with its number; REVOKED for a signer that was
                revoked; FLOODING past the number of signers. Nothing changes then.
        """
        if any(known.data == data for known in self._notices.values()):
            return None
        notice = open_notice(data, delegation)
        network_id = network_id_of(notice.root)
        is_own = notice.root == self.root
        if not is_own and (notice.kind is NoticeKind.FEDERATION or network_id not in self._federated):
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"a notice of network {network_id}")
        if notice.issued_s > wall_s + self.config.skew_s:
            raise RemoteProtocolError(ErrorCode.NOT_YET_VALID, f"a notice of {notice.issued_s - wall_s:.0f} s in the future")
        revoked = self._revoked.get((network_id, notice.signer))
        if revoked is not None and not notice.by_root and notice.delegated_s <= revoked.by_root_s <= notice.issued_s:
            raise RemoteProtocolError(ErrorCode.REVOKED, "the signer of the notice was revoked before")
        key = (notice.root, notice.kind, notice.signer)
        known = self._notices.get(key)
        if known is not None and notice.sequence <= known.sequence:
            detail = f"notice {notice.sequence}, and {known.sequence} is known"
            raise RemoteProtocolError(ErrorCode.OLD_SEQUENCE, detail)
        n_signers = sum(1 for root, kind, _ in self._notices if (root, kind) == key[:2])
        if known is None and n_signers >= self.config.signers_max and not notice.by_root:
            raise RemoteProtocolError(ErrorCode.FLOODING, f"more than {self.config.signers_max} nodes sign {notice.kind}")
        self._notices[key] = notice
        self._work_out(wall_s)
        return NoticeTaken(notice)

    def notices(self) -> tuple[Notice, ...]:
        """All notices that stand, federation first: whoever reads them in this order knows the networks that others are of."""
        return tuple(sorted(self._notices.values(), key=lambda notice: (notice.kind, notice.root != self.root, notice.signer)))

    def notice_of(self, kind: NoticeKind, signer: PeerId) -> Notice | None:
        """The newest notice of one signer of this network."""
        return self._notices.get((self.root, kind, signer))

    # Federation

    def networks(self, wall_s: float) -> dict[str, Federated]:
        """The networks whose members are let in, by their ids."""
        return {network_id: listed for network_id, listed in self._federated.items() if wall_s < listed.until_s}

    def is_let_in(self, network_id: str, wall_s: float) -> bool:
        """Whether members of a network are let in: of this one, or of one that is federated with now."""
        listed = self._federated.get(network_id)
        return network_id == self.network_id or (listed is not None and wall_s < listed.until_s)

    def requests_max(self, member: Member, wall_s: float) -> int | None:
        """How many requests of a member's whole network are worked on at a time; None for this node's own network."""
        if member.network_id == self.network_id:
            return None
        listed = self._federated.get(member.network_id)
        return listed.requests_max if listed is not None and wall_s < listed.until_s else 0

    # Helpers

    def _token_in(self, shown: bytes) -> bytes:
        token = open_shown(shown).token
        if not token:
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "the peer shows no invitation")
        return token

    def _verify(self, shown: bytes) -> Member:
        """Verify both signatures, cheapest refusals first; two verifications at most for what a stranger sends."""
        parts = open_shown(shown)
        if parts.token:
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, "an invitation is no certificate")
        statement = parts.delegation
        root = delegation_bytes(statement).root
        if root != self.root and network_id_of(root) not in self._federated:
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"a certificate of network {network_id_of(root)}")
        delegation = open_delegation(statement)
        certificate = open_certificate(parts.certificate, delegation)
        return Member(
            network_id=certificate.network_id,
            peer_id=certificate.peer_id,
            owner=certificate.owner,
            roles=certificate.roles,
            issuer=delegation.issuer,
            admitted_s=certificate.admitted_s,
            starts_s=max(certificate.not_before_s, delegation.not_before_s),
            ends_s=min(certificate.not_after_s, delegation.not_after_s),
            delegated_s=delegation.not_before_s,
        )

    def _check_standing(self, member: Member, wall_s: float) -> None:
        """What of a verified proof may change: the time, revocations, federation."""
        if not self.is_let_in(member.network_id, wall_s):
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, f"a certificate of network {member.network_id}")
        reading.check_now(member.starts_s, member.ends_s, wall_s, self.config.skew_s, "the certificate")
        revoked = self._revoked.get((member.network_id, member.peer_id))
        if revoked is not None and self._covers(revoked, member.owner, member.admitted_s):
            raise RemoteProtocolError(ErrorCode.REVOKED, "the certificate of the peer was taken back")
        issuer = self._revoked.get((member.network_id, member.issuer))
        if issuer is not None and issuer.by_root_s and member.delegated_s <= issuer.by_root_s:
            raise RemoteProtocolError(ErrorCode.REVOKED, "the issuer of the certificate was taken back")

    def _covers(self, revoked: _Revoked, owner: str, admitted_s: int) -> bool:
        """Whether what was taken back reaches an admission of a node of this owner."""
        return admitted_s <= revoked.by_root_s or any(
            admitted_s <= revoked_s and (not owners or owner in owners) for revoked_s, owners in revoked.by_owners
        )

    def _keep(self, digest: bytes, member: Member, wall_s: float) -> None:
        """Remember a checked proof; the quota of a federated network is looked at first."""
        before = self._members.pop(member.peer_id, None)
        if before is None and member.network_id != self.network_id:
            quota = self._federated[member.network_id].nodes_max
            others = [known for known in self._members.values() if known.network_id == member.network_id]
            if len(others) >= quota and sum(1 for known in others if wall_s < known.ends_s) >= quota:
                detail = f"network {member.network_id} has {quota} nodes here, the most allowed"
                raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, detail)
        self._members[member.peer_id] = member if before is None or before.ends_s <= member.ends_s else before
        self._proofs.pop(digest, None)
        self._proofs[digest] = member
        if len(self._members) > self.config.members_max:
            del self._members[next(iter(self._members))]
        if len(self._proofs) > self.config.proofs_max:
            del self._proofs[next(iter(self._proofs))]

    def _work_out(self, wall_s: float) -> None:
        """What all notices say together; entries past their end are left out."""
        self._federated = {}
        for notice in self.notices():
            for listed in notice.federated:
                if wall_s < listed.until_s and listed.root != self.root:
                    self._federate(listed)
        networks = {self.root, *(listed.root for listed in self._federated.values())}
        self._notices = {key: notice for key, notice in self._notices.items() if notice.root in networks}
        revoked: dict[tuple[str, PeerId], _Revoked] = {}
        for notice in self.notices():
            network_id = network_id_of(notice.root)
            for entry in notice.revoked:
                if wall_s >= entry.until_s:
                    continue
                known = revoked.get((network_id, entry.peer_id), _Revoked(0, ()))
                if notice.by_root:
                    merged = _Revoked(max(known.by_root_s, entry.revoked_s), known.by_owners)
                else:
                    merged = _Revoked(known.by_root_s, (*known.by_owners, (entry.revoked_s, notice.owners)))
                revoked[network_id, entry.peer_id] = merged
        self._revoked = revoked

    def _federate(self, listed: Federated) -> None:
        """Let a network in; of two that list it, the smaller quota counts."""
        network_id = network_id_of(listed.root)
        known = self._federated.get(network_id)
        if known is None:
            if len(self._federated) < self.config.networks_max:
                self._federated[network_id] = listed
            return
        self._federated[network_id] = Federated(
            listed.root,
            known.name,
            min(known.nodes_max, listed.nodes_max),
            min(known.requests_max, listed.requests_max),
            max(known.until_s, listed.until_s),
        )


def restore(admission: Admission, kept: Iterable[tuple[bytes, bytes]], wall_s: float) -> list[RemoteProtocolError]:
    """Take the notices that were kept over a stop, in the order of `Admission.notices`; returns the faults of those that fail."""
    faults: list[RemoteProtocolError] = []
    for data, delegation in kept:
        try:
            admission.take(data, delegation, wall_s)
        except RemoteProtocolError as fault:
            faults.append(fault)
    return faults
