"""The datagrams of probes: five kinds, each of a fixed length or two.

A probe is answered by an echo with its nonce. A probe that asks for three legs is answered by an echo that carries a nonce of its
own besides, and that one is returned at once: so both ends measure one exchange, each with its own nonce and its own clock.

Spec: docs/spec/05-coordinates.md, section "Probes".
"""

from typing import NamedTuple

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.places import PLACE_BYTES

PROBE_BYTES = 9
"""Bytes of a probe, and of an echo or a third leg that tells no place: one kind byte and the nonce."""

ECHO_THREE_BYTES = 17
"""Bytes of an echo of three legs that tells no place: one kind byte and both nonces."""

KIND_PROBE = 1
"""First byte of a probe. 0 is left out, so that a zeroed buffer is no probe."""

KIND_ECHO = 2
"""First byte of an echo."""

KIND_PROBE_THREE = 3
"""First byte of a probe that asks for three legs."""

KIND_ECHO_THREE = 4
"""First byte of the echo of such a probe."""

KIND_THIRD_LEG = 5
"""First byte of the third leg."""

THREE_LEGS = 3
"""What a node says that understands kinds 3 to 5 (chapter 4, "keep")."""

NONCE_BITS = 64
"""Bits of a nonce: guessing one among 64 outstanding takes 2**57 datagrams on average, each of them counted."""

_NONCE_BYTES = NONCE_BITS // 8  # of a nonce on the wire

_LENGTHS: dict[int, tuple[int, ...]] = {
    KIND_PROBE: (PROBE_BYTES,),
    KIND_ECHO: (PROBE_BYTES, PROBE_BYTES + PLACE_BYTES),
    KIND_PROBE_THREE: (PROBE_BYTES,),
    KIND_ECHO_THREE: (ECHO_THREE_BYTES, ECHO_THREE_BYTES + PLACE_BYTES),
    KIND_THIRD_LEG: (PROBE_BYTES, PROBE_BYTES + PLACE_BYTES),
}


class Datagram(NamedTuple):
    """One datagram.

    Attributes:
        kind: one of the kinds above.
        nonce: the nonce of a probe, or the one that an echo or a third leg returns.
        drawn: the nonce that an echo of three legs carries of its own; 0 in all others.
        place: where its sender is, packed; empty where it does not say.
    """

    kind: int
    nonce: int
    drawn: int = 0
    place: bytes = b""


def encode_datagram(datagram: Datagram) -> bytes:
    """Encode a datagram whose place, if it has one, is `PLACE_BYTES` long."""
    kind, nonce, drawn, place = datagram
    head = bytes((kind,)) + nonce.to_bytes(_NONCE_BYTES, "big")
    return head + drawn.to_bytes(_NONCE_BYTES, "big") + place if kind == KIND_ECHO_THREE else head + place


def decode_datagram(payload: bytes) -> Datagram | None:
    """Decode a datagram of a peer.

    Returns:
        None for one of a kind of a later version.

    Raises:
        RemoteProtocolError: MALFORMED for an empty one, or one of a length that its kind does not have.
    """
    kind = payload[0] if payload else KIND_PROBE
    lengths = _LENGTHS.get(kind)
    if lengths is None:
        return None
    if len(payload) not in lengths:
        raise RemoteProtocolError(ErrorCode.MALFORMED, f"a datagram of kind {kind} with {len(payload)} bytes")
    nonce = int.from_bytes(payload[1:PROBE_BYTES], "big")
    if kind != KIND_ECHO_THREE:
        return Datagram(kind, nonce, 0, payload[PROBE_BYTES:])
    return Datagram(kind, nonce, int.from_bytes(payload[PROBE_BYTES:ECHO_THREE_BYTES], "big"), payload[ECHO_THREE_BYTES:])
