"""Chapter 6: requests that the node answers itself, or refuses.

Spec: docs/spec/06-inference.md.
"""

import struct

from mesh.conformance.inference import (
    LAX_REQUEST,
    answer,
    begin,
    fields,
    outcome,
    plain_tensor,
    refused,
    request,
    tensor_model,
    text_model,
)
from mesh.conformance.peer import ScriptedPeer
from mesh.conformance.registry import case, expect
from protocol.encoding import encode_frame, encode_uvarint
from protocol.errors import ErrorCode
from protocol.inference import Accepted, Failed, TensorsReady, TextDelta
from protocol.wire.generated.layouts import REQUEST
from protocol.wire.inference import PROTOCOL_ID as INFER_PROTOCOL
from protocol.wire.inference import REPLY_BYTES_MAX
from protocol.wire.layout import FieldLayout, Kind, MessageLayout
from protocol.wire.writer import write_message

UNKNOWN_MODEL = "no-such-model"
"""A model that nobody serves."""

TENSOR_ALIGNMENT = 16
"""The data of a tensor stand at a multiple of so many bytes of the message (ISO-INFER-002)."""

TIME_LIMIT_S = 30.0
"""So long a request may take to arrive, in seconds (ISO-INFER-015)."""


@case("ISO-INFER-009", "ISO-INFER-001")
async def a_request_is_answered_in_order(peer: ScriptedPeer) -> None:
    """At most one Accepted, outputs, one end, and the stream's end behind it; each message names what it is."""
    model = text_model(peer)
    connection = await peer.dial()
    for streamed in (False, True):
        replies = await answer(await begin(connection, request(model, stream=streamed)))
        expect(outcome(replies) is ErrorCode.NO_ERROR, "an answer that finishes", replies[-1])
        expect(any(isinstance(reply, TextDelta) for reply in replies), "text", replies)
    stream = await begin(connection, request(model))
    frame = await stream.frame(REPLY_BYTES_MAX)
    expect(frame[4:8] == b"ISIR", "the file identifier ISIR", frame[:12])


@case("ISO-INFER-001", "ISO-INFER-015")
async def messages_of_another_kind_are_malformed(peer: ScriptedPeer) -> None:
    """Another file identifier, and a size in front."""
    peer.needs_inference()
    good = request(UNKNOWN_MODEL)
    await refused(peer, good[:4] + b"ISIR" + good[8:], ErrorCode.MALFORMED, "a request with another file identifier")
    await refused(peer, struct.pack("<I", len(good)) + good, ErrorCode.MALFORMED, "a request with its size in front")


@case("ISO-INFER-002")
async def a_request_may_lie_anyhow(peer: ScriptedPeer) -> None:
    """A message in which nothing is aligned is read all the same."""
    model = text_model(peer)
    good = request(model)
    (root,) = struct.unpack_from("<I", good)
    shifted = struct.pack("<I", root + 1) + good[4:8] + b"\x00" + good[8:]
    replies = await answer(await begin(await peer.dial(), shifted), "the answer to a request that is not aligned")
    expect(outcome(replies) is ErrorCode.NO_ERROR, "an answer that finishes", replies[-1])


@case("ISO-INFER-002")
async def tensors_of_an_answer_are_aligned(peer: ScriptedPeer) -> None:
    """The data of each tensor stand at a multiple of 16 bytes of the message."""
    model = tensor_model(peer)
    mark = bytes(range(64, 80))
    stream = await begin(await peer.dial(), request(model, feature=4, body=b"", tensors=[plain_tensor(mark)]))
    for _ in range(3):
        frame = await stream.frame(REPLY_BYTES_MAX, "an answer of tensors")
        if mark in frame:
            expect(frame.index(mark) % TENSOR_ALIGNMENT == 0, "data at a multiple of 16 bytes", frame.index(mark))
            return
    expect(False, "the tensors back", "none")


@case("ISO-INFER-003")
async def fields_of_a_later_schema_are_not_looked_at(peer: ScriptedPeer) -> None:
    """A request with one field more is answered like any other."""
    model = text_model(peer)
    tensor, table = LAX_REQUEST.tables
    size, at = struct.unpack_from("<HH", table.vtable)
    place = at
    vtable = struct.pack("<HH", size + 2, at + 8) + table.vtable[4:] + struct.pack("<H", place)
    later = FieldLayout("later", size, Kind.SCALAR, 4, struct.Struct("<I"), 0, 0, False, (), place, 4)
    inline = struct.Struct(table.inline.format + "I4x")
    wider = table._replace(vtable=vtable, inline=inline, fields=(*table.fields, later))
    layout: MessageLayout = LAX_REQUEST._replace(tables=(tensor, wider))
    message = write_message(layout, [*fields(model), 7])
    replies = await answer(await begin(await peer.dial(), message), "the answer to a request with one field more")
    expect(outcome(replies) is ErrorCode.NO_ERROR, "an answer that finishes", replies[-1])


