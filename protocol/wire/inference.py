"""Requests and replies of `/isochrone/infer/1.0.0` as FlatBuffers messages.

The verifier hands back the fields of a message in the order of its schema, and the writer takes them so; both are driven by
layouts generated from the schemas, as are the numbers of features, data types and events. What is left to do here is to check
ranges that a schema cannot say, and to put the fields into values. The body and the data of tensors are views into the message,
which they keep alive; nothing is copied. Where bytes decode to a value out of its range the error is MALFORMED; where they name
something a newer version may know (a feature, a data type, an event) it is UNSUPPORTED; a bound that is passed is
TOO_LARGE.

Source: FlatBuffers, "FlatBuffer internals".
Spec: docs/spec/06-inference.md.
"""

from collections.abc import Callable
from math import prod
from typing import Any, assert_never

from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.inference import (
    REQUEST_ID_BYTES,
    Accepted,
    Failed,
    Feature,
    Finished,
    InferenceRequest,
    JsonDelta,
    Reply,
    Tensor,
    TensorsReady,
    TextDelta,
    Timing,
    Usage,
)
from protocol.wire.generated.infer_reply_generated import Event
from protocol.wire.generated.infer_tensor_generated import DataType
from protocol.wire.generated.infer_tensor_generated import Feature as FeatureNumber
from protocol.wire.generated.layouts import REPLY, REQUEST
from protocol.wire.template import Reader, Writer
from protocol.wire.writer import write_message

PROTOCOL_ID = "/isochrone/infer/1.0.0"
"""The name by which the stream is negotiated (docs/spec/06-inference.md)."""

REQUEST_BYTES_MAX = 8 * 1024 * 1024
"""Largest request in bytes without its frame: an image or a long conversation fits, and one peer cannot fill the memory."""

REPLY_BYTES_MAX = 8 * 1024 * 1024
"""Largest single reply in bytes without its frame: as the request, so that embeddings of a full batch fit."""

MODEL_BYTES_MAX = 256
"""Longest model id in bytes, as the schema says: Hugging Face ids have at most 96 characters a part, and quantised names grow."""

DEADLINE_MAX_S = 3600.0
"""Longest deadline in seconds: an hour, past which a caller has surely gone."""

DURATION_MAX_S = 3600.0
"""Longest wait, service time or retry advice in seconds that can be told; longer ones are told as this."""

HOPS_MAX = 2
"""Most forwards a request may still make, unitless: the mesh allows two hops in all."""

MEMORY_BYTES_MAX = 2**50
"""Largest memory in bytes that a request can ask for: a pebibyte, a thousand times what any accelerator has today."""

OUTPUT_TOKENS_MAX = 2**31
"""Largest number of tokens that a request can say it wants: what engines count in 32 bits with a sign, and one more."""

_MESSAGE_BYTES_MAX = 1024
"""Longest error message in bytes, as the schema says; longer ones are cut."""

_REQUEST_READER, _REQUEST_WRITER = Reader(REQUEST), Writer(REQUEST, REQUEST_BYTES_MAX)
_REPLY_READER, _REPLY_WRITER = Reader(REPLY), Writer(REPLY, REPLY_BYTES_MAX)

# Largest numbers of the two unsigned types of the schema, unitless.
_U16_MAX = 2**16 - 1
# As above.
_U32_MAX = 2**32 - 1

_FEATURES: dict[int, Feature] = {
    FeatureNumber.Chat: Feature.CHAT,
    FeatureNumber.Completions: Feature.COMPLETIONS,
    FeatureNumber.Embeddings: Feature.EMBEDDINGS,
    FeatureNumber.Tensors: Feature.TENSORS,
}
_FEATURE_NUMBERS = {feature: number for number, feature in _FEATURES.items()}

