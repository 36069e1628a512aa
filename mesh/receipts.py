"""Receipts of answers: made by the node that answers, checked and kept by the one that asked, shown as JSON.

`SignedReplies` stands round the replies of an engine and signs at their end. `Examination` follows an answer as it passes and
compares the receipt with it. `ReceiptBook` keeps the receipts of this node's own clients with what they are for, in bounded
memory.

Spec: docs/spec/10-sealing.md, section "Receipts".
"""

import base64
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from protocol.errors import RemoteProtocolError
from protocol.identity import Identity, PeerId, peer_id_text, public_key_of
from protocol.inference import Finished, InferenceRequest, JsonDelta, Output, Reply, Tensor, TensorsReady, TextDelta
from protocol.receipts import AnswerChain, Receipt, check_receipt, hash_request, open_receipt, sign_receipt

RECEIPTS_MAX = 1024
"""Receipts kept: as many as route reports, a megabyte of signatures and numbers."""
CONTENT_BYTES_MAX = 1024 * 1024
"""Most bytes of one request and its answer that are kept beside the receipt: any text and a batch of embeddings."""
CONTENTS_BYTES_MAX = 32 * 1024 * 1024
"""Most bytes of all of them; the oldest go first, and their receipts stay."""
FILE_FORMAT = "isochrone receipt 1"
"""What a receipt's file says that it is."""


class AnswerSigner:
    """Follows the replies of an engine, and puts a receipt into their end."""

    def __init__(
        self, request: InferenceRequest, requester: PeerId, identity: Identity, model_digest: bytes, wall: Callable[[], float]
    ) -> None:
        """Begins now; nothing is hashed before the replies come."""
        self._request = request
        self._requester = requester
        self._identity = identity
        self._model_digest = model_digest
        self._wall = wall
        self._began_ms = _milliseconds(wall())
        self._chain = AnswerChain()

    def take(self, reply: Reply) -> Reply:
        """The same reply, the end with its receipt."""
        if isinstance(reply, TextDelta | JsonDelta | TensorsReady):
            self._chain.add(reply)
        elif isinstance(reply, Finished):
            return replace(reply, receipt=self._sign(reply))
        return reply

    def _sign(self, end: Finished) -> bytes:
        request, chain = self._request, self._chain
        receipt = Receipt(
            request_id=request.request_id,
            requester=self._requester,
            executor=self._identity.peer_id,
            feature=request.feature,
            request_hash=hash_request(request.feature, request.model, request.body, request.tensors),
            answer_hash=chain.link,
            outputs=chain.outputs,
            model=request.model,
            model_digest=self._model_digest,
            prompt_tokens=end.usage.prompt_tokens,
            completion_tokens=end.usage.completion_tokens,
            queue_us=round(max(0.0, end.timing.queue_s) * 1e6),
            service_us=round(max(0.0, end.timing.service_s) * 1e6),
            began_ms=self._began_ms,
            ended_ms=_milliseconds(self._wall()),
        )
        return sign_receipt(self._identity, receipt)


class SignedReplies:
    """The replies of an engine, the end of which carries a receipt."""

    def __init__(self, replies: AsyncIterator[Reply], signer: AnswerSigner) -> None:
        """Wraps the replies."""
        self._replies = replies
        self._signer = signer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        return self._signer.take(await anext(self._replies))


class Examination:
    """One answer on its way to its reader, hashed as it passes."""

    def __init__(self, request: InferenceRequest, requesters: tuple[PeerId, ...], executor: PeerId | None) -> None:
        """Begins with no outputs; who may have asked and who must have answered as `check_receipt` takes them."""
        self.request = request
        self._requesters = requesters
        self._executor = executor
        self._chain = AnswerChain()
        self._held_bytes = len(request.body) + sum(tensor.data.nbytes for tensor in request.tensors)
        self.outputs: list[Output] | None = []
        """What was answered; None once it is too much to be kept."""

    @property
    def is_of_peer(self) -> bool:
        """Whether the peer that was asked must have signed the receipt, so that a wrong one is its own fault."""
        return self._executor is not None

    @property
    def held_bytes(self) -> int:
        """Bytes of the request and of the outputs, 0 where they are not kept."""
        return 0 if self.outputs is None else self._held_bytes

    def add(self, output: Output) -> None:
        """Takes in the next output."""
        self._chain.add(output)
        if self.outputs is not None:
            self._held_bytes += _size_bytes(output)
            if self._held_bytes > CONTENT_BYTES_MAX:
                self.outputs = None
            else:
                self.outputs.append(output)

    def judge(self, signed: bytes) -> RemoteProtocolError | None:
        """What is wrong with the receipt, None when nothing is."""
        try:
            check_receipt(open_receipt(signed), self.request, self._chain, self._requesters, self._executor)
        except RemoteProtocolError as error:
            return error
        return None