@case("ISO-INFER-004", "ISO-INFER-008")
async def tensors_whose_shape_does_not_fit_are_malformed(peer: ScriptedPeer) -> None:
    """Too many or too few bytes, a product that overflows, and what is not known at all."""
    peer.needs_inference()
    wrong = {
        "too few bytes": (plain_tensor(bytes(15)), ErrorCode.MALFORMED),
        "too many bytes": (plain_tensor(bytes(17)), ErrorCode.MALFORMED),
        "a shape whose product is 2^64 and the bytes of nothing": (
            plain_tensor(b"", shape=(1 << 31, 1 << 31, 4)), ErrorCode.MALFORMED,
        ),
        "a data type that nobody knows": (plain_tensor(dtype=99), ErrorCode.UNSUPPORTED),
    }  # fmt: skip
    for what, (tensor, code) in wrong.items():
        await refused(peer, request(UNKNOWN_MODEL, feature=4, body=b"", tensors=[tensor]), code, f"a tensor with {what}")


@case("ISO-INFER-006", "ISO-INFER-015")
async def messages_that_point_outside_are_malformed(peer: ScriptedPeer) -> None:
    """Offsets, vtables, strings and required fields are checked before anything is used."""
    peer.needs_inference()
    good = request(UNKNOWN_MODEL)
    vtable = good.index(REQUEST.tables[REQUEST.root].vtable)
    text = good.index(UNKNOWN_MODEL.encode())
    wrong = {
        "a root outside the message": struct.pack("<I", 1 << 31) + good[4:],
        "a root of 0": struct.pack("<I", 0) + good[4:],
        "a vtable of odd length": good[:vtable] + b"\x17\x00" + good[vtable + 2 :],
        "a vtable of two bytes": good[:vtable] + b"\x02\x00" + good[vtable + 2 :],
        "a field outside its table": good[: vtable + 4] + b"\xff\x7f" + good[vtable + 6 :],
        "a required field that is missing": good[: vtable + 4] + b"\x00\x00" + good[vtable + 6 :],
        "text that is not UTF-8": good[:text] + b"\xff\xfe" + good[text + 2 :],
        "text without a zero behind it": good[: text + len(UNKNOWN_MODEL)] + b"x" + good[text + len(UNKNOWN_MODEL) + 1 :],
        "an early end": good[: len(good) // 2],
        "nothing in it": b"",
    }
    connection = await peer.dial()
    for what, message in wrong.items():
        await refused(peer, message, ErrorCode.MALFORMED, f"a request with {what}", connection)


@case("ISO-INFER-007", "ISO-CONV-002", "ISO-INFER-015")
async def parts_over_their_bounds_are_too_large(peer: ScriptedPeer) -> None:
    """Strings, vectors and numbers of tables."""
    peer.needs_inference()
    wrong = {
        "a model of 257 bytes": request("m" * 257),
        "33 tensors": request(UNKNOWN_MODEL, tensors=[plain_tensor()] * 33),
        "a shape of 9 numbers": request(UNKNOWN_MODEL, tensors=[plain_tensor(shape=(1,) * 9, data=bytes(4))]),
        "a tensor's name of 257 bytes": request(UNKNOWN_MODEL, tensors=[plain_tensor(name="n" * 257)]),
    }
    connection = await peer.dial()
    for what, message in wrong.items():
        await refused(peer, message, ErrorCode.TOO_LARGE, f"a request with {what}", connection)


@case("ISO-INFER-008", "ISO-INFER-015")
async def values_out_of_their_ranges_are_malformed(peer: ScriptedPeer) -> None:
    """Each field at one step beyond its range; a feature that nobody knows is UNSUPPORTED."""
    peer.needs_inference()
    wrong: dict[str, dict[str, object]] = {
        "an id of 15 bytes": {"id": bytes(15)},
        "a deadline of 0": {"deadline_us": 0},
        "a deadline of an hour and a microsecond": {"deadline_us": 3_600_000_001},
        "3 hops left": {"hops_left": 3},
        "a memory of more than 2^50 bytes": {"memory_bytes": 2**50 + 1},
        "more than 2^31 tokens": {"output_tokens": 2**31 + 1},
        "a model of no characters": {"model": ""},
        "a model with a control character": {"model": "a\x07"},
    }
    connection = await peer.dial()
    for what, changes in wrong.items():
        await refused(peer, request(UNKNOWN_MODEL, **changes), ErrorCode.MALFORMED, f"a request with {what}", connection)
    await refused(peer, request(UNKNOWN_MODEL, feature=9), ErrorCode.UNSUPPORTED, "a feature that nobody knows", connection)


@case("ISO-INFER-010")
async def an_answer_ends_within_its_deadline(peer: ScriptedPeer) -> None:
    """With a microsecond left there is an end, and it comes at once."""
    model = text_model(peer)
    replies = await answer(await begin(await peer.dial(), request(model, deadline_us=1)), "an answer within a microsecond", 2.0)
    expect(outcome(replies) in {ErrorCode.DEADLINE_EXCEEDED, ErrorCode.NO_ERROR}, "DEADLINE_EXCEEDED", replies[-1])


@case("ISO-INFER-015", "ISO-CONV-011")
async def what_cannot_be_read_is_answered_by_one_failure(peer: ScriptedPeer) -> None:
    """Junk of all lengths brings one Failed each, and the connection goes on."""
    peer.needs_inference()
    connection = await peer.dial()
    for junk in (bytes(1), bytes(8), bytes(range(200)), b"ISIQ" * 20):
        replies = await answer(await begin(connection, junk), "the answer to junk")
        expect(len(replies) == 1 and isinstance(replies[0], Failed), "one Failed", replies)
    await peer.nothing_happens(connection)


@case("ISO-INFER-015", slow=True)
async def a_request_that_does_not_arrive_is_refused(peer: ScriptedPeer) -> None:
    """After half a minute half a request is refused with IDLE."""
    peer.needs_inference()
    connection = await peer.dial()
    stream = await connection.speak(INFER_PROTOCOL)
    stream.send(encode_uvarint(1000) + bytes(10))
    replies = await answer(stream, "the answer to half a request", TIME_LIMIT_S + 5.0)
    expect(outcome(replies) is ErrorCode.IDLE, "IDLE", replies)


@case("ISO-INFER-016")
async def data_behind_a_request_are_malformed(peer: ScriptedPeer) -> None:
    """A second frame in the same packet is no part of a request."""
    peer.needs_inference()
    connection = await peer.dial()
    stream = await connection.speak(INFER_PROTOCOL)
    stream.send(encode_frame(request(UNKNOWN_MODEL)) + b"more")
    replies = await answer(stream, "the answer to a request with data behind it")
    expect(outcome(replies) is ErrorCode.MALFORMED, "MALFORMED", replies)


@case("ISO-INFER-016", "ISO-INFER-011")
async def the_end_of_the_requesters_side_stops_nothing(peer: ScriptedPeer) -> None:
    """A request whose stream is ended at once is answered."""
    model = text_model(peer)
    replies = await answer(await begin(await peer.dial(), request(model), end=True))
    expect(outcome(replies) is ErrorCode.NO_ERROR, "an answer that finishes", replies[-1])


@case("ISO-INFER-024")
async def a_node_without_the_memory_says_so(peer: ScriptedPeer) -> None:
    """Nobody has a pebibyte; a request that may go no further is refused."""
    model = text_model(peer)
    message = request(model, memory_bytes=2**50, hops_left=0)
    await refused(peer, message, ErrorCode.INSUFFICIENT_MEMORY, "a request for a pebibyte of memory")


@case("ISO-INFER-020")
async def a_request_without_hops_goes_nowhere(peer: ScriptedPeer) -> None:
    """A model that the node does not serve is not found where it may not ask others."""
    peer.needs_inference()
    await refused(peer, request(UNKNOWN_MODEL, hops_left=0), ErrorCode.MODEL_NOT_FOUND, "a model that nobody serves")


@case("ISO-INFER-009")
async def tensors_come_back(peer: ScriptedPeer) -> None:
    """An echo of tensors, within the rules for answers."""
    model = tensor_model(peer)
    message = request(model, feature=4, body=b"", tensors=[plain_tensor(bytes(range(16)))])
    replies = await answer(await begin(await peer.dial(), message), "an answer of tensors")
    ready = [reply for reply in replies if isinstance(reply, TensorsReady)]
    expect(len(ready) == 1 and bytes(ready[0].tensors[0].data) == bytes(range(16)), "the tensor back", replies)
    expect(sum(isinstance(reply, Accepted) for reply in replies) <= 1, "at most one Accepted", replies)
