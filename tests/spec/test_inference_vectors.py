"""Every vector of docs/spec/vectors/inference.json, and the tables of chapter 6."""

import json
import re
from pathlib import Path

import pytest

from protocol.encoding import FrameDecoder
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.inference import (
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
from protocol.wire import inference, verifier
from protocol.wire.generated import infer_reply_generated, infer_tensor_generated, layouts
from protocol.wire.inference import decode_reply, decode_request, encode_reply, encode_request

SPEC = Path(__file__).parents[2] / "docs" / "spec"
VECTORS = json.loads((SPEC / "vectors" / "inference.json").read_text())
CHAPTER = (SPEC / "06-inference.md").read_text()


def name_of(vector: dict) -> str:
    return vector["name"].replace(" ", "-")


def tensor(told: dict) -> Tensor:
    return Tensor(told["name"], told["dtype"], tuple(told["shape"]), memoryview(bytes.fromhex(told["data"])))


def request(told: dict) -> InferenceRequest:
    return InferenceRequest(
        request_id=bytes.fromhex(told["request_id"]),
        feature=Feature(told["feature"]),
        model=told["model"],
        body=bytes.fromhex(told["body"]),
        tensors=tuple(tensor(each) for each in told["tensors"]),
        deadline_s=told["deadline_s"],
        hops_left=told["hops_left"],
        stream=told["stream"],
        memory_bytes=told["memory_bytes"],
        output_tokens=told["output_tokens"],
    )


def reply(told: dict) -> Reply:
    match told["event"]:
        case "accepted":
            return Accepted(told["queue_s"])
        case "text":
            return TextDelta(told["text"], told["index"])
        case "json":
            return JsonDelta(bytes.fromhex(told["payload"]))
        case "tensors":
            return TensorsReady(tuple(tensor(each) for each in told["tensors"]))
        case "finished":
            usage = Usage(told["prompt_tokens"], told["completion_tokens"])
            return Finished(tuple(told["finish_reasons"]), usage, Timing(told["queue_s"], told["service_s"]))
        case "failed":
            return Failed(ErrorCode[told["code"]], told["message"], told["retry_after_s"])
    raise AssertionError(told)


@pytest.mark.parametrize("vector", VECTORS["requests"], ids=name_of)
def test_request(vector: dict) -> None:
    expected = request(vector["request"])
    assert decode_request(bytes.fromhex(vector["message"])) == expected
    assert decode_request(encode_request(expected)) == expected


@pytest.mark.parametrize("vector", VECTORS["replies"], ids=name_of)
def test_reply(vector: dict) -> None:
    expected = reply(vector["reply"])
    assert decode_reply(bytes.fromhex(vector["message"])) == expected
    assert decode_reply(encode_reply(expected)) == expected


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=name_of)
def test_refused(vector: dict) -> None:
    decode = {"request": decode_request, "reply": decode_reply}[vector["kind"]]
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes.fromhex(vector["message"]))
    assert caught.value.code is ErrorCode[vector["code"]]


def test_frame() -> None:
    decoder = FrameDecoder(inference.REQUEST_BYTES_MAX)
    decoder.receive(bytes.fromhex(VECTORS["frame"]["bytes"]))
    assert decoder.next_frame() == bytes.fromhex(VECTORS["requests"][0]["message"])
    assert decoder.buffered_bytes == 0


def bounds() -> dict[str, int]:
    """Every bound of the schemas, by `Table.field`."""
    found: dict[str, int] = {}
    for message in (layouts.REQUEST, layouts.REPLY):
        for table in message.tables:
            for field in table.fields:
                if field.length_max:
                    found[f"{table.name}.{field.name}"] = field.length_max
    return found


def test_bounds_of_the_chapter_are_those_of_the_schemas() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \|[^|]*\|[^|\n]*?at most (\d+)", CHAPTER, re.MULTILINE))
    assert told == {"body": "8388608", "tensors": "32", "name": "256", "shape": "8", "data": "8388608"}
    rows = dict(re.findall(r"^\| \d \| `(\w+)` \|(.*)\|$", CHAPTER, re.MULTILINE))
    schemas = bounds()
    assert {f"Request.{name}" for name in ("body", "tensors")} | {"Tensor.name", "Tensor.shape"} <= set(schemas)
    for name, bound in schemas.items():
        table, field = name.split(".")
        if table in rows:
            assert f"at most {bound}" in rows[table], name
        elif field in told:
            assert told[field] == str(bound), name
    assert schemas["Request.id"] == 16
    assert "| exactly 16;" in CHAPTER
    assert schemas["Request.model"] == inference.MODEL_BYTES_MAX == 256
    assert "1 to 256 bytes" in CHAPTER
    assert f"0 to {inference.MEMORY_BYTES_MAX} (2^50)" in CHAPTER
    assert f"0 to {inference.OUTPUT_TOKENS_MAX} (2^31)" in CHAPTER


def test_numbers_of_the_chapter_are_those_of_the_code() -> None:
    rows = dict(re.findall(r"^\| (\d) \| `(\w+)` \|", CHAPTER, re.MULTILINE))
    events = {str(number): name for name, number in vars(infer_reply_generated.Event).items() if name[0] != "_" and number}
    assert rows == events
    types = re.search(r"\| `dtype` \| enum \| ([^|]*) \|", CHAPTER)
    assert types is not None
    told = {int(number): name for number, name in (pair.split() for pair in types[1].split(", "))}
    assert set(told.values()) == inference.DATA_TYPES
    assert set(told) == {n for name, n in vars(infer_tensor_generated.DataType).items() if name[0] != "_" and n}
    assert f"more than {verifier.TABLES_MAX} tables" in CHAPTER
    assert f"more than {verifier.DEPTH_MAX} deep" in CHAPTER
    assert f"more than {verifier.SLACK_BYTES} bytes more" in CHAPTER
    limits = re.findall(r"^\| (request|reply) \| .* \| (\d+) \|$", CHAPTER, re.MULTILINE)
    assert limits == [("request", str(inference.REQUEST_BYTES_MAX)), ("reply", str(inference.REPLY_BYTES_MAX))]
    for message in (layouts.REQUEST, layouts.REPLY):
        assert f"| `{message.name}` | `{message.identifier.decode()}` |" in CHAPTER


def test_rules_have_ids_of_their_own() -> None:
    ids = re.findall(r"\*\*(ISO-INFER-\d{3})\*\*", CHAPTER)
    assert ids == [f"ISO-INFER-{number:03d}" for number in range(1, len(ids) + 1)]
