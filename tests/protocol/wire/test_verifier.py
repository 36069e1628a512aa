"""No bytes make the verifier raise anything but its declared error, or visit more than its budget."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import flatbuffers
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import Feature, InferenceRequest, Tensor, TensorsReady, TextDelta
from protocol.wire import verifier
from protocol.wire.generated import infer_reply_generated, infer_tensor_generated
from protocol.wire.generated.layouts import REPLY, REQUEST
from protocol.wire.inference import decode_reply, decode_request, encode_reply, encode_request
from protocol.wire.layout import FieldLayout, Kind, MessageLayout, TableLayout
from protocol.wire.verifier import DEPTH_MAX, SLACK_BYTES, TABLES_MAX, read_and_count, read_message

TENSORS = tuple(Tensor(f"input-{number}", "f4", (2, 2), memoryview(bytes(range(16)))) for number in range(3))
SAMPLES = [
    encode_request(InferenceRequest(bytes(range(16)), Feature.TENSORS, "model", b'{"k": 1}', TENSORS, 1.5, 1, True)),
    encode_reply(TensorsReady(TENSORS)),
    encode_reply(TextDelta("some text", 1)),
]


@dataclass
class Counted:
    """What a walk cost, also when it was refused."""

    visits: verifier.Visits
    code: ErrorCode | None


def read_counting(buffer: bytes, layout: MessageLayout) -> Counted:
    walk = verifier._Walk(buffer, layout)
    try:
        walk.root()
    except RemoteProtocolError as error:
        return Counted(walk.visits(), error.code)
    return Counted(walk.visits(), None)


def check_bounds(buffer: bytes) -> None:
    for layout in (REQUEST, REPLY):
        cost = read_counting(buffer, layout).visits
        assert cost.tables <= TABLES_MAX + 1
        # The part that passes the budget is charged and not read: it is one vector or table at most.
        assert cost.bytes <= 2 * len(buffer) + SLACK_BYTES
    for decode in (decode_request, decode_reply):
        assert code_of(decode, buffer) in {None, ErrorCode.MALFORMED, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED}


def code_of(decode: Callable[[bytes], object], buffer: bytes) -> ErrorCode | None:
    try:
        decode(buffer)
    except RemoteProtocolError as error:
        return error.code
    return None


@settings(max_examples=400)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_read_or_refused(sample: bytes, changes: list[tuple[int, int]]) -> None:
    buffer = bytearray(sample)
    for position, value in changes:
        buffer[position % len(buffer)] = value
    check_bounds(bytes(buffer))


@settings(max_examples=300)
@given(
    st.sampled_from(SAMPLES),
    st.integers(0, 2000),
    st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 600), st.integers(2**32 - 600, 2**32 - 1)),
)
def test_offsets_that_point_anywhere_are_read_or_refused(sample: bytes, position: int, value: int) -> None:
    buffer = bytearray(sample)
    struct.pack_into("<I", buffer, position % (len(buffer) - 4), value)
    check_bounds(bytes(buffer))


@pytest.mark.parametrize("sample", SAMPLES)
def test_messages_cut_short_are_refused(sample: bytes) -> None:
    """Only the padding at the very end may be missing; a reader that believed the rest would read past the end."""
    layout = REQUEST if sample[4:8] == REQUEST.identifier else REPLY
    whole = read_message(sample, layout)
    for length in range(len(sample)):
        cost = read_counting(sample[:length], layout)
        assert cost.code is ErrorCode.MALFORMED or (cost.code is None and read_message(sample[:length], layout) == whole)
        check_bounds(sample[:length])


@settings(max_examples=200)
@given(st.binary(max_size=200))
@example(b"")
@example(bytes(12))
def test_junk_is_refused(junk: bytes) -> None:
    check_bounds(junk)
    check_bounds(junk[:4] + b"ISIQ" + junk[4:])


def test_a_valid_message_costs_no_more_than_its_length_and_its_shared_vtables() -> None:
    for sample, layout in zip(SAMPLES, (REQUEST, REPLY, REPLY), strict=True):
        values, visits = read_and_count(sample, layout)
        assert len(values) == len(layout.tables[layout.root].fields)
        assert visits.bytes <= len(sample) + 32 * visits.tables


def field(name: str, slot: int, kind: Kind, members: tuple[int, ...] = (), length_max: int = 2**32) -> FieldLayout:
    return FieldLayout(name, slot, kind, 4, struct.Struct("<I"), length_max, 16, False, members, 4 * (slot // 2 - 1), 4)


# A table of two tables of its own kind and a string: the shape that no schema of ours has and every attack wants.
TREE = MessageLayout(
    "Tree",
    b"TREE",
    0,
    (
        TableLayout(
            "Node",
            b"",
            struct.Struct("<i"),
            4,
            (field("left", 4, Kind.TABLE, (0,)), field("right", 6, Kind.TABLE, (0,)), field("data", 8, Kind.BYTES)),
        ),
    ),
)


def chain(nodes: int, *, twice: bool) -> bytes:
    """Write `nodes` tables of 12 bytes, each pointing to the next, once or by both of its fields; the last points nowhere."""
    inner = struct.pack("<4H", 8, 12, 4, 8 if twice else 0)
    leaf = struct.pack("<2H", 4, 12)
    body = bytearray(struct.pack("<I4s", 20, b"TREE") + inner + leaf)
    for number in range(nodes):
        vtable = 8 if number < nodes - 1 else 16
        body += struct.pack("<iII", len(body) - vtable, 8, 4)
    return bytes(body)


@pytest.mark.parametrize(("nodes", "tables"), [(52, DEPTH_MAX + 1), (DEPTH_MAX, TABLES_MAX + 1)])
def test_shared_subtables_are_bounded(nodes: int, tables: int) -> None:
    """With FlatBuffers' own accessors the longer one, of 644 bytes, costs 2^52 visits."""
    cost = read_counting(chain(nodes, twice=True), TREE)
    assert cost.code is ErrorCode.TOO_LARGE
    assert cost.visits.tables == tables


