"""A request sealed to its executor.

The requester signs what it seals: HPKE's base mode lets anybody seal, and a relay that could seal a request of its own in the
requester's name would spend what is the requester's. The ids of the request and of everybody on its route are bound to the
ciphertext, so that it opens for nobody else, and for nobody by another route.

Source: RFC 9180 section 5.1.1 (base mode); RFC 9458 section 4.4 (the answer's keys).
Spec: docs/spec/10-sealing.md, section "Sealed request".
"""

from dataclasses import dataclass

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.identity import (
    SEALING_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    PeerId,
    SealingKey,
    encapsulate,
    public_key_of,
    sha256,
    verify_signature,
)
from protocol.sealing.answer import AnswerOpener, AnswerSealer
from protocol.sealing.frames import ANSWER_NONCE_BYTES, PAD_BYTES, REQUEST_BYTES_MAX, SEALED_BYTES_MAX, padded, unpadded

INFO = b"isochrone sealed request 1"
"""What HPKE's keys are bound to: this use of them and no other."""

SIGNED_DOMAIN = b"isochrone-sealed-request:"
"""What stands before the signed bytes, so that the signature is none of anything else."""

ANSWER_LABEL = b"isochrone sealed answer 1"
"""The label of the secret that the answer's keys are made of."""


@dataclass(frozen=True, slots=True)
class Route:
    """One request's way: who asks, through whom, and who answers."""

    request_id: bytes
    requester: PeerId
    relay: PeerId
    executor: PeerId

    def to_bytes(self) -> bytes:
        """What is bound to the ciphertext: the request's id, then each peer id with its length."""
        ids = (self.requester, self.relay, self.executor)
        return self.request_id + b"".join(bytes((len(peer),)) + peer for peer in ids)


def seal_request(
    identity: Identity, route: Route, request: bytes, sealing_key: bytes, entropy: bytes, pad_bytes: int = PAD_BYTES
) -> tuple[bytes, AnswerOpener]:
    """Seal a request message (chapter 6) to the executor.

    Args:
        identity: the requester's, who signs.
        route: the way it goes.
        request: the message, without a frame.
        sealing_key: from the executor's card.
        entropy: `SEALING_KEY_BYTES` secret bytes, used for nothing else.
        pad_bytes: the sealed length tells the request's only to so many bytes; 1 for no padding.

    Returns:
        The sealed request, and what opens the answer.

    Raises:
        LocalProtocolError: TOO_LARGE, for a request over the limit.
        RemoteProtocolError: SEAL_REFUSED, when the card's sealing key is none.
    """
    if len(request) > REQUEST_BYTES_MAX:
        raise LocalProtocolError(ErrorCode.TOO_LARGE, f"a request of {len(request)} bytes; the limit is {REQUEST_BYTES_MAX}")
    encapsulated, context = encapsulate(sealing_key, INFO, entropy)
    aad = route.to_bytes()
    signature = identity.sign(_signed(encapsulated, aad, request))
    sealed = encapsulated + context.messages.seal(0, aad, padded(signature + request, pad_bytes))
    return sealed, AnswerOpener(encapsulated, context.export(ANSWER_LABEL, ANSWER_NONCE_BYTES))


def open_request(key: SealingKey, route: Route, sealed: bytes, entropy: bytes) -> tuple[bytes, AnswerSealer]:
    """Open a request that was sealed to this node.

    Args:
        key: this node's.
        route: who has asked according to the relay, the relay as TLS has proven it, this node.
        sealed: as it came.
        entropy: `ANSWER_NONCE_BYTES` bytes, drawn for this answer alone: a request opened twice is answered under two keys.

    Returns:
        The request message, and what seals the answer.

    Raises:
        RemoteProtocolError: SEAL_REFUSED, when it does not open; BAD_SIGNATURE, when the requester has not signed it; MALFORMED,
            when what it holds is no padded message; TOO_LARGE, over the limit.
    """
    if len(sealed) > SEALED_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a sealed request of {len(sealed)} bytes")
    encapsulated, aad = sealed[:SEALING_KEY_BYTES], route.to_bytes()
    context = key.decapsulate(encapsulated, INFO)
    message = context.messages.open(0, aad, memoryview(sealed)[SEALING_KEY_BYTES:])
    if message is None:
        raise RemoteProtocolError(ErrorCode.SEAL_REFUSED, "a request sealed to another key or for another route, or altered")
    content = unpadded(message)
    signature, request = content[:SIGNATURE_BYTES], content[SIGNATURE_BYTES:]
    if not verify_signature(public_key_of(route.requester), signature, _signed(encapsulated, aad, request)):
        raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, "the requester has not signed the sealed request")
    return request, AnswerSealer(encapsulated, context.export(ANSWER_LABEL, ANSWER_NONCE_BYTES), entropy)


def _signed(encapsulated: bytes, aad: bytes, request: bytes) -> bytes:
    return SIGNED_DOMAIN + encapsulated + aad + sha256(request)
