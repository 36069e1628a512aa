"""Receipts: what is signed of an answer, and what is seen when anything of it is changed."""

import hashlib
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.identity import Identity
from protocol.inference import Feature, InferenceRequest, JsonDelta, Output, Tensor, TensorsReady, TextDelta
from protocol.receipts import (
    RECEIPT_BYTES_MAX,
    AnswerChain,
    Receipt,
    check_receipt,
    hash_request,
    open_receipt,
    output_bytes,
    sign_receipt,
)

ASKING, ANSWERING, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
REQUEST = InferenceRequest(bytes(range(16)), Feature.CHAT, "m", b'{"messages":[]}', receipt=True)
OUTPUTS: tuple[Output, ...] = (TextDelta("Time "), TextDelta("flies"), JsonDelta(b'{"index":0}'))


def tensor(*values: int, shape: tuple[int, ...] | None = None, name: str = "x") -> Tensor:
    return Tensor(name, "u1", shape or (len(values),), memoryview(bytes(values)))


def chain_of(*outputs: Output) -> AnswerChain:
    chain = AnswerChain()
    for output in outputs:
        chain.add(output)
    return chain


def receipt_of(request: InferenceRequest = REQUEST, outputs: tuple[Output, ...] = OUTPUTS, **changes: object) -> Receipt:
    chain = chain_of(*outputs)
    hashed = hash_request(request.feature, request.model, request.body, request.tensors)
    named = {"model_digest": bytes([9]) * 32, "prompt_tokens": 7, "completion_tokens": 3, "queue_us": 5, "service_us": 6}
    named |= {"began_ms": 1_780_000_000_000, "ended_ms": 1_780_000_000_123}
    made = Receipt(
        request.request_id,
        ASKING.peer_id,
        ANSWERING.peer_id,
        request.feature,
        hashed,
        chain.link,
        chain.outputs,
        request.model,
        **named,
    )
    return replace(made, **changes)


def check(receipt: Receipt, request: InferenceRequest = REQUEST, outputs: tuple[Output, ...] = OUTPUTS) -> None:
    check_receipt(receipt, request, chain_of(*outputs), (ASKING.peer_id,), ANSWERING.peer_id)


counts = st.integers(0, 2**53)
receipts = st.builds(
    Receipt,
    request_id=st.binary(min_size=16, max_size=16),
    requester=st.just(ASKING.peer_id),
    executor=st.just(ANSWERING.peer_id),
    feature=st.sampled_from(Feature),
    request_hash=st.binary(min_size=32, max_size=32),
    answer_hash=st.binary(min_size=32, max_size=32),
    outputs=counts,
    model=st.text(min_size=1, max_size=60).filter(
        lambda name: 0 < len(name.encode("utf-8", "replace")) <= 256 and name.isprintable()
    ),
    model_digest=st.sampled_from([b"", bytes(32), bytes([1]) * 32]),
    prompt_tokens=counts,
    completion_tokens=counts,
    queue_us=counts,
    service_us=counts,
    began_ms=counts,
    ended_ms=counts,
)


@given(receipts)
def test_receipts_survive_their_journey(receipt: Receipt) -> None:
    signed = sign_receipt(ANSWERING, receipt)
    assert len(signed) <= RECEIPT_BYTES_MAX
    assert open_receipt(signed) == receipt


def test_the_longest_receipt_fits() -> None:
    counted = {field.name: 2**53 for field in fields(Receipt) if field.type is int}
    longest = replace(receipt_of(), model="m" * 256, **counted)
    assert len(sign_receipt(ANSWERING, longest)) <= RECEIPT_BYTES_MAX


def test_a_receipt_of_another_signer_is_refused() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        open_receipt(sign_receipt(OTHER, receipt_of()))
    assert caught.value.code is ErrorCode.BAD_SIGNATURE


@given(st.data())
def test_no_bit_of_a_receipt_can_be_changed(data: st.DataObject) -> None:
    signed = bytearray(sign_receipt(ANSWERING, receipt_of()))
    signed[data.draw(st.integers(0, len(signed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        open_receipt(bytes(signed))


@given(st.binary(max_size=1100))
def test_any_bytes_are_no_receipt(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_receipt(data)


def test_a_good_receipt_passes() -> None:
    check(receipt_of())
    check_receipt(receipt_of(executor=OTHER.peer_id), REQUEST, chain_of(*OUTPUTS), (OTHER.peer_id, ASKING.peer_id), None)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"request_id": bytes(16)}, "another request id"),
        ({"request_hash": bytes(32)}, "another request"),
        ({"feature": Feature.COMPLETIONS}, "another request"),
        ({"model": "n"}, "another model"),
        ({"answer_hash": bytes(32)}, "another answer"),
        ({"outputs": 2}, "another answer"),
        ({"requester": OTHER.peer_id}, "another requester"),
        ({"executor": OTHER.peer_id}, "another executing peer"),
    ],
)
def test_what_differs_is_named(changes: dict[str, object], what: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        check(replace(receipt_of(), **changes))
    assert caught.value.detail == f"the receipt is for {what}"


@pytest.mark.parametrize(
    "outputs",
    [
        OUTPUTS[:2],
        (*OUTPUTS, TextDelta("")),
        (OUTPUTS[1], OUTPUTS[0], OUTPUTS[2]),
        (TextDelta("Time flies"), OUTPUTS[2]),
        (TextDelta("Time ", 1), *OUTPUTS[1:]),
        (TextDelta("Tim"), TextDelta("e flies"), OUTPUTS[2]),
    ],
)
def test_another_answer_has_another_chain(outputs: tuple[Output, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        check(receipt_of(), outputs=outputs)


def test_requests_that_differ_have_hashes_that_differ() -> None:
    hashes = {
        hash_request(feature, model, body, tensors)
        for feature, model, body, tensors in [
            (Feature.CHAT, "m", b"{}", ()),
            (Feature.COMPLETIONS, "m", b"{}", ()),
            (Feature.CHAT, "m{", b"}", ()),
            (Feature.CHAT, "m", b"", ()),
            (Feature.TENSORS, "m", b"", (tensor(1, 2),)),
            (Feature.TENSORS, "m", b"", (tensor(1, 2, shape=(2, 1)),)),
            (Feature.TENSORS, "m", b"", (tensor(1, 2, name="y"),)),
            (Feature.TENSORS, "m", b"", (tensor(1), tensor(2))),
        ]
    }
    assert len(hashes) == 8


def test_the_hashes_are_what_the_specification_says() -> None:
    def field(data: bytes) -> bytes:
        return len(data).to_bytes(8, "big") + data

    asked = field(b"isochrone request 1") + field(b"chat") + field(b"m") + field(b'{"messages":[]}')
    assert hash_request(Feature.CHAT, "m", memoryview(b'{"messages":[]}')) == hashlib.sha256(asked).digest()
    assert output_bytes(TextDelta("é", 3)) == field(b"text") + field(b"\x00\x03") + field("é".encode())
    assert output_bytes(JsonDelta(b"{}")) == field(b"json") + field(b"{}")
    told = field(b"x") + field(b"u1") + field(b"\0\0\0\1\0\0\0\2") + field(b"\1\2")
    assert output_bytes(TensorsReady((tensor(1, 2, shape=(1, 2)),))) == field(b"tensors") + told
    first = hashlib.sha256(bytes(32) + output_bytes(TextDelta("a"))).digest()
    assert chain_of(TextDelta("a")).link == first
    assert chain_of(TextDelta("a"), TextDelta("b")).link == hashlib.sha256(first + output_bytes(TextDelta("b"))).digest()
