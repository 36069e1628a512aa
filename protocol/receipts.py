"""Receipts: what the executing peer signs of an answer it gave, and how anybody checks it afterwards.

A receipt names the request and the answer by their hashes, and who asked and who answered; it says which model answered and with
which weights, how many tokens were counted and how long it took. The signature proves that the executing peer said so. It does
not prove that it is true: a peer that cheats can sign that it did not.

The hashes are over what a request and its outputs hold and not over how they were encoded, so that any program can work them out.
Fields are joined each with its length before it, so that no two requests give the same bytes.

Source: docs/privacy.md, "What a receipt proves".
Spec: docs/spec/10-sealing.md, section "Receipts".
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import (
    PEER_ID_BYTES_MAX,
    SIGNATURE_BYTES,
    Identity,
    PeerId,
    peer_id_from_bytes,
    public_key_of,
    verify_signature,
)
from protocol.inference import REQUEST_ID_BYTES, Feature, InferenceRequest, JsonDelta, Output, Tensor, TextDelta
from protocol.wire import PackingLimits, Plain, pack, unpack

RECEIPT_BYTES_MAX = 1024
"""Longest receipt with its signature in bytes: two peer ids, four hashes, the longest model id and the numbers take 700."""

RECEIPT_VERSION = 1
"""The version that stands first in a receipt; another is not read."""

HASH_BYTES = 32
"""Length of SHA-256's output in bytes."""

MODEL_BYTES_MAX = 256
"""Longest model id in bytes, as in chapter 6."""

DOMAIN = b"isochrone-receipt:"
"""What stands before the signed bytes, so that the signature is none of anything else."""

REQUEST_LABEL = b"isochrone request 1"
"""The first field under a request's hash."""

_LIMITS = PackingLimits(size_bytes_max=RECEIPT_BYTES_MAX, depth_max=2, values_max=32)

# Fields of a version 1 receipt; more may follow in it.
_FIELDS = 16

_COUNT_MAX = 2**53
"""Largest count, duration in microseconds and time in milliseconds: what a double holds exactly."""

