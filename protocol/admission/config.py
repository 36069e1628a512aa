"""The bounds of admission: sizes, counts, lifetimes.

All nodes of a network use the same bounds of what travels; the defaults are the specified values.

Spec: docs/spec/09-admission.md, section "Limits".
"""

from dataclasses import dataclass

from protocol.wire import PackingLimits

SIGNATURE_BYTES = 64
"""Length in bytes of the Ed25519 signature that every statement starts with (RFC 8032 section 5.1.6)."""

ROOT_KEY_BYTES = 32
"""Length of a network's public key in bytes (RFC 8032 section 5.1.5)."""

STATEMENT_BYTES_MAX = 768
"""Longest delegation or join certificate in bytes: usual ones have 200; two of them stand in a TLS certificate of 4,096."""

SHOWN_BYTES_MAX = 1600
"""Longest proof of membership in bytes: two statements and the msgpack round them."""

TOKEN_BYTES_MAX = 1200
"""Longest invitation in bytes: 8 addresses with names, and a text that still goes into a chat message."""

NOTICE_BYTES_MAX = 65_536
"""Longest notice in bytes: 512 revocations of 125 bytes."""

NAME_BYTES_MAX = 64
"""Longest name of an owner or a role, and longest reason of a revocation, in bytes of UTF-8."""

ROLES_MAX = 8
"""Roles of a member, owners of a delegation, rights of a delegation, a count each."""

ADDRESSES_MAX = 8
"""Addresses of an invitation, a count."""

USES_MAX = 1000
"""Most uses of one invitation, a count: one for each machine of a large site."""

TOKEN_ID_BYTES = 16
"""Length of an invitation's id in bytes: 128 bits of luck never meet twice."""

ENTRIES_MAX = 512
"""Entries of one notice, a count: revoked peers are forgotten once no certificate of theirs can be valid."""

QUOTA_MAX = 1_000_000
"""Largest quota, a count."""

TIME_S_MAX = 2**53 // 1000
"""Largest wall-clock time in seconds since 1970: what records allow in milliseconds."""

NUMBER_MAX = 2**63 - 1
"""Largest serial or sequence number, unitless: the largest integer that is packed."""

CERTIFICATE_LIFETIME_S_MAX = 30 * 86_400.0
"""Longest validity of a join certificate in seconds: thirty days, after which a peer that nobody renews is out by itself."""

DELEGATION_LIFETIME_S_MAX = 3 * 366 * 86_400.0
"""Longest validity of a delegation in seconds: three years, as long as an owner may remember where the key lies."""

TOKEN_LIFETIME_S_MAX = 90 * 86_400.0
"""Longest validity of an invitation in seconds: its uses are counted so long."""

REVOCATION_KEPT_S = 62 * 86_400.0
"""How long a revocation stands, in seconds: an issuer that has not heard of it for a lifetime of certificates may renew one for
another lifetime, and two days are left for clocks."""

UNKNOWN_ELEMENTS_MAX = 8
"""Elements of later versions behind the known ones of a statement, a count."""

STATEMENT_LIMITS = PackingLimits(size_bytes_max=STATEMENT_BYTES_MAX - SIGNATURE_BYTES, depth_max=4, values_max=64)
"""What the signed part of a delegation or certificate may hold."""

SHOWN_LIMITS = PackingLimits(size_bytes_max=SHOWN_BYTES_MAX, depth_max=2, values_max=16)
"""What a proof of membership may hold."""

TOKEN_LIMITS = PackingLimits(size_bytes_max=TOKEN_BYTES_MAX - SIGNATURE_BYTES, depth_max=4, values_max=64)
"""What the signed part of an invitation may hold."""

NETWORK_LIMITS = PackingLimits(size_bytes_max=256, depth_max=2, values_max=16)
"""What the text that names a network may hold: a key and a name."""

NOTICE_LIMITS = PackingLimits(size_bytes_max=NOTICE_BYTES_MAX - SIGNATURE_BYTES, depth_max=4, values_max=4096)
"""What the signed part of a notice may hold: 512 entries of five values, and the head."""


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """What one node allows and remembers; its own affair.

    Attributes:
        skew_s: how far the clocks of two nodes may be apart, as for records.
        members_max: members remembered as checked; past it the longest unseen is checked anew. As many as a table has peers.
        proofs_max: proofs remembered as checked, renewed ones included.
        signers_max: signers of notices per network and kind of notice.
        networks_max: networks that may be federated with.
        tokens_max: invitations whose uses an issuer counts at a time.
        renew_share: the part of a certificate's validity that is left when it is renewed.
    """

    skew_s: float = 60.0
    members_max: int = 16_384
    proofs_max: int = 32_768
    signers_max: int = 8
    networks_max: int = 16
    tokens_max: int = 1024
    renew_share: float = 1.0 / 3.0
