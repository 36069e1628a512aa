"""What a node with a delegation signs: certificates for itself, for peers with an invitation, and for members that renew.

Spec: docs/spec/09-admission.md, sections "Joining" and "Renewing".
"""

from protocol.admission.config import CERTIFICATE_LIFETIME_S_MAX
from protocol.admission.machine import Admission
from protocol.admission.statements import encode_member, network_id_of, open_delegation, sign_certificate
from protocol.admission.values import ISSUER_ROLE, Certificate, Member, Right, Token
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, PeerId

CLOCKS_S = 30
"""Certificates are valid from so many seconds ago, for peers whose clocks are late."""


class Issuer:
    """Signs for one network, within one delegation."""

    def __init__(self, identity: Identity, delegation: bytes) -> None:
        """Takes the node's key and what was delegated to it.

        Raises:
            RemoteProtocolError: the delegation is none, is not signed, or (WRONG_KEY) is that of another node.
        """
        self._identity = identity
        self._statement = delegation
        self.delegation = open_delegation(delegation)
        self.network_id = network_id_of(self.delegation.root)
        if self.delegation.issuer != identity.peer_id:
            raise RemoteProtocolError(ErrorCode.WRONG_KEY, "the delegation is that of another node")

    def may_admit(self, owner: str, wall_s: float) -> bool:
        """Whether a certificate for a node of an owner would be valid now."""
        delegation = self.delegation
        return (
            Right.ADMIT in delegation.rights
            and delegation.covers(owner)
            and delegation.not_before_s <= wall_s < delegation.not_after_s
        )

    def own(self, owner: str, roles: tuple[str, ...], admitted_s: int | None, serial: int, wall_s: float) -> bytes:
        """What this node shows of itself; raises as `certify`."""
        own_roles = (ISSUER_ROLE, *(role for role in roles if role != ISSUER_ROLE))
        since_s = int(wall_s) - CLOCKS_S if admitted_s is None else admitted_s
        return self.certify(self._identity.peer_id, owner, own_roles, since_s, serial, wall_s)

    def join(self, token: Token, peer_id: PeerId, admitted_s: int, serial: int, wall_s: float) -> bytes:
        """What a peer shows that joined by an invitation whose use was counted; raises as `certify`."""
        return self.certify(peer_id, token.owner, token.roles, admitted_s, serial, wall_s)

    def renew(self, member: Member, admission: Admission, serial: int, wall_s: float) -> bytes:
        """What a member shows from now on.

        Raises:
            RemoteProtocolError: WRONG_NETWORK for a member of another network; REVOKED or EXPIRED; NOT_ADMITTED as `certify`.
        """
        if member.network_id != self.network_id:
            raise RemoteProtocolError(ErrorCode.WRONG_NETWORK, "a certificate is renewed by its own network")
        fault = admission.standing(member, wall_s)
        if fault is not None:
            raise fault
        return self.certify(member.peer_id, member.owner, member.roles, member.admitted_s, serial, wall_s)

    def certify(self, peer_id: PeerId, owner: str, roles: tuple[str, ...], admitted_s: int, serial: int, wall_s: float) -> bytes:
        """Sign a certificate as long as is allowed, and return what its peer shows.

        Raises:
            RemoteProtocolError: NOT_ADMITTED when this issuer may not admit nodes of the owner now.
            LocalProtocolError: an owner or a role that receivers would refuse.
        """
        if not self.may_admit(owner, wall_s):
            raise RemoteProtocolError(ErrorCode.NOT_ADMITTED, f"this issuer may not admit nodes of owner {owner!r} now")
        starts_s = int(wall_s) - CLOCKS_S
        ends_s = min(starts_s + int(CERTIFICATE_LIFETIME_S_MAX), self.delegation.not_after_s)
        certificate = Certificate(self.network_id, peer_id, owner, roles, min(admitted_s, starts_s), starts_s, ends_s, serial)
        return encode_member(sign_certificate(self._identity, certificate), self._statement)


def renewal_due_s(member: Member, share: float) -> float:
    """When a member begins to ask for its next certificate: when only `share` of this one's validity is left."""
    return member.ends_s - share * (member.ends_s - member.starts_s)