_FEATURES = {feature.value: feature for feature in Feature}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is signed.

    Attributes:
        request_id: `REQUEST_ID_BYTES` bytes.
        requester: who asked the executing peer.
        executor: who answered, and signs.
        feature: what was asked for.
        request_hash: of feature, model, body and tensors (`hash_request`).
        answer_hash: the last link of the chain over the outputs (`AnswerChain`).
        outputs: how many links the chain has.
        model: the model's id.
        model_digest: SHA-256 of its weights as the engine tells it; empty when it does not.
        prompt_tokens: as the engine counts, 0 where it does not.
        completion_tokens: the same.
        queue_us: waiting for a slot, in microseconds.
        service_us: from the slot to the last output.
        began_ms: when the executing peer began, by its wall clock in milliseconds since 1970.
        ended_ms: when it ended.
    """

    request_id: bytes
    requester: PeerId
    executor: PeerId
    feature: Feature
    request_hash: bytes
    answer_hash: bytes
    outputs: int
    model: str
    model_digest: bytes = b""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_us: int = 0
    service_us: int = 0
    began_ms: int = 0
    ended_ms: int = 0


class AnswerChain:
    """The hash chain over an answer: each link is the hash of the one before and of the next output."""

    __slots__ = ("link", "outputs")

    def __init__(self) -> None:
        self.link = bytes(HASH_BYTES)
        """The last link; zeros before the first output."""
        self.outputs = 0
        """How many outputs there were."""

    def add(self, output: Output) -> None:
        """Take in the next output."""
        self.link = hashlib.sha256(self.link + output_bytes(output)).digest()
        self.outputs += 1


def hash_request(feature: Feature, model: str, body: bytes | memoryview, tensors: Sequence[Tensor] = ()) -> bytes:
    """The hash of what was asked, whatever it travelled in."""
    digest = hashlib.sha256()
    for field in (REQUEST_LABEL, feature.value.encode(), model.encode(), body, *_tensor_fields(tensors)):
        digest.update(_length(field))
        digest.update(field)
    return digest.digest()


def output_bytes(output: Output) -> bytes:
    """An output as it stands under its link: what kind it is, then its fields, each with its length."""
    match output:
        case TextDelta(text, index):
            return _joined((b"text", index.to_bytes(2, "big"), text.encode()))
        case JsonDelta(payload):
            return _joined((b"json", payload))
        case _:
            return _joined((b"tensors", *_tensor_fields(output.tensors)))


def sign_receipt(identity: Identity, receipt: Receipt) -> bytes:
    """The signature and the receipt behind it, as they travel."""
    packed = pack(_to_plain(receipt), _LIMITS)
    return identity.sign(DOMAIN + packed) + packed


def open_receipt(signed: bytes | memoryview) -> Receipt:
    """Read a receipt and verify that the peer it names has signed it.

    Raises:
        RemoteProtocolError: TOO_LARGE, MALFORMED or UNSUPPORTED, for what is no receipt of this version; BAD_SIGNATURE.
    """
    signed = bytes(signed)
    if len(signed) > RECEIPT_BYTES_MAX:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a receipt of {len(signed)} bytes; the limit is {RECEIPT_BYTES_MAX}")
    signature, packed = signed[:SIGNATURE_BYTES], signed[SIGNATURE_BYTES:]
    receipt = _from_plain(unpack(packed, _LIMITS))
    if not verify_signature(public_key_of(receipt.executor), signature, DOMAIN + packed):
        raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, "the receipt is not signed by the peer it names")
    return receipt


def check_receipt(
    receipt: Receipt, request: InferenceRequest, chain: AnswerChain, requesters: Iterable[PeerId], executor: PeerId | None
) -> None:
    """Compare a receipt with what was asked and answered.

    Args:
        receipt: with a good signature.
        request: what was asked.
        chain: over what was answered.
        requesters: who may have asked the executing peer.
        executor: who must have answered; None where the peer that was asked might pass the request on.

    Raises:
        RemoteProtocolError: BAD_SIGNATURE, naming the first thing that differs: the peer has signed what is not so.
    """
    expected = hash_request(request.feature, request.model, request.body, request.tensors)
    differs = (
        ("another request id", receipt.request_id != request.request_id),
        ("another request", receipt.request_hash != expected or receipt.feature is not request.feature),
        ("another model", receipt.model != request.model),
        ("another answer", receipt.answer_hash != chain.link or receipt.outputs != chain.outputs),
        ("another requester", receipt.requester not in requesters),
        ("another executing peer", executor is not None and receipt.executor != executor),
    )
    for what, is_so in differs:
        if is_so:
            raise RemoteProtocolError(ErrorCode.BAD_SIGNATURE, f"the receipt is for {what}")


def _to_plain(receipt: Receipt) -> list[object]:
    return [
        RECEIPT_VERSION,
        receipt.request_id,
        bytes(receipt.requester),
        bytes(receipt.executor),
        receipt.feature.value,
        receipt.request_hash,
        receipt.answer_hash,
        receipt.outputs,
        receipt.model,
        receipt.model_digest,
        receipt.prompt_tokens,
        receipt.completion_tokens,
        receipt.queue_us,
        receipt.service_us,
        receipt.began_ms,
        receipt.ended_ms,
    ]


def _from_plain(value: Plain) -> Receipt:
    if not isinstance(value, list) or not value:
        raise _malformed("a receipt that is no array")
    if value[0] != RECEIPT_VERSION or isinstance(value[0], bool):
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "a receipt of another version")
    if len(value) < _FIELDS:
        raise _malformed(f"a receipt of {len(value)} fields")
    feature, model = value[4], value[8]
    if not isinstance(feature, str) or feature not in _FEATURES:
        raise _malformed("a receipt for no feature")
    if not isinstance(model, str) or not 0 < len(model.encode()) <= MODEL_BYTES_MAX:
        raise _malformed("a receipt for no model")
    digest = _bytes(value[9], "model digest", HASH_BYTES) if value[9] else b""
    counts = [_count(item) for item in (value[7], *value[10:_FIELDS])]
    return Receipt(
        _bytes(value[1], "request id", REQUEST_ID_BYTES),
        _peer(value[2]),
        _peer(value[3]),
        _FEATURES[feature],
        _bytes(value[5], "request hash", HASH_BYTES),
        _bytes(value[6], "answer hash", HASH_BYTES),
        counts[0],
        model,
        digest,
        *counts[1:],
    )


def _bytes(value: Plain, what: str, length: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise _malformed(f"a receipt without a {what} of {length} bytes")
    return value


def _peer(value: Plain) -> PeerId:
    if not isinstance(value, bytes) or len(value) > PEER_ID_BYTES_MAX:
        raise _malformed("a receipt without two peer ids")
    return peer_id_from_bytes(value)


def _count(value: Plain) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _COUNT_MAX:
        raise _malformed("a receipt with a number out of its range")
    return value


def _tensor_fields(tensors: Sequence[Tensor]) -> Iterable[bytes | memoryview]:
    for tensor in tensors:
        assert tensor.device is None, "the bytes of a receipt lie on the host"
        yield tensor.name.encode()
        yield tensor.dtype.encode()
        yield b"".join(size.to_bytes(4, "big") for size in tensor.shape)
        yield tensor.data.cast("B") if tensor.data.nbytes else b""


def _joined(fields: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(piece for field in fields for piece in (_length(field), field))


def _length(field: bytes | memoryview) -> bytes:
    return (field.nbytes if isinstance(field, memoryview) else len(field)).to_bytes(8, "big")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)
