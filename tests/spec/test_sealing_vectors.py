"""Every vector of docs/spec/vectors/sealing.json."""

import json
from pathlib import Path

import pytest

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity, SealingKey
from protocol.inference import Feature, JsonDelta, Output, Tensor, TensorsReady, TextDelta
from protocol.receipts import AnswerChain, Receipt, hash_request, open_receipt, sign_receipt
from protocol.sealing import AnswerOpener, Header, Route, decode_header, encode_header, open_request, seal_request

VECTORS = json.loads((Path(__file__).parents[2] / "docs" / "spec" / "vectors" / "sealing.json").read_text())
REQUESTER, RELAY, EXECUTOR = (
    Identity.from_seed(bytes.fromhex(VECTORS["peers"][f"{name}_seed"])) for name in ("requester", "relay", "executor")
)


def name_of(vector: dict) -> str:
    return vector["name"].replace(" ", "-")


def raw(vector: dict, name: str) -> bytes:
    return bytes.fromhex(vector[name])


def route_of(vector: dict) -> Route:
    return Route(raw(vector, "request_id"), REQUESTER.peer_id, RELAY.peer_id, EXECUTOR.peer_id)


def opener_of(vector: dict) -> AnswerOpener:
    sealed, opener = seal_request(
        REQUESTER,
        route_of(vector),
        raw(vector, "request"),
        raw(vector, "sealing_public_key"),
        raw(vector, "ephemeral_key"),
        vector["pad_bytes"],
    )
    assert sealed == raw(vector, "sealed")
    return opener


def open_all(opener: AnswerOpener, frames: list[str]) -> None:
    for frame in frames:
        opener.receive(bytes.fromhex(frame))
    opener.finish()


@pytest.mark.parametrize("vector", VECTORS["sealed"], ids=name_of)
def test_requests_and_answers(vector: dict) -> None:
    assert route_of(vector).to_bytes() == raw(vector, "route")
    opener = opener_of(vector)
    key = SealingKey(raw(vector, "sealing_key"))
    assert key.public_key == raw(vector, "sealing_public_key")
    request, sealer = open_request(key, route_of(vector), raw(vector, "sealed"), raw(vector, "answer_nonce"))
    assert request == raw(vector, "request")
    sealer.pad_bytes = vector["pad_bytes"]
    pieces = [bytes.fromhex(piece) for piece in vector["pieces"]]
    frames = [frame for n, piece in enumerate(pieces) for frame in sealer.seal(piece, is_final=n == len(pieces) - 1)]
    assert [frame.hex() for frame in frames] == vector["frames"]
    opened = [opener.receive(frame) for frame in frames]
    opener.finish()
    assert [piece for piece in opened if piece] == [piece for piece in pieces if piece]


@pytest.mark.parametrize("vector", VECTORS["invalid_answers"], ids=name_of)
def test_answers_that_are_refused(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_all(opener_of(VECTORS["sealed"][0]), vector["frames"])
    assert caught.value.code is ErrorCode[vector["code"]]


@pytest.mark.parametrize("vector", VECTORS["headers"], ids=name_of)
def test_headers(vector: dict) -> None:
    header = Header(raw(vector, "request_id"), vector["deadline_us"] / 1e6, vector["hop"], raw(vector, "far_end"))
    assert encode_header(header) == raw(vector, "bytes")
    assert decode_header(raw(vector, "bytes")) == header


@pytest.mark.parametrize("vector", VECTORS["invalid_headers"], ids=name_of)
def test_headers_that_are_refused(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_header(raw(vector, "bytes"))
    assert caught.value.code is ErrorCode[vector["code"]]


def tensor(told: dict) -> Tensor:
    return Tensor(told["name"], told["dtype"], tuple(told["shape"]), memoryview(bytes.fromhex(told["data"])))


def output(told: dict) -> Output:
    if "text" in told:
        return TextDelta(told["text"], told["index"])
    if "json" in told:
        return JsonDelta(bytes.fromhex(told["json"]))
    return TensorsReady(tuple(tensor(each) for each in told["tensors"]))


@pytest.mark.parametrize("vector", VECTORS["receipts"], ids=name_of)
def test_receipts(vector: dict) -> None:
    feature, tensors = Feature(vector["feature"]), [tensor(told) for told in vector["tensors"]]
    assert hash_request(feature, vector["model"], raw(vector, "body"), tensors) == raw(vector, "request_hash")
    chain, links = AnswerChain(), []
    for told in vector["outputs"]:
        chain.add(output(told))
        links.append(chain.link.hex())
    assert links == vector["links"]
    numbers = [vector[name] for name in ("prompt_tokens", "completion_tokens", "queue_us", "service_us", "began_ms", "ended_ms")]
    receipt = Receipt(
        bytes(range(16)), REQUESTER.peer_id, EXECUTOR.peer_id, feature, raw(vector, "request_hash"), chain.link, chain.outputs,
        vector["model"], raw(vector, "model_digest"), *numbers,
    )  # fmt: skip
    assert sign_receipt(EXECUTOR, receipt) == raw(vector, "signed")
    assert open_receipt(raw(vector, "signed")) == receipt


@pytest.mark.parametrize("vector", VECTORS["invalid_receipts"], ids=name_of)
def test_receipts_that_are_refused(vector: dict) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_receipt(raw(vector, "bytes"))
    assert caught.value.code is ErrorCode[vector["code"]]
