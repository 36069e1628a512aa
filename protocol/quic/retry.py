"""Retry: a stranger proves its address before anything is kept of it.

The answer to a first Initial packet is one small datagram with a token, from which the second Initial packet is known: it holds
the time, the connection id that the client chose at first, and a code over these, the client's address and the connection id that
the Retry gave. Nothing is kept meanwhile. The key comes from the certificate's private key, which was made of entropy handed
in; it is another one after a restart.

Source: RFC 9000 sections 8.1.2, 8.1.4 and 17.2.5; RFC 9001 section 5.8.
Spec: docs/spec/02-transport.md, section "Strangers".
"""

import hashlib
import hmac
from dataclasses import dataclass

from aioquic.quic.packet import encode_quic_retry

from protocol.quic.seam import CONNECTION_ID_BYTES, QUIC_VERSION_1, Address

TOKEN_LIFETIME_S = 30.0
"""How long a token is good, in seconds: several round trips of the worst path; as aioquic's own."""

CODE_BYTES = 16
"""Length of the code that authenticates a token, in bytes: 128 bits, as the integrity tag of the packet."""

TIME_BYTES = 8
"""Length of the time in a token, in bytes: milliseconds."""

CLIENT_CID_BYTES_MIN = 8
"""Shortest connection id a client may choose for the server, in bytes (RFC 9000 section 7.2)."""

CID_BYTES_MAX = 20
"""Longest connection id in bytes (RFC 9000 section 17.2)."""

TOKEN_BYTES_MAX = TIME_BYTES + CID_BYTES_MAX + CODE_BYTES
"""Longest token of ours; a longer one is none."""

INITIAL_DATAGRAM_BYTES_MIN = 1200
"""Smallest datagram that may carry a client's Initial packet, in bytes (RFC 9000 section 14.1)."""


@dataclass(frozen=True, slots=True)
class Initial:
    """What can be read of a client's first packet without its keys.

    Attributes:
        cid: the connection id it is sent to.
        reply_cid: the connection id its sender wants to be answered at.
        token: what it shows of an earlier Retry; empty where it shows none or one that cannot be ours.
    """

    cid: bytes
    reply_cid: bytes
    token: bytes


def read_initial(data: bytes) -> Initial | None:
    """Return what a first Initial packet of version 1 says in the clear; None for anything else."""
    if len(data) < INITIAL_DATAGRAM_BYTES_MIN or data[0] & 0xF0 != 0xC0 or int.from_bytes(data[1:5], "big") != QUIC_VERSION_1:
        return None
    cid_end = 6 + data[5]
    reply_end = cid_end + 1 + data[cid_end]
    cid, reply_cid = data[6:cid_end], data[cid_end + 1 : reply_end]
    if not CLIENT_CID_BYTES_MIN <= len(cid) <= CID_BYTES_MAX or len(reply_cid) > CID_BYTES_MAX:
        return None
    length = data[reply_end]  # a token of ours is shorter than 64 bytes, so its length is one byte (RFC 9000 section 16)
    token = data[reply_end + 1 : reply_end + 1 + length] if length <= TOKEN_BYTES_MAX else b""
    return Initial(cid, reply_cid, token)


class Retry:
    """Makes Retry packets and knows their tokens again."""

    def __init__(self, secret: bytes) -> None:
        """Derive the key.

        Args:
            secret: bytes that nobody else knows, of any length.
        """
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"isochrone retry").digest()

    def packet(self, initial: Initial, address: Address, now: float) -> bytes:
        """Return the Retry that answers a first packet; the same for the same packet within a millisecond."""
        time = int(now * 1000).to_bytes(TIME_BYTES, "big")
        cid = self._code(b"cid", time, initial.cid, b"", address)[:CONNECTION_ID_BYTES]
        token = time + initial.cid + self._code(b"token", time, initial.cid, cid, address)
        return encode_quic_retry(QUIC_VERSION_1, cid, initial.reply_cid, initial.cid, token)

    def original_cid(self, initial: Initial, address: Address, now: float) -> bytes | None:
        """Return the connection id that the client chose at first; None where its token proves nothing."""
        token = initial.token
        time, original, code = token[:TIME_BYTES], token[TIME_BYTES:-CODE_BYTES], token[-CODE_BYTES:]
        if len(initial.cid) != CONNECTION_ID_BYTES or not CLIENT_CID_BYTES_MIN <= len(original) <= CID_BYTES_MAX:
            return None
        if not hmac.compare_digest(code, self._code(b"token", time, original, initial.cid, address)):
            return None
        age_s = now - int.from_bytes(time, "big") / 1000
        return original if age_s <= TOKEN_LIFETIME_S else None

    def _code(self, purpose: bytes, time: bytes, original: bytes, cid: bytes, address: Address) -> bytes:
        place = f"{address[0]} {address[1]}".encode()
        said = b"".join(len(part).to_bytes(1, "big") + part for part in (purpose, time, original, cid, place))
        return hashlib.blake2b(said, key=self._key, digest_size=CODE_BYTES).digest()