# The short name and the size of one element in bytes.
_DATA_TYPES: dict[int, tuple[str, int]] = {
    DataType.Bool: ("b1", 1),
    DataType.Int8: ("i1", 1),
    DataType.Int16: ("i2", 2),
    DataType.Int32: ("i4", 4),
    DataType.Int64: ("i8", 8),
    DataType.Uint8: ("u1", 1),
    DataType.Uint16: ("u2", 2),
    DataType.Uint32: ("u4", 4),
    DataType.Uint64: ("u8", 8),
    DataType.Float16: ("f2", 2),
    DataType.Float32: ("f4", 4),
    DataType.Float64: ("f8", 8),
}
_ERROR_CODES = {code.value: code for code in ErrorCode}
_DATA_TYPE_NUMBERS = {name: (number, size) for number, (name, size) in _DATA_TYPES.items()}

DATA_TYPES = frozenset(_DATA_TYPE_NUMBERS)
"""The data types a tensor can have, by numpy's short names without byte order."""


def encode_request(request: InferenceRequest) -> bytes:
    """Write a request as one message, without a frame.

    Args:
        request: its id has `REQUEST_ID_BYTES` bytes; 0 < deadline_s <= `DEADLINE_MAX_S`; 0 <= hops_left <= `HOPS_MAX`;
            0 <= memory_bytes <= `MEMORY_BYTES_MAX`; 0 <= output_tokens <= `OUTPUT_TOKENS_MAX`.

    Raises:
        LocalProtocolError: MALFORMED, for a value out of its range; TOO_LARGE, past a limit.
    """
    return write_message(REQUEST, _request_values(request), REQUEST_BYTES_MAX)


def frame_request(request: InferenceRequest) -> list[bytes | memoryview]:
    """Write a request as a frame in pieces, for one vectored write: large data are the caller's own buffers, not copies.

    Raises:
        LocalProtocolError: as `encode_request`.
    """
    return _REQUEST_WRITER.frame(_request_values(request))


def _request_values(request: InferenceRequest) -> tuple[Any, ...]:
    if len(request.request_id) != REQUEST_ID_BYTES:
        raise _unsendable("a request id has 16 bytes")
    if not _is_model(request.model):
        raise _unsendable(f"{request.model!r} is no model id")
    deadline_s = request.deadline_s
    # A comparison with something that is not a number is false.
    if not 0 < deadline_s <= DEADLINE_MAX_S:
        raise _unsendable(f"a deadline of {deadline_s} s")
    if not 0 <= request.hops_left <= HOPS_MAX:
        raise _unsendable(f"{request.hops_left} hops left")
    if not 0 <= request.memory_bytes <= MEMORY_BYTES_MAX:
        raise _unsendable(f"a need of {request.memory_bytes} bytes of memory")
    if not 0 <= request.output_tokens <= OUTPUT_TOKENS_MAX:
        raise _unsendable(f"a wish for {request.output_tokens} tokens")
    return (
        request.request_id,
        _FEATURE_NUMBERS[request.feature],
        request.model,
        _flat(request.body),
        [_tensor_values(tensor) for tensor in request.tensors],
        max(1, round(deadline_s * 1e6)),
        request.hops_left,
        request.stream,
        request.memory_bytes,
        request.output_tokens,
        request.receipt,
    )


def decode_request(buffer: bytes | bytearray | memoryview) -> InferenceRequest:
    """Verify and read a request; its body and the data of its tensors are read-only views into `buffer`.

    Raises:
        RemoteProtocolError: MALFORMED, TOO_LARGE or UNSUPPORTED, as the module says.
    """
    _check_bytes(buffer, REQUEST_BYTES_MAX)
    values = _REQUEST_READER.read(buffer)
    request_id, feature, model, body, tensors, deadline_us, hops_left, stream, memory_bytes, output_tokens, receipt = values
    if len(request_id) != REQUEST_ID_BYTES:
        raise _malformed(f"a request id of {len(request_id)} bytes")
    if not _is_model(model):
        raise _malformed(f"{model!r} is no model id")
    if not 0 < deadline_us <= DEADLINE_MAX_S * 1e6:
        raise _malformed(f"a deadline of {deadline_us} us")
    if hops_left > HOPS_MAX:
        raise _malformed(f"{hops_left} hops left")
    if memory_bytes > MEMORY_BYTES_MAX:
        raise _malformed(f"a need of {memory_bytes} bytes of memory")
    if output_tokens > OUTPUT_TOKENS_MAX:
        raise _malformed(f"a wish for {output_tokens} tokens")
    if feature not in _FEATURES:
        raise _unsupported(f"feature {feature}")
    return InferenceRequest(
        request_id=bytes(request_id),
        feature=_FEATURES[feature],
        model=model,
        body=body,
        tensors=_read_tensors(tensors),
        deadline_s=deadline_us / 1e6,
        hops_left=hops_left,
        stream=stream,
        memory_bytes=memory_bytes,
        output_tokens=output_tokens,
        receipt=receipt,
    )