def test_a_deep_chain_is_refused() -> None:
    cost = read_counting(chain(5000, twice=False), TREE)
    assert cost.code is ErrorCode.TOO_LARGE
    assert cost.visits.tables == DEPTH_MAX + 1
    assert read_counting(chain(DEPTH_MAX, twice=False), TREE).code is None


@pytest.mark.parametrize(("tensors", "code"), [(1, None), (2, ErrorCode.TOO_LARGE), (30, ErrorCode.TOO_LARGE)])
def test_shared_data_is_charged_each_time(tensors: int, code: ErrorCode | None) -> None:
    """Thirty tensors that all point to the same mebibyte are no request of thirty mebibytes."""
    builder = flatbuffers.Builder(0)
    data = builder.CreateByteVector(bytes(1 << 20))
    infer_tensor_generated.TensorStartShapeVector(builder, 1)
    builder.PrependUint32(1 << 20)
    shape = builder.EndVector()
    tables: list[int] = []
    for _ in range(tensors):
        infer_tensor_generated.TensorStart(builder)
        infer_tensor_generated.TensorAddShape(builder, shape)
        infer_tensor_generated.TensorAddData(builder, data)
        infer_tensor_generated.TensorAddDtype(builder, infer_tensor_generated.DataType.Uint8)
        tables.append(infer_tensor_generated.TensorEnd(builder))
    infer_reply_generated.TensorsReadyStartTensorsVector(builder, tensors)
    for table in tables:
        builder.PrependUOffsetTRelative(table)
    vector = builder.EndVector()
    infer_reply_generated.TensorsReadyStart(builder)
    infer_reply_generated.TensorsReadyAddTensors(builder, vector)
    event = infer_reply_generated.TensorsReadyEnd(builder)
    infer_reply_generated.ReplyStart(builder)
    infer_reply_generated.ReplyAddEventType(builder, infer_reply_generated.Event.TensorsReady)
    infer_reply_generated.ReplyAddEvent(builder, event)
    builder.Finish(infer_reply_generated.ReplyEnd(builder), b"ISIR")
    cost = read_counting(bytes(builder.Output()), REPLY)
    assert cost.code is code
    assert cost.visits.bytes <= 2 * (1 << 20) + SLACK_BYTES


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**28, 33])
def test_a_vector_of_any_announced_length_is_refused_unread(length: int) -> None:
    buffer = bytearray(SAMPLES[0])
    root = struct.unpack_from("<I", buffer)[0]
    place = root + 20
    struct.pack_into("<I", buffer, place + struct.unpack_from("<I", buffer, place)[0], length)
    cost = read_counting(bytes(buffer), REQUEST)
    assert cost.code is ErrorCode.TOO_LARGE
    assert cost.visits.tables == 1


