"""What the statements of admission say, as values.

Times are wall-clock seconds since 1970, whole ones: certificates last for days.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.identity import PeerId
from protocol.multiaddr import Multiaddr


class Right(StrEnum):
    """What a delegation may allow an issuer."""

    ADMIT = "admit"
    REVOKE = "revoke"
    FEDERATE = "federate"


@dataclass(frozen=True, slots=True)
class Delegation:
    """The network's key lets a node act for it.

    Attributes:
        root: the network's public key, `ROOT_KEY_BYTES` bytes.
        issuer: the node that may act.
        rights: what it may do; rights of later versions are left out.
        owners: the owners whose nodes it may admit and revoke; empty means all.
        not_before_s: from when.
        not_after_s: until when.
        serial: a number of the signer's choice.
    """

    root: bytes
    issuer: PeerId
    rights: tuple[str, ...]
    owners: tuple[str, ...]
    not_before_s: int
    not_after_s: int
    serial: int

    def covers(self, owner: str) -> bool:
        """Whether nodes of an owner are this issuer's affair."""
        return not self.owners or owner in self.owners


@dataclass(frozen=True, slots=True)
class Certificate:
    """An issuer says that a peer belongs to the network.

    Attributes:
        network_id: which network.
        peer_id: who belongs to it, and nobody else.
        owner: whose machine it is; empty where nobody said.
        roles: what it is there for, in words of the owners; `issuer` marks those who renew certificates.
        admitted_s: when it was admitted first: renewed certificates keep it, so that a revocation covers them.
        not_before_s: from when it is valid.
        not_after_s: until when, at most `CERTIFICATE_LIFETIME_S_MAX` later.
        serial: a number of the issuer's choice.
    """

    network_id: str
    peer_id: PeerId
    owner: str
    roles: tuple[str, ...]
    admitted_s: int
    not_before_s: int
    not_after_s: int
    serial: int


@dataclass(frozen=True, slots=True)
class Token:
    """An invitation.

    Attributes:
        root: the public key of the network it leads to.
        token_id: what its uses are counted by.
        uses: how many peers may join by it.
        issued_s: when it was made; a peer that was revoked later is not admitted by it.
        expires_s: until when it can be used.
        owner: of whoever joins by it.
        roles: of whoever joins by it.
        issuer: the node that made it and honours it; no other does.
        addresses: where the issuer answers.
    """

    root: bytes
    token_id: bytes
    uses: int
    issued_s: int
    expires_s: int
    owner: str
    roles: tuple[str, ...]
    issuer: PeerId
    addresses: tuple[Multiaddr, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a peer shows of itself: a certificate with its delegation, or an invitation; still unverified bytes."""

    certificate: bytes = b""
    delegation: bytes = b""
    token: bytes = b""


@dataclass(frozen=True, slots=True)
class Member:
    """A peer whose certificate has been verified.

    Attributes:
        network_id: of the network that admitted it, which is another one than this node's where two federate.
        peer_id: who it is.
        owner: whose machine it is.
        roles: what it is there for.
        issuer: who signed its certificate.
        admitted_s: when it was admitted first.
        starts_s: from when its certificate and the delegation behind it are valid.
        ends_s: when the first of the two ends.
        delegated_s: from when the delegation is valid.
    """

    network_id: str
    peer_id: PeerId
    owner: str
    roles: tuple[str, ...]
    issuer: PeerId
    admitted_s: int
    starts_s: int
    ends_s: int
    delegated_s: int

    @property
    def is_issuer(self) -> bool:
        """Whether it says that it renews certificates."""
        return ISSUER_ROLE in self.roles


ISSUER_ROLE = "issuer"
"""The role by which members know whom to ask for a renewal."""
