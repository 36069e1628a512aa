"""Papers of private networks: what the suite shows when it acts as a member, and what no node may let in.

Whoever has a network's key is in a position to try its nodes: the suite makes itself an issuer for an hour, and each of the peers
that it speaks as a member. Papers of a network of one's own are good for trying what a node of another one refuses.

Spec: docs/spec/09-admission.md.
"""

import os
import time

from protocol.admission import (
    Certificate,
    Delegation,
    Right,
    Token,
    encode_guest,
    encode_member,
    network_id_of,
    sign_certificate,
    sign_delegation,
    sign_token,
)
from protocol.identity import SEED_BYTES, Identity, PeerId

VALID_S = 3600
"""How long the papers are valid, in seconds: longer than any run of the suite."""

CLOCKS_S = 600
"""How far they reach back, in seconds: for nodes whose clocks are late, and for certificates that have ended."""

OWNER = "conformance"
"""Whose machines the suite's peers are."""


class Papers:
    """An issuer of one network, and the members that it makes."""

    def __init__(self, root: Identity) -> None:
        """Delegates to a fresh issuer.

        Args:
            root: the network's key.
        """
        self.network = network_id_of(root.public_key)
        self.issuer = Identity.from_seed(os.urandom(SEED_BYTES))
        self._now_s = int(time.time())
        starts_s, ends_s = self._now_s - CLOCKS_S, self._now_s + VALID_S
        delegation = Delegation(root.public_key, self.issuer.peer_id, (Right.ADMIT,), (), starts_s, ends_s, _serial())
        self._delegation = sign_delegation(root, delegation)
        self._proofs: dict[PeerId, bytes] = {}

    @classmethod
    def of_nobody(cls) -> "Papers":
        """Papers of a network that nobody belongs to."""
        return cls(Identity.from_seed(os.urandom(SEED_BYTES)))

    @property
    def age_s(self) -> int:
        """Whole seconds since they were made."""
        return int(time.time()) - self._now_s

    def of(self, identity: Identity) -> bytes:
        """What a peer shows; the same whenever it is asked for."""
        if identity.peer_id not in self._proofs:
            self._proofs[identity.peer_id] = self.made(identity, -CLOCKS_S, VALID_S)
        return self._proofs[identity.peer_id]

    def made(self, identity: Identity, starts_in_s: int, ends_in_s: int) -> bytes:
        """What a peer shows whose certificate is valid at other times, in seconds from now."""
        starts_s, ends_s = self._now_s + starts_in_s, self._now_s + ends_in_s
        certificate = Certificate(self.network, identity.peer_id, OWNER, (), starts_s, starts_s, ends_s, _serial())
        return encode_member(sign_certificate(self.issuer, certificate), self._delegation)


def invitation_of_nobody(root: bytes) -> bytes:
    """What a peer shows that has an invitation to a network by somebody who is no issuer of it."""
    issuer = Identity.from_seed(os.urandom(SEED_BYTES))
    now_s = int(time.time())
    token = Token(root, os.urandom(16), 1, now_s - CLOCKS_S, now_s + VALID_S, OWNER, (), issuer.peer_id, ())
    return encode_guest(sign_token(issuer, token))


def _serial() -> int:
    return int.from_bytes(os.urandom(8), "big") >> 1