def encode_reply(reply: Reply) -> bytes:
    """Write one event of an answer as one message, without a frame.

    Durations past `DURATION_MAX_S` are written as that, token counts past 32 bits as their maximum, and a long error message is
    cut.

    Raises:
        LocalProtocolError: MALFORMED, for a value out of its range; TOO_LARGE, past a limit.
    """
    return write_message(REPLY, _reply_values(reply), REPLY_BYTES_MAX)


def frame_reply(reply: Reply) -> list[bytes | memoryview]:
    """Write one event as a frame in pieces, for one vectored write: large data are the engine's own buffers, not copies.

    Raises:
        LocalProtocolError: as `encode_reply`.
    """
    return _REPLY_WRITER.frame(_reply_values(reply))


def _reply_values(reply: Reply) -> tuple[tuple[int, tuple[Any, ...]]]:
    event: tuple[int, tuple[Any, ...]]
    match reply:
        case TextDelta(text, index):
            if not 0 <= index <= _U16_MAX:
                raise _unsendable(f"choice {index}")
            event = Event.TextDelta, (text, index)
        case Accepted(queue_s):
            event = Event.Accepted, (_microseconds(queue_s),)
        case JsonDelta(payload):
            event = Event.JsonDelta, (payload,)
        case TensorsReady(tensors):
            event = Event.TensorsReady, ([_tensor_values(tensor) for tensor in tensors],)
        case Finished(finish_reasons, usage, timing, receipt):
            tokens = _tokens(usage.prompt_tokens), _tokens(usage.completion_tokens)
            took = _microseconds(timing.queue_s), _microseconds(timing.service_s)
            event = Event.Finished, (finish_reasons, *tokens, *took, receipt)
        case Failed(code, message, retry_after_s):
            if code == ErrorCode.NO_ERROR:
                raise _unsendable("a failure needs an error code")
            # Cutting bytes may cut a character in two: what is left of it goes too.
            cut = message.encode(errors="replace")[:_MESSAGE_BYTES_MAX].decode(errors="ignore")
            event = Event.Failed, (code, cut, _microseconds(retry_after_s) // 1000)
        case _:
            assert_never(reply)
    return (event,)


def decode_reply(buffer: bytes | bytearray | memoryview) -> Reply:
    """Verify and read one event of an answer; the data of its tensors are read-only views into `buffer`.

    Raises:
        RemoteProtocolError: MALFORMED, TOO_LARGE or UNSUPPORTED, as the module says.
    """
    _check_bytes(buffer, REPLY_BYTES_MAX)
    ((kind, fields),) = _REPLY_READER.read(buffer)
    return _READERS[kind](fields)


def _read_accepted(fields: tuple[Any, ...]) -> Accepted:
    return Accepted(_seconds(fields[0]))


def _read_text(fields: tuple[Any, ...]) -> TextDelta:
    text, index = fields
    return TextDelta(text, index)


def _read_json(fields: tuple[Any, ...]) -> JsonDelta:
    return JsonDelta(bytes(fields[0]))


def _read_tensors_ready(fields: tuple[Any, ...]) -> TensorsReady:
    return TensorsReady(_read_tensors(fields[0]))


def _read_finished(fields: tuple[Any, ...]) -> Finished:
    finish_reasons, prompt_tokens, completion_tokens, queue_us, service_us, receipt = fields
    usage = Usage(prompt_tokens, completion_tokens)
    return Finished(finish_reasons, usage, Timing(_seconds(queue_us), _seconds(service_us)), bytes(receipt))


def _read_failed(fields: tuple[Any, ...]) -> Failed:
    code, message, retry_after_ms = fields
    if code == ErrorCode.NO_ERROR:
        raise _malformed("a failure without an error code")
    # A code of a newer version is taken as INTERNAL (docs/spec/00-conventions.md, ISO-CONV-010).
    known = _ERROR_CODES.get(code, ErrorCode.INTERNAL)
    if retry_after_ms > DURATION_MAX_S * 1e3:
        raise _malformed(f"advice to retry after {retry_after_ms} ms")
    return Failed(known, message, retry_after_ms / 1e3)


_READERS: dict[int, Callable[[tuple[Any, ...]], Reply]] = {
    Event.Accepted: _read_accepted,
    Event.TextDelta: _read_text,
    Event.JsonDelta: _read_json,
    Event.TensorsReady: _read_tensors_ready,
    Event.Finished: _read_finished,
    Event.Failed: _read_failed,
}


def _read_tensors(rows: tuple[tuple[Any, ...], ...]) -> tuple[Tensor, ...]:
    return tuple(_read_tensor(*row) for row in rows)


def _read_tensor(name: str, dtype: int, shape: tuple[int, ...], data: memoryview) -> Tensor:
    if dtype not in _DATA_TYPES:
        raise _unsupported(f"data type {dtype}")
    short_name, item_bytes = _DATA_TYPES[dtype]
    if prod(shape) * item_bytes != len(data):
        raise _malformed(f"a tensor {short_name} of shape {shape} with {len(data)} bytes")
    return Tensor(name, short_name, shape, data)


def _tensor_values(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.dtype not in _DATA_TYPE_NUMBERS:
        raise _unsendable(f"data type {tensor.dtype!r}")
    number, item_bytes = _DATA_TYPE_NUMBERS[tensor.dtype]
    shape, length = tensor.shape, tensor.data.nbytes
    if not all(0 <= size <= _U32_MAX for size in shape):
        raise _unsendable(f"a shape of {shape}")
    if prod(shape) * item_bytes != length:
        raise _unsendable(f"a tensor {tensor.dtype} of shape {shape} with {length} bytes")
    return tensor.name, number, shape, _flat(tensor.data)


def _flat(data: bytes | memoryview) -> bytes | memoryview:
    """Show a buffer of any shape and item as bytes."""
    if isinstance(data, memoryview) and (data.ndim != 1 or data.itemsize != 1):
        return data.cast("B") if data.nbytes else b""
    return data


def _tokens(count: int) -> int:
    if count < 0:
        raise _unsendable(f"{count} tokens")
    return min(count, _U32_MAX)


def _is_model(model: str) -> bool:
    return model.isprintable() and 0 < len(model.encode()) <= MODEL_BYTES_MAX


def _microseconds(duration_s: float) -> int:
    if not duration_s >= 0:  # nor is what is no number
        raise _unsendable(f"a duration of {duration_s} s")
    return round(min(duration_s, DURATION_MAX_S) * 1e6)


def _seconds(duration_us: int) -> float:
    if duration_us > DURATION_MAX_S * 1e6:
        raise _malformed(f"a duration of {duration_us} us")
    return duration_us / 1e6


def _check_bytes(buffer: bytes | bytearray | memoryview, bytes_max: int) -> None:
    if len(buffer) > bytes_max:
        raise RemoteProtocolError(ErrorCode.TOO_LARGE, f"a message of {len(buffer)} bytes; the limit is {bytes_max}")


def _unsendable(fault: str) -> LocalProtocolError:
    return LocalProtocolError(ErrorCode.MALFORMED, f"cannot be sent: {fault}")


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.MALFORMED, detail)


def _unsupported(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.UNSUPPORTED, f"{detail} is not known to this version")