@pytest.mark.parametrize("tables", [TABLES_MAX - 1, TABLES_MAX])
def test_the_number_of_tables_is_bounded(tables: int) -> None:
    """A root and `TABLES_MAX - 1` others are read; one more is refused."""
    layout = MessageLayout(
        "List",
        b"LIST",
        0,
        (
            TableLayout("List", b"", struct.Struct("<i"), 4, (field("items", 4, Kind.TABLES, (1,)),)),
            TableLayout("Item", b"", struct.Struct("<i"), 4, ()),
        ),
    )
    buffer = struct.pack("<I4sHHHHiII", 16, b"LIST", 6, 8, 4, 0, 8, 4, tables)
    items_at = len(buffer) + 4 * tables
    vtable = struct.pack("<HH", 4, 4)
    offsets = b"".join(struct.pack("<I", 4 * (tables - number) + 4 + 4 * number) for number in range(tables))
    buffer += offsets + vtable
    assert len(buffer) == items_at + 4
    buffer += b"".join(struct.pack("<i", 4 + 4 * number) for number in range(tables))
    cost = read_counting(buffer, layout)
    assert cost.code is (None if tables < TABLES_MAX else ErrorCode.TOO_LARGE)


def patched(sample: bytes, before: bytes, after: bytes) -> bytes:
    assert sample.count(before) == 1
    return sample.replace(before, after)


def test_text_must_be_utf8_and_end_with_a_zero() -> None:
    sample = SAMPLES[2]
    for after in (b"some\xfftext\0", b"some\xed\xa0\x80xt\0", b"some text!"):
        with pytest.raises(RemoteProtocolError) as caught:
            decode_reply(patched(sample, b"some text\0", after))
        assert caught.value.code is ErrorCode.MALFORMED


def test_a_message_of_another_kind_is_refused() -> None:
    for decode, sample in ((decode_request, SAMPLES[1]), (decode_reply, SAMPLES[0])):
        with pytest.raises(RemoteProtocolError) as caught:
            decode(sample)
        assert caught.value.code is ErrorCode.MALFORMED


def test_an_event_of_a_newer_version_is_unsupported() -> None:
    buffer = bytearray(SAMPLES[2])
    root = struct.unpack_from("<I", buffer)[0]
    for kind, code in ((0, ErrorCode.MALFORMED), (7, ErrorCode.UNSUPPORTED), (255, ErrorCode.UNSUPPORTED)):
        buffer[root + 4] = kind
        with pytest.raises(RemoteProtocolError) as caught:
            decode_reply(bytes(buffer))
        assert caught.value.code is code


def test_fields_of_a_newer_schema_are_not_looked_at() -> None:
    """The root of this request has twenty more fields, each an offset to nowhere."""
    message = SAMPLES[0]
    root = struct.unpack_from("<I", message)[0]
    vtable = root - struct.unpack_from("<i", message, root)[0]
    (vtable_bytes,) = struct.unpack_from("<H", message, vtable)
    newer = bytearray(message[vtable : vtable + vtable_bytes] + struct.pack("<20H", *[0xFFFF] * 20))
    struct.pack_into("<H", newer, 0, len(newer))
    shifted = bytearray(message + newer)
    struct.pack_into("<i", shifted, root, root - len(message))
    assert read_message(bytes(shifted), REQUEST) == read_message(message, REQUEST)