@dataclass(frozen=True, slots=True)
class _Kept:
    """A receipt, what was found wrong with it, and what it is for."""

    signed: bytes
    fault: str
    examination: Examination


class ReceiptBook:
    """The newest receipts of this node's own clients, by request."""

    def __init__(self) -> None:
        """Keeps none yet."""
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._held_bytes = 0

    def keep(self, signed: bytes, fault: str, examination: Examination) -> None:
        """Keeps a receipt; the oldest contents and then the oldest receipts make room."""
        request_id = examination.request.request_id.hex()
        self._drop(request_id)
        self._kept[request_id] = _Kept(signed, fault, examination)
        self._held_bytes += examination.held_bytes
        for kept in self._kept.values():
            if self._held_bytes <= CONTENTS_BYTES_MAX:
                break
            self._held_bytes -= kept.examination.held_bytes
            kept.examination.outputs = None
        while len(self._kept) > RECEIPTS_MAX:
            self._drop(next(iter(self._kept)))

    def show(self, request_id: str, *, content: bool) -> dict[str, object] | None:
        """A receipt as its file, None where there is none (any more)."""
        kept = self._kept.get(request_id)
        if kept is None:
            return None
        told = receipt_file(kept.signed)
        told["checked"] = kept.fault or "good"
        examination = kept.examination
        if content and examination.outputs is not None:
            told["request"] = request_json(examination.request)
            told["answer"] = [output_json(output) for output in examination.outputs]
        return told

    def _drop(self, request_id: str) -> None:
        kept = self._kept.pop(request_id, None)
        if kept is not None:
            self._held_bytes -= kept.examination.held_bytes


def receipt_file(signed: bytes) -> dict[str, object]:
    """A receipt as JSON: what is signed, and the same in words; a wrong one in part."""
    told: dict[str, object] = {"format": FILE_FORMAT, "signed": _text64(signed)}
    try:
        receipt = open_receipt(signed)
    except RemoteProtocolError:
        return told
    told["public_key"] = public_key_of(receipt.executor).hex()
    told["receipt"] = receipt_json(receipt)
    return told


def receipt_json(receipt: Receipt) -> dict[str, object]:
    """A receipt in words; what is not known is null."""
    return {
        "request_id": receipt.request_id.hex(),
        "requester": peer_id_text(receipt.requester),
        "executor": peer_id_text(receipt.executor),
        "feature": receipt.feature.value,
        "request_hash": receipt.request_hash.hex(),
        "answer_hash": receipt.answer_hash.hex(),
        "outputs": receipt.outputs,
        "model": receipt.model,
        "model_digest": receipt.model_digest.hex() or None,
        "prompt_tokens": receipt.prompt_tokens,
        "completion_tokens": receipt.completion_tokens,
        "queue_s": receipt.queue_us / 1e6,
        "service_s": receipt.service_us / 1e6,
        "began": _moment(receipt.began_ms),
        "ended": _moment(receipt.ended_ms),
    }


def request_json(request: InferenceRequest) -> dict[str, object]:
    """What is hashed of a request, as JSON; bytes in base64."""
    return {
        "feature": request.feature.value,
        "model": request.model,
        "body": _text64(request.body),
        "tensors": [_tensor_json(tensor) for tensor in request.tensors],
    }


def output_json(output: Output) -> dict[str, object]:
    """What is hashed of an output, as JSON; bytes in base64."""
    match output:
        case TextDelta(text, index):
            return {"text": text, "index": index}
        case JsonDelta(payload):
            return {"json": _text64(payload)}
        case TensorsReady(tensors):
            return {"tensors": [_tensor_json(tensor) for tensor in tensors]}


def _tensor_json(tensor: Tensor) -> dict[str, object]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "data": _text64(tensor.data)}


def _size_bytes(output: Output) -> int:
    match output:
        case TextDelta(text):
            return 64 + len(text)  # and its object
        case JsonDelta(payload):
            return len(payload)
        case TensorsReady(tensors):
            return sum(tensor.data.nbytes for tensor in tensors)


def _moment(milliseconds: int) -> str | None:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds") if milliseconds else None
    except (OverflowError, ValueError):
        return None


def _milliseconds(wall_s: float) -> int:
    return max(0, int(wall_s * 1000))


def _text64(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode("ascii")
