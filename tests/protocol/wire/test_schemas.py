"""The generated code is in step with the schemas, and what it reads and writes is what our own reader and writer do."""

import runpy
from pathlib import Path
from typing import Any

import flatbuffers
import pytest

from protocol.errors import ErrorCode
from protocol.inference import Failed, Feature, Finished, InferenceRequest, Tensor, TensorsReady, Timing, Usage
from protocol.wire.generated import infer_reply_generated, infer_request_generated, infer_tensor_generated, layouts
from protocol.wire.inference import decode_reply, decode_request, encode_reply, encode_request
from protocol.wire.verifier import read_message

ROOT = Path(__file__).parents[3]


def test_generated_code_is_in_step_with_the_schemas() -> None:
    tool = runpy.run_path(str(ROOT / "scripts" / "schema_layout.py"))
    assert tool["schemas_hash"]() == layouts.SCHEMAS_HASH, "run `make schemas`"
    assert tool["generated_hash"]() == layouts.GENERATED_HASH, "run `make schemas`"
    assert tool["OUTPUT"].read_text() == tool["source_text"](), "run `make schemas`"


@pytest.mark.parametrize("layout", [layouts.REQUEST, layouts.REPLY], ids=lambda layout: layout.name)
def test_slots_are_where_flatc_puts_them(layout: Any) -> None:
    """A table that flatc's code writes with one field alone is read with that field and no other."""
    modules = (infer_request_generated, infer_reply_generated, infer_tensor_generated)
    functions = {name: value for module in modules for name, value in vars(module).items()}
    for index, table in enumerate(layout.tables):
        for number, field in enumerate(table.fields):
            if field.kind.name != "SCALAR":
                continue
            builder = flatbuffers.Builder(64)
            functions[f"{table.name}Start"](builder)
            camel = "".join(part.capitalize() for part in field.name.split("_"))
            functions[f"{table.name}Add{camel}"](builder, 1)
            builder.Finish(functions[f"{table.name}End"](builder), layout.identifier)
            optional = table._replace(fields=tuple(each._replace(required=False) for each in table.fields))
            tables = (*layout.tables[:index], optional, *layout.tables[index + 1 :])
            values = read_message(builder.Output(), layout._replace(root=index, tables=tables))
            assert [bool(value) and value != (0, None) for value in values] == [each == number for each in range(len(values))]


def test_flatc_code_reads_what_we_write() -> None:
    tensor = Tensor("x/y", "f4", (2, 3), memoryview(bytes(range(24))))
    request = InferenceRequest(bytes(range(16)), Feature.TENSORS, "modèle", b"{}", (tensor, tensor), 2.5, 2, True, 2**40 + 1, 77)
    data = encode_request(request)
    code = infer_request_generated.Request
    assert code.RequestBufferHasIdentifier(data, 0)
    read = code.GetRootAs(data)
    assert read.IdAsNumpy().tobytes() == request.request_id
    assert (read.Feature(), read.Model(), read.BodyAsNumpy().tobytes()) == (4, "modèle".encode(), b"{}")
    assert (read.DeadlineUs(), read.HopsLeft(), read.Stream(), read.TensorsLength()) == (2_500_000, 2, True, 2)
    assert (read.MemoryBytes(), read.OutputTokens()) == (2**40 + 1, 77)
    for index in range(2):
        part = read.Tensors(index)
        assert (part.Name(), part.Dtype()) == (b"x/y", infer_tensor_generated.DataType.Float32)
        assert part.ShapeAsNumpy().tolist() == [2, 3]
        assert part.DataAsNumpy().tobytes() == bytes(range(24))
        assert data.index(bytes(range(24))) % 16 == 0

    finished = Finished(("stop", "length"), Usage(3, 4), Timing(0.25, 0.5))
    reply = infer_reply_generated.Reply.GetRootAs(encode_reply(finished))
    assert reply.EventType() == infer_reply_generated.Event.Finished
    event = infer_reply_generated.Finished()
    event.Init(reply.Event().Bytes, reply.Event().Pos)
    assert [event.FinishReasons(index) for index in range(event.FinishReasonsLength())] == [b"stop", b"length"]
    assert (event.PromptTokens(), event.CompletionTokens(), event.QueueUs(), event.ServiceUs()) == (3, 4, 250_000, 500_000)


def write_bytes(builder: Any, data: bytes) -> int:
    return builder.CreateByteVector(data)


def test_we_read_what_flatc_code_writes() -> None:
    builder = flatbuffers.Builder(0)
    data = write_bytes(builder, bytes(4))
    infer_tensor_generated.TensorStartShapeVector(builder, 2)
    builder.PrependUint32(1)
    builder.PrependUint32(2)
    shape = builder.EndVector()
    infer_tensor_generated.TensorStart(builder)
    infer_tensor_generated.TensorAddShape(builder, shape)
    infer_tensor_generated.TensorAddData(builder, data)
    infer_tensor_generated.TensorAddDtype(builder, infer_tensor_generated.DataType.Int16)
    tensor = infer_tensor_generated.TensorEnd(builder)
    infer_request_generated.RequestStartTensorsVector(builder, 1)
    builder.PrependUOffsetTRelative(tensor)
    tensors = builder.EndVector()
    request_id = write_bytes(builder, bytes(range(16)))
    model = builder.CreateString("m")
    infer_request_generated.RequestStart(builder)
    infer_request_generated.RequestAddTensors(builder, tensors)
    infer_request_generated.RequestAddId(builder, request_id)
    infer_request_generated.RequestAddModel(builder, model)
    infer_request_generated.RequestAddFeature(builder, infer_tensor_generated.Feature.Tensors)
    infer_request_generated.RequestAddDeadlineUs(builder, 1)
    builder.Finish(infer_request_generated.RequestEnd(builder), b"ISIQ")
    expected = Tensor("", "i2", (2, 1), memoryview(bytes(4)))
    request = InferenceRequest(bytes(range(16)), Feature.TENSORS, "m", b"", (expected,), 1e-6, 0, False)
    assert decode_request(builder.Output()) == request

    builder = flatbuffers.Builder(0)
    message = builder.CreateString("no")
    infer_reply_generated.FailedStart(builder)
    infer_reply_generated.FailedAddMessage(builder, message)
    infer_reply_generated.FailedAddCode(builder, ErrorCode.DRAINING)
    failed = infer_reply_generated.FailedEnd(builder)
    infer_reply_generated.ReplyStart(builder)
    infer_reply_generated.ReplyAddEventType(builder, infer_reply_generated.Event.Failed)
    infer_reply_generated.ReplyAddEvent(builder, failed)
    builder.Finish(infer_reply_generated.ReplyEnd(builder), b"ISIR")
    assert decode_reply(builder.Output()) == Failed(ErrorCode.DRAINING, "no")


def test_data_of_tensors_is_aligned_and_not_copied() -> None:
    sent = tuple(Tensor("x" * n, "u1", (n + 8,), memoryview(bytes([200 + n] * (n + 8)))) for n in range(8))
    data = encode_reply(TensorsReady(sent))
    reply = decode_reply(data)
    assert isinstance(reply, TensorsReady)
    assert reply.tensors == sent
    for tensor in reply.tensors:
        assert tensor.data.obj is data
        assert tensor.data.readonly
        assert data.index(bytes(tensor.data)) % 16 == 0
